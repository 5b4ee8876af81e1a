"""What is known of a stage whose processes may die, so that another one can take its place (rules 29 and 30)."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence

from asyncdgl.errors import StageFailed
from asyncdgl.rundir.checkpoint import Checkpoint
from asyncdgl.rundir.records import Fault
from asyncdgl.rundir.trace import PassRecord

MOST_DEATHS = 3
"""Deaths at one pass: the next process would come no further either."""


class Faults:
    """The processes of a run that died.

    Args:
        on_change: told all of them, each time that there is news.

    Attributes:
        all: in the order in which it was noticed.
    """

    def __init__(self, on_change: Callable[[Sequence[Fault]], None] = lambda faults: None) -> None:
        self.all: list[Fault] = []
        self._on_change = on_change

    def died(self, process: str, at_s: float) -> None:
        """It was noticed that a process has died, so many seconds since training began."""
        self.all.append(Fault(process=process, at_s=at_s))
        self._on_change(self.all)

    def gone_on(self, process: str, at_s: float, again: int, lost: int) -> None:
        """All processes have ended, and the run goes on: a stage makes passes again, or without them."""
        self.all.append(Fault(process=process, at_s=at_s, passes_again=again, lost_passes=lost))
        self._on_change(self.all)

    @property
    def missing(self) -> str | None:
        """Of the processes that stages use, the last one that died and is not there again."""
        gone = [fault.process for fault in self.all if fault.again_s is None]
        return next((name for name in reversed(gone) if name.startswith(("buffer", "the pace keeper"))), None)

    def all_work_again(self, at_s: float) -> None:
        """All processes have begun."""
        for place, fault in enumerate(self.all):
            if fault.again_s is None:
                self.all[place] = Fault(**{**fault.model_dump(), "again_s": at_s})
        self._on_change(self.all)

    def works_again(self, process: str, at_s: float, passes_again: int = 0) -> None:
        """Another one has taken its place.

        Args:
            process: its name.
            at_s: when, in seconds since training began.
            passes_again: that it makes again.
        """
        for place, fault in reversed(list(enumerate(self.all))):
            if fault.process == process and fault.again_s is None:
                self.all[place] = Fault(process=process, at_s=fault.at_s, again_s=at_s, passes_again=passes_again)
                self._on_change(self.all)
                return


class History:
    """What a stage has done, as far as its processes could tell.

    A process that takes another's place begins at the last checkpoint, reads again what was read since, and so makes
    the same passes again. They are recorded once, and compared: a machine that comes to other bits is found out.

    Args:
        stage: its number.
        faults: of the whole run.

    Attributes:
        life: which of its processes is listened to, from 0.
        incarnation: see ``StagePasses``.
        read: for each step of the producer, one byte: whether its entry was used.
        newest_read: the last of them, by the producer's incarnation.
        made: passes recorded.
        epochs: completed.
        kept: the newest checkpoint that counts; None where there is none yet.
        repeats: whether it came to the same bits again so far.
    """

    def __init__(self, stage: int, faults: Faults) -> None:
        self.stage = stage
        self.life = 0
        self.incarnation = 0
        self.made = 0
        self.epochs = 0
        self.read = bytearray()
        self.newest_read: dict[int, int] = {}
        self.kept: Checkpoint | None = None
        self.repeats = True
        self._faults = faults
        self._since: deque[PassRecord] = deque()  # passes recorded since the checkpoint
        self._died_at: tuple[int, int] = (-1, 0)  # the pass, and how often

    def begin(self, kept: Checkpoint | None, incarnation: int, read: Collection[int]) -> None:
        """The run goes on after its main process has ended.

        Args:
            kept: what the stage goes on from.
            incarnation: of its passes from now on.
            read: steps of the producer whose entries it had used.
        """
        self.kept, self.incarnation = kept, incarnation
        self.made = kept.of(self.stage).step if kept is not None else 0
        for step in read:
            self._has_read(step)

    def news(self, records: Sequence[PassRecord]) -> list[PassRecord]:
        """The passes that were not recorded before. They come in order.

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
            if record.source_step is not None and record.source_incarnation is not None:
                self._has_read(record.source_step)
                newest = self.newest_read.get(record.source_incarnation, -1)
                self.newest_read[record.source_incarnation] = max(newest, record.source_step)
            self._since.append(record)
            self.made += 1
        return new

    def _has_read(self, step: int) -> None:
        self.read.extend(bytes(max(0, step + 1 - len(self.read))))
        self.read[step] = 1

    def _compare(self, record: PassRecord) -> None:
        before = self._since[record.step - self._since[0].step]
        for field, is_so, was in zip(record._fields, record, before, strict=True):
            if field not in _OF_TIME and is_so != was:
                self.repeats = False
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
        self._faults.died(self._name, at_s)
        if self._died_at[1] >= MOST_DEATHS:
            raise StageFailed(
                f"{self._name}: its process died {MOST_DEATHS} times at the same pass, step {self.made}", self._name
            )

    def works_again(self, at_s: float, passes_again: int) -> None:
        """See ``Faults``."""
        self._faults.works_again(self._name, at_s, passes_again)

    @property
    def _name(self) -> str:
        return f"stage {self.stage}"


class Completeness:
    """Of how many first passes of each stage all that they rest on is recorded.

    What a pass read may be recorded later than the pass itself, or never, if its stage dies with the driver. A
    checkpoint counts only when nothing is missing: what it holds can then be made again from the trace alone.

    Args:
        made: passes of stages 1 … J of which this is known.
    """

    def __init__(self, made: Sequence[int]) -> None:
        self._stages = len(made)
        self._complete = dict(enumerate(made, 1))
        self._pending: dict[int, deque[int]] = {j: deque() for j in self._complete}  # what the next passes read

    def of(self, stage: int) -> int:
        """How many of a stage's first passes are complete."""
        return self._complete[stage]

    def add(self, stage: int, records: Sequence[PassRecord]) -> None:
        """The next passes of a stage were recorded."""
        self._pending[stage].extend(-1 if r.source_step is None else r.source_step for r in records)
        for j in range(stage, self._stages + 1):
            before, pending = self._complete[j], self._pending[j]
            while pending and (j == 1 or pending[0] < self._complete[j - 1]):
                pending.popleft()
                self._complete[j] += 1
            if self._complete[j] == before:
                return


def books(counts: Mapping[str, float], made: int, read: bytes | bytearray) -> dict[str, float]:
    """The counts of a buffer over all of its processes (rules 15 and 32).

    Args:
        counts: of the last process; those of others are gone with them.
        made: passes of the producer.
        read: see ``History``.
    """
    made = max(made, int(counts["sent"]))  # a stage that is stopped while it makes passes again does not come so far
    first = made - int(counts["sent"])  # what the last process got begins with this step
    used = sum(read[:first])
    return {
        **counts,
        "sent": made,
        "inserted": counts["inserted"] + used,
        "retired": counts["retired"] + used,
        "lost_in_fault": first - used,
    }


_OF_TIME = ("sampled_s", "start_s", "end_s", "waits")
