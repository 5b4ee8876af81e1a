"""The actor that keeps pace, and its client: which stage may start when, who still trains, how long a step is."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

from asyncdgl.config.resolved import ResolvedConfig
from asyncdgl.engine.pace import Pace
from asyncdgl.engine.turn import Training
from asyncdgl.on_ray.greeting import hello
from asyncdgl.on_ray.transport.calls import Answers, Calls, Lost

WAIT_S = 0.2
"""Longest time that one call waits at another actor before it answers that there is nothing yet."""


@dataclass(frozen=True)
class Start:
    """Answer to a stage that wants to start a pass.

    Attributes:
        clock: at which the pass starts; None if it may not yet.
        waited_s: how long the answer was held back; without the messages themselves.
        later_trains: whether a later stage still trains.
    """

    clock: float | None
    waited_s: float
    later_trains: bool


class Replaced(Exception):
    """Who asks is not its stage's process any more."""


class Caller(NamedTuple):
    """Who asks: a stage, and which of its processes this is, from 0."""

    stage: int
    life: int


class PaceActor:
    """Tells stages when they may start, which others still train, and how long a step is."""

    def __init__(self, config: ResolvedConfig) -> None:
        self._pace = Pace(config.profile.window)
        self._training = Training(config.stages)
        self._slowdown = {j: config.profile.stage(j).slowdown for j in range(1, config.stages + 1)}
        self._pass_seconds: dict[int, float] = {}
        self._starts: Counter[int] = Counter()
        self._lives: Counter[int] = Counter()
        self._waiting: dict[int, tuple[Callable[[], bool], asyncio.Future[None]]] = {}
        self._stopping = False
        self._answers = Answers(self)

    async def hello(self) -> dict[str, Any]:
        """See ``hello``."""
        return hello()

    async def address(self) -> tuple[str, str | None]:
        """See ``Answers.listen``."""
        return self._answers.listen()

    async def through_ray(self, life: str, method: str, args: tuple[Any, ...]) -> Any:
        """See ``Answers``."""
        return await self._answers.through_ray(life, method, args)

    async def stop(self) -> None:
        """The run was interrupted."""
        self._stopping = True

    async def is_stopping(self, caller: Caller) -> bool:
        """Whether the run was interrupted."""
        return self._stopping

    async def gone(self, caller: Caller) -> None:
        """This process of a stage is to come, an earlier one has died: it holds nobody, and nobody listens to it."""
        self._replace(caller)

    def _replace(self, caller: Caller) -> None:
        """Once for each process: it may be there before the driver's word of it."""
        stage, life = caller
        if life <= self._lives[stage]:
            return
        self._lives[stage] = life
        self._starts[stage] += 1  # whoever waits for it under an older count does not hold others in its name
        self._pace.release(stage)
        self._wake()

    async def live(self) -> None:
        """Ends when this process does."""
        await asyncio.Event().wait()

    async def begin(self, caller: Caller, starts: int) -> int:
        """A stage's process is there, or this one: it is told what another one may have known.

        Args:
            caller: the stage.
            starts: how often it has asked to start, as far as it knows.

        Returns:
            How often it has asked to start.
        """
        stage = self._admit(caller)
        self._replace(caller)
        self._starts[stage] = max(self._starts[stage], starts)
        return self._starts[stage]

    async def have_trained(self, stages: list[int]) -> None:
        """These stages have done their quota, and reported it.

        Earlier ones stop on that word. A stage does not say it itself: its report might be lost with its process, and
        the next one would have to train on what nobody makes any more.
        """
        for stage in stages:
            self._training.done(stage)

    def _admit(self, caller: Caller) -> int:
        if caller.life < self._lives[caller.stage]:
            raise Replaced
        return caller.stage

    async def start(self, caller: Caller, v: float) -> Start:
        """Wait until pass with clock ``v`` may start, or for a while.

        Raises:
            Replaced: the stage has another process by now.
        """
        stage = self._admit(caller)
        self._starts[stage] += 1
        began = time.monotonic()
        clock = self._pace.request(stage, v)
        granted_at_once = clock is not None
        self._wake()
        if clock is None:
            await self._wait(stage, lambda: self._pace.limit is None or v <= self._pace.limit)
            self._admit(caller)
            clock = self._pace.request(stage, v)
        waited_s = 0.0 if granted_at_once else time.monotonic() - began
        return Start(clock, waited_s, self._training.later_than(stage))

    async def release(self, caller: Caller) -> bool:
        """The stage waits for something else; returns whether a later stage still trains."""
        stage = self._admit(caller)
        self._pace.release(stage)
        self._wake()
        return self._training.later_than(stage)

    async def later_trains(self, caller: Caller) -> bool:
        """Whether a later stage still trains."""
        return self._training.later_than(self._admit(caller))

    async def reached(self, stage: int, due: float, starts: int) -> float:
        """Stage ``stage`` waits until the profile clock reaches ``due``, or for a while; returns where it is.

        Args:
            stage: who waits.
            due: until when, in steps.
            starts: how often the stage had asked to start when it began to wait.
        """
        if starts != self._starts[stage]:  # the stage got something else meanwhile, and goes on: it holds others
            return self._pace.now
        self._pace.expect(stage, due)
        self._wake()
        if self._pace.now < due:
            await self._wait(stage, lambda: self._pace.now >= due)
        return self._pace.now

    async def step_seconds(self, caller: Caller, pass_seconds: float) -> float:
        """Report a stage's mean pass time without slowdown; returns that of the unslowed stages: one step."""
        stage = self._admit(caller)
        self._pass_seconds[stage] = pass_seconds
        least = min(self._slowdown[j] for j in self._pass_seconds)
        unslowed = [s for j, s in self._pass_seconds.items() if self._slowdown[j] == least]
        return sum(unslowed) / len(unslowed)

    def _wake(self) -> None:
        """The pace has changed: wake whom it lets go on, and nobody else."""
        for stage, (may_go, future) in list(self._waiting.items()):
            if may_go():
                del self._waiting[stage]
                if not future.done():
                    future.set_result(None)

    async def _wait(self, stage: int, may_go: Callable[[], bool]) -> None:
        """Until ``may_go``, or for a while."""
        future = asyncio.get_running_loop().create_future()
        self._waiting[stage] = may_go, future
        await asyncio.wait([future], timeout=WAIT_S)
        if not future.done() and self._waiting.get(stage, (None, None))[1] is future:
            del self._waiting[stage]


