"""What the summary says of each stage, computed from the trace."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from asyncdgl.rundir.outcome import StageEnd
from asyncdgl.rundir.trace import TRAIN, PassRecord, batch_age, by_stage, distribution, staleness


def stage_summaries(
    records: Sequence[PassRecord],
    ends: Mapping[int, StageEnd],
    train_seconds: float,
    test_accuracy: Sequence[float | None],
) -> list[dict[str, Any]]:
    """The list ``stages`` of summary.json."""
    stages = by_stage(records)
    summaries: list[dict[str, Any]] = []
    for number, end in sorted(ends.items()):
        passes = stages.get(number, [])
        waits: Counter[str] = Counter()
        for record in passes:
            if record.waits:
                waits.update(record.waits)
        busy = sum(record.end_s - record.start_s for record in passes)
        reuse = [r.times_sampled for r in passes if r.kind == TRAIN and r.times_sampled is not None]
        summary = {
            "stage": number,
            "updates": end.updates,
            "forward_passes": end.forward_passes,
            "epochs": end.epochs,
            "test_accuracy": test_accuracy[number - 1],
            "busy_fraction": busy / train_seconds if train_seconds > 0 else 0.0,
            "wait_seconds": dict(waits),
            "staleness": distribution(staleness(passes, stages.get(number - 1, []))),
            "batch_age": distribution(batch_age(passes, stages.get(1, []))),
            "times_sampled": distribution(_array(reuse)),
            "state_sha256": end.state_sha256,
        }
        if end.lost_turns is not None:
            summary["lost_turns"] = dict(end.lost_turns)
        summaries.append(summary)
    return summaries


def _array(values: Sequence[int]) -> Any:
    import numpy as np

    return np.array(values, np.int64)
