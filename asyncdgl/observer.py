"""Who is told what happens in a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from asyncdgl.rundir.records import EpochLine, EvaluationLine
    from asyncdgl.rundir.trace import PassRecord


class Observer(Protocol):
    """Who is told what happens in a run: the run directory and the display."""

    def passed(self, records: Sequence[PassRecord]) -> None:
        """Passes were made."""

    def progressed(self, stage: int, progress: Progress) -> None:
        """A stage has come so far."""

    def epoch_completed(self, line: EpochLine) -> None:
        """A stage completed one of its own epochs."""

    def evaluated(self, line: EvaluationLine) -> None:
        """The test set was used, and the validation set where there is one."""

    def noticed(self, message: str) -> None:
        """Something that a person would want to know while waiting."""


@dataclass(frozen=True)
class Progress:
    """How far a stage has come: own epoch and updates, mean loss and accuracy in the epoch, whether it has stopped."""

    epoch: int
    updates: int
    loss: float | None
    accuracy: float | None
    stopped: bool
