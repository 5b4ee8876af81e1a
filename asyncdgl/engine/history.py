"""What is known of a stage whose processes may die, so that another one can take its place (rules 29 and 30)."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from asyncdgl.errors import StageFailed
from asyncdgl.rundir.checkpoint import Checkpoint
from asyncdgl.rundir.records import Fault
from asyncdgl.rundir.trace import PassRecord

MOST_DEATHS = 3
"""Deaths at one pass: the next process would come no further either."""


class History:
    """What a stage has done, as far as its processes could tell.

    A process that takes another's place begins at the last checkpoint, reads again what was read since, and so makes
    the same passes again. They are recorded once, and compared: a machine that comes to other bits is found out.

    Args:
        stage: its number.
        faults: of the whole run; those of this stage are added.

    Attributes:
        life: which of its processes is listened to, from 0.
        made: passes recorded.
        epochs: completed.
        kept: the newest checkpoint that counts; None where there is none yet.
    """

    def __init__(self, stage: int, faults: list[Fault]) -> None:
        self.stage = stage
        self.life = 0
        self.made = 0
        self.epochs = 0
        self.kept: Checkpoint | None = None
        self._faults = faults
        self._fault = -1  # the last one of this stage
        self._since: deque[PassRecord] = deque()  # passes recorded since the checkpoint
        self._died_at: tuple[int, int] = (-1, 0)  # the pass, and how often

    def news(self, records: Sequence[PassRecord]) -> list[PassRecord]:
        """The passes that were not recorded before.

        Raises:
            StageFailed: one was, but otherwise; or one is missing.
        """
        new = []
        for record in records:
            if record.step < self.made:
                self._compare(record)
                continue
            if record.step > self.made:
                raise StageFailed(f"stage {self.stage}: step {record.step} came where step {self.made} was due")
            new.append(record)
            self._since.append(record)
            self.made += 1
        return new

    def _compare(self, record: PassRecord) -> None:
        before = self._since[record.step - self._since[0].step]
        for field, is_so, was in zip(record._fields, record, before, strict=True):
            if field not in _OF_TIME and is_so != was:
                raise StageFailed(
                    f"stage {self.stage}: its process died, and the next one came to another {field} in step "
                    f"{record.step}: {is_so} where it was {was}; this machine does not repeat its own bits"
                )

    def completes(self, epoch: int) -> bool:
        """The stage has completed this epoch of its own; returns whether that is new."""
        is_new = epoch > self.epochs
        self.epochs = max(self.epochs, epoch)
        return is_new

    def count(self, kept: Checkpoint) -> None:
        """A checkpoint counts: nobody makes again what was before it."""
        self.kept = kept
        step = kept.of(self.stage).step
        while self._since and self._since[0].step < step:
            self._since.popleft()

    def died(self, at_s: float) -> None:
        """Its process has died: the next one is listened to.

        Args:
            at_s: when that was noticed, in seconds since training began.

        Raises:
            StageFailed: too often at the same pass.
        """
        step, times = self._died_at
        self._died_at = self.made, times + 1 if step == self.made else 1
        self.life += 1
        self._fault = len(self._faults)
        self._faults.append(Fault(process=self._name, at_s=at_s))
        if self._died_at[1] >= MOST_DEATHS:
            raise StageFailed(
                f"{self._name}: its process died {MOST_DEATHS} times at the same pass, step {self.made}", self._name
            )

    def works_again(self, at_s: float, passes_again: int) -> None:
        """The process that took the place of one that died has begun.

        Args:
            at_s: when, in seconds since training began.
            passes_again: that it makes again.
        """
        if self._fault >= 0:
            died_s = self._faults[self._fault].at_s
            self._faults[self._fault] = Fault(process=self._name, at_s=died_s, again_s=at_s, passes_again=passes_again)

    @property
    def _name(self) -> str:
        return f"stage {self.stage}"


_OF_TIME = ("sampled_s", "start_s", "end_s", "waits")
