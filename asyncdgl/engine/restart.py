"""Where a run on Ray goes on whose main process has ended: each stage at a checkpoint, with the trace that it needs.

The buffers were lost with the processes. With asynchronous stages each goes on from its own newest checkpoint, as a new
incarnation, and its passes since are lost (rule 31). Where each entry is needed once (`sync-dgl`), all go back to the
newest step of which each has a checkpoint, and make the same passes again (rule 32).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from asyncdgl.rundir.checkpoint import Checkpoint
from asyncdgl.rundir.reader import Run
from asyncdgl.rundir.records import EpochLine, EvaluationLine, Fault
from asyncdgl.rundir.trace import PassRecord, lineage


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
    """

    stages: Mapping[int, StageRestart]
    records: Sequence[PassRecord]
    lines: Sequence[EpochLine | EvaluationLine]
    elapsed_s: float
    faults: Sequence[Fault] = ()

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
