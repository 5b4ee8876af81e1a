"""The other machines of a run: whether what they run is what this one runs, and what time it is there.

A run on this machine alone has none.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, NamedTuple

import ray
from ray import cloudpickle
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from asyncdgl import __version__
from asyncdgl.errors import ConfigError, StageFailed
from asyncdgl.on_ray import host_actor
from asyncdgl.rundir.environment import BIT_CHANGING_FEATURES
from asyncdgl.rundir.records import Host

PACKAGES = ("torch", "numpy", "asyncdgl")
READINGS = 5
"""Round trips for one reading of a clock: the shortest one counts."""

BETWEEN_READINGS_S = 5.0
"""Quartz drifts by less than 0.1 ms a second: by less than half a millisecond until the next reading."""

START_LIMIT_S, ANSWER_S = 60.0, 2.0


class Reading(NamedTuple):
    """Of another machine's clock.

    Attributes:
        ahead_s: of this machine's clock.
        within_s: half of the shortest round trip: it is not off by more.
    """

    ahead_s: float
    within_s: float


def read_clock(read: Callable[[], float]) -> Reading:
    """How far another machine's monotonic clock is ahead of this one's.

    Args:
        read: asks for the other clock.
    """
    readings = []
    for _ in range(READINGS):
        asked = time.monotonic()
        theirs = read()
        answered = time.monotonic()
        readings.append(Reading(theirs - (asked + answered) / 2, (answered - asked) / 2))
    return min(readings, key=lambda reading: reading.within_s)


class HostClock:
    """Another machine's clock, which drifts.

    Args:
        read: asks for it.

    Attributes:
        ahead_s: of this machine's, as it was read last.
        within_s: what ``ahead_s`` was off by at most, at any time until now.
    """

    def __init__(self, read: Callable[[], float]) -> None:
        self._read = read
        self.ahead_s, self.within_s = read_clock(read)

    def look(self) -> None:
        """Read it again. What it has drifted by since the last time was not known meanwhile."""
        ahead_s, within_s = read_clock(self._read)
        self.within_s = max(self.within_s, abs(ahead_s - self.ahead_s) + within_s)
        self.ahead_s = ahead_s


class Hosts:
    """The other machines of a run, by address.

    Args:
        noticed: told what the user should know.

    Attributes:
        records: what is known of each, for environment.json.
    """

    def __init__(self, noticed: Callable[[str], None]) -> None:
        self._noticed = noticed
        self.records: list[Host] = []
        self._node_ids: dict[str, str] = {}
        self._actors: dict[str, Any] = {}
        self._facts: dict[str, Mapping[str, Any]] = {}
        self._clocks: dict[str, HostClock] = {}
        self._looked_at = 0.0

    def visit(self, node_ids: Iterable[str]) -> None:
        """Ask those that were not asked before who they are.

        Raises:
            ConfigError: one has no asyncdgl, or runs another version of what the bits depend on.
            StageFailed: one does not answer.
        """
        wanted = set(node_ids)
        if not wanted:
            return
        nodes = ray.nodes()  # type: ignore[no-untyped-call]
        alive = {node["NodeID"]: node["NodeManagerAddress"] for node in nodes if node["Alive"]}
        here = ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]
        asked = {}
        for node_id in wanted & set(alive):  # what a lost machine held may have no place yet
            address = alive[node_id]
            # One that was lost and is back counts its time anew.
            if address != here and self._node_ids.get(address) != node_id:
                self._node_ids[address] = node_id
                self._actors[address] = _new_actor(node_id)
                asked[address] = self._actors[address].facts.remote(PACKAGES, BIT_CHANGING_FEATURES)
        own = host_actor.HostActor().facts(PACKAGES, BIT_CHANGING_FEATURES) if asked else {}
        problems = []
        for address, ref in asked.items():
            facts = self._facts[address] = _answer(ref, address, START_LIMIT_S)
            problems += differences(address, facts, own)
            if facts["features"] != own["features"]:
                self._noticed(f"{address} has another processor than this machine: its arithmetic may give other bits")
            self._clocks[address] = HostClock(partial(self._clock, address))
        if problems:
            raise ConfigError(problems)
        self._write_down()

    def _clock(self, address: str) -> float:
        return float(_answer(self._actors[address].clock.remote(), address, ANSWER_S))

    def origin(self, address: str, origin: float) -> float:
        """A moment of this machine's monotonic clock, on that machine's.

        Args:
            address: of the machine.
            origin: the moment here.
        """
        clock = self._clocks.get(address)
        return origin if clock is None else origin + clock.ahead_s

    def look(self) -> None:
        """Read the clocks again, from time to time; one that does not answer soon stays as it was."""
        now = time.monotonic()
        if now < self._looked_at + BETWEEN_READINGS_S:
            return
        self._looked_at = now
        for clock in self._clocks.values():
            with contextlib.suppress(StageFailed):
                clock.look()
        self._write_down()

    def _write_down(self) -> None:
        self.records[:] = [
            Host(
                address=address,
                python=facts["python"],
                packages=facts["packages"],
                source_sha256=facts["source"],
                cpu_features=tuple(facts["features"]),
                clock_ahead_s=self._clocks[address].ahead_s,
                clock_within_s=self._clocks[address].within_s,
            )
            for address, facts in sorted(self._facts.items())
        ]


def differences(address: str, facts: Mapping[str, Any], own: Mapping[str, Any]) -> list[str]:
    """What another machine must not have otherwise than this one, a sentence each."""
    mend = "use one image everywhere, or install the same there"
    python, own_python = (of["python"].rpartition(".")[0] for of in (facts, own))
    if python != own_python:
        return [f"{address} has Python {facts['python']}, and this machine {own['python']}: {mend}"]
    if facts["source"] is None:
        return [
            f"{address} has no asyncdgl (its Python is {facts['executable']}): install asyncdgl {__version__} there, "
            "or give the job a runtime_env that brings it"
        ]
    found = [
        f"{address} has {name} {facts['packages'][name]}, and this machine {version}: {mend}"
        for name, version in own["packages"].items()
        if facts["packages"][name] != version
    ]
    if not found and facts["source"] != own["source"]:
        found.append(f"{address} has other files of asyncdgl {__version__} than this machine: {mend}")
    return found


def _new_actor(node_id: str) -> Any:
    cloudpickle.register_pickle_by_value(host_actor)  # type: ignore[no-untyped-call]
    there = NodeAffinitySchedulingStrategy(node_id, soft=False)
    return ray.remote(host_actor.HostActor).options(num_cpus=0, scheduling_strategy=there).remote()


def _answer(ref: Any, address: str, limit_s: float) -> Any:
    try:
        return ray.get(ref, timeout=limit_s)
    except (TimeoutError, ray.exceptions.RayError) as error:
        raise StageFailed(f"{address} does not answer: {type(error).__name__}") from None
