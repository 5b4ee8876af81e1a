"""A stage's two ends: where it takes its entries, and where it leaves what it makes, each at a buffer's actor.

A buffer whose process has died is there again, and empty: both ends begin anew with it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar, cast

from asyncdgl.buffers.buffer import Sample
from asyncdgl.buffers.entry import Entry, PassName
from asyncdgl.config.resolved import ResolvedConfig
from asyncdgl.errors import NeedsRestart
from asyncdgl.on_ray.buffer import Reply
from asyncdgl.on_ray.buffer_client import BufferClient
from asyncdgl.on_ray.transport.calls import Call, Lost
from asyncdgl.on_ray.transport.memory import MappedMemory, Stored, stored_bytes
from asyncdgl.plan.memory import UNACKNOWLEDGED

if TYPE_CHECKING:
    from asyncdgl.buffers.codecs import Arrays, Payload

DROPS_AT_ONCE = 5_000
"""Names of dropped entries in one message: it must not become too large for a socket."""

T = TypeVar("T")


class Inbox:
    """Asks the buffer for entries, also ahead of their use, and reads them.

    Args:
        actor: the buffer's handle.
        stage: who reads.
        taken: entries that the stage has used already: as many as it has made passes.
        made: passes that it is known to have made: what these used is given again.

    Attributes:
        buffers_died: how often the buffer's process has died.

    Raises:
        NeedsRestart: the buffer that could do so is gone. Other entries would make other passes of the same names.
    """

    _buffer: BufferClient

    def __init__(self, actor: Any, stage: int, taken: int = 0, made: int = 0) -> None:
        self._actor, self._stage = actor, stage
        self._taken, self._made = taken, made
        self._fetching: deque[Call] = deque()
        self.buffers_died = -1

    def begin(self) -> None:
        """Before anything else is asked for."""
        _until_there(self._connect)

    def _connect(self) -> None:
        self._fetching.clear()
        if self.buffers_died >= 0:
            self._buffer.close()
        self._buffer = BufferClient(self._actor)
        first, following = self._buffer.begin_reading(self._taken)
        if following < self._made or first > self._taken:
            made = max(following, self._made) - self._taken
            raise NeedsRestart(
                f"stage {self._stage} made {made} passes since its last checkpoint, and what they "
                f"read was lost with the process of buffer {self._stage - 1}: they can't be made again"
            )
        self._memory = None if self._buffer.memory is None else MappedMemory(self._buffer.memory, writable=False)
        self.buffers_died += 1

    def fetch(self, v: float, count: int) -> None:
        """Ask, until so many answers are on their way or here."""

        def ask() -> None:
            while len(self._fetching) < count:
                self._fetching.append(self._ask(v))

        _again_where_lost(ask, self._connect)

    def take(self, v: float) -> Reply:
        """The next entry, or the reason why there is none now."""
        reply = _again_where_lost(lambda: self._next(v), self._connect)
        self._taken += reply.sample is not None
        return reply

    def _next(self, v: float) -> Reply:
        # Every entry that was fetched comes before any that is asked for now: the order of samples is kept.
        while self._fetching:
            reply: Reply = self._fetching[0].get()
            self._fetching.popleft()
            if reply.sample is not None:
                return reply
        return cast(Reply, self._ask(v).get())

    def wait(self, v: float, starts: int) -> None:
        """Wait a while until there may be an entry; for ``starts`` see ``PaceActor.reached``."""
        _again_where_lost(lambda: self._buffer.wait(v, starts), self._connect)

    def read(self, sample: Sample[Any]) -> Sample[Payload]:
        """With its content as payload. That lies in the buffer's memory and is good until the next entry is read."""
        from asyncdgl.buffers.codecs import from_arrays

        arrays = sample.payload
        if isinstance(arrays, Stored) and self._memory is not None:
            arrays = self._memory.read(arrays)
        return sample._replace(payload=from_arrays(arrays))

    def give_up(self) -> None:
        """Forget what was fetched; nothing more is given then."""

        def forget() -> None:
            while self._fetching:
                self._fetching[0].get()
                self._fetching.popleft()

        _again_where_lost(forget, self._connect)

    def _ask(self, v: float) -> Call:
        return self._buffer.sample(self._taken + len(self._fetching), v, mapped=self._memory is not None)


