"""Whoever watches Ray's own processes: here other programs of their names."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from queue import SimpleQueue

import pytest

from asyncdgl.errors import NeedsRestart, StageFailed
from asyncdgl.on_ray import ray_processes
from asyncdgl.on_ray.ray_processes import RayProcesses

Start = Callable[[RayProcesses], subprocess.Popen[bytes]]


@pytest.fixture
def started(tmp_path: Path) -> Iterator[Start]:
    """``started(own)``: a process of that name, once it was seen; another one, of another cluster, was there before."""
    sleep = shutil.which("sleep")
    assert sleep is not None
    program = shutil.copy(sleep, tmp_path / "raylet")
    processes = [subprocess.Popen([program, "600"])]

    def start(own: RayProcesses) -> subprocess.Popen[bytes]:
        processes.append(subprocess.Popen([program, "600"]))
        while own._found == {}:
            time.sleep(0.01)
        return processes[-1]

    yield start
    for process in processes:
        process.kill()
        process.wait()


def until_dead(own: RayProcesses, started: Start) -> None:
    started(own).kill()
    while own.dead is None:
        time.sleep(0.01)


def test_a_death_is_raised_once(started) -> None:
    hung: list[str] = []
    with RayProcesses(hung.append) as own:
        own.check()
        until_dead(own, started)
        with pytest.raises(NeedsRestart, match="Ray's raylet died"):
            own.check()
        own.check()
    assert hung == []


def test_other_errors_are_its_doing(started) -> None:
    with pytest.raises(NeedsRestart, match="Ray's raylet died"), RayProcesses(lambda message: None) as own:
        until_dead(own, started)
        raise StageFailed("stage 2: its process died")
    with pytest.raises(KeyboardInterrupt), RayProcesses(lambda message: None) as own:
        raise KeyboardInterrupt


def test_who_does_not_come_back_from_ray_is_told_of(started, monkeypatch) -> None:
    monkeypatch.setattr(ray_processes, "STUCK_S", 0.0)
    hung: SimpleQueue[str] = SimpleQueue()
    with RayProcesses(hung.put) as own:
        until_dead(own, started)
        assert hung.get(timeout=60) == "Ray's raylet died, and Ray does not return from a call"


def test_what_ends_in_order_has_not_died(started) -> None:
    with pytest.raises(StageFailed, match="something else"), RayProcesses(lambda message: None) as own:
        process = started(own)
        own.rest()
        process.kill()
        process.wait()
        raise StageFailed("something else")
    assert own.dead is None
