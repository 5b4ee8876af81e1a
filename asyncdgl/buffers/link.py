"""The link in front of a buffer: entries on their way, delayed, lost or dropped as the delay profile says."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from typing import Generic, NamedTuple

from asyncdgl.buffers.entry import Entry, P, PassName
from asyncdgl.delays.profiles import LinkDelay
from asyncdgl.seeding import Draws


class _Waiting(NamedTuple, Generic[P]):
    """An entry that its producer has ready, and the link not yet begun to send. Lost ones take bandwidth too."""

    ready: float
    sending: float  # how long its bytes take
    latency: float
    entry: Entry[P]
    is_lost: bool


class Link(Generic[P]):
    """Holds the entries that were sent and have not arrived. Reads no clock: every call is told the time.

    An entry waits until those before it are sent (bandwidth), is sent, and arrives a latency later. What is dropped is
    the oldest of those that still wait, and takes no bandwidth; what was begun comes through, so that a link which gets
    more than it can carry goes on delivering at its own rate.
    Each sent entry comes to exactly one of: arrived, on the way, lost, dropped.

    Args:
        delay: what the link does.
        draws: keyed by (seed, link).
        in_order: give entries out by step, holding back those that overtook an earlier one (samplers ``fifo``).
        may_drop: drop one when more than ``max_in_flight`` are on the way; otherwise there is no bound here.
        on_leave: called with each entry that was lost or dropped.

    Attributes:
        is_plain: whether it does nothing to an entry: ``pass_on`` then does the same as ``send``, at once.
    """

    def __init__(
        self,
        delay: LinkDelay,
        draws: Draws,
        in_order: bool = False,
        may_drop: bool = True,
        on_leave: Callable[[Entry[P]], None] = lambda entry: None,
    ) -> None:
        self._delay = delay
        self._draws = draws
        self._in_order = in_order
        self._may_drop = may_drop
        self._on_leave = on_leave
        self._waiting: list[_Waiting[P]] = []
        self._on_the_way: list[tuple[float, Entry[P]]] = []  # begun, with the time of arrival
        self._free_at = float("-inf")
        self._seen: defaultdict[int, _Steps] = defaultdict(_Steps)  # by incarnation
        self.is_plain = not in_order and not delay.has_delay and delay.loss == 0
        self._settled = _Steps()  # steps that arrived, were lost or dropped: nothing earlier is still to come
        self.sent = 0
        self.lost = 0
        self.dropped = 0

    def __len__(self) -> int:
        return len(self._on_the_way) + (sum(not w.is_lost for w in self._waiting) if self._waiting else 0)

    @property
    def on_the_way(self) -> Iterator[Entry[P]]:
        """The entries that were sent and may still arrive."""
        yield from (entry for _, entry in self._on_the_way)
        yield from (w.entry for w in self._waiting if not w.is_lost)

    @property
    def has_delay(self) -> bool:
        """Whether entries take any time; otherwise they arrive as they are sent."""
        return self._delay.has_delay

    @property
    def nbytes(self) -> int:
        """Encoded bytes on the way."""
        waiting = sum(w.entry.nbytes for w in self._waiting if not w.is_lost)
        return waiting + sum(entry.nbytes for _, entry in self._on_the_way)

    @property
    def is_full(self) -> bool:
        """Whether the next entry makes one drop."""
        return self._may_drop and len(self._on_the_way) + len(self._waiting) >= self._delay.max_in_flight

    def send(self, entry: Entry[P], now: float, unit: float = 1.0) -> bool:
        """Put an entry on the way.

        Args:
            entry: a repeated name is ignored, so that a producer may send again what it is not sure of.
            now: when the producer had it ready.
            unit: how long one unit of the profile (a step or a second) is on the clock of ``now``.

        Returns:
            Whether the entry is new.
        """
        name = entry.source.name
        if not self._seen[name.incarnation].add(name.step):
            return False
        self.sent += 1
        delay, key = self._delay, (name.incarnation, name.step)
        is_lost = self._draws.uniform("loss", *key) < delay.loss
        if is_lost:
            self.lost += 1
            self._settled.add(name.step)
            if delay.bandwidth is None:
                self._on_leave(entry)
                return True
        self._begin(now)
        was_full = self.is_full
        sending = 0.0 if delay.bandwidth is None else unit * entry.nbytes / delay.bandwidth
        latency = unit * delay.latency.quantile(self._draws.uniform("latency", *key))
        self._waiting.append(_Waiting(now, sending, latency, entry, is_lost))
        if was_full:
            self._drop_oldest_waiting()
        self._begin(now)
        return True

    def pass_on(self, entry: Entry[P]) -> bool:
        """Send an entry through a link that neither delays nor loses nor reorders: it arrives at once.

        Returns:
            Whether the entry is new.
        """
        name = entry.source.name
        if not self._seen[name.incarnation].add(name.step):
            return False
        self.sent += 1
        return True

    def knows(self, name: PassName) -> bool:
        """Whether an entry of this name was sent before."""
        return name.step in self._seen[name.incarnation]

    def begin(self, incarnation: int, step: int) -> None:
        """The producer goes on with this step: what it sent before went to another one, which is gone."""
        if not self.sent:
            self._seen[incarnation].first_missing = self._settled.first_missing = step

    def sent_until(self, incarnation: int) -> int:
        """One more than the last step whose entry was sent, or counted as dropped."""
        return self._seen[incarnation].last + 1

    def count_dropped(self, steps: Iterable[int], incarnation: int = 0) -> None:
        """Entries that the producer dropped before they were sent: too many under way, or nobody to read them."""
        for step in steps:
            if self._seen[incarnation].add(step):
                self._settled.add(step)
                self.sent += 1
                self.dropped += 1

    def arrivals(self, now: float) -> list[Entry[P]]:
        """The entries that have arrived by ``now``, in the order in which the buffer is to take them."""
        self._begin(now)
        if not self._on_the_way:
            return []
        due = [pair for pair in self._on_the_way if pair[0] <= now]
        due.sort(key=lambda pair: pair[1].age_key if self._in_order else (pair[0], pair[1].age_key))
        arrived = []
        for pair in due:
            step = pair[1].source.name.step
            if self._in_order and step != self._settled.first_missing:
                break
            self._settled.add(step)
            self._on_the_way.remove(pair)
            arrived.append(pair[1])
        return arrived

    def next_due(self) -> float | None:
        """When the next entry arrives, or None where that needs an entry that was not sent yet."""
        coming, free_at = list(self._on_the_way), self._free_at
        for w in self._waiting:
            free_at = max(free_at, w.ready) + w.sending
            if not w.is_lost:
                coming.append((free_at + w.latency, w.entry))
        awaited = self._settled.first_missing
        return min(
            (due for due, entry in coming if not self._in_order or entry.source.name.step == awaited), default=None
        )

    def _begin(self, now: float) -> None:
        """Send what has its turn by ``now``. Without a bandwidth nothing waits for a turn."""
        has_bandwidth = self._delay.bandwidth is not None
        while self._waiting and (not has_bandwidth or max(self._free_at, self._waiting[0].ready) <= now):
            w = self._waiting.pop(0)
            sent = w.ready
            if has_bandwidth:
                sent = self._free_at = max(self._free_at, w.ready) + w.sending
            if w.is_lost:
                self._on_leave(w.entry)
            else:
                self._on_the_way.append((sent + w.latency, w.entry))

    def _drop_oldest_waiting(self) -> None:
        dropped = min(self._waiting, key=lambda w: w.entry.age_key)
        self._waiting.remove(dropped)
        self._on_leave(dropped.entry)
        if not dropped.is_lost:
            self._settled.add(dropped.entry.source.name.step)
            self.dropped += 1


class _Steps:
    """A set of step numbers in little memory: all below ``first_missing``, and a few above it."""

    def __init__(self) -> None:
        self.first_missing = 0
        self._above: set[int] = set()

    @property
    def last(self) -> int:
        """The largest; -1 where there is none."""
        return max(self._above, default=self.first_missing - 1)

    def __contains__(self, step: int) -> bool:
        return step < self.first_missing or step in self._above

    def add(self, step: int) -> bool:
        """Whether the step is new."""
        if step == self.first_missing and not self._above:
            self.first_missing += 1
            return True
        if step in self:
            return False
        self._above.add(step)
        while self.first_missing in self._above:
            self._above.remove(self.first_missing)
            self.first_missing += 1
        return True
