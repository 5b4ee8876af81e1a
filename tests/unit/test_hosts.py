"""Other machines: how far their clocks are ahead, also as they drift, and what they must not run otherwise."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from asyncdgl.on_ray import hosts
from asyncdgl.on_ray.host_actor import HostActor, source_sha256
from asyncdgl.on_ray.hosts import PACKAGES, HostClock, Hosts, differences, read_clock
from asyncdgl.rundir.environment import BIT_CHANGING_FEATURES


class World:
    """Two clocks, and messages between their machines that take a while, one way more than the other."""

    def __init__(self, seed: int, ahead_s: float, drift: float) -> None:
        self.now, self._ahead_s, self._drift = 1000.0, ahead_s, drift
        self._draws = random.Random(seed)

    def monotonic(self) -> float:
        """This machine's clock."""
        return self.now

    def ahead_s(self) -> float:
        """Of the other one, in truth."""
        return self._ahead_s + self._drift * self.now

    def read(self) -> float:
        """Ask for it."""
        self.now += self._draws.expovariate(1000)
        theirs = self.now + self.ahead_s()
        self.now += self._draws.expovariate(1000)
        return theirs


@pytest.fixture
def world(monkeypatch, request) -> Iterator[World]:
    made = World(*request.param)
    monkeypatch.setattr(hosts, "time", made)
    return made


@pytest.mark.parametrize("world", [(seed, ahead, 0.0) for seed in range(50) for ahead in (1e5, -3600.0)], indirect=True)
def test_a_clock_is_known_to_half_of_the_shortest_round_trip(world) -> None:
    reading = read_clock(world.read)
    assert abs(reading.ahead_s - world.ahead_s()) <= reading.within_s + 1e-9
    assert 0 < reading.within_s < 0.01


@pytest.mark.parametrize(
    "world", [(seed, 2.5, drift) for seed in range(30) for drift in (0.0, 1e-4, -1e-4, 3e-3)], indirect=True
)
def test_what_a_clock_drifts_by_is_in_what_is_stated(world) -> None:
    clock = HostClock(world.read)
    worst = 0.0
    for _ in range(200):
        for _ in range(10):
            world.now += 0.5
            worst = max(worst, abs(clock.ahead_s - world.ahead_s()))
        clock.look()
        assert worst <= clock.within_s + 1e-9


class Cluster:
    """Machines of a cluster, and what was started on them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.machines: list[dict[str, object]] = []
        self.visited: list[str] = []
        self.util = SimpleNamespace(get_node_ip_address=lambda: "10.0.0.1")
        monkeypatch.setattr(hosts, "ray", self)
        monkeypatch.setattr(hosts, "_new_actor", self._new_actor)
        monkeypatch.setattr(hosts, "_answer", lambda ref, address, limit_s: ref)

    def nodes(self) -> list[dict[str, object]]:
        """See ``ray.nodes``."""
        return self.machines

    def add(self, node_id: str, address: str, alive: bool = True) -> None:
        """One more."""
        self.machines.append({"NodeID": node_id, "NodeManagerAddress": address, "Alive": alive})

    def _new_actor(self, node_id: str) -> object:
        self.visited.append(node_id)
        ahead_s = 100.0 * len(self.visited)
        clock = SimpleNamespace(remote=lambda: time.monotonic() + ahead_s)
        return SimpleNamespace(facts=SimpleNamespace(remote=HostActor().facts), clock=clock)


def test_each_other_machine_is_asked_once_and_again_where_it_was_lost_and_is_back(monkeypatch) -> None:
    cluster, own = Cluster(monkeypatch), Hosts(lambda text: None)
    cluster.add("a", "10.0.0.1")
    cluster.add("b", "10.0.0.2")
    for _ in range(2):
        own.visit({"a", "b"})
    assert cluster.visited == ["b"]
    assert own.origin("10.0.0.2", 5.0) == pytest.approx(105, abs=0.1)
    assert own.origin("10.0.0.1", 5.0) == 5
    cluster.machines[1]["Alive"] = False
    own.visit({"a", "b", ""})  # no place yet for what it held
    cluster.add("c", "10.0.0.2")
    own.visit({"a", "b", "c"})
    assert cluster.visited == ["b", "c"]
    assert own.origin("10.0.0.2", 5.0) == pytest.approx(205, abs=0.1), "it was started anew, and so was its clock"
    assert [host.address for host in own.records] == ["10.0.0.2"]


def own_facts(**over: object) -> dict[str, object]:
    return {**HostActor().facts(PACKAGES, BIT_CHANGING_FEATURES), **over}


def test_a_machine_that_runs_the_same_has_no_differences() -> None:
    assert differences("10.0.0.7", own_facts(executable="/elsewhere/python"), own_facts()) == []
    assert own_facts()["source"] == source_sha256() is not None


@pytest.mark.parametrize(
    ("over", "says"),
    [
        ({"source": None}, "10.0.0.7 has no asyncdgl (its Python is "),
        ({"source": "0" * 64}, "10.0.0.7 has other files of asyncdgl "),
        ({"python": "3.9.1"}, "10.0.0.7 has Python 3.9.1, and this machine 3."),
        ({"packages": {**own_facts()["packages"], "torch": "1.0"}}, "10.0.0.7 has torch 1.0, and this machine "),  # type: ignore[dict-item]
        ({"packages": {**own_facts()["packages"], "asyncdgl": "9"}}, "10.0.0.7 has asyncdgl 9, and this machine "),  # type: ignore[dict-item]
    ],
)
def test_a_machine_that_runs_something_else_is_named_with_the_mend(over, says) -> None:
    [problem] = differences("10.0.0.7", own_facts(**over), own_facts())
    assert problem.startswith(says)
    assert "there" in problem
