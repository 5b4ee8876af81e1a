"""The actors beside the stages (`ray_stage.py`): one for each buffer, one that keeps pace, one that evaluates.

Every call that may have to wait does so for a bounded time and then says why it could not be served: so no actor is
ever deaf for long, and a stage notices when its work is done. Only stages and the evaluator import torch.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray

import asyncdgl
from asyncdgl.batch import PassName, Provenance
from asyncdgl.config import RunConfig
from asyncdgl.errors import SampleBlocked
from asyncdgl.replay.buffer import Sample
from asyncdgl.replay.entry import Entry
from asyncdgl.runtime.base import (
    Line,
    make_buffer,
    make_evaluator,
    open_dataset,
    set_up_torch,
    steps_clock,
)
from asyncdgl.runtime.entry_memory import EntryMemory, Held, MappedMemory, Stored, places_given, stored_bytes
from asyncdgl.runtime.pace import Pace
from asyncdgl.runtime.ray_calls import Answers

if TYPE_CHECKING:
    from asyncdgl.replay.codecs import Arrays

WAIT_S = 0.2
"""Longest time that one call waits at another actor before it answers that there is nothing yet."""


def hello() -> Line:
    """Who this process is: the driver refuses actors that run another asyncdgl than its own."""
    errors = Path("/proc/self/fd/2")
    return {
        "pid": os.getpid(),
        "log": str(errors.resolve()) if errors.exists() else None,
        "node": ray.util.get_node_ip_address(),  # type: ignore[no-untyped-call]
        "version": asyncdgl.__version__,
        "path": str(Path(asyncdgl.__file__).resolve().parent),
    }


# --- Pace -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Start:
    """Answer to a stage that wants to start a pass.

    Attributes:
        clock: at which the pass starts; None if it may not yet.
        waited_s: how long the answer was held back; without the messages themselves.
        later_stages_train: whether a later stage still trains.
    """

    clock: float | None
    waited_s: float
    later_stages_train: bool


class PaceActor:
    """Tells stages when they may start, which others still train, and how long a step is."""

    def __init__(self, config: RunConfig) -> None:
        self._pace = Pace(config.profile.window)
        self._training = set(range(1, config.stages + 1))
        self._slowdown = {j: config.profile.stage(j).slowdown for j in self._training}
        self._pass_seconds: dict[int, float] = {}
        self._waiting: dict[int, tuple[Callable[[], bool], asyncio.Future[None]]] = {}
        self._stopping = False
        self._answers = Answers(self)

    async def hello(self) -> Line:
        """See ``hello``."""
        return hello()

    async def address(self) -> str | None:
        """See ``Answers.listen``."""
        return self._answers.listen()

    async def stop(self) -> None:
        """The run was interrupted."""
        self._stopping = True

    async def is_stopping(self) -> bool:
        """Whether the run was interrupted."""
        return self._stopping

    async def start(self, stage: int, v: float) -> Start:
        """Wait until pass with clock ``v`` may start, or for a while."""
        began = time.monotonic()
        clock = self._pace.request(stage, v)
        granted_at_once = clock is not None
        self._wake()
        if clock is None:
            await self._wait(stage, lambda: self._pace.limit is None or v <= self._pace.limit)
            clock = self._pace.request(stage, v)
        waited_s = 0.0 if granted_at_once else time.monotonic() - began
        return Start(clock, waited_s, self._later(stage))

    async def release(self, stage: int) -> bool:
        """The stage waits for something else; returns whether a later stage still trains."""
        self._pace.release(stage)
        self._wake()
        return self._later(stage)

    async def trained(self, stage: int) -> bool:
        """The stage has done its quota of updates; returns whether a later stage still trains."""
        self._training.discard(stage)
        return self._later(stage)

    async def reached(self, stage: int, due: float) -> float:
        """Stage ``stage`` waits until the profile clock reaches ``due``, or for a while; returns where it is."""
        self._pace.expect(stage, due)
        self._wake()
        if self._pace.now < due:
            await self._wait(stage, lambda: self._pace.now >= due)
        return self._pace.now

    async def step_seconds(self, stage: int, pass_seconds: float) -> float:
        """Report a stage's mean pass time without slowdown; returns that of the unslowed stages: one step."""
        self._pass_seconds[stage] = pass_seconds
        least = min(self._slowdown[j] for j in self._pass_seconds)
        unslowed = [s for j, s in self._pass_seconds.items() if self._slowdown[j] == least]
        return sum(unslowed) / len(unslowed)

    def _later(self, stage: int) -> bool:
        return any(j > stage for j in self._training)

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


async def wait_for_change(changed: asyncio.Condition, deadline: float) -> bool:
    """Wait until something changed; False once the deadline has passed."""
    left = deadline - time.monotonic()
    if left <= 0:
        return False
    async with changed:
        try:
            await asyncio.wait_for(changed.wait(), left)
        except TimeoutError:
            return False
    return True


# --- Buffer -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Reply:
    """Answer to a reader: a sample with the time it was taken, or none; and why it had to wait, if it did."""

    sample: Sample | None
    sampled_at: float
    waited_for: str | None