class PaceClient:
    """The pace keeper as one stage sees it. The next one is told how often the stage has asked.

    Args:
        actor: its handle.
        caller: whose client this is.

    Attributes:
        starts: how often the stage has asked to start.
    """

    def __init__(self, actor: Any, caller: Caller) -> None:
        self._actor, self._caller = actor, caller
        self.starts = 0
        self._connect()

    def _connect(self) -> None:
        while True:
            self._calls = Calls(self._actor)
            with contextlib.suppress(Lost):
                self.starts = self._calls.ask("begin", self._caller, self.starts)
                return

    def _ask(self, method: str, *args: Any) -> Any:
        while True:
            with contextlib.suppress(Lost):
                return self._calls.ask(method, self._caller, *args)
            self._connect()

    @property
    def is_local(self) -> bool:
        """See ``Calls``."""
        return self._calls.is_local

    def is_stopping(self) -> bool:
        """See ``PaceActor``."""
        return cast(bool, self._ask("is_stopping"))

    def start(self, v: float) -> Start:
        """See ``PaceActor``."""
        answer = cast(Start, self._ask("start", v))
        self.starts += 1  # now: one that died meanwhile was told the number before
        return answer

    def release(self) -> bool:
        """See ``PaceActor``."""
        return cast(bool, self._ask("release"))

    def later_trains(self) -> bool:
        """See ``PaceActor``."""
        return cast(bool, self._ask("later_trains"))

    def step_seconds(self, pass_seconds: float) -> float:
        """See ``PaceActor``."""
        return cast(float, self._ask("step_seconds", pass_seconds))