class Outbox:
    """Sends entries without waiting: a few calls on the wire, the rest in a queue that drops its oldest when full.

    Args:
        config: the run.
        actor: the buffer's handle.
        following: the name of the stage's next pass.
        life: which of the stage's processes this is, from 0.
    """

    _buffer: BufferClient

    def __init__(self, config: ResolvedConfig, actor: Any, following: PassName, life: int = 0) -> None:
        self.blocks = config.buffer.on_full == "block"
        self._actor, self._life, self._following = actor, life, following
        self._queue: deque[tuple[Entry[Any], float, float]] = deque()
        self._limit = config.profile.link(following.stage).max_in_flight
        self._wire: deque[Call] = deque()
        self._dropped: list[PassName] = []
        self._reserved: set[PassName] = set()  # what is to come, and has its place
        self._is_connected = False
        _until_there(self._connect)

    def _connect(self) -> None:
        """What was on the wire is lost with the buffer; what waits here is the first that another one gets."""
        self._wire.clear()
        self._dropped.clear()
        if self._is_connected:
            self._buffer.close()
        self._is_connected = True
        self._places: list[int] | None = None  # where the next entries go: one for each call that may be on the wire
        self._buffer = BufferClient(self._actor)
        self._buffer.begin(self._life, self._queue[0][0].source.name if self._queue else self._following)
        for name in sorted(self._reserved):  # or what has a place here would come on top of what fills the other one
            self._buffer.reserve(self._life, name, wait=False)
        self._memory = None if self._buffer.memory is None else MappedMemory(self._buffer.memory, writable=True)

    def sent_until(self, incarnation: int) -> int:
        """See ``Link``."""
        return _again_where_lost(lambda: self._buffer.sent_until(incarnation), self._connect)

    def reserve(self, name: PassName, wait: bool) -> bool:
        """See ``BufferActor.reserve``."""
        self.send_on()  # or what waits here would keep the places that it waits for
        if not _again_where_lost(lambda: self._buffer.reserve(self._life, name, wait), self._connect):
            return False
        self._reserved.add(name)
        return True

    def send(self, entry: Entry[Any], now: float, unit: float) -> None:
        """Send, or queue where too many calls are unanswered."""
        from asyncdgl.buffers.codecs import to_arrays

        self._settle()
        entry = Entry(entry.source, to_arrays(entry.payload), entry.nbytes)
        self._following = entry.source.name._replace(step=entry.source.name.step + 1)
        self._queue.append((entry, now, unit))
        self._reserved.discard(entry.source.name)
        if not self.blocks and len(self._queue) + len(self._wire) > self._limit:
            oldest, _, _ = self._queue.popleft()
            self._dropped.append(oldest.source.name)
        _again_where_lost(self._send_queued, self._connect)
        if self._queue and self._queue[-1][0] is entry:
            # A block may give back what it got, which lies where the entry came from: others are written there.
            arrays = {name: array.copy() for name, array in entry.payload.items()}
            self._queue[-1] = Entry(entry.source, arrays, entry.nbytes), now, unit

    def send_on(self) -> None:
        """Send what had to wait, as far as calls were answered meanwhile."""
        if self._queue:
            self._settle()
            _again_where_lost(self._send_queued, self._connect)

    def drop(self, name: PassName) -> None:
        """Tell the buffer of an entry that is not sent."""
        self._dropped.append(name)
        self._reserved.discard(name)
        self._following = name._replace(step=name.step + 1)
        self._settle()
        _again_where_lost(self._send_queued, self._connect)

    def flush(self) -> None:
        """Wait until everything was taken."""

        def flush() -> None:
            while self._wire or self._queue or self._dropped:
                self._send_queued()
                if not self._wire:
                    self._buffer.drop(self._life, self._drops())
                else:
                    self._take_answer()

        _again_where_lost(flush, self._connect)

    def _drops(self) -> list[PassName]:
        drops, self._dropped = self._dropped[:DROPS_AT_ONCE], self._dropped[DROPS_AT_ONCE:]
        return drops

    def _settle(self) -> None:
        def take() -> None:
            while self._wire and self._wire[0].is_done():
                self._take_answer()

        _again_where_lost(take, self._connect)

    def _take_answer(self) -> None:
        place = self._wire[0].get()  # raises what the buffer raised
        self._wire.popleft()
        if place is not None and self._places is not None:
            self._places.append(place)

    def _send_queued(self) -> None:
        while self._queue and len(self._wire) < UNACKNOWLEDGED:
            entry, now, unit = self._queue[0]
            payload = entry.payload if self._memory is None else self._write(self._memory, entry.payload)
            dropped = [name.step for name in self._drops()]
            call = self._buffer.insert(self._life, entry.source, payload, entry.nbytes, now, unit, dropped)
            self._wire.append(call)
            self._queue.popleft()

    def _write(self, memory: MappedMemory, arrays: Arrays) -> Stored:
        if self._places is None:
            self._places = self._buffer.places(self._life, stored_bytes(arrays), UNACKNOWLEDGED)
        return memory.write(self._places.pop(), arrays)


def _again_where_lost(ask: Callable[[], T], connect: Callable[[], None]) -> T:
    """Ask; where the process that is asked has died, ask the one that takes its place."""
    while True:
        try:
            return ask()
        except Lost:
            _until_there(connect)


def _until_there(connect: Callable[[], None]) -> None:
    while True:
        try:
            return connect()
        except Lost:
            continue
