"""Where a run on Ray goes on whose main process has ended: each stage at a checkpoint, with the trace that it needs.

The buffers were lost with the processes. With asynchronous stages each goes on from its own newest checkpoint, as a new
incarnation, and its passes since are lost (rule 31). Where each entry is needed once (`sync-dgl`), all go back to the
newest step of which each has a checkpoint, and make the same passes again (rule 32).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from asyncdgl.engine.history import MOST_DEATHS
from asyncdgl.errors import NeedsRestart, StageFailed
from asyncdgl.rundir.checkpoint import Checkpoint, remove_checkpoints_after, stage_checkpoints
from asyncdgl.rundir.reader import Run
from asyncdgl.rundir.records import EpochLine, EvaluationLine, Fault
from asyncdgl.rundir.trace import PassRecord, lineage
from asyncdgl.rundir.writer import RunWriter


@dataclass(frozen=True)
class StageRestart:
    """Where one stage goes on.

    Attributes:
        kept: its checkpoint; None for its first pass.
        incarnation: of its passes from now on.
        live: the passes that the checkpoint rests on.
        lost: passes after it that are lost.
        again: passes after it that are made again, to the same bits.
    """

    kept: Checkpoint | None
    incarnation: int
    live: Sequence[PassRecord]
    lost: int
    again: int


@dataclass(frozen=True)
class Restart:
    """Where a run goes on.

    Attributes:
        stages: each of them.
        records: lines of the trace that stay.
        lines: of metrics.jsonl that stay.
        elapsed_s: since training began.
        faults: of the run until it was stopped, where it could say them.
        origin: when training began, on the monotonic clock of this machine, where the main process is the same.
    """

    stages: Mapping[int, StageRestart]
    records: Sequence[PassRecord]
    lines: Sequence[EpochLine | EvaluationLine]
    elapsed_s: float
    faults: Sequence[Fault] = ()
    origin: float | None = None

    @property
    def where(self) -> str:
        """Where each stage goes on, for messages."""
        steps = {j: s.kept.of(j).step if s.kept is not None else 0 for j, s in sorted(self.stages.items())}
        lost, again = (sum(getattr(s, what) for s in self.stages.values()) for what in ("lost", "again"))
        where = ", ".join(f"stage {j} from step {step}" for j, step in steps.items())
        return f"{where}; of the passes since then {again} are made again, {lost} are lost"

    @property
    def evaluations(self) -> list[EvaluationLine]:
        """Those that were made."""
        return [line for line in self.lines if isinstance(line, EvaluationLine)]

    def epochs_of(self, stage: int) -> list[EpochLine]:
        """Epochs that a stage has completed."""
        return [line for line in self.lines if isinstance(line, EpochLine) and line.stage == stage]


def whole_passes(passes: Mapping[int, Sequence[PassRecord]]) -> dict[int, int]:
    """Of how many first passes of each stage everything that they rest on stands in the trace.

    Args:
        passes: of stages 1 … J, in the order in which they were made.
    """
    found: dict[int, int] = {}
    before: set[tuple[int | None, int | None]] = set()
    for j, own in sorted(passes.items()):
        whole: set[tuple[int | None, int | None]] = set()
        live: list[PassRecord] = []
        for record in own:
            while live and live[-1].step >= record.step:
                live.pop()
            last = live[-1] if live else None
            follows = record.step == 0 if last is None else record.step == last.step + 1 and last[1:3] in whole
            live.append(record)
            if follows and (j == 1 or (record.source_incarnation, record.source_step) in before):
                whole.add((record.incarnation, record.step))
        found[j] = sum((record.incarnation, record.step) in whole for record in live)
        before = whole
    return found


def plan_restart(run: Run, kept: Mapping[int, Sequence[Checkpoint]]) -> Restart:
    """Where a run goes on.

    Args:
        run: what it has left.
        kept: the checkpoints of each stage that can be read, the newest first.
    """
    numbers = range(1, run.config.stages + 1)
    passes = {j: run.passes.get(j, []) for j in numbers}
    whole = whole_passes(passes)
    usable = {j: {c.of(j).step: c for c in reversed(kept[j]) if c.of(j).step <= whole[j]} for j in numbers}
    together = run.config.algorithm == "sync-dgl"
    if together:
        shared = set.intersection(*(set(of) for of in usable.values()))
        steps = dict.fromkeys(numbers, max(shared, default=0))
    else:
        steps = {j: max(usable[j], default=0) for j in numbers}
    stages: dict[int, StageRestart] = {}
    stay: set[tuple[int, int, int]] = set()
    read: set[tuple[int | None, int | None]] = set()  # what the next stage's passes that stay have read
    for j in reversed(numbers):
        own = passes[j]
        last = max((r.incarnation for r in own), default=0)
        until = max([steps[j], *(1 + (step or 0) for incarnation, step in read if incarnation == last)])
        staying = [r for r in own if r.incarnation < last or r.step < until]
        stay.update(r[:3] for r in staying)
        read = {(r.source_incarnation, r.source_step) for r in staying}
        live = [r for r in lineage(staying) if r.step < steps[j]]
        incarnation = last if together else last + 1 if staying else 0
        after = len(lineage(own)) - len(live)
        lost, again = (0, after) if together else (after, 0)
        stages[j] = StageRestart(usable[j].get(steps[j]), incarnation, live, lost, again)
    updates = {j: s.kept.of(j).updates if s.kept is not None else 0 for j, s in stages.items()}
    lines = [
        line
        for line in run.lines
        if (line.updates <= updates[line.stage] if isinstance(line, EpochLine) else not line.final)
    ]
    records = [r for r in run.records if r[:3] in stay]
    elapsed_s = max((r.end_s for r in records), default=0.0)
    faults = run.summary.faults if run.summary is not None else ()
    return Restart(stages, records, lines, elapsed_s, faults)


def find_restart(
    left: Run, fits: Callable[[Checkpoint, int], bool] = lambda kept, stage: True
) -> tuple[Restart, list[str], list[str]]:
    """Where a run goes on, by what its directory holds.

    Args:
        left: what the run has left.
        fits: whether a stage's checkpoint that is whole is wanted.

    Returns:
        Where; what is wrong with checkpoints there; and that of them because of which a stage would begin anew.
    """
    stages = range(1, left.config.stages + 1)
    found = {j: stage_checkpoints(left, j) for j in stages}
    kept = {j: [checkpoint for checkpoint in found[j][0] if fits(checkpoint, j)] for j in stages}
    said = {j: found[j][1] for j in stages}
    restart = plan_restart(left, kept)
    # Where all go back together and one has none yet, nobody could go on from one that is whole either.
    counts = left.config.algorithm != "sync-dgl" or all(kept[j] or said[j] for j in stages)
    anew = [text for j in stages if counts and restart.stages[j].kept is None for text in said[j]]
    return restart, [text for j in stages for text in said[j]], anew


def go_back(writer: RunWriter, restart: Restart) -> None:
    """What the run does not go on from is no more in its directory."""
    writer.keep_only(restart.records, restart.lines)
    for j, stage in restart.stages.items():
        remove_checkpoints_after(writer.path, stage.kept.of(j).step if stage.kept is not None else 0, j)


def with_death(faults: Sequence[Fault], process: str | None, at_s: float) -> list[Fault]:
    """With the death of a process that may not have been noticed otherwise."""
    is_known = process is None or any(fault.process == process and fault.again_s is None for fault in faults)
    return [*faults, *([] if is_known or process is None else [Fault(process=process, at_s=at_s)])]


class Attempts:
    """How often all processes of a run had to begin anew."""

    def __init__(self) -> None:
        self._most_passes, self._fruitless = -1, 0

    def failed(self, error: NeedsRestart, passes: int) -> None:
        """They have to, once more.

        Args:
            error: why.
            passes: that are recorded.

        Raises:
            StageFailed: again and again, and the run came no further.
        """
        self._fruitless = 0 if passes > self._most_passes else self._fruitless + 1
        self._most_passes = max(self._most_passes, passes)
        if self._fruitless >= MOST_DEATHS - 1:
            raise StageFailed(f"{error}; {MOST_DEATHS} times, and the run came no further", error.process)
