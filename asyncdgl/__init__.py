"""Asynchronous Decoupled Greedy Learning (Belilovsky, Eickenberg, Oyallon, ICML 2020) in real processes.

Importing the package loads neither torch nor ray, so that the command line answers at once; what is named here is
imported when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.3.0"

if TYPE_CHECKING:
    from asyncdgl.buffers.buffer import ReplayBuffer
    from asyncdgl.config.model import RunConfig
    from asyncdgl.learn.stage import Stage
    from asyncdgl.observer import NullObserver, Recorder
    from asyncdgl.run import load_run, replay, run
    from asyncdgl.sweep.results import load_sweep

__all__ = [
    "NullObserver",
    "Recorder",
    "ReplayBuffer",
    "RunConfig",
    "Stage",
    "load_run",
    "load_sweep",
    "replay",
    "run",
]

_HOMES = {
    "NullObserver": "asyncdgl.observer",
    "Recorder": "asyncdgl.observer",
    "ReplayBuffer": "asyncdgl.buffers.buffer",
    "RunConfig": "asyncdgl.config.model",
    "Stage": "asyncdgl.learn.stage",
    "load_run": "asyncdgl.run",
    "load_sweep": "asyncdgl.sweep.results",
    "replay": "asyncdgl.run",
    "run": "asyncdgl.run",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value  # also in place of the submodule `run`, which the import has just put there
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
