"""summary.json: what a run came to, complete or not."""

from __future__ import annotations

from typing import Any

from asyncdgl.config.resolved import ResolvedConfig
from asyncdgl.rundir.measures import stage_summaries
from asyncdgl.rundir.outcome import Outcome, StageEnd
from asyncdgl.rundir.trace import FORWARD, TRAIN, PassRecord, by_stage
from asyncdgl.rundir.writer import RunWriter


def make_summary(
    config: ResolvedConfig,
    writer: RunWriter,
    outcome: Outcome | None,
    status: str,
    error: str | None,
    wall_seconds: float,
) -> dict[str, Any]:
    """The content of summary.json.

    Args:
        config: the run.
        writer: whose trace decides: the measures come from what stands there, and from nothing else.
        outcome: what the runtime handed back; None where it had not begun.
        status: ``completed``, ``interrupted``, ``terminated`` or ``failed``.
        error: why it failed.
        wall_seconds: of the whole run, start-up included.
    """
    records = writer.records
    last = config.trained_stages
    seconds = max((r.end_s for r in records), default=0.0)
    evaluation = outcome.evaluation["test"] if outcome is not None and outcome.evaluation is not None else None
    accuracy = evaluation["accuracy"] if evaluation else [None] * last
    images = config.batch_size * sum(r.stage == last and r.kind == TRAIN for r in records)
    ends = dict(outcome.ends) if outcome else {}
    if records and len(ends) < last:
        passes = by_stage(records)
        ends.update({j: _end_from_trace(j, passes.get(j, []), writer) for j in range(1, last + 1) if j not in ends})
    summary: dict[str, Any] = {
        "status": status,
        "algorithm": config.algorithm,
        "runtime": config.runtime,
        "test_accuracy": accuracy[-1],
        "ensemble_test_accuracy": evaluation["ensemble_accuracy"][-1] if evaluation else None,
        "wall_seconds": wall_seconds,
        "train_seconds": seconds,
        "images_per_second": images / seconds if seconds and config.time_unit == "seconds" else 0.0,
        "stages": stage_summaries(records, ends, seconds, accuracy),
        "buffers": outcome.buffers if outcome else [],
        "faults": [],
    }
    if config.runtime == "virtual":
        summary["time_unit"] = config.time_unit
    if outcome is not None and outcome.evaluation is not None and "validation" in outcome.evaluation:
        summary["validation_accuracy"] = outcome.evaluation["validation"]["accuracy"][-1]
    if error is not None:
        summary["error"] = error
    return summary


def _end_from_trace(stage: int, passes: list[PassRecord], writer: RunWriter) -> StageEnd:
    """What is known of a stage that could not say it itself."""
    kinds = [r.kind for r in passes]
    epochs = [line["epoch"] for line in writer.metrics() if line["kind"] == "epoch" and line["stage"] == stage]
    return StageEnd(kinds.count(TRAIN), kinds.count(FORWARD), max(epochs, default=0), None)
