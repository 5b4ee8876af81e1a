"""The figures of one run: learning curves, the stage timeline, what each stage learned from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from asyncdgl.report.style import COLUMN, line_style, new_figure, our_style, save, spans_a_decade
from asyncdgl.rundir.measures import train_seconds
from asyncdgl.rundir.reader import Run
from asyncdgl.rundir.records import Fault
from asyncdgl.rundir.trace import (
    FORWARD,
    TRAIN,
    WAIT_REASONS,
    PassRecord,
    batch_age,
    batches_unseen,
    staleness,
    times_sampled,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TIMELINE_PASSES = 25
"""Passes of the fastest stage that the timeline's window shows: enough for a pattern, few enough to see each."""

MOST_STAGES = 16
"""Stages that a figure shows: more would hide each other."""

COMPUTING = {TRAIN: "#0072B2", FORWARD: "#56B4E9"}
WAITING = dict(
    zip(
        WAIT_REASONS,
        ("#D55E00", "#7A3600", "#CC79A7", "#E69F00", "#000000", "#BBBBBB", "#F0E442", "#009E73"),
        strict=True,
    )
)
DEAD = "#AA0000"
BOXES: dict[str, Any] = {
    "medianprops": {"color": "#D55E00", "linewidth": 1.6},
    "meanprops": {"marker": "^", "markerfacecolor": "#0072B2", "markeredgecolor": "#0072B2", "markersize": 4},
}
BLANK = {
    "sim": "other stages' turns",
    "virtual": "stopped",
    "ray": "messages",
}
"""What a stage does in the time in which it neither computes nor waits."""


def draw_figures(run: Run, formats: Sequence[str] = ("png",)) -> list[Path]:
    """Draw all figures of a run into its folder ``figures``; returns their paths."""
    drawn: dict[str, Callable[[Run], Figure]] = {}
    if run.config.has_tensors:
        drawn["learning_curves"] = draw_learning_curves
    if run.records:
        drawn["timeline"] = draw_timeline
    if any(record.stage > 1 for record in run.records):
        drawn["staleness"] = draw_staleness
    with our_style():
        return [path for name, draw in drawn.items() for path in save(draw(run), run.path / "figures", name, formats)]


def _shown(stages: Sequence[int]) -> list[int]:
    """All stages, or of too many some that are evenly spread, the first and the last among them."""
    if len(stages) <= MOST_STAGES:
        return list(stages)
    return [stages[round(n * (len(stages) - 1) / (MOST_STAGES - 1))] for n in range(MOST_STAGES)]


