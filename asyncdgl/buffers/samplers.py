"""Samplers: which entry a buffer gives. They see the entries from oldest to newest and choose one."""

from collections.abc import Callable, Sequence
from operator import attrgetter

from asyncdgl.buffers.entry import Entry

Sampler = Callable[[Sequence[Entry], Callable[[], float]], Entry]
"""Chooses among entries (oldest first, at least one); the second argument draws a uniform number."""


_TIMES_SAMPLED = attrgetter("times_sampled")


def priority_lifo(entries: Sequence[Entry], uniform: Callable[[], float]) -> Entry:
    """Among the entries used the fewest times, the newest (paper, asynchronous experiment)."""
    return min(reversed(entries), key=_TIMES_SAMPLED)


def lifo(entries: Sequence[Entry], uniform: Callable[[], float]) -> Entry:
    """The newest."""
    return entries[-1]


def fifo(entries: Sequence[Entry], uniform: Callable[[], float]) -> Entry:
    """The oldest."""
    return entries[0]


def uniform(entries: Sequence[Entry], uniform: Callable[[], float]) -> Entry:
    """Any, with equal chances."""
    return entries[int(uniform() * len(entries))]


SAMPLERS: dict[str, Sampler] = {"priority_lifo": priority_lifo, "lifo": lifo, "fifo": fifo, "uniform": uniform}
