"""The trace: which pass used which entry when, a line for each; and what follows from it (staleness, reuse, waits)."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from asyncdgl.errors import DataError
from asyncdgl.rundir.records import Distribution

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

TRAIN, FORWARD = "train", "forward"
WAIT_REASONS = ("empty", "below_min_size", "not_arrived", "reused_up", "full", "pace", "slowdown", "pause")


class PassRecord(NamedTuple):
    """One pass. Times are seconds since training began, on one clock for all stages.

    Attributes:
        stage, incarnation, step: the name of the pass; steps count from 0, of both kinds.
        kind: ``train`` or ``forward``.
        batch: the mini-batch of the data stream.
        source_incarnation, source_step, source_update: the pass that made the entry read, and its producer's updates
            before it; None for stage 1.
        times_sampled: how often that entry had been given, this time included.
        sampled_s: when the buffer gave it.
        start_s, end_s: of the computing only.
        waits: seconds waited since the last pass, by reason.
        loss: exact; None for a forward-only pass.
    """

    stage: int
    incarnation: int
    step: int
    kind: str
    batch: int
    source_incarnation: int | None
    source_step: int | None
    source_update: int | None
    times_sampled: int | None
    sampled_s: float | None
    start_s: float
    end_s: float
    waits: dict[str, float]
    loss: float | None

    def to_json(self) -> str:
        """One line of trace.jsonl. Floats keep every bit."""
        # By hand, since a large virtual run has a million lines: json.dumps takes four times as long.
        read = (
            self.source_incarnation,
            self.source_step,
            self.source_update,
            self.times_sampled,
            self.sampled_s,
        )
        source = _SOURCE % (read if None not in read else tuple("null" if v is None else v for v in read))
        waits = json.dumps(self.waits, separators=(",", ":")) if self.waits else "{}"
        loss = "null" if self.loss is None else json.dumps(self.loss)
        return (
            f'{{"stage":{self.stage},"incarnation":{self.incarnation},"step":{self.step},"kind":"{self.kind}",'
            f'"batch":{self.batch},{source},"start_s":{self.start_s!r},"end_s":{self.end_s!r},'
            f'"waits":{waits},"loss":{loss}}}'
        )


_SOURCE = '"source_incarnation":%s,"source_step":%s,"source_update":%s,"times_sampled":%s,"sampled_s":%s'


def read_trace(path: Path) -> Iterator[PassRecord]:
    """The passes of a trace file; a line that a kill cut short is left out.

    Raises:
        DataError: a line is no pass.
    """
    with path.open("rb") as file:  # bytes: what is no UTF-8 is then just another broken line
        for number, line in enumerate(file, 1):
            if line.endswith(b"\n"):
                try:
                    record = PassRecord(**json.loads(line))
                except (ValueError, TypeError):
                    record = None
                if record is None or not _is_pass(record):
                    raise DataError(f"{path}, line {number}: not a line of a trace")
                yield record


def _is_pass(r: PassRecord) -> bool:
    """Whether each value has its type; bool is none of the numbers."""
    return (
        r.kind in (TRAIN, FORWARD)
        and {type(r.stage), type(r.incarnation), type(r.step), type(r.batch)} == {int}
        and {type(r.source_incarnation), type(r.source_step), type(r.source_update), type(r.times_sampled)} <= _COUNT
        and {type(r.start_s), type(r.end_s)} <= _TIME
        and {type(r.sampled_s), type(r.loss)} <= _TIME_OR_NONE
        and type(r.waits) is dict
    )


_COUNT, _TIME, _TIME_OR_NONE = {int, type(None)}, {int, float}, {int, float, type(None)}


def by_stage(records: Iterable[PassRecord]) -> dict[int, list[PassRecord]]:
    """The passes of each stage, in the order in which it made them."""
    stages: dict[int, list[PassRecord]] = {}
    for record in records:
        stages.setdefault(record.stage, []).append(record)
    return {stage: sorted(stages[stage], key=lambda r: (r.incarnation, r.step)) for stage in sorted(stages)}


def lineage(passes: Iterable[PassRecord]) -> list[PassRecord]:
    """The passes that a stage's last state rests on: of each incarnation those before the next one began (rule 31).

    Args:
        passes: of one stage, in the order in which it made them.
    """
    live: list[PassRecord] = []
    for record in passes:
        while live and live[-1].step >= record.step:
            live.pop()
        live.append(record)
    return live


def _update_ends(passes: Sequence[PassRecord]) -> dict[int, NDArray[np.float64]]:
    """When each update ended that the states of an incarnation rest on, by incarnation."""
    import numpy as np

    last = max((r.incarnation for r in passes), default=0)
    lives = {i: lineage(r for r in passes if r.incarnation <= i) if last else passes for i in range(last + 1)}
    return {i: np.array(sorted(r.end_s for r in live if r.kind == TRAIN)) for i, live in lives.items()}


def staleness(passes: Sequence[PassRecord], producer: Sequence[PassRecord]) -> NDArray[np.int64]:
    """Staleness of a stage's training passes, in the producer's updates.

    The producer's updates completed when the entry was sampled, less those before the pass that made it, less that one
    if it was an update; Algorithm 1 gives 0. Only passes whose entry was sampled while the producer still trained.
    A pass that was made again after a fault ended a second time, after its entry was read: it counts as completed.
    """
    import numpy as np

    trained = {(r.incarnation, r.step): r.kind == TRAIN for r in producer}
    read = [r for r in passes if r.kind == TRAIN and r.sampled_s is not None and r.source_update is not None]
    values = []
    for incarnation, ends in _update_ends(producer).items():
        of_this = [r for r in read if (r.source_incarnation or 0) == incarnation]
        completed_then = np.searchsorted(ends, np.array([r.sampled_s for r in of_this], np.float64), side="right")
        for r, completed in zip(of_this, completed_then.tolist(), strict=True):
            if completed < len(ends):
                own = trained.get((incarnation, r.source_step or 0), True)
                values.append(max(0, completed - (r.source_update or 0) - int(own)))
    return np.array(values, np.int64)


def batch_age(passes: Sequence[PassRecord], first_stage: Sequence[PassRecord]) -> NDArray[np.int64]:
    """How many mini-batches stage 1 was ahead of the one that a training pass used, when that was sampled.

    The number of the newest batch that stage 1 had completed, less that of the batch used. Newest is the last one that
    it completed: with ``sequential-dgl`` the stream begins again for each stage.
    """
    import numpy as np

    made = sorted((r.end_s, r.batch) for r in first_stage)
    read = [r for r in passes if r.kind == TRAIN and r.sampled_s is not None]
    completed = np.searchsorted(
        np.array([end for end, _ in made], np.float64), np.array([r.sampled_s for r in read], np.float64), side="right"
    ).tolist()
    return np.array([made[n - 1][1] - r.batch for r, n in zip(read, completed, strict=True) if n], np.int64)


def batches_unseen(passes: Sequence[PassRecord]) -> float | None:
    """Of the stream's batches numbered up to the newest that a stage trained on, the share that it never trained on.

    None where it trained on nothing.
    """
    seen = {r.batch for r in passes if r.kind == TRAIN}
    return 1 - len(seen) / (max(seen) + 1) if seen else None


def times_sampled(passes: Sequence[PassRecord]) -> NDArray[np.int64]:
    """How often the entry of each training pass had been given, that time included."""
    import numpy as np

    return np.array([r.times_sampled for r in passes if r.kind == TRAIN and r.times_sampled is not None], np.int64)


def overlap(one: Sequence[PassRecord], other: Sequence[PassRecord]) -> float:
    """Seconds in which both stages computed at the same time."""
    total, index = 0.0, 0
    second = sorted((r.start_s, r.end_s) for r in other)
    for start, end in sorted((r.start_s, r.end_s) for r in one):
        while index < len(second) and second[index][1] <= start:
            index += 1
        following = index
        while following < len(second) and second[following][0] < end:
            total += min(end, second[following][1]) - max(start, second[following][0])
            following += 1
    return total


def distribution(values: NDArray[Any]) -> Distribution:
    """Mean, median, 95th percentile and maximum, or None of each where there is nothing."""
    import numpy as np

    if len(values) == 0:
        return Distribution()
    return Distribution(
        mean=float(np.mean(values)),
        p50=float(np.percentile(values, 50)),
        p95=float(np.percentile(values, 95)),
        max=float(np.max(values)),
    )
