"""The actor of one replay buffer.

Every call that may have to wait does so for a bounded time and then says why it could not be served: so no actor is
ever deaf for long, and a stage notices when its work is done. Only stages and the evaluator import torch.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from asyncdgl.buffers.buffer import Sample
from asyncdgl.buffers.entry import Entry, PassName, Provenance
from asyncdgl.config.model import RunConfig
from asyncdgl.engine.build import make_buffer, steps_clock
from asyncdgl.errors import SampleBlocked
from asyncdgl.observer import Line
from asyncdgl.on_ray.transport.calls import Answers
from asyncdgl.on_ray.transport.memory import EntryMemory, Held, MappedMemory, Stored, places_given, stored_bytes

if TYPE_CHECKING:
    from asyncdgl.buffers.codecs import Arrays


from asyncdgl.on_ray.greeting import hello
from asyncdgl.on_ray.pace import WAIT_S


@dataclass(frozen=True)
class Reply:
    """Answer to a reader: a sample with the time it was taken, or none; and why it had to wait, if it did."""

    sample: Sample[Any] | None
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
