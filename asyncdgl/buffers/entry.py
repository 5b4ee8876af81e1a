"""An entry: one encoded mini-batch with where it came from. Buffers hold entries and never look inside."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

P = TypeVar("P")
"""What a buffer holds of a mini-batch: tensors, arrays, a place in shared memory, or nothing."""


class PassName(NamedTuple):
    """The one unique name of a pass, and of the entry that it makes: a batch can be forwarded twice."""

    stage: int
    incarnation: int
    step: int


class Provenance(NamedTuple):
    """Where a batch of activations came from.

    Attributes:
        name: the pass that made it.
        update: the producer's updates completed before that pass.
        trained: whether that pass was itself an update.
        batch: the mini-batch of the data stream that it goes back to.
    """

    name: PassName
    update: int
    trained: bool
    batch: int


@dataclass(eq=False, slots=True)
class Entry(Generic[P]):
    """One mini-batch in a buffer.

    Attributes:
        source: the pass that made it; its name is the entry's name.
        payload: the encoded mini-batch, or a reference to it.
        nbytes: its encoded size.
        times_sampled: how often it was given.
    """

    source: Provenance
    payload: P
    nbytes: int
    times_sampled: int = 0

    @property
    def age_key(self) -> tuple[int, int]:
        """Orders entries from oldest to newest by the producer's step, not by arrival."""
        return self.source.name.incarnation, self.source.name.step
