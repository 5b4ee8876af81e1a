"""summary.json: what a run came to, complete or not."""

from __future__ import annotations

from asyncdgl.config.resolved import ResolvedConfig
from asyncdgl.rundir.measures import images_per_second, stage_summaries, train_seconds
from asyncdgl.rundir.outcome import Outcome, StageEnd
from asyncdgl.rundir.reader import Run
from asyncdgl.rundir.records import StageSummary, Status, Summary
from asyncdgl.rundir.trace import FORWARD, TRAIN, PassRecord, lineage
from asyncdgl.rundir.writer import RunWriter


def make_summary(
    config: ResolvedConfig,
    writer: RunWriter,
    outcome: Outcome | None,
    status: Status,
    error: str | None,
    wall_seconds: float,
) -> Summary:
    """The content of summary.json.

    Args:
        config: the run.
        writer: whose trace decides: the measures come from what stands there, and from nothing else.
        outcome: what the runtime handed back; None where it had not begun.
        status: how the run ended.
        error: why it failed or diverged.
        wall_seconds: of the whole run, start-up included.
    """
    run, records = writer.as_run(config), writer.records
    evaluation = outcome.evaluation if outcome is not None else None
    ends = ends_from_trace(run) if records else {}
    ends.update(outcome.ends if outcome is not None else {})
    validation = evaluation.validation_accuracy if evaluation else None
    validation_ensemble = evaluation.validation_ensemble_accuracy if evaluation else None
    return Summary(
        status=status,
        error=error,
        algorithm=config.algorithm,
        runtime=config.runtime,
        time_unit=config.time_unit,
        test_accuracy=evaluation.test_accuracy[-1] if evaluation else None,
        ensemble_test_accuracy=evaluation.test_ensemble_accuracy[-1] if evaluation else None,
        validation_accuracy=validation[-1] if validation else None,
        ensemble_validation_accuracy=validation_ensemble[-1] if validation_ensemble else None,
        wall_seconds=wall_seconds,
        train_seconds=train_seconds(records),
        # Elsewhere the stages take turns on the same cores, or their time is not the machine's.
        images_per_second=(
            images_per_second(records, config.trained_stages, config.batch_size) if config.runtime == "ray" else None
        ),
        stages=stage_summaries(records, ends, train_seconds(records), evaluation),
        buffers=tuple(outcome.buffers) if outcome is not None else (),
        faults=tuple(outcome.faults) if outcome is not None else (),
    )


def stages_of(run: Run) -> tuple[StageSummary, ...]:
    """The stages of a run's summary; for a run without one, what its trace and metrics say."""
    if run.summary is not None:
        return run.summary.stages
    last = run.evaluations[-1] if run.evaluations else None
    return stage_summaries(run.records, ends_from_trace(run), train_seconds(run.records), last)


def ends_from_trace(run: Run) -> dict[int, StageEnd]:
    """What is known of stages that could not say it themselves."""
    epochs = {line.stage: line.epoch for line in run.epochs}
    stages = range(1, run.config.trained_stages + 1)
    return {j: _end(run.passes.get(j, []), epochs.get(j, 0)) for j in stages}


def _end(passes: list[PassRecord], epochs: int) -> StageEnd:
    kinds = [record.kind for record in lineage(passes)]
    return StageEnd(kinds.count(TRAIN), kinds.count(FORWARD), epochs, None)