class BufferActor:
    """Holds one replay buffer and the memory of its entries, so that a producer that dies takes nothing with it."""

    def __init__(self, config: RunConfig, after_stage: int, pace: Any) -> None:
        self._buffer = make_buffer(config, after_stage)
        self._pace = pace
        self._reader = after_stage + 1
        self._steps_clock = steps_clock(config, after_stage)
        self._changed = asyncio.Condition()
        self._memory = EntryMemory()
        self._mapped = MappedMemory(self._memory.descriptor, writable=True)
        self._answers = Answers(self, self._memory.descriptor)
        # An entry may leave the buffer before its reader has read what it was given: its place stays in use meanwhile.
        self._given: deque[Held] = deque(maxlen=places_given(config.buffer.prefetch))
        # Copying a large array would block the event loop: one thread does it, in order.
        self._copier = ThreadPoolExecutor(max_workers=1)

    async def hello(self) -> Line:
        """See ``hello``."""
        return hello()

    async def address(self) -> str | None:
        """See ``Answers.listen``."""
        return self._answers.listen()

    async def places(self, nbytes: int, count: int) -> list[int]:
        """Places for so many entries of so many bytes: for a producer that writes into this memory."""
        return [self._memory.place(nbytes) for _ in range(count)]

    async def insert(
        self, source: Provenance, payload: Stored | Arrays, nbytes: int, now: float, unit: float, dropped: list[int]
    ) -> int | None:
        """Take an entry.

        Args:
            source: see ``Entry``.
            payload: where the producer has written it, or, from another machine, the arrays themselves.
            nbytes: its encoded size.
            now: see ``ReplayBuffer.insert``.
            unit: see there.
            dropped: see there.

        Returns:
            The place of the producer's next entry, if it writes into this memory.
        """
        following = None
        if isinstance(payload, Stored):
            stored = payload
            following = self._memory.place(stored.nbytes)
        else:
            place = self._memory.place(stored_bytes(payload))
            stored = await self._copy(self._mapped.write, place, payload)
        self._buffer.insert(Entry(source, self._memory.hold(stored), nbytes), self._now(now), unit, dropped)
        await self._notify()
        return following

    async def _copy(self, copy: Callable[..., Any], *args: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._copier, copy, *args)

    async def sample(self, now: float, wait: bool, mapped: bool) -> Reply:
        """Give an entry.

        Args:
            now: see ``ReplayBuffer.sample``.
            wait: wait a while for one.
            mapped: whether the reader sees this memory; otherwise it gets the arrays.
        """
        deadline = time.monotonic() + (WAIT_S if wait else 0)
        waited_for = None
        while True:
            try:
                sample = self._buffer.sample(self._now(now))
            except SampleBlocked as blocked:
                waited_for = waited_for or blocked.reason
                if not wait or time.monotonic() >= deadline:
                    return Reply(None, time.monotonic(), waited_for)
                now = await self._wait_for_arrival(now, blocked.due, deadline)
                continue
            sampled_at, held = time.monotonic(), sample.payload
            await self._notify()
            if mapped:
                self._given.append(held)
                return Reply(sample._replace(payload=held.stored), sampled_at, waited_for)
            arrays = await self._copy(self._arrays, held.stored)
            return Reply(sample._replace(payload=arrays), sampled_at, waited_for)

    def _arrays(self, stored: Stored) -> Arrays:
        return {name: array.copy() for name, array in self._mapped.read(stored).items()}

    async def _wait_for_arrival(self, now: float, due: float | None, deadline: float) -> float:
        if due is not None and self._steps_clock:
            reached: float = await self._pace.reached.remote(self._reader, due)
            return max(now, reached)
        if due is not None:
            deadline = min(deadline, due)
        await wait_for_change(self._changed, deadline)
        return now

    async def reserve(self, name: PassName, wait: bool) -> bool:
        """Keep a place for a coming entry; with ``wait``, wait a while for one."""
        deadline = time.monotonic() + (WAIT_S if wait else 0)
        while not self._buffer.reserve(name):
            if not await wait_for_change(self._changed, deadline):
                return self._buffer.reserve(name)
        return True

    async def drop(self, names: list[PassName]) -> None:
        """See ``ReplayBuffer.drop``."""
        for name in names:
            self._buffer.drop(name)

    async def statistics(self) -> dict[str, float]:
        """The counts of the summary."""
        return self._buffer.statistics()

    def _now(self, steps: float) -> float:
        return steps if self._steps_clock else time.monotonic()

    async def _notify(self) -> None:
        async with self._changed:
            self._changed.notify_all()


# --- Evaluation -------------------------------------------------------------------------------------------------------


class EvaluationActor:
    """Evaluates published weights beside the training."""

    def __init__(self, config: RunConfig, data: Path) -> None:
        set_up_torch(config)
        self._config = config
        self._evaluator = make_evaluator(config, open_dataset(config, data))

    def hello(self) -> Line:
        """See ``hello``."""
        return hello()

    def evaluate(self, published: list[Any]) -> dict[str, dict[str, Any]]:
        """See ``Evaluator.evaluate``; the weights come as references to numpy arrays."""
        import torch

        set_up_torch(self._config)  # see StageActor.run
        states = [{name: torch.from_numpy(value.copy()) for name, value in s.items()} for s in ray.get(published)]
        return self._evaluator.evaluate(states)
