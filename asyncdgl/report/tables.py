"""The tables of a run's report: stages, buffers, evaluations, faults."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from typing import Any

from asyncdgl.config.resolved import ResolvedConfig
from asyncdgl.report.document import Block, Column, Table, Text
from asyncdgl.rundir.measures import stage_summaries
from asyncdgl.rundir.outcome import StageEnd
from asyncdgl.rundir.reader import Run
from asyncdgl.rundir.trace import FORWARD, TRAIN

NOTHING = "-"
PARTS = ("mean", "p50", "p95", "max")
DISTRIBUTIONS = {
    "staleness": "staleness (producer's updates)",
    "times_sampled": "times an entry was given",
    "batch_age": "batch age (mini-batches)",
}


def number(value: Any, form: str = ".4f") -> str:
    """A cell: a dash where there is no number."""
    return format(value, form) if isinstance(value, int | float) else NOTHING


def unit_of(config: ResolvedConfig) -> str:
    """Of the times in the trace."""
    return "s" if config.time_unit == "seconds" else "steps"


def evaluations_of(run: Run) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl that hold an evaluation."""
    return [line for line in run.metrics if line.get("kind") == "evaluation"]


def stages_of(run: Run) -> list[dict[str, Any]]:
    """The list ``stages`` of the summary; for a run without one, what its trace and metrics say."""
    if run.summary is not None:
        return list(run.summary["stages"])
    epochs = {line["stage"]: line["epoch"] for line in run.metrics if line.get("kind") == "epoch"}
    accuracy: list[float | None] = [None] * run.config.trained_stages
    for line in evaluations_of(run)[-1:]:
        accuracy = line["test_accuracy"]
    ends = {}
    for j, passes in run.passes.items():
        kinds = [record.kind for record in passes]
        ends[j] = StageEnd(kinds.count(TRAIN), kinds.count(FORWARD), epochs.get(j, 0), None)
    seconds = max((record.end_s for record in run.trace), default=0.0)
    return stage_summaries(run.trace, ends, seconds, accuracy)


def stage_tables(run: Run) -> list[Block]:
    """What each stage did, and what it trained on."""
    stages = stages_of(run)
    if not stages:
        return [Text("No stage made a pass.")]
    seconds = max((record.end_s for record in run.trace), default=0.0)
    if run.summary is not None:
        seconds = run.summary.get("train_seconds") or seconds
    reasons = dict.fromkeys(reason for stage in stages for reason, s in stage["wait_seconds"].items() if s)
    turns = dict.fromkeys(reason for stage in stages for reason, n in stage.get("lost_turns", {}).items() if n)
    work = [Column(name) for name in ("stage", "updates", "forward-only passes", "epochs", "test accuracy", "busy")]
    work += [Column(reason.replace("_", " "), "waited, share of the training time") for reason in reasons]
    work += [Column(reason.replace("_", " "), "turns lost") for reason in turns]
    rows = [
        [
            *(str(stage[key]) for key in ("stage", "updates", "forward_passes", "epochs")),
            number(stage.get("test_accuracy")),
            number(stage["busy_fraction"], ".1%"),
            *(
                number(stage["wait_seconds"].get(reason, 0.0) / seconds if seconds else None, ".1%")
                for reason in reasons
            ),
            *(str(stage.get("lost_turns", {}).get(reason, 0)) for reason in turns),
        ]
        for stage in stages
    ]
    tables: list[Block] = [Table(work, rows, "Seconds of every wait, and the rest: stages.csv.")]
    readers = [stage for stage in stages if any(stage.get(name, {}).get("mean") is not None for name in DISTRIBUTIONS)]
    if readers:
        columns = [Column("stage"), *(Column(part, title) for title in DISTRIBUTIONS.values() for part in PARTS)]
        cells = [
            [str(s["stage"]), *(_part(s.get(name, {}), part) for name in DISTRIBUTIONS for part in PARTS)]
            for s in readers
        ]
        note = "Of what each stage trained on: mean, median, 95th percentile, maximum. Stage 1 reads the data stream."
        tables.append(Table(columns, cells, note))
    return tables


def _part(distribution: Mapping[str, Any], part: str) -> str:
    """Means with two decimals; medians and the like are whole numbers most of the time, and then shown so."""
    value = distribution.get(part)
    return number(value, ".2f" if part == "mean" or value != round(value or 0) else ".0f")


def buffer_table(summary: Mapping[str, Any] | None) -> list[Block]:
    """The books of each buffer."""
    buffers = [buffer for buffer in (summary or {}).get("buffers", []) if isinstance(buffer, Mapping)]
    keys = list(dict.fromkeys(key for buffer in buffers for key in buffer))
    if not buffers:
        return []
    columns = [Column(key.replace("_", " ")) for key in keys]
    return [Table(columns, [[str(buffer.get(key, NOTHING)) for key in keys] for buffer in buffers])]


def evaluation_table(run: Run) -> list[Block]:
    """Every evaluation of the test set, head by head."""
    lines = evaluations_of(run)
    if not lines:
        return []
    heads = range(1, run.config.trained_stages + 1)
    one_by_one = any("stage" in line for line in lines)
    columns = [Column("training stage")] if one_by_one else []
    columns += [Column("epoch"), Column(unit_of(run.config)), *(Column(f"head {j}", "test accuracy") for j in heads)]
    columns.append(Column("ensemble", "test accuracy"))
    rows = [
        [
            *([str(line.get("stage", NOTHING))] if one_by_one else []),
            str(line["epoch"]),
            number(line["end_s"], ".1f"),
            *(number(accuracy) for accuracy in line["test_accuracy"]),
            number(line["test_ensemble_accuracy"][-1]),
        ]
        for line in lines
    ]
    return [Table(columns, rows)]


def fault_table(summary: Mapping[str, Any] | None) -> list[Block]:
    """What died and came back."""
    faults = [fault if isinstance(fault, Mapping) else {"fault": fault} for fault in (summary or {}).get("faults", [])]
    keys = list(dict.fromkeys(key for fault in faults for key in fault))
    columns = [Column(key.replace("_", " "), words=True) for key in keys]
    rows = [[str(fault.get(key, NOTHING)) for key in keys] for fault in faults]
    return [Table(columns, rows)] if rows else []


def stages_csv(run: Run) -> str:
    """A row for each stage, with every number of it."""
    rows = []
    for stage in stages_of(run):
        row: dict[str, Any] = {}
        for key, value in stage.items():
            row.update(
                {f"{key}_{part}": v for part, v in value.items()} if isinstance(value, Mapping) else {key: value}
            )
        rows.append(row)
    out = io.StringIO()
    names = list(dict.fromkeys(key for row in rows for key in row))
    writer = csv.DictWriter(out, names or ["stage"], restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()
