"""Where runs were computed: as facts of one run, and where several runs differ."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

UNKNOWN = "not recorded"


def environment_facts(environment: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Versions, hardware, threads and the command line of one run."""
    if not environment:
        return [("environment", UNKNOWN)]
    versions = ", ".join(f"{name} {version}" for name, version in _packages(environment).items())
    rows = [("packages", versions), *_machine(environment).items()]
    processes = environment.get("processes")
    if isinstance(processes, list):
        nodes = {str(process.get("node")) for process in processes if isinstance(process, Mapping)}
        rows.append(("processes", f"{len(processes)} on {len(nodes)} {'machine' if len(nodes) == 1 else 'machines'}"))
    rows.append(("command", _text(environment.get("command"))))
    return [(name, value) for name, value in rows if value]


def compare_environments(environments: Sequence[Mapping[str, Any]]) -> tuple[list[tuple[str, str]], list[str]]:
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


def _packages(environment: Mapping[str, Any]) -> dict[str, str]:
    packages = environment.get("packages")
    own = {"asyncdgl": environment.get("asyncdgl"), "Python": environment.get("python")}
    listed = {**own, **(packages if isinstance(packages, Mapping) else {})}
    return {name: _text(version) for name, version in listed.items() if version}


def _machine(environment: Mapping[str, Any]) -> dict[str, str]:
    cpu, memory = environment.get("cpu"), environment.get("memory_bytes")
    cpu = cpu if isinstance(cpu, Mapping) else {}
    features = cpu.get("features")
    return {
        "system": _text(environment.get("platform")),
        "processor": _text(cpu.get("name"))
        + (f" ({', '.join(map(str, features))})" if isinstance(features, list) and features else ""),
        "cores": _text(environment.get("cores")),
        "memory": f"{memory / 2**30:.1f} GiB" if isinstance(memory, int | float) else "",
        "threads of each stage": _text(environment.get("threads_per_stage")),
        "SHA-256 of the data": _text(environment.get("data_sha256")),
    }


def _text(value: Any) -> str:
    return "" if value is None else value if isinstance(value, str) else json.dumps(value)
