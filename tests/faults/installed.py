"""What the real parts meet instead of processes, sockets, clocks, disks and arithmetic: the world's."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Protocol
from unittest.mock import patch

from faults.hashing import HashEvaluator
from faults.sockets import Clock, Sockets, System
from faults.virtual_ray import VirtualRay
from faults.world import World


class Doings(Protocol):
    """What a run does that takes time, or may fail."""

    def make_passes(self, config: Any, dataset: Any, number: int, clock: Any) -> Any:
        """See ``build.make_passes``."""

    def evaluate(self) -> None:
        """Takes the time of an evaluation."""

    def save_arrays(self, path: Path, content: Any, about: Any) -> None:
        """See ``arrays.save_arrays``."""

    def to_disk(self, path: Path) -> None:
        """See ``disk.to_disk``."""


class _NoSuchProcess(Exception):
    pass


def _nothing(*_: Any, **__: Any) -> None:
    pass


def _no_data(*_: Any) -> Any:
    return SimpleNamespace(open=_nothing, without_content=_nothing)


@contextlib.contextmanager
def installed(world: World, ray: VirtualRay, system: System, doings: Doings) -> Iterator[None]:
    """Everything that the package knows of processes, sockets, clocks, the disk and arithmetic is the world's."""

    def process(pid: int) -> Any:
        if pid not in world.processes:
            raise _NoSuchProcess
        return SimpleNamespace(status=lambda: "running")

    clock = Clock(world)
    psutil = SimpleNamespace(Process=process, STATUS_ZOMBIE="zombie", NoSuchProcess=_NoSuchProcess)
    names = itertools.count()
    secrets = SimpleNamespace(token_hex=lambda _: f"name {next(names)}")
    evaluator = HashEvaluator(doings.evaluate)
    on_ray = {
        "transport.calls": {"ray": ray, "socket": Sockets(world), "time": clock, "os": system, "secrets": secrets},
        "transport.memory": {"os": system, "mmap": system},
        "buffer": {"ray": ray, "time": clock},
        "pace": {"time": clock},
        "stage": {"time": clock, "set_up_torch": _nothing, "make_passes": doings.make_passes},
        "stage_actor": {"set_up_torch": _nothing},
        "spares": {"ray": ray, "time": clock},
        "evaluator": {"ray": ray, "set_up_torch": _nothing, "make_evaluator": lambda *_: evaluator},
        "run": {"ray": ray, "time": clock, "START_LIMIT_S": 20.0, "secrets": secrets, "share_data": _no_data},
        "watch": {"ray": ray},
        "silence": {"ray": ray, "os": system, "time": clock},
        "results": {"ray": ray, "time": clock},
        "counts": {"time": clock},
        "hosts": {"ray": ray, "time": clock},
        "greeting": {"ray": ray, "os": system, "psutil": psutil},
        "placement": {"ray": ray, "placement_group": _nothing, "remove_placement_group": _nothing}
        | {"PlacementGroupSchedulingStrategy": _nothing, "wait_for_placement": _nothing}
        | {"placement_group_table": lambda _: {"bundles_to_node_id": {}}},
    }
    others = {
        "engine.checkpoints": {"time": clock},
        "engine.reports": {"time": clock, "SOONEST_SAVED_S": 2.0},
        "plan.memory": {"KEPT_BYTES": 1},  # so that the least that is kept is kept
        "rundir.arrays": {"to_disk": doings.to_disk},
        "rundir.checkpoint": {"to_disk": doings.to_disk, "save_arrays": doings.save_arrays},
        "rundir.lines": {"to_disk": doings.to_disk},
    }
    with contextlib.ExitStack() as stack:
        for module, values in ({f"on_ray.{name}": of for name, of in on_ray.items()} | others).items():
            stack.enter_context(patch.multiple(f"asyncdgl.{module}", **values))
        yield
