"""What a buffer gave to its reader, in order: a reader that died takes the same again (rule 30)."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

G = TypeVar("G")
"""What is given."""


class Given(Generic[G]):
    """The samplings since the reader's newest checkpoint that counts.

    The reader makes one pass of each, so that a sampling has the number of the pass that uses it. That makes asking
    safe to repeat: whoever asks for a number that was given gets what was given then.

    Args:
        least: of the last ones, so many stay whatever counts: the reader may still be reading them.
        most: more than so many are not kept, whatever does not count yet: memory has an end.
        let_go: called with each that is not kept any more.

    Attributes:
        number: of the next sampling.
    """

    def __init__(self, least: int, most: int, let_go: Callable[[G], None]) -> None:
        self._least, self._most, self._let_go = least, max(least, most), let_go
        self._kept: deque[G] = deque()
        self._counts = 0
        self.number = 0

    @property
    def first(self) -> int:
        """The first sampling that can still be given again."""
        return self.number - len(self._kept)

    def again(self, number: int) -> G | None:
        """What was given as this number; None where it was not given yet.

        Raises:
            LookupError: it was given, and is not kept any more.
        """
        if number >= self.number:
            return None
        if number < self.first:
            raise LookupError(f"sampling {number} is not kept any more")
        return self._kept[number - self.first]

    def add(self, given: G) -> None:
        """One more was given."""
        self._kept.append(given)
        self.number += 1
        self._shrink()

    def count(self, step: int) -> None:
        """The reader has a checkpoint after so many passes that counts: it never takes again what these used."""
        self._counts = max(self._counts, step)
        self._shrink()

    def _shrink(self) -> None:
        kept = self._kept
        while len(kept) > self._least and (self.first < self._counts or len(kept) > self._most):
            self._let_go(kept.popleft())
