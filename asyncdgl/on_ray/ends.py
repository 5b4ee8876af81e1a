"""A stage's two ends: where it takes its entries, and where it leaves what it makes, each at a buffer's actor."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any, cast

from asyncdgl.buffers.buffer import Sample
from asyncdgl.buffers.entry import Entry, PassName
from asyncdgl.config.resolved import ResolvedConfig
from asyncdgl.on_ray.buffer import BufferClient, Reply
from asyncdgl.on_ray.transport.calls import Call
from asyncdgl.on_ray.transport.memory import MappedMemory, Stored, stored_bytes
from asyncdgl.plan.memory import UNACKNOWLEDGED

if TYPE_CHECKING:
    from asyncdgl.buffers.codecs import Arrays, Payload

DROPS_AT_ONCE = 5_000
"""Names of dropped entries in one message: it must not become too large for a socket."""


class Inbox:
    """Asks the buffer for entries, also ahead of their use, and reads them.

    Args:
        buffer: its handle.
        taken: entries that the stage has used already: as many as it has made passes.
    """

    def __init__(self, buffer: Any, taken: int = 0) -> None:
        self._buffer = BufferClient(buffer)
        self._taken = taken
        self._memory = None if self._buffer.memory is None else MappedMemory(self._buffer.memory, writable=False)
        self._fetching: deque[Call] = deque()

    def fetch(self, v: float, count: int) -> None:
        """Ask, until so many answers are on their way or here."""
        while len(self._fetching) < count:
            self._fetching.append(self._ask(v))

    def take(self, v: float) -> Reply:
        """The next entry, or the reason why there is none now."""
        # Every entry that was fetched comes before any that is asked for now: the order of samples is kept.
        while self._fetching:
            reply: Reply = self._fetching.popleft().get()
            if reply.sample is not None:
                break
        else:
            reply = cast(Reply, self._ask(v).get())
        self._taken += reply.sample is not None
        return reply

    def wait(self, v: float, starts: int) -> None:
        """Wait a while until there may be an entry; for ``starts`` see ``PaceActor.reached``."""
        self._buffer.wait(v, starts)

    def read(self, sample: Sample[Any]) -> Sample[Payload]:
        """With its content as payload. That lies in the buffer's memory and is good until the next entry is read."""
        from asyncdgl.buffers.codecs import from_arrays

        arrays = sample.payload
        if isinstance(arrays, Stored) and self._memory is not None:
            arrays = self._memory.read(arrays)
        return sample._replace(payload=from_arrays(arrays))

    def give_up(self) -> None:
        """Forget what was fetched; nothing more is given then."""
        while self._fetching:
            self._fetching.popleft().get()

    def _ask(self, v: float) -> Call:
        return self._buffer.sample(self._taken + len(self._fetching), v, mapped=self._memory is not None)


class Outbox:
    """Sends entries without waiting: a few calls on the wire, the rest in a queue that drops its oldest when full.

    Args:
        config: the run.
        number: the stage.
        buffer: its handle.
        life: which of the stage's processes this is, from 0.
    """

    def __init__(self, config: ResolvedConfig, number: int, buffer: Any, life: int = 0) -> None:
        self.blocks = config.buffer.on_full == "block"
        self._buffer = BufferClient(buffer)
        self._life = life
        self._buffer.begin(life)
        self._memory = None if self._buffer.memory is None else MappedMemory(self._buffer.memory, writable=True)
        self._places: list[int] | None = None  # where the next entries go: one for each call that may be on the wire
        self._queue: deque[tuple[Entry[Any], float, float]] = deque()
        self._limit = config.profile.link(number).max_in_flight
        self._wire: deque[Call] = deque()
        self._dropped: list[PassName] = []

    def sent_until(self, incarnation: int) -> int:
        """See ``Link``."""
        return self._buffer.sent_until(incarnation)

    def reserve(self, name: PassName, wait: bool) -> bool:
        """See ``BufferActor.reserve``."""
        return self._buffer.reserve(name, wait)

    def send(self, entry: Entry[Any], now: float, unit: float) -> None:
        """Send, or queue where too many calls are unanswered."""
        from asyncdgl.buffers.codecs import to_arrays

        self._take_answers()
        entry = Entry(entry.source, to_arrays(entry.payload), entry.nbytes)
        self._queue.append((entry, now, unit))
        if not self.blocks and len(self._queue) + len(self._wire) > self._limit:
            oldest, _, _ = self._queue.popleft()
            self._dropped.append(oldest.source.name)
        self._send_queued()
        if self._queue and self._queue[-1][0] is entry:
            # A block may give back what it got, which lies where the entry came from: others are written there.
            arrays = {name: array.copy() for name, array in entry.payload.items()}
            self._queue[-1] = Entry(entry.source, arrays, entry.nbytes), now, unit

    def drop(self, name: PassName) -> None:
        """Tell the buffer of an entry that is not sent."""
        self._dropped.append(name)
        self._take_answers()
        self._send_queued()

    def flush(self) -> None:
        """Wait until everything was taken."""
        while self._wire or self._queue or self._dropped:
            self._send_queued()
            if not self._wire:
                self._buffer.drop(self._drops())
            else:
                self._take_answer()

    def _drops(self) -> list[PassName]:
        drops, self._dropped = self._dropped[:DROPS_AT_ONCE], self._dropped[DROPS_AT_ONCE:]
        return drops

    def _take_answers(self) -> None:
        while self._wire and self._wire[0].is_done():
            self._take_answer()

    def _take_answer(self) -> None:
        place = self._wire.popleft().get()  # raises what the buffer raised
        if place is not None and self._places is not None:
            self._places.append(place)

    def _send_queued(self) -> None:
        while self._queue and len(self._wire) < UNACKNOWLEDGED:
            entry, now, unit = self._queue.popleft()
            payload = entry.payload if self._memory is None else self._write(self._memory, entry.payload)
            dropped = [name.step for name in self._drops()]
            self._wire.append(self._buffer.insert(self._life, entry.source, payload, entry.nbytes, now, unit, dropped))

    def _write(self, memory: MappedMemory, arrays: Arrays) -> Stored:
        if self._places is None:
            self._places = self._buffer.places(self._life, stored_bytes(arrays), UNACKNOWLEDGED)
        return memory.write(self._places.pop(), arrays)
