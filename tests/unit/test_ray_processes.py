"""Whoever watches Ray's own processes: here other programs of their names."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from queue import SimpleQueue

import pytest

from asyncdgl.errors import NeedsRestart, StageFailed
from asyncdgl.on_ray import ray_processes
from asyncdgl.on_ray.ray_processes import RayProcesses


@pytest.fixture
def raylet(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    sleep = shutil.which("sleep")
    assert sleep is not None
    process = subprocess.Popen([shutil.copy(sleep, tmp_path / "raylet"), "600"])
    yield process
    process.kill()
    process.wait()


def until_dead(own: RayProcesses, raylet: subprocess.Popen[bytes]) -> None:
    while own._found == {}:  # it must have been there
        pass
    raylet.kill()
    while own.dead is None:
        pass


def test_a_death_is_raised_once(raylet) -> None:
    hung: list[str] = []
    with RayProcesses(hung.append) as own:
        own.check()
        until_dead(own, raylet)
        with pytest.raises(NeedsRestart, match="Ray's raylet died"):
            own.check()
        own.check()
    assert hung == []


def test_other_errors_are_its_doing(raylet) -> None:
    with pytest.raises(NeedsRestart, match="Ray's raylet died"), RayProcesses(lambda message: None) as own:
        until_dead(own, raylet)
        raise StageFailed("stage 2: its process died")
    with pytest.raises(KeyboardInterrupt), RayProcesses(lambda message: None) as own:
        raise KeyboardInterrupt


def test_who_does_not_come_back_from_ray_is_told_of(raylet, monkeypatch) -> None:
    monkeypatch.setattr(ray_processes, "STUCK_S", 0.0)
    hung: SimpleQueue[str] = SimpleQueue()
    with RayProcesses(hung.put) as own:
        until_dead(own, raylet)
        assert hung.get(timeout=60) == "Ray's raylet died, and Ray does not return from a call"


def test_what_ends_in_order_has_not_died(raylet) -> None:
    with pytest.raises(StageFailed, match="something else"), RayProcesses(lambda message: None) as own:
        own.rest()
        raylet.kill()
        raylet.wait()
        raise StageFailed("something else")
    assert own.dead is None
