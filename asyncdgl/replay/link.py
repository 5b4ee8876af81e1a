"""The link in front of a buffer: entries on their way, delayed, lost or dropped as the delay profile says."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from asyncdgl.batch import PassName
from asyncdgl.delays.profile import LinkDelay
from asyncdgl.replay.entry import Entry
from asyncdgl.seeding import Draws


class Link:
    """Holds the entries that were sent and have not arrived. Reads no clock: every call is told the time.

    An entry leaves its producer when the entries before it are through (bandwidth), and arrives a latency later.
    Each sent entry comes to exactly one of: arrived, on the way, lost, dropped.

    Args:
        delay: what the link does.
        draws: keyed by (seed, link).
        in_order: give entries out by step, holding back those that overtook an earlier one (samplers ``fifo``).
        may_drop: drop the oldest when more than ``max_in_flight`` are on the way; otherwise there is no bound here.

    Attributes:
        is_plain: whether it does nothing to an entry: ``pass_on`` then does the same as ``send``, at once.
    """

    def __init__(self, delay: LinkDelay, draws: Draws, in_order: bool = False, may_drop: bool = True) -> None:
        self._delay = delay
        self._draws = draws
        self._in_order = in_order
        self._may_drop = may_drop
        self._on_the_way: list[tuple[float, Entry]] = []
        self._free_at = float("-inf")
        self._seen: defaultdict[int, _Steps] = defaultdict(_Steps)  # by incarnation
        self.is_plain = not in_order and not delay.has_delay and delay.loss == 0
        self._settled = _Steps()  # steps that arrived, were lost or dropped: nothing earlier is still to come
        self.sent = 0
        self.lost = 0
        self.dropped = 0

    def __len__(self) -> int:
        return len(self._on_the_way)

    @property
    def has_delay(self) -> bool:
        """Whether entries take any time; otherwise they arrive as they are sent."""
        return self._delay.has_delay

    @property
    def nbytes(self) -> int:
        """Encoded bytes on the way."""
        return sum(entry.nbytes for _, entry in self._on_the_way)

    @property
    def is_full(self) -> bool:
        """Whether the next entry makes the oldest one drop."""
        return self._may_drop and len(self._on_the_way) >= self._delay.max_in_flight

    def send(self, entry: Entry, now: float, unit: float = 1.0) -> bool:
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
        ready = now
        if delay.bandwidth is not None:
            ready = self._free_at = max(now, self._free_at) + unit * entry.nbytes / delay.bandwidth
        if self._draws.uniform("loss", *key) < delay.loss:
            self.lost += 1
            self._settled.add(name.step)
            return True
        due = ready + unit * delay.latency.quantile(self._draws.uniform("latency", *key))
        if self.is_full:
            self._drop_oldest()
        self._on_the_way.append((due, entry))
        return True

    def pass_on(self, entry: Entry) -> bool:
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

    def count_dropped(self, steps: Iterable[int], incarnation: int = 0) -> None:
        """Entries that the producer dropped before they were sent: too many under way, or nobody to read them."""
        for step in steps:
            if self._seen[incarnation].add(step):
                self._settled.add(step)
                self.sent += 1
                self.dropped += 1

    def arrivals(self, now: float) -> list[Entry]:
        """The entries that have arrived by ``now``, in the order in which the buffer is to take them."""
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
        awaited = self._settled.first_missing
        return min(
            (due for due, entry in self._on_the_way if not self._in_order or entry.source.name.step == awaited),
            default=None,
        )

    def _drop_oldest(self) -> None:
        oldest = min(range(len(self._on_the_way)), key=lambda index: self._on_the_way[index][1].age_key)
        _, entry = self._on_the_way.pop(oldest)
        self._settled.add(entry.source.name.step)
        self.dropped += 1


class _Steps:
    """A set of step numbers in little memory: all below ``first_missing``, and a few above it."""

    def __init__(self) -> None:
        self.first_missing = 0
        self._above: set[int] = set()

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
