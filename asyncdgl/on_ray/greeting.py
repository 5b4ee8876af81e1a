"""What every actor says of itself at the start: who it is."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import psutil
import ray

import asyncdgl
from asyncdgl.errors import StageFailed
from asyncdgl.rundir.records import Process

SPARE = "spare"
"""What the names of spares begin with."""


def hello() -> dict[str, Any]:
    """Who this process is: the driver refuses actors that run another asyncdgl than its own."""
    errors = Path("/proc/self/fd/2")
    return {
        "pid": os.getpid(),
        "log": str(errors.resolve()) if errors.exists() else None,
        "node": ray.util.get_node_ip_address(),  # type: ignore[no-untyped-call]
        "version": asyncdgl.__version__,
        "path": str(Path(asyncdgl.__file__).resolve().parent),
    }


def check_same(name: str, greeting: Mapping[str, Any]) -> None:
    """Whether a process runs the package that this one does.

    Raises:
        StageFailed: it runs another one.
    """
    own = hello()
    for what in ("version", "path"):
        if greeting[what] != own[what] and (what == "version" or greeting["node"] == own["node"]):
            raise StageFailed(
                f"{name} runs asyncdgl {greeting['version']} from {greeting['path']}, but this process runs "
                f"{own['version']} from {own['path']}: install the same package everywhere"
            )


def dead_process(processes: Iterable[Process]) -> str | None:
    """The first of this machine's processes of a run that lives no more. Nobody uses a spare: it is none of them."""
    here = hello()["node"]
    for process in processes:
        if process.name.startswith(SPARE):
            continue
        try:
            if process.node == here and psutil.Process(process.pid).status() == psutil.STATUS_ZOMBIE:
                return process.name
        except psutil.NoSuchProcess:
            return process.name
    return None
