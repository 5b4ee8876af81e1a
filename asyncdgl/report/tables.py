"""The tables of a run's report: stages, buffers, evaluations, faults."""

from __future__ import annotations

from typing import Any

from asyncdgl.config.resolved import ResolvedConfig
from asyncdgl.report.document import Block, Column, Table, Text
from asyncdgl.rundir.measures import train_seconds
from asyncdgl.rundir.reader import Run
from asyncdgl.rundir.records import BufferSummary, Distribution, StageSummary, Summary
from asyncdgl.rundir.summary import stages_of

NOTHING = "-"
PARTS = ("mean", "p50", "p95", "max")
DISTRIBUTIONS = {
    "staleness": "staleness (producer's updates)",
    "batch_age": "batch age (mini-batches)",
    "times_sampled": "times an entry was given",
}


def number(value: Any, form: str = ".4f") -> str:
    """A cell: a dash where there is no number."""
    return format(value, form) if isinstance(value, int | float) else NOTHING


def unit_of(config: ResolvedConfig) -> str:
    """Of the times in the trace."""
    return "s" if config.time_unit == "seconds" else "steps"


def stage_tables(run: Run) -> list[Block]:
    """What each stage did, and what it trained on."""
    stages = stages_of(run)
    if not any(stage.updates or stage.forward_passes for stage in stages):
        return [Text("No stage made a pass.")]
    tables: list[Block] = [_work_table(run, stages)]
    readers = [stage for stage in stages if stage.batch_age.mean is not None]
    if readers:
        columns = [Column("stage"), Column("batches unseen")]
        columns += [Column(part, title) for title in DISTRIBUTIONS.values() for part in PARTS]
        cells = [
            [
                str(stage.stage),
                number(stage.batches_unseen, ".1%"),
                *(_part(getattr(stage, name), part) for name in DISTRIBUTIONS for part in PARTS),
            ]
            for stage in readers
        ]
        note = (
            "Of what each stage trained on: mean, median, 95th percentile, maximum. Batches unseen: of the stream's "
            "mini-batches up to the newest that the stage trained on, the share that it never did. Stage 1 reads the "
            "data stream."
        )
        tables.append(Table(columns, cells, note))
    return tables


def _work_table(run: Run, stages: tuple[StageSummary, ...]) -> Table:
    seconds = train_seconds(run.records)
    held_out = any(stage.validation_accuracy is not None for stage in stages)
    # In one process the stages take turns: the time of each says what it costs, not how busy it would be.
    busy = "share of the computing" if run.config.runtime == "sim" else "busy"
    reasons = dict.fromkeys(reason for stage in stages for reason, s in stage.wait_seconds.items() if s)
    turns = dict.fromkeys(reason for stage in stages for reason, n in (stage.lost_turns or {}).items() if n)
    columns = [Column(name) for name in ("stage", "updates", "forward-only passes", "epochs", "test accuracy")]
    columns += [Column("validation accuracy")] if held_out else []
    columns.append(Column(busy))
    columns += [Column(reason.replace("_", " "), "waited, share of the training time") for reason in reasons]
    columns += [Column(reason.replace("_", " "), "turns lost") for reason in turns]
    rows = [
        [
            *map(str, (stage.stage, stage.updates, stage.forward_passes, stage.epochs)),
            number(stage.test_accuracy),
            *([number(stage.validation_accuracy)] if held_out else []),
            number(stage.busy_fraction, ".1%"),
            *(number(stage.wait_seconds.get(r, 0.0) / seconds if seconds else None, ".1%") for r in reasons),
            *(str((stage.lost_turns or {}).get(reason, 0)) for reason in turns),
        ]
        for stage in stages
    ]
    return Table(columns, rows, "Every number, waits in the unit of time included: stages.csv.")


def _part(distribution: Distribution, part: str) -> str:
    """Means with two decimals; medians and the like are whole numbers most of the time, and then shown so."""
    value = getattr(distribution, part)
    return number(value, ".2f" if part == "mean" or value != round(value or 0) else ".0f")


def buffer_table(summary: Summary | None) -> list[Block]:
    """The books of each buffer."""
    if summary is None or not summary.buffers:
        return []
    keys = list(BufferSummary.model_fields)
    columns = [Column(key.replace("_", " ")) for key in keys]
    rows = [[_count(getattr(buffer, key)) for key in keys] for buffer in summary.buffers]
    return [Table(columns, rows)]


def _count(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.2f}"


def evaluation_table(run: Run) -> list[Block]:
    """Every evaluation, head by head."""
    lines = run.evaluations
    if not lines:
        return []
    heads = range(1, run.config.trained_stages + 1)
    one_by_one = any(line.stage is not None for line in lines)
    held_out = any(line.validation_accuracy is not None for line in lines)
    columns = [Column("training stage")] if one_by_one else []
    columns += [Column("epoch"), Column(unit_of(run.config)), *(Column(f"head {j}", "test accuracy") for j in heads)]
    columns.append(Column("ensemble", "test accuracy"))
    columns += [Column(name, "validation accuracy") for name in ("last head", "ensemble")] if held_out else []
    rows = [
        [
            *([str(line.stage or NOTHING)] if one_by_one else []),
            str(line.epoch),
            number(line.end_s, ".1f"),
            *map(number, line.test_accuracy),
            number(line.test_ensemble_accuracy[-1]),
            *([_last(line.validation_accuracy), _last(line.validation_ensemble_accuracy)] if held_out else []),
        ]
        for line in lines
    ]
    return [Table(columns, rows)]


def _last(values: tuple[float, ...] | None) -> str:
    return number(values[-1] if values else None)


def fault_table(summary: Summary | None) -> list[Block]:
    """What died and came back."""
    if summary is None or not summary.faults:
        return []
    columns = [Column("process", words=True), Column("died at (s)"), Column("works again at (s)")]
    columns += [Column("passes made again"), Column("passes lost")]
    rows = [
        [f.process, number(f.at_s, ".1f"), number(f.again_s, ".1f"), str(f.passes_again), str(f.lost_passes)]
        for f in summary.faults
    ]
    note = "Times since training began. Passes made again come to the same bits; lost ones, no state rests on any more."
    return [Table(columns, rows, note)]


def stages_csv(run: Run) -> str:
    """A row for each stage, with every number of it."""
    import pandas as pd

    frame = pd.json_normalize([stage.model_dump(exclude_none=True) for stage in stages_of(run)], sep="_")
    return str(frame.to_csv(index=False))
