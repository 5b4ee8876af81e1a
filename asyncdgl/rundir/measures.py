"""What the summary says of each stage, computed from the trace."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from asyncdgl.rundir.outcome import StageEnd
from asyncdgl.rundir.records import EvaluationLine, StageSummary
from asyncdgl.rundir.trace import (
    TRAIN,
    PassRecord,
    batch_age,
    batches_unseen,
    by_stage,
    distribution,
    lineage,
    staleness,
    times_sampled,
)


def stage_summaries(
    records: Sequence[PassRecord],
    ends: Mapping[int, StageEnd],
    train_seconds: float,
    evaluation: EvaluationLine | None = None,
) -> tuple[StageSummary, ...]:
    """The stages of summary.json.

    Args:
        records: the whole trace.
        ends: what each stage said at its end, or what is known of it.
        train_seconds: when the last pass ended.
        evaluation: the last one.
    """
    stages = by_stage(records)
    summaries = []
    for number, end in sorted(ends.items()):
        passes = stages.get(number, [])
        live = lineage(passes)
        waits: Counter[str] = Counter()
        for record in passes:
            if record.waits:
                waits.update(record.waits)
        busy = sum(record.end_s - record.start_s for record in passes)
        validation = evaluation.validation_accuracy if evaluation else None
        summaries.append(
            StageSummary(
                stage=number,
                updates=end.updates,
                forward_passes=end.forward_passes,
                epochs=end.epochs,
                test_accuracy=evaluation.test_accuracy[number - 1] if evaluation else None,
                validation_accuracy=validation[number - 1] if validation else None,
                busy_fraction=busy / train_seconds if train_seconds > 0 else 0.0,
                wait_seconds=dict(waits),
                staleness=distribution(staleness(live, stages.get(number - 1, []))),
                batch_age=distribution(batch_age(live, stages.get(1, []))),
                batches_unseen=batches_unseen(live),
                times_sampled=distribution(times_sampled(live)),
                lost_turns=None if end.lost_turns is None else dict(end.lost_turns),
                state_sha256=end.state_sha256,
            )
        )
    return tuple(summaries)


def train_seconds(records: Sequence[PassRecord]) -> float:
    """When the last pass ended."""
    return max((record.end_s for record in records), default=0.0)


def images_per_second(records: Sequence[PassRecord], last_stage: int, batch_size: int) -> float | None:
    """Images that the whole network learned from: the last stage's updates x batch / train_seconds."""
    seconds = train_seconds(records)
    updates = sum(record.kind == TRAIN for record in lineage(by_stage(records).get(last_stage, [])))
    return batch_size * updates / seconds if seconds else None
