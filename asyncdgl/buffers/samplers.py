"""Samplers: which entry a buffer gives. They see the entries from oldest to newest and choose one."""

from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import Any

from asyncdgl.buffers.entry import Entry, P, PassName, Provenance
from asyncdgl.errors import ConfigError, PartFailed
from asyncdgl.registry import find

Sampler = Callable[[Sequence[Entry[P]], Callable[[], float]], Entry[P]]
"""Chooses among entries (oldest first, at least one), which it leaves as they are; the second argument draws a uniform
number between 0 and 1."""


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


def not_an_entry(name: str, given: object) -> PartFailed:
    """What to say of a sampler that gave something else."""
    return PartFailed(
        f"sampler {name} gave {given!r}, which is no entry of the buffer: it must return one of the entries that it is "
        "called with"
    )


def check_sampler(name: str) -> None:
    """Whether a sampler of one's own chooses among a few entries.

    Raises:
        ConfigError: it fails, or gives something else.
    """
    sampler: Sampler[None] = find("sampler", name)
    for count in (1, 3):
        entries = [Entry(Provenance(PassName(1, 0, n), n, True, n), None, 1, times_sampled=2 - n) for n in range(count)]
        for u in (0.01, 0.99):
            try:
                given: Any = sampler(list(entries), lambda u=u: u)  # type: ignore[misc]
            except Exception as error:  # a part of the user's may raise anything
                raise ConfigError(f"sampler {name} fails: {type(error).__name__}: {error}") from error
            if given not in entries:
                raise ConfigError(str(not_an_entry(name, given)))
