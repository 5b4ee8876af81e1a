"""Processes that live and don't answer: one that was stopped, or hangs. They are ended, and so replaced."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Mapping
from typing import Any

import ray

from asyncdgl.on_ray.greeting import hello
from asyncdgl.rundir.records import Process

PASSES = 20
"""A stage is given the time of so many of its longest passes, if that is longer."""


AWAY_S = 1.0


class Silence:
    """Who has not been heard of for too long.

    A stage that waits for a deaf buffer is silent, too. So before a stage is ended the others are asked, and whoever
    does not answer is ended in its place.

    Args:
        limit_s: how long a process may be silent.
        others: actors that answer at once as long as they can, by name.
        processes: who they are.
        noticed: told of who is ended, and why.
    """

    def __init__(
        self,
        limit_s: float,
        others: Mapping[str, Any],
        processes: list[Process],
        noticed: Callable[[str], None],
    ) -> None:
        self._limit_s, self._others, self._processes, self._noticed = limit_s, others, processes, noticed
        self._heard: dict[str, float] = {}
        self._passes_s: dict[str, float] = {}
        self._longest_s: dict[str, float] = {}
        self._asked: dict[str, Any] = {}
        self._looked = time.monotonic()

    def expect(self, name: str, limit_s: float) -> None:
        """A stage's process begins: its first passes may take longer than any to come."""
        self._heard[name] = time.monotonic()
        self._passes_s[name] = limit_s / PASSES

    def heard(self, name: str, pass_s: float = 0.0) -> None:
        """A stage has answered; its longest pass took so long."""
        self._heard[name] = time.monotonic()
        if pass_s:
            longest = self._longest_s[name] = max(pass_s, self._longest_s.get(name, 0.0))
            self._passes_s[name] = longest

    def forget(self, name: str) -> None:
        """Nothing is expected of it now."""
        self._heard.pop(name, None)

    def look(self, stages: Mapping[str, Any]) -> None:
        """End who is deaf. Never waits.

        Args:
            stages: the actors of those that were heard, by name.
        """
        now = time.monotonic()
        away_s, self._looked = now - self._looked, now
        if away_s > AWAY_S:  # nobody listened meanwhile, or the whole machine slept
            self._heard = {name: heard + away_s for name, heard in self._heard.items()}
        silent = {name: now - heard for name, heard in self._heard.items() if now - heard > self._limit(name) / 2}
        if not silent:
            self._asked.clear()
            return
        if not self._asked:
            self._asked = {name: actor.hello.remote() for name, actor in self._others.items()}
        if not (deaf := {name: s for name, s in silent.items() if s > self._limit(name)}):
            return
        others = {
            name: max(deaf.values()) / 2 for name, ref in self._asked.items() if not ray.wait([ref], timeout=0)[0]
        }
        for name, seconds in (others or deaf).items():
            self._noticed(f"{name}: no answer for {seconds:.0f} s; it is ended, and another one takes its place")
            self._end(name, self._others.get(name) or stages[name])
        for name in silent:
            self._heard[name] = now
        self._asked.clear()

    def _limit(self, name: str) -> float:
        return max(self._limit_s, PASSES * self._passes_s.get(name, 0.0))

    def _end(self, name: str, actor: Any) -> None:
        process = next((process for process in self._processes if process.name == name), None)
        pid, node = (process.pid, process.node) if process is not None else (None, None)
        end(actor, pid, node, no_restart=name not in self._others)


def end(actor: Any, pid: int | None, node: str | None, no_restart: bool = True) -> None:
    """End an actor's process.

    One of this machine is ended by its number: a process that was stopped does not hear Ray.

    Args:
        actor: its handle.
        pid: its number, where it is known.
        node: its machine.
        no_restart: whether Ray is not to start another one.
    """
    if pid is not None and node == hello()["node"]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    else:
        ray.kill(actor, no_restart=no_restart)