def draw_learning_curves(run: Run) -> Figure:
    """Training loss of each stage over its own epochs; accuracies of the heads and of the ensemble, split by split."""
    from matplotlib.ticker import MaxNLocator

    stages = _shown(range(1, run.config.trained_stages + 1))
    splits = ["test", *(["validation"] if any(line.validation_accuracy for line in run.evaluations) else [])]
    figure = new_figure(COLUMN, 0.5 + 1.7 * (1 + len(splits)) + 0.15 * -(-len(stages) // 4))
    loss, *accuracies = list(np.ravel(figure.subplots(1 + len(splits), 1, squeeze=False)))
    for n, j in enumerate(stages):
        own = [(line.epoch, line.loss) for line in run.epochs if line.stage == j and line.loss is not None]
        loss.plot(*_columns(own), label=f"stage {j}", **line_style(n))
    ours = run.config.algorithm == "sequential-dgl"
    whose = "own epochs of the stage" if ours else "epochs of the slowest stage"
    for axes, split in zip(accuracies, splits, strict=True):
        _draw_accuracies(axes, run, split, stages)
        axes.set(xlabel=whose, ylabel=f"{split} accuracy")
    losses = [line.loss for line in run.epochs if line.loss is not None]
    loss.set(
        xlabel="own epochs of the stage", ylabel="training loss", yscale="log" if spans_a_decade(losses) else "linear"
    )
    for axes in (loss, *accuracies):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(axis="y")
    handles, names = accuracies[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=4)
    return figure


def _draw_accuracies(axes: Axes, run: Run, split: str, stages: Sequence[int]) -> None:
    # Stages that train one after the other are evaluated while each of them trains, epoch 1 again for each.
    for n, j in enumerate(stages):
        of_head = [
            (line.epoch, getattr(line, f"{split}_accuracy")) for line in run.evaluations if line.stage in (None, j)
        ]
        points = [(epoch, heads[j - 1]) for epoch, heads in of_head if heads]
        axes.plot(*_columns(points), label=f"stage {j}", **line_style(n))
    if len(stages) > 1:
        last = [line for line in run.evaluations if line.stage in (None, stages[-1])]
        ensemble = [(line.epoch, getattr(line, f"{split}_ensemble_accuracy")) for line in last]
        points = [(epoch, heads[-1]) for epoch, heads in ensemble if heads]
        axes.plot(*_columns(points), color="#666666", linestyle=":", linewidth=1.6, label="ensemble")


def _columns(points: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [x for x, _ in points], [y for _, y in points]


def draw_timeline(run: Run) -> Figure:
    """Who computed, who waited and why: shares of the whole run, and each pass in a short window of it."""
    stages = {j: run.passes[j] for j in _shown(list(run.passes))}
    died = _deaths(run)
    rows = [len(stages), *([len(died)] if died else []), len(stages)]
    figure = new_figure(COLUMN, 1.9 + 0.3 * len(stages) + (0.55 + 0.17 * len(died) if died else 0))
    above, *middle, below = figure.subplots(len(rows), 1, height_ratios=[n + 0.6 for n in rows])
    total = train_seconds(run.records) or 1.0
    used: dict[str, str] = {}
    for j, passes in stages.items():
        _draw_shares(above, j, passes, total, used)
    start, end = _window(stages)
    for j, passes in stages.items():
        for record in passes:
            if record.end_s >= start and record.start_s <= end:
                _draw_pass(below, j, record, used)
    for axes in (above, below):
        axes.set_yticks(list(stages), [f"stage {j}" for j in stages])
        axes.invert_yaxis()
    above.set(xlim=(0, 1), xlabel=f"share of the training time (blank: {BLANK[run.config.runtime]})")
    below.set(xlim=(start, end), xlabel=f"{run.config.time_unit} since training began")
    for axes in middle:
        _draw_deaths(axes, died, total)
        axes.set(xlabel=f"faults: {run.config.time_unit} since training began")
        used[_DIED] = DEAD
    handles = [_patch(color, label) for label, color in used.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=2)
    return figure


_DIED = "a process had died"


def _deaths(run: Run) -> dict[str, list[Fault]]:
    """The faults of each process: of the stages first, then as they came; of many processes, the first ones."""
    faults = run.summary.faults if run.summary is not None else ()
    names = sorted({f.process for f in faults}, key=lambda name: (not name.startswith("stage"), name))
    return {name: [f for f in faults if f.process == name] for name in names[:MOST_STAGES]}


def _draw_deaths(axes: Axes, died: dict[str, list[Fault]], total: float) -> None:
    """Over the whole run, from each death until another process worked in the place of the dead one."""
    for row, faults in enumerate(died.values()):
        for fault in faults:
            until = max(total, fault.at_s) if fault.again_s is None else fault.again_s
            axes.barh(row, until - fault.at_s, left=fault.at_s, height=0.6, color=DEAD)
        axes.plot([fault.at_s for fault in faults], [row] * len(faults), "x", color="black", markersize=3.5)
    axes.set_yticks(range(len(died)), list(died))
    axes.set_ylim(len(died) - 0.5, -0.5)
    axes.set_xlim(0, max(total, *(max(f.at_s, f.again_s or 0.0) for faults in died.values() for f in faults)))


def _patch(color: str, label: str) -> Any:
    from matplotlib.patches import Patch

    return Patch(color=color, label=label)


def _draw_shares(axes: Axes, j: int, passes: Sequence[PassRecord], total: float, used: dict[str, str]) -> None:
    parts = {
        _label(kind): (sum(r.end_s - r.start_s for r in passes if r.kind == kind), COMPUTING[kind])
        for kind in COMPUTING
    }
    for reason in WAIT_REASONS:
        parts[_waits(reason)] = (sum(r.waits.get(reason, 0.0) for r in passes), WAITING[reason])
    position = 0.0
    for label, (seconds, color) in parts.items():
        if seconds / total > 0.002:
            axes.barh(j, seconds / total, left=position, height=0.7, color=color)
            used[label] = color
            position += seconds / total


def _label(kind: str) -> str:
    return {TRAIN: "an update", FORWARD: "a forward-only pass"}[kind]


def _waits(reason: str) -> str:
    return f"waits: {reason.replace('_', ' ')}"


def _window(stages: dict[int, list[PassRecord]]) -> tuple[float, float]:
    """A stretch in the middle of the time in which all stages trained."""
    trained = [[r for r in passes if r.kind == TRAIN] for passes in stages.values()]
    if not any(trained):  # stopped before the first update
        trained = list(stages.values())
    begin = max(passes[0].start_s for passes in trained if passes)
    end = min(passes[-1].end_s for passes in trained if passes)
    if end <= begin:
        begin, end = 0.0, max(passes[-1].end_s for passes in trained if passes)
    periods = [(p[-1].end_s - p[0].start_s) / len(p) for p in trained if p]
    half = min(TIMELINE_PASSES * min(periods), end - begin) / 2 or 0.5
    middle = (begin + end) / 2
    return middle - half, middle + half


def _draw_pass(axes: Axes, j: int, record: PassRecord, used: dict[str, str]) -> None:
    duration = record.end_s - record.start_s
    axes.barh(
        j, duration, left=record.start_s, height=0.7, color=COMPUTING[record.kind], edgecolor="white", linewidth=0.3
    )
    used[_label(record.kind)] = COMPUTING[record.kind]
    # Waits lie before the pass; their order within the gap is not recorded.
    position = record.start_s
    for reason in WAIT_REASONS:
        seconds = record.waits.get(reason, 0.0)
        if seconds > 0:
            position -= seconds
            axes.barh(j, seconds, left=position, height=0.3, color=WAITING[reason])
            used[_waits(reason)] = WAITING[reason]


def draw_staleness(run: Run) -> Figure:
    """What each stage trained on: staleness, batch age and reuse, and the share of the batches that it never saw."""
    figure = new_figure(COLUMN, 3.6)
    (stale, age), (reuse, unseen) = figure.subplots(2, 2)
    stages = run.passes
    readers = _shown([j for j in stages if j > 1])
    names = [str(j) for j in readers]
    for axes, values, what in (
        (stale, [staleness(stages[j], stages.get(j - 1, [])) for j in readers], "staleness (updates)"),
        (age, [batch_age(stages[j], stages.get(1, [])) for j in readers], "batch age (batches)"),
        (reuse, [times_sampled(stages[j]) for j in readers], "times an entry was given"),
    ):
        shown = [v if len(v) else np.array([np.nan]) for v in values]
        axes.boxplot(shown, tick_labels=names, whis=(5, 95), showfliers=False, showmeans=True, widths=0.6, **BOXES)
        axes.set(ylabel=what)
        axes.set_ylim(bottom=0)
    shares = [batches_unseen(stages[j]) or 0.0 for j in readers]
    unseen.bar(names, [100 * share for share in shares], width=0.6, color=COMPUTING[TRAIN])
    unseen.set(ylabel="batches never seen (%)")
    unseen.set_ylim(0, max(1.0, *(110 * share for share in shares)))
    for axes in (reuse, unseen):
        axes.set(xlabel="stage")
    figure.supxlabel("line: median; box: middle half; whiskers: 5 to 95 %; triangle: mean", fontsize=6)
    return figure
