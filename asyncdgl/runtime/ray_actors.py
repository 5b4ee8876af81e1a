"""The actors beside the stages (`ray_stage.py`): one for each buffer, one that keeps pace, one that evaluates.

Every call that may have to wait does so for a bounded time and then says why it could not be served: so no actor is
ever deaf for long, and a stage notices when its work is done. Only stages and the evaluator import torch.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import deque
from collections.abc import Awaitable, Callable
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
from asyncdgl.runtime.calls import Answering
from asyncdgl.runtime.entry_memory import EntryMemory, Held, MappedMemory, Stored, stored_bytes
from asyncdgl.runtime.pace import Pace

if TYPE_CHECKING:
    from asyncdgl.replay.codecs import Payload

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


class PaceActor(Answering):
    """Tells stages when they may start, which others still train, and how long a step is."""

    def __init__(self, config: RunConfig) -> None:
        super().__init__()
        self._pace = Pace(config.profile.window)
        self._training = set(range(1, config.stages + 1))
        self._slowdown = {j: config.profile.stage(j).slowdown for j in self._training}
        self._pass_seconds: dict[int, float] = {}
        self._waiting: dict[int, tuple[Callable[[], bool], asyncio.Future[None]]] = {}
        self._stopping = False

    async def hello(self) -> Line:
        """See ``hello``."""
        return hello()

    async def stop(self) -> None:
        """The run was interrupted."""
        self._stopping = True

    def is_stopping(self) -> bool:
        """Whether the run was interrupted."""
        return self._stopping

    def start(self, stage: int, v: float) -> Start | Awaitable[Start]:
        """Whether the pass with clock ``v`` may start; waits for a while until it may."""
        clock = self._pace.request(stage, v)
        self._wake()
        return self._start_later(stage, v) if clock is None else Start(clock, 0.0, self._later(stage))

    async def _start_later(self, stage: int, v: float) -> Start:
        began = time.monotonic()
        await self._wait(stage, lambda: self._pace.limit is None or v <= self._pace.limit)
        clock = self._pace.request(stage, v)
        return Start(clock, time.monotonic() - began, self._later(stage))

    def release(self, stage: int) -> bool:
        """The stage waits for something else; returns whether a later stage still trains."""
        self._pace.release(stage)
        self._wake()
        return self._later(stage)

    def trained(self, stage: int) -> bool:
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

    def step_seconds(self, stage: int, pass_seconds: float) -> float:
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


class _Changes:
    """Wakes whoever waits for the next change."""

    def __init__(self) -> None:
        self._waiting: set[asyncio.Future[None]] = set()

    def tell(self) -> None:
        """Something has changed."""
        for future in self._waiting:
            if not future.done():
                future.set_result(None)
        self._waiting.clear()

    async def wait(self, deadline: float) -> bool:
        """Wait for a change; False once the deadline has passed."""
        left = deadline - time.monotonic()
        if left <= 0:
            return False
        future = asyncio.get_running_loop().create_future()
        self._waiting.add(future)
        await asyncio.wait([future], timeout=left)
        self._waiting.discard(future)
        return future.done()


# --- Buffer -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Reply:
    """Answer to a reader: a sample with the time it was taken, or none; and why it had to wait, if it did."""

    sample: Sample | None
    sampled_at: float
    waited_for: str | None


class BufferActor(Answering):
    """Holds one replay buffer and the memory of its entries, so that a producer that dies takes nothing with it."""

    def __init__(self, config: RunConfig, after_stage: int, pace: Any) -> None:
        self._memory = EntryMemory()
        super().__init__(self._memory.descriptor)
        self._buffer = make_buffer(config, after_stage)
        self._pace = pace
        self._reader = after_stage + 1
        self._steps_clock = steps_clock(config, after_stage)
        self._changes = _Changes()
        self._mapped = MappedMemory(self._memory.descriptor, writable=True)
        # An entry may leave the buffer before its reader has read what it was given: its place stays in use meanwhile.
        self._given: deque[Held] = deque(maxlen=config.buffer.prefetch + 2)
        # Copying a large array would block the event loop: one thread does it, in order.
        self._copier = ThreadPoolExecutor(max_workers=1)

    async def hello(self) -> Line:
        """See ``hello``."""
        return hello()

    def places(self, nbytes: int, count: int) -> list[int]:
        """Places for so many entries of so many bytes: for a producer that writes into this memory."""
        return [self._memory.place(nbytes) for _ in range(count)]

    def insert(
        self, source: Provenance, payload: Stored | Payload, nbytes: int, now: float, unit: float, dropped: list[int]
    ) -> int | Awaitable[None]:
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

        def take(stored: Stored) -> None:
            self._buffer.insert(Entry(source, self._memory.hold(stored), nbytes), self._now(now), unit, dropped)
            self._changes.tell()

        if not isinstance(payload, Stored):
            return self._copy_and_take(payload, take)
        following = self._memory.place(payload.nbytes)
        take(payload)
        return following

    async def _copy_and_take(self, payload: Payload, take: Callable[[Stored], None]) -> None:
        take(await self._copy(self._mapped.write, self._memory.place(stored_bytes(payload)), payload))

    async def _copy(self, copy: Callable[..., Any], *args: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._copier, copy, *args)

    def sample(self, now: float, wait: bool, mapped: bool) -> Reply | Awaitable[Reply]:
        """Give an entry.

        Args:
            now: see ``ReplayBuffer.sample``.
            wait: wait a while for one.
            mapped: whether the reader sees this memory; otherwise it gets the arrays.
        """
        try:
            sample = self._buffer.sample(self._now(now))
        except SampleBlocked as blocked:
            return self._sample_later(now, mapped, blocked) if wait else Reply(None, time.monotonic(), blocked.reason)
        return self._give(sample, mapped, None)

    async def _sample_later(self, now: float, mapped: bool, blocked: SampleBlocked) -> Reply:
        deadline, waited_for = time.monotonic() + WAIT_S, blocked.reason
        while time.monotonic() < deadline:
            now = await self._wait_for_arrival(now, blocked.due, deadline)
            try:
                sample = self._buffer.sample(self._now(now))
            except SampleBlocked as again:
                blocked = again
                continue
            reply = self._give(sample, mapped, waited_for)
            return reply if isinstance(reply, Reply) else await reply
        return Reply(None, time.monotonic(), waited_for)

    def _give(self, sample: Sample, mapped: bool, waited_for: str | None) -> Reply | Awaitable[Reply]:
        sampled_at = time.monotonic()
        self._changes.tell()
        if not mapped:
            return self._copy_and_give(sample, sampled_at, waited_for)
        self._given.append(sample.payload)
        return Reply(sample._replace(payload=sample.payload.stored), sampled_at, waited_for)

    async def _copy_and_give(self, sample: Sample, sampled_at: float, waited_for: str | None) -> Reply:
        arrays = await self._copy(self._arrays, sample.payload.stored)
        return Reply(sample._replace(payload=arrays), sampled_at, waited_for)

    def _arrays(self, stored: Stored) -> Payload:
        return {name: array.copy() for name, array in self._mapped.read(stored).items()}

    async def _wait_for_arrival(self, now: float, due: float | None, deadline: float) -> float:
        if due is not None and self._steps_clock:
            reached: float = await self._pace.call.remote("reached", (self._reader, due))
            return max(now, reached)
        if due is not None:
            deadline = min(deadline, due)
        await self._changes.wait(deadline)
        return now

    def reserve(self, name: PassName, wait: bool) -> bool | Awaitable[bool]:
        """Keep a place for a coming entry; with ``wait``, wait a while for one."""
        return self._buffer.reserve(name) or (self._reserve_later(name) if wait else False)

    async def _reserve_later(self, name: PassName) -> bool:
        deadline = time.monotonic() + WAIT_S
        while not self._buffer.reserve(name):
            if not await self._changes.wait(deadline):
                return self._buffer.reserve(name)
        return True

    def drop(self, names: list[PassName]) -> None:
        """See ``ReplayBuffer.drop``."""
        for name in names:
            self._buffer.drop(name)

    async def statistics(self) -> dict[str, float]:
        """The counts of the summary."""
        return self._buffer.statistics()

    def _now(self, steps: float) -> float:
        return steps if self._steps_clock else time.monotonic()


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
