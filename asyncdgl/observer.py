"""Who is told what happens in a run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from asyncdgl.rundir.records import EpochLine, EvaluationLine, Fault
    from asyncdgl.rundir.trace import PassRecord


class Observer(Protocol):
    """Who is told what happens in a run: the run directory and the display."""

    def began(self, path: Path) -> None:
        """The run directory is there."""

    def passed(self, records: Sequence[PassRecord]) -> None:
        """Passes were made."""

    def progressed(self, stage: int, progress: Progress) -> None:
        """A stage has come so far."""

    def epoch_completed(self, line: EpochLine) -> None:
        """A stage completed one of its own epochs."""

    def evaluated(self, line: EvaluationLine) -> None:
        """The test set was used, and the validation set where there is one."""

    def faulted(self, faults: Sequence[Fault]) -> None:
        """A process of the run has died, or another has taken its place: all faults until now."""

    def noticed(self, message: str) -> None:
        """Something that a person would want to know while waiting."""


class NullObserver:
    """Told everything, and does nothing: to build on."""

    def began(self, path: Path) -> None:
        """See ``Observer``."""

    def passed(self, records: Sequence[PassRecord]) -> None:
        """See ``Observer``."""

    def progressed(self, stage: int, progress: Progress) -> None:
        """See ``Observer``."""

    def epoch_completed(self, line: EpochLine) -> None:
        """See ``Observer``."""

    def evaluated(self, line: EvaluationLine) -> None:
        """See ``Observer``."""

    def faulted(self, faults: Sequence[Fault]) -> None:
        """See ``Observer``."""

    def noticed(self, message: str) -> None:
        """See ``Observer``."""


class Notices(NullObserver):
    """Hands on what a person should know, and nothing else.

    Args:
        say: takes each message.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say

    def noticed(self, message: str) -> None:
        """See ``Observer``."""
        self._say(message)


class Several:
    """Tells several observers, one after the other.

    Args:
        observers: in their order.
    """

    def __init__(self, *observers: Observer) -> None:
        self._observers = observers

    def began(self, path: Path) -> None:
        """See ``Observer``."""
        for observer in self._observers:
            observer.began(path)

    def passed(self, records: Sequence[PassRecord]) -> None:
        """See ``Observer``."""
        for observer in self._observers:
            observer.passed(records)

    def progressed(self, stage: int, progress: Progress) -> None:
        """See ``Observer``."""
        for observer in self._observers:
            observer.progressed(stage, progress)

    def epoch_completed(self, line: EpochLine) -> None:
        """See ``Observer``."""
        for observer in self._observers:
            observer.epoch_completed(line)

    def evaluated(self, line: EvaluationLine) -> None:
        """See ``Observer``."""
        for observer in self._observers:
            observer.evaluated(line)

    def faulted(self, faults: Sequence[Fault]) -> None:
        """See ``Observer``."""
        for observer in self._observers:
            observer.faulted(faults)

    def noticed(self, message: str) -> None:
        """See ``Observer``."""
        for observer in self._observers:
            observer.noticed(message)


class Recorder:
    """Keeps all that it is told.

    Args:
        on_passes: called with the recorder each time that passes were made.

    Attributes:
        path: the run directory; None before the run has one.
        trace: the passes, in the order in which they were told.
        epochs, evaluations: lines of metrics.jsonl.
        progress: stage and how far it had come, each time.
        faults: processes that died.
        notices: messages.
    """

    def __init__(self, on_passes: Callable[[Recorder], None] = lambda recorder: None) -> None:
        self.on_passes = on_passes
        self.path: Path | None = None
        self.trace: list[PassRecord] = []
        self.epochs: list[EpochLine] = []
        self.evaluations: list[EvaluationLine] = []
        self.progress: list[tuple[int, Progress]] = []
        self.faults: list[Fault] = []
        self.notices: list[str] = []

    def began(self, path: Path) -> None:
        """See ``Observer``."""
        self.path = path

    def passed(self, records: Sequence[PassRecord]) -> None:
        """See ``Observer``."""
        self.trace.extend(records)
        self.on_passes(self)

    def progressed(self, stage: int, progress: Progress) -> None:
        """See ``Observer``."""
        self.progress.append((stage, progress))

    def epoch_completed(self, line: EpochLine) -> None:
        """See ``Observer``."""
        self.epochs.append(line)

    def evaluated(self, line: EvaluationLine) -> None:
        """See ``Observer``."""
        self.evaluations.append(line)

    def faulted(self, faults: Sequence[Fault]) -> None:
        """See ``Observer``."""
        self.faults = list(faults)

    def noticed(self, message: str) -> None:
        """See ``Observer``."""
        self.notices.append(message)


@dataclass(frozen=True)
class Progress:
    """How far a stage has come: own epoch and updates, mean loss and accuracy in the epoch, whether it has stopped."""

    epoch: int
    updates: int
    loss: float | None
    accuracy: float | None
    stopped: bool
