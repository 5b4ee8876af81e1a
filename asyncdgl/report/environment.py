"""Where runs were computed: as facts of one run, and where several runs differ."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from asyncdgl.rundir.records import Environment

UNKNOWN = "not recorded"


def environment_facts(environment: Environment | None) -> list[tuple[str, str]]:
    """Versions, hardware, threads and the command line of one run."""
    if environment is None:
        return [("environment", UNKNOWN)]
    versions = ", ".join(f"{name} {version}" for name, version in _packages(environment).items())
    rows = [("packages", versions), *_machine(environment).items()]
    if environment.processes:
        nodes = {process.node for process in environment.processes}
        machines = f"{len(nodes)} {'machine' if len(nodes) == 1 else 'machines'}"
        rows.append(("processes", f"{len(environment.processes)} on {machines}"))
    rows.append(("command", environment.command))
    return [(name, value) for name, value in rows if value]


def compare_environments(environments: Sequence[Environment | None]) -> tuple[list[tuple[str, str]], list[str]]:
    """The environments of a sweep's runs as facts, and the names of those in which they differ."""
    recorded = [{**_packages(environment), **_machine(environment)} for environment in environments if environment]
    rows, differing = [], []
    for name in dict.fromkeys(name for of_run in recorded for name in of_run):
        counts = Counter(of_run.get(name, "") or UNKNOWN for of_run in recorded)
        if len(counts) > 1:
            differing.append(name)
        shown = [value if len(counts) == 1 else f"{value} ({_runs(count)})" for value, count in counts.items()]
        if list(counts) != [UNKNOWN]:
            rows.append((name, "; ".join(shown)))
    lacking = len(environments) - len(recorded)
    return [*rows, *([(UNKNOWN, _runs(lacking))] if lacking else [])], differing


def _runs(count: int) -> str:
    return f"{count} {'run' if count == 1 else 'runs'}"


def _packages(environment: Environment) -> dict[str, str]:
    listed = {"asyncdgl": environment.asyncdgl, "Python": environment.python, **environment.packages}
    return {name: version for name, version in listed.items() if version}


def _machine(environment: Environment) -> dict[str, str]:
    cpu, threads = environment.cpu, environment.threads_per_stage
    return {
        "system": environment.platform,
        "processor": (cpu.name or "") + (f" ({', '.join(cpu.features)})" if cpu.features else ""),
        "cores": str(environment.cores),
        "memory": f"{environment.memory_bytes / 2**30:.1f} GiB",
        "threads of each stage": str(threads) if isinstance(threads, int) else ", ".join(map(str, threads)),
        "SHA-256 of the data": environment.data_sha256 or "",
    }
