"""The replay buffer B_j between stage j and stage j+1 (paper, Algorithm 2)."""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable, Collection, Iterator
from typing import Generic, NamedTuple

from asyncdgl.buffers.entry import Entry, P, PassName, Provenance
from asyncdgl.buffers.link import Link
from asyncdgl.buffers.samplers import Sampler, not_an_entry
from asyncdgl.config.sections import BufferConfig
from asyncdgl.errors import SampleBlocked
from asyncdgl.registry import BUILT_IN, find
from asyncdgl.seeding import Draws


class Sample(NamedTuple, Generic[P]):
    """What a buffer gives: an entry's payload, where it came from, and how often it has now been given (from 1)."""

    source: Provenance
    payload: P
    times_sampled: int


class ReplayBuffer(Generic[P]):
    """At most M entries that have arrived, handed out again and again.

    It never reads a clock, waits or looks inside an entry: the time comes in as an argument, and a caller that can't
    be served is told why. At any time inserted = held + retired + overwritten_unused.

    Args:
        config: size, sampler, what happens when full, and the limits on reuse and age.
        link: what an entry passes on its way here.
        draws: keyed by (seed, buffer), for the sampler ``uniform``.
        on_leave: called with each entry that is gone for good: overwritten, used up, too old, or sent a second time.
    """

    def __init__(
        self,
        config: BufferConfig,
        link: Link[P],
        draws: Draws,
        on_leave: Callable[[Entry[P]], None] = lambda entry: None,
    ) -> None:
        self._config = config
        self._link = link
        self._draws = draws
        self._on_leave = on_leave
        self._choose: Sampler[P] = find("sampler", config.sampler)
        self._is_own = config.sampler not in BUILT_IN["sampler"]
        self._held: list[Entry[P]] = []  # oldest first
        self._reserved: set[PassName] = set()
        self._held_bytes = 0
        self._held_at_samples = 0
        self._newest = -1  # step of the newest entry that has arrived
        self.inserted = 0
        self.sampled = self._sampled_before = 0
        self.retired = 0
        self.overwritten_unused = 0
        self.peak_bytes = 0

    def __len__(self) -> int:
        return len(self._held)

    @property
    def held(self) -> tuple[Entry[P], ...]:
        """The entries, oldest first."""
        return tuple(self._held)

    @property
    def readable(self) -> Iterator[Entry[P]]:
        """The entries that may still be read: those that are held, and those on the way."""
        yield from self._held
        yield from self._link.on_the_way

    def reserve(self, name: PassName) -> bool:
        """Keep a place for the entry of a coming pass (``on_full: block``).

        Held, on the way and reserved together are at most M. Asking again for the same pass changes nothing.

        Returns:
            Whether there is a place; otherwise the producer has to wait.
        """
        if name in self._reserved or self._link.knows(name):
            return True
        if len(self._held) + len(self._link) + len(self._reserved) >= self._config.size:
            return False
        self._reserved.add(name)
        return True

    def insert(self, entry: Entry[P], now: float, unit: float = 1.0, dropped: Collection[int] = ()) -> None:
        """Send an entry; it is here once the link lets it arrive.

        Args:
            entry: a repeated name is ignored.
            now: when the producer had it ready.
            unit: how long one unit of the delay profile is on the clock of ``now``.
            dropped: steps whose entries the producer dropped, because too many were under way.
        """
        link = self._link
        if dropped:
            link.count_dropped(dropped, entry.source.name.incarnation)
        if link.is_plain:
            if not link.pass_on(entry):
                self._on_leave(entry)
                return
            self._reserved.discard(entry.source.name)
            self._take(entry)
            self.peak_bytes = max(self.peak_bytes, self._held_bytes)
        else:
            if link.is_full:
                self._take_arrivals(now)
            if not link.send(entry, now, unit):
                self._on_leave(entry)
                return
            self._reserved.discard(entry.source.name)
            if not link.has_delay:
                self._take_arrivals(now)
            self.peak_bytes = max(self.peak_bytes, self.nbytes)

    def begin_sampling(self, number: int) -> None:
        """The next sampling has this number: the ones before it were another one's, which is gone."""
        self.sampled = self._sampled_before = number

    def begin(self, incarnation: int, step: int) -> None:
        """See ``Link``."""
        self._link.begin(incarnation, step)

    def sent_until(self, incarnation: int) -> int:
        """See ``Link``."""
        return self._link.sent_until(incarnation)

    def drop(self, name: PassName) -> None:
        """Count an entry that the producer did not send, because nobody reads it any more."""
        self._reserved.discard(name)
        self._link.count_dropped([name.step], name.incarnation)

    def blocked(self, now: float) -> SampleBlocked | None:
        """Why ``sample`` would have nothing to give; None where it would."""
        if len(self._link):
            self._take_arrivals(now)
        return None if self._held and self.inserted >= self._config.min_size else self._why_blocked()

    def _why_blocked(self) -> SampleBlocked:
        if self._held:
            return SampleBlocked("below_min_size", self._link.next_due())
        if len(self._link):
            return SampleBlocked("not_arrived", self._link.next_due())
        return SampleBlocked("reused_up" if self.inserted else "empty")

    def sample(self, now: float) -> Sample[P]:
        """Give an entry.

        Raises:
            SampleBlocked: with the reason ``empty``, ``below_min_size``, ``not_arrived`` or ``reused_up``.
            PartFailed: the sampler, one of the user's own, gave something that is not held.
        """
        if len(self._link):
            self._take_arrivals(now)
        if not self._held or self.inserted < self._config.min_size:
            raise self._why_blocked()
        self._held_at_samples += len(self._held)
        entry = self._choose(self._held, lambda: self._draws.uniform(self.sampled))
        if self._is_own and entry not in self._held:
            raise not_an_entry(self._config.sampler, entry)
        entry.times_sampled += 1
        self.sampled += 1
        if entry.times_sampled == self._config.max_reuse:
            self._leave(entry)
        return Sample(entry.source, entry.payload, entry.times_sampled)

    @property
    def nbytes(self) -> int:
        """Encoded bytes held and on the way."""
        return self._held_bytes + self._link.nbytes

    def statistics(self) -> dict[str, float]:
        """The counts of the summary, so that sent = inserted + on_the_way + lost + dropped.

        ``mean_held`` is the mean number of entries that a reader could choose from.
        """
        return {
            "sent": self._link.sent,
            "inserted": self.inserted,
            "sampled": self.sampled,
            "retired": self.retired,
            "overwritten_unused": self.overwritten_unused,
            "lost": self._link.lost,
            "dropped": self._link.dropped,
            "left": len(self._held),
            "on_the_way": len(self._link),
            "mean_held": self._held_at_samples / max(1, self.sampled - self._sampled_before),
            "peak_bytes": self.peak_bytes,
        }

    def _take_arrivals(self, now: float) -> None:
        for entry in self._link.arrivals(now):
            self._take(entry)

    def _take(self, entry: Entry[P]) -> None:
        self.inserted += 1
        self._held_bytes += entry.nbytes
        if not self._held or entry.source.name > self._held[-1].source.name:
            self._held.append(entry)
        else:
            insort(self._held, entry, key=lambda held: held.source.name)
        if len(self._held) > self._config.size:
            self._leave(self._held[0])
        if self._config.max_age is not None:
            self._newest = max(self._newest, entry.source.name.step)
            while self._held and self._newest - self._held[0].source.name.step > self._config.max_age:
                self._leave(self._held[0])

    def _leave(self, entry: Entry[P]) -> None:
        self._held.remove(entry)
        self._held_bytes -= entry.nbytes
        self._on_leave(entry)
        if entry.times_sampled:
            self.retired += 1
        else:
            self.overwritten_unused += 1
