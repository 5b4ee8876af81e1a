"""environment.json: what the bits of a run depend on besides its configuration."""

from __future__ import annotations

import os
import platform
import shlex
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

import psutil

from asyncdgl import __version__
from asyncdgl.config.resolved import ResolvedConfig
from asyncdgl.rundir.records import Cpu, Environment, Host, Process

PACKAGES = ("torch", "torchvision", "numpy", "ray", "scikit-learn", "pydantic")
BIT_CHANGING_FEATURES = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "amx_tile")


def describe_environment(
    config: ResolvedConfig,
    data_sha256: str | None,
    cores: int,
    processes: Sequence[Process] = (),
    hosts: Sequence[Host] = (),
) -> Environment:
    """Versions, hardware, threads and the command line; no environment variables, which may hold secrets."""
    return Environment(
        asyncdgl=__version__,
        python=platform.python_version(),
        packages={name: _version(name) for name in PACKAGES},
        platform=platform.platform(),
        cpu=_cpu(),
        cores=cores,
        memory_bytes=psutil.virtual_memory().total,
        threads_per_stage=config.ray.threads or config.threads,
        data_sha256=data_sha256,
        command=_readable(shlex.join([os.path.basename(sys.argv[0]), *sys.argv[1:]])),
        processes=tuple(processes),
        hosts=tuple(hosts),
    )


def _readable(text: str) -> str:
    """Bytes of a path that are no UTF-8 are escaped: no file of a run could hold them otherwise."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _cpu() -> Cpu:
    fields: dict[str, str] = {}
    try:
        with Path("/proc/cpuinfo").open(encoding="utf-8") as file:
            for line in file:
                name, _, value = line.partition(":")
                fields.setdefault(name.strip(), value.strip())
    except OSError:
        return Cpu(name=platform.processor(), features=None)
    flags = fields.get("flags", "").split()
    return Cpu(name=fields.get("model name"), features=tuple(f for f in BIT_CHANGING_FEATURES if f in flags))


def environment_differences(there: Environment | None, here: Environment) -> list[str]:
    """What bits depend on and is not the same here: versions, threads, CPU, data."""
    if there is None:
        return ["the environment is not recorded there"]
    known = {
        "asyncdgl": (there.asyncdgl, here.asyncdgl),
        "python": (there.python, here.python),
        **{name: (there.packages.get(name), version) for name, version in here.packages.items()},
        "threads of each stage": (_threads(there), _in_words(here.threads_per_stage)),
        "CPU": (there.cpu.name, here.cpu.name),
        "CPU features": (_features(there), _features(here)),
        "data (sha256)": (there.data_sha256, here.data_sha256),
    }
    return [f"{name} {was} there, {is_now} here" for name, (was, is_now) in known.items() if was != is_now]


def _threads(environment: Environment) -> str:
    """As the stages' own processes counted them, where they did."""
    counted = tuple(process.threads for process in environment.processes if process.threads is not None)
    return _in_words(counted or environment.threads_per_stage)


def _in_words(threads: int | tuple[int, ...]) -> str:
    """One number where all stages have as many."""
    each = (threads,) if isinstance(threads, int) else threads
    return ", ".join(map(str, each if len(set(each)) > 1 else each[:1]))


def _features(environment: Environment) -> str | None:
    features = environment.cpu.features
    return None if features is None else " ".join(features)
