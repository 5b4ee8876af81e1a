"""The actor of one replay buffer.

Every call that may have to wait does so for a bounded time and then says why it could not be served: so no actor is
ever deaf for long, and a stage notices when its work is done. Only stages and the evaluator import torch.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import ray

from asyncdgl.buffers.buffer import Sample
from asyncdgl.buffers.entry import Entry, PassName, Provenance
from asyncdgl.buffers.given import Given
from asyncdgl.config.resolved import ResolvedConfig
from asyncdgl.engine.build import make_buffer, steps_clock
from asyncdgl.errors import SampleBlocked
from asyncdgl.on_ray.greeting import hello
from asyncdgl.on_ray.pace import WAIT_S, Replaced
from asyncdgl.on_ray.transport.calls import Answers
from asyncdgl.on_ray.transport.memory import EntryMemory, MappedMemory, Stored, stored_bytes
from asyncdgl.plan.memory import places_given
from asyncdgl.registry import handed_over

if TYPE_CHECKING:
    from asyncdgl.buffers.codecs import Arrays


@dataclass(frozen=True)
class Reply:
    """Answer to a reader: a sample with the time it was taken, or why there is none."""

    sample: Sample[Any] | None
    sampled_at: float
    blocked: str = ""


class BufferActor:
    """Holds one replay buffer and the memory of its entries, so that a producer that dies takes nothing with it.

    Args:
        config: the run.
        after_stage: its producer.
        pace: the pace keeper's name. Not a handle: Ray does not like to start an actor again that was given one.
        given: parts of the run that were handed over as objects, by kind.
        keeps: how many of the entries that it gave it keeps for a reader that died, at most.
    """

    def __init__(
        self, config: ResolvedConfig, after_stage: int, pace: str, given: Mapping[str, Any], keeps: int
    ) -> None:
        with handed_over(given):
            self._buffer = make_buffer(config, after_stage, lambda entry: self._left.append(entry.payload))
        self._left: list[Stored] = []  # places of entries that are gone, until the present call has ended
        self._pace_name, self._pace = pace, cast(Any, None)
        self._reader = after_stage + 1
        self._steps_clock = steps_clock(config, after_stage)
        self._changed = asyncio.Condition()
        self._memory = EntryMemory()
        self._mapped = MappedMemory(self._memory.descriptor, writable=True)
        self._answers = Answers(self, self._memory.descriptor)
        # An entry may leave the buffer before its reader has read it, or needs it again: its place stays in use.
        least = places_given(config.buffer.prefetch)
        self._given: Given[Reply] = Given(least, keeps + least, self._forget)
        self._producer = -1  # which of its lives writes here
        self._lent: set[int] = set()  # the places that it may write to
        self._overtaken: set[asyncio.Future[float]] = set()
        # Copying a large array would block the event loop: one thread does it, in order.
        self._copier = ThreadPoolExecutor(max_workers=1)

    async def hello(self) -> dict[str, Any]:
        """See ``hello``."""
        return hello()

    async def address(self) -> tuple[str, str | None]:
        """See ``Answers.listen``."""
        return self._answers.listen()

    async def through_ray(self, life: str, method: str, args: tuple[Any, ...]) -> Any:
        """See ``Answers``."""
        return await self._answers.through_ray(life, method, args)

    async def live(self) -> None:
        """Ends when this process does."""
        await asyncio.Event().wait()

    async def begin_reading(self, number: int) -> tuple[int, int]:
        """The reader's process, or this one, begins: the next sampling has this number, if there was none here.

        Returns:
            The number of the first sampling that can be given again, and that of the next one.
        """
        if not self._given.number:
            self._given.number = number
            self._buffer.begin_sampling(number)
        return self._given.first, self._given.number

    async def begin(self, life: int, following: PassName) -> None:
        """The producer's process, or this one, begins.

        Args:
            life: of the producer; an earlier process of it, which is dead, writes here no more.
            following: what it will send next, if it has sent nothing here.

        Raises:
            Replaced: the producer has another process by now.
        """
        self._check(life)
        self._buffer.begin(following.incarnation, following.step)
        self._producer = life
        for place in self._lent:
            self._memory.give_back(place)
        self._lent.clear()

    async def sent_until(self, incarnation: int) -> int:
        """See ``Link``."""
        return self._buffer.sent_until(incarnation)

    async def places(self, life: int, nbytes: int, count: int) -> list[int]:
        """Places for so many entries of so many bytes: for a producer that writes into this memory."""
        self._check(life)
        return [self._lend(nbytes) for _ in range(count)]

    def _lend(self, nbytes: int) -> int:
        place = self._memory.place(nbytes)
        self._lent.add(place)
        return place

    def _check(self, life: int) -> None:
        if life < self._producer:
            raise Replaced

    async def insert(
        self,
        life: int,
        source: Provenance,
        payload: Stored | Arrays,
        nbytes: int,
        now: float,
        unit: float,
        dropped: list[int],
    ) -> int | None:
        """Take an entry.

        Args:
            life: of the producer.
            source: see ``Entry``.
            payload: where the producer has written it, or, from another machine, the arrays themselves.
            nbytes: its encoded size.
            now: see ``ReplayBuffer.insert``.
            unit: see there.
            dropped: see there.

        Returns:
            The place of the producer's next entry, if it writes into this memory.

        Raises:
            Replaced: the producer has another process by now.
        """
        self._check(life)
        following = None
        if isinstance(payload, Stored):
            stored = payload
            self._lent.remove(stored.place)
            following = self._lend(stored.nbytes)
        else:
            place = self._memory.place(stored_bytes(payload))
            stored = await self._copy(self._mapped.write, place, payload)
            if life < self._producer:  # meanwhile
                self._memory.give_back(place)
                raise Replaced
        self._memory.keep(stored.place)
        self._buffer.insert(Entry(source, stored, nbytes), self._now(now), unit, dropped)
        self._let_go()
        await self._notify()
        return following

    async def _copy(self, copy: Callable[..., Any], *args: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._copier, copy, *args)

    async def sample(self, number: int, now: float, mapped: bool) -> Reply:
        """Give an entry, if there is one: the next one, or again what was given.

        Args:
            number: of the sampling, see ``Given``; one that is too large means the next.
            now: see ``ReplayBuffer.sample``.
            mapped: whether the reader sees this memory; otherwise it gets the arrays.
        """
        reply = self._given.again(number)
        if reply is None:
            try:
                sample = self._buffer.sample(self._now(now))
            except SampleBlocked as blocked:
                return Reply(None, time.monotonic(), blocked.reason)
            reply = Reply(sample, time.monotonic())
            self._memory.keep(sample.payload.place)
            self._given.add(reply)
            self._let_go()
            await self._notify()
        if mapped or reply.sample is None:
            return reply
        stored = reply.sample.payload
        self._memory.keep(stored.place)
        arrays = await self._copy(self._arrays, stored)
        self._memory.let_go(stored.place)
        return Reply(reply.sample._replace(payload=arrays), reply.sampled_at)

    async def count(self, step: int) -> None:
        """See ``Given.count``."""
        self._given.count(step)

    def _forget(self, reply: Reply) -> None:
        if reply.sample is not None:
            self._memory.let_go(reply.sample.payload.place)

    def _let_go(self) -> None:
        """The buffer no longer needs the places of what has left it."""
        for stored in self._left:
            self._memory.let_go(stored.place)
        self._left.clear()

    async def wait(self, now: float, starts: int) -> None:
        """Wait a while until there may be an entry to give; for ``starts`` see ``PaceActor.reached``."""
        deadline = time.monotonic() + WAIT_S
        while (blocked := self._buffer.blocked(self._now(now))) is not None and time.monotonic() < deadline:
            self._let_go()
            now = await self._wait_for_arrival(now, starts, blocked.due, deadline)
        self._let_go()

    def _arrays(self, stored: Stored) -> Arrays:
        return {name: array.copy() for name, array in self._mapped.read(stored).items()}

    async def _wait_for_arrival(self, now: float, starts: int, due: float | None, deadline: float) -> float:
        if due is not None and self._steps_clock:
            return await self._wait_for_clock(now, starts, due, deadline)
        if due is not None:
            deadline = min(deadline, due)
        await wait_for_change(self._changed, deadline)
        return now

    async def _wait_for_clock(self, now: float, starts: int, due: float, deadline: float) -> float:
        """Until the profile clock has come to ``due``, or another entry was sent that may be here sooner."""

        async def reached() -> float:
            self._pace = self._pace or ray.get_actor(self._pace_name)
            try:
                clock: float = await self._pace.reached.remote(self._reader, due, starts)
            except ray.exceptions.ActorUnavailableError:  # it will be there again
                await asyncio.sleep(WAIT_S)
                return now
            return clock

        clock = asyncio.ensure_future(reached())
        changed = asyncio.ensure_future(wait_for_change(self._changed, deadline))
        await asyncio.wait({clock, changed}, return_when=asyncio.FIRST_COMPLETED)
        changed.cancel()
        if clock.done():
            return max(now, clock.result())
        self._overtaken.add(clock)  # it ends by itself, soon; nobody else holds it
        clock.add_done_callback(self._overtaken.discard)
        return now

    async def reserve(self, life: int, name: PassName, wait: bool) -> bool:
        """Keep a place for a coming entry; with ``wait``, wait a while for one. For ``life`` see ``insert``."""
        deadline = time.monotonic() + (WAIT_S if wait else 0)
        may_change = True
        while True:
            self._check(life)
            has_place = self._buffer.reserve(name)
            if has_place or not may_change:
                return has_place
            may_change = await wait_for_change(self._changed, deadline)

    async def drop(self, life: int, names: list[PassName]) -> None:
        """See ``ReplayBuffer.drop``; for ``life`` see ``insert``."""
        self._check(life)
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
