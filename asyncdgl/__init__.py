"""Asynchronous Decoupled Greedy Learning (Belilovsky, Eickenberg, Oyallon, ICML 2020) in real processes.

Importing the package loads neither torch nor ray, so that the command line answers at once; what is named here is
imported when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.3.0"

if TYPE_CHECKING:
    from asyncdgl.api import evaluate, load_run, predict, replay, resume, run, sweep
    from asyncdgl.buffers.buffer import ReplayBuffer
    from asyncdgl.config.model import RunConfig
    from asyncdgl.learn.stage import Stage
    from asyncdgl.observer import NullObserver, Recorder
    from asyncdgl.sweeps.results import load_sweep

__all__ = [
    "NullObserver",
    "Recorder",
    "ReplayBuffer",
    "RunConfig",
    "Stage",
    "evaluate",
    "load_run",
    "load_sweep",
    "predict",
    "replay",
    "resume",
    "run",
    "sweep",
]

_HOMES = {
    "NullObserver": "asyncdgl.observer",
    "Recorder": "asyncdgl.observer",
    "ReplayBuffer": "asyncdgl.buffers.buffer",
    "RunConfig": "asyncdgl.config.model",
    "Stage": "asyncdgl.learn.stage",
    "evaluate": "asyncdgl.api",
    "load_run": "asyncdgl.api",
    "load_sweep": "asyncdgl.sweeps.results",
    "predict": "asyncdgl.api",
    "replay": "asyncdgl.api",
    "resume": "asyncdgl.api",
    "run": "asyncdgl.api",
    "sweep": "asyncdgl.api",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
