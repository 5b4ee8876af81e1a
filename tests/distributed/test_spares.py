"""Spare processes as the driver sees them; test_faults.py has runs in which they take the place of a stage."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from asyncdgl.config.ray import RayConfig
from asyncdgl.engine.history import MOST_DEATHS, Faults

LIMIT_S = 100


@pytest.fixture
def make_spares(cluster) -> Iterator[Callable[..., Any]]:
    """``make_spares(count)``: small ones, and what is told of them."""
    import ray

    from asyncdgl.on_ray.spares import Spares

    class Small:
        """An actor that greets and does no more; defined here, since no worker can import a test."""

        def __init__(self, lives: bool) -> None:
            self._lives = lives

        def hello(self) -> dict[str, Any]:
            return {"pid": os.getpid(), "node": ray.util.get_node_ip_address()}

        def rehearse(self) -> dict[str, Any]:
            if not self._lives:
                os._exit(1)
            return self.hello()

    actors = []

    def make(count: int, lives: bool = True) -> Any:
        told = SimpleNamespace(there={}, notices=[], faults=Faults())

        def new() -> Any:
            actors.append(ray.remote(Small).options(num_cpus=0.05).remote(lives))
            return actors[-1]

        told.spares = Spares(
            RayConfig(spares=count, deaf_s=2.0),
            new,
            told.faults,
            time.monotonic,
            told.there.__setitem__,
            lambda name: told.there.pop(name, None),
            told.notices.append,
        )
        told.spares.fill()
        return told

    yield make
    for actor in actors:
        ray.kill(actor)


def look_until(told: Any, holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not holds():
        assert time.monotonic() < deadline
        told.spares.look()
        time.sleep(0.02)


def pids(told: Any) -> dict[str, int]:
    return {name: greeting["pid"] for name, greeting in told.there.items()}


@pytest.mark.ray
def test_a_spare_is_given_once_and_another_one_comes(make_spares) -> None:
    import ray

    told = make_spares(2)
    look_until(told, lambda: len(told.there) == 2)
    before = pids(told)
    node = told.there["spare 1"]["node"]
    assert told.spares.take("10.9.8.7") is None  # another machine's
    given = [told.spares.take(node), told.spares.take(node)]
    assert {greeting["pid"] for greeting in ray.get([actor.hello.remote() for actor in given])} == {*before.values()}
    assert told.there == {}
    assert told.spares.take(node) is None
    told.spares.fill()
    assert told.spares.take(node) is not None  # it is on its way
    told.spares.fill()
    look_until(told, lambda: len(told.there) == 2)
    assert not {*before.values()} & {*pids(told).values()}
    assert told.faults.all == []


@pytest.mark.ray
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_spare_that_does_not_answer_is_not_given_and_is_replaced(make_spares, number) -> None:
    told = make_spares(1)
    look_until(told, lambda: len(told.there) == 1)
    node, pid = told.there["spare 1"]["node"], pids(told)["spare 1"]
    os.kill(pid, number)
    if number == signal.SIGKILL:  # Ray's own notice of it may come later than a question
        psutil.wait_procs([psutil.Process(pid)], timeout=LIMIT_S)
    assert told.spares.take(node) is None
    look_until(told, lambda: pids(told).get("spare 1", pid) != pid)
    assert not psutil.pid_exists(pid)
    (fault,) = told.faults.all
    assert fault.process == "spare 1"
    assert fault.again_s > fault.at_s
    assert told.spares.take(node) is not None


@pytest.mark.ray
def test_spares_that_die_before_they_are_ready_are_given_up(make_spares) -> None:
    told = make_spares(1, lives=False)
    look_until(told, lambda: bool(told.notices))
    assert told.notices[0].startswith(f"no spare 1: its process died {MOST_DEATHS} times before it was ready")
    assert told.spares.actors == []
    assert [fault.process for fault in told.faults.all] == ["spare 1"] * MOST_DEATHS
