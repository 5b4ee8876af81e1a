"""Spare processes: all is imported and tried, and they wait to take the place of a stage whose process dies."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import ray

from asyncdgl.config.ray import RayConfig
from asyncdgl.engine.history import MOST_DEATHS, Faults
from asyncdgl.on_ray.greeting import SPARE
from asyncdgl.on_ray.results import first_line, left
from asyncdgl.on_ray.silence import end

ANSWER_S = 0.5
"""How long a spare may take to say that it lives, when a stage needs it."""

AGAIN_S = 1.0
"""Between two questions whether a spare lives."""


@dataclass
class Spare:
    """A process that waits, or is about to.

    Attributes:
        actor: its handle.
        asked: what it is to answer next.
        at: when it was asked, or has answered, on the monotonic clock.
        greeting: of one that waits.
    """

    actor: Any
    asked: Any
    at: float
    greeting: Mapping[str, Any] | None = None


class Spares:
    """The spares of a run. One that dies while it waits is replaced, and is no death of a stage.

    Args:
        config: how many wait, and how long one may be silent before it is ended.
        make: a process for one; all are on one machine.
        faults: what died is noted there.
        now: seconds since training began.
        is_there: told of each that waits now: its name and its greeting.
        is_gone: told of each that waits no more.
        noticed: told where there will be one less.
    """

    def __init__(
        self,
        config: RayConfig,
        make: Callable[[], Any],
        faults: Faults,
        now: Callable[[], float],
        is_there: Callable[[str, Mapping[str, Any]], None],
        is_gone: Callable[[str], None],
        noticed: Callable[[str], None],
    ) -> None:
        self._names = [f"{SPARE} {number}" for number in range(1, config.spares + 1)]
        self._make, self._deaf_s, self._faults, self._now = make, config.deaf_s, faults, now
        self._is_there, self._is_gone, self._noticed = is_there, is_gone, noticed
        self._spares: dict[str, Spare] = {}
        self._died: Counter[str] = Counter()  # before it was ready
        self._node: str | None = None

    @property
    def actors(self) -> list[Any]:
        """All that wait, or are about to."""
        return [spare.actor for spare in self._spares.values()]

    def fill(self) -> None:
        """Start a process for each spare that is missing, and don't wait for it."""
        for name in self._names:
            if name not in self._spares:
                actor = self._make()
                self._spares[name] = Spare(actor, actor.rehearse.remote(), time.monotonic())

    def look(self) -> None:
        """Ask all whether they live, and replace those that don't. Never waits.

        Raises:
            StageFailed: one runs another asyncdgl than this process.
        """
        now = time.monotonic()
        for name, spare in list(self._spares.items()):
            if spare.asked is None:
                if now - spare.at > AGAIN_S:
                    spare.asked, spare.at = spare.actor.hello.remote(), now
            elif ray.wait([spare.asked], timeout=0)[0]:
                try:
                    greeting = ray.get(spare.asked)
                except ray.exceptions.RayError as error:
                    self._replace(name, error)
                    continue
                spare.asked, spare.at = None, now
                if spare.greeting is None:
                    spare.greeting, self._node = greeting, greeting["node"]
                    self._died[name] = 0
                    self._faults.works_again(name, self._now())
                    self._is_there(name, greeting)
            elif spare.greeting is not None and now - spare.at > self._deaf_s:
                end(spare.actor, spare.greeting["pid"], spare.greeting["node"])

    def _replace(self, name: str, error: Exception) -> None:
        spare = self._spares.pop(name)
        self._faults.died(name, self._now())
        self._is_gone(name)
        with contextlib.suppress(Exception):  # one that raised still lives
            ray.kill(spare.actor)
        self._died[name] += spare.greeting is None
        if self._died[name] == MOST_DEATHS:
            self._names.remove(name)
            self._noticed(f"no {name}: its process died {MOST_DEATHS} times before it was ready ({first_line(error)})")
        self.fill()

    def take(self, node: str) -> Any | None:
        """One that has just said that it lives, or else one on its way, which is there sooner than a new process.

        A process that dies after this was the stage's: it may be the stage's next pass that kills it.

        Args:
            node: the stage's machine, where its buffer is; on another one, all that it reads would cross for good.

        Returns:
            The actor, which is a spare no more; None where there is none.
        """
        if node != self._node:
            return None
        asked = {spare.actor.hello.remote(): name for name, spare in self._spares.items() if spare.greeting is not None}
        waiting, deadline = list(asked), time.monotonic() + ANSWER_S
        while waiting:
            done, waiting = ray.wait(waiting, timeout=left(deadline))
            if not done:
                break
            with contextlib.suppress(ray.exceptions.RayError):
                ray.get(done[0])
                return self._give(asked[done[0]])
        for name, spare in self._spares.items():
            if spare.greeting is None and not ray.wait([spare.asked], timeout=0)[0]:
                return self._give(name)
        return None

    def _give(self, name: str) -> Any:
        self._is_gone(name)
        return self._spares.pop(name).actor
