"""Samplers: which entry a buffer gives. They see the entries from oldest to newest and choose one."""

from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import Any

from asyncdgl.buffers.entry import Entry, P

Sampler = Callable[[Sequence[Entry[P]], Callable[[], float]], Entry[P]]
"""Chooses among entries (oldest first, at least one); the second argument draws a uniform number."""


_TIMES_SAMPLED = attrgetter("times_sampled")


def priority_lifo(entries: Sequence[Entry[P]], uniform: Callable[[], float]) -> Entry[P]:
    """Among the entries used the fewest times, the newest (paper, asynchronous experiment)."""
    return min(reversed(entries), key=_TIMES_SAMPLED)


def lifo(entries: Sequence[Entry[P]], uniform: Callable[[], float]) -> Entry[P]:
    """The newest."""
    return entries[-1]


def fifo(entries: Sequence[Entry[P]], uniform: Callable[[], float]) -> Entry[P]:
    """The oldest."""
    return entries[0]


def uniform(entries: Sequence[Entry[P]], uniform: Callable[[], float]) -> Entry[P]:
    """Any, with equal chances."""
    return entries[int(uniform() * len(entries))]


SAMPLERS: dict[str, Sampler[Any]] = {"priority_lifo": priority_lifo, "lifo": lifo, "fifo": fifo, "uniform": uniform}
