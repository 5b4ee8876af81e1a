"""The figures of one run: learning curves, the stage timeline, staleness and reuse."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from asyncdgl.rundir.reader import Run
from asyncdgl.rundir.trace import FORWARD, TRAIN, WAIT_REASONS, PassRecord, staleness

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TIMELINE_PASSES = 40
"""Passes of the fastest stage that the timeline's window shows: enough for a pattern, few enough to see each."""

MOST_STAGES = 16
"""Stages that a figure shows: more would hide each other."""

COMPUTING = {TRAIN: "#1f77b4", FORWARD: "#aec7e8"}
WAITING = dict(
    zip(
        WAIT_REASONS,
        ("#d62728", "#8c564b", "#9467bd", "#e377c2", "#bcbd22", "#c7c7c7", "#ff7f0e", "#2ca02c"),
        strict=True,
    )
)


def draw_figures(run: Run, formats: Sequence[str] = ("png",)) -> list[Path]:
    """Draw all figures of a run into its folder ``figures``; returns their paths."""
    figures = {"learning_curves": draw_learning_curves(run)} if run.config.has_tensors else {}
    if run.records:
        figures["timeline"] = draw_timeline(run)
    if any(record.stage > 1 for record in run.records):
        figures["staleness"] = draw_staleness(run)
    return [path for name, figure in figures.items() for path in save(figure, run.path / "figures", name, formats)]


def _shown(stages: Sequence[int]) -> list[int]:
    """All stages, or of too many some that are evenly spread, the first and the last among them."""
    if len(stages) <= MOST_STAGES:
        return list(stages)
    return [stages[round(n * (len(stages) - 1) / (MOST_STAGES - 1))] for n in range(MOST_STAGES)]


def _figure(width: float, height: float, columns: int, **ratios: Any) -> tuple[Figure, Sequence[Axes]]:
    """A figure of its own, not of pyplot's state: nothing is shown, nothing stays behind."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots(1, columns, squeeze=False, gridspec_kw=ratios or None)
    return figure, list(axes[0])


def save(figure: Figure, folder: Path, name: str, formats: Sequence[str], dpi: int = 150) -> list[Path]:
    """Write a figure in each format, with equal bytes each time; returns the paths."""
    from matplotlib import rc_context

    undated = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}
    folder.mkdir(exist_ok=True)
    paths = [folder / f"{name}.{form}" for form in formats]
    with rc_context({"svg.hashsalt": "asyncdgl", "pdf.fonttype": 42}):  # 42: text that other programs can edit
        for form, path in zip(formats, paths, strict=True):
            part = folder / f".{path.name}.part"
            figure.savefig(part, format=form, dpi=dpi, metadata=undated.get(form))
            part.replace(path)
    return paths


def draw_learning_curves(run: Run) -> Figure:
    """Training loss of each stage over its own epochs, and test accuracy of each head and the ensemble."""
    from matplotlib.ticker import MaxNLocator

    figure, (left, right) = _figure(10, 4, 2)
    stages = _shown(range(1, run.config.trained_stages + 1))
    for j in stages:
        own = [(line.epoch, line.loss) for line in run.epochs if line.stage == j and line.loss is not None]
        left.plot(*_columns(own), marker=".", label=f"stage {j}")
        # Stages that train one after the other are evaluated while each of them trains, epoch 1 again for each.
        of_head = [(line.epoch, line.test_accuracy[j - 1]) for line in run.evaluations if line.stage in (None, j)]
        right.plot(*_columns(of_head), marker=".", label=f"head {j}")
    if len(stages) > 1:
        last = [line for line in run.evaluations if line.stage in (None, stages[-1])]
        ensemble = [line.test_ensemble_accuracy[-1] for line in last]
        right.plot([line.epoch for line in last], ensemble, color="black", linestyle="--", label="ensemble")
    for axes in (left, right):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    left.set(xlabel="own epochs of the stage", ylabel="training loss", yscale="log")
    whose = "own epochs of the stage" if run.config.algorithm == "sequential-dgl" else "epochs of the slowest stage"
    right.set(xlabel=whose, ylabel="test accuracy")
    left.legend()
    right.legend()
    figure.suptitle(run.config.name)
    return figure


def _columns(points: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [x for x, _ in points], [y for _, y in points]


def draw_timeline(run: Run) -> Figure:
    """Who computed, who waited and why: shares of the whole run, and each pass in a short window of it."""
    stages = {j: run.passes[j] for j in _shown(list(run.passes))}
    figure, (left, right) = _figure(12, 1.6 + 0.5 * len(stages), 2, width_ratios=[1, 3])
    total = max(r.end_s for r in run.records) or 1.0
    used: dict[str, str] = {}
    for j, passes in stages.items():
        _draw_shares(left, j, passes, total, used)
    start, end = _window(stages)
    for j, passes in stages.items():
        for record in passes:
            if record.end_s >= start and record.start_s <= end:
                _draw_pass(right, j, record, used)
    for axes in (left, right):
        axes.set_yticks(list(stages), [f"stage {j}" for j in stages])
        axes.invert_yaxis()
    left.set(xlim=(0, 1), xlabel="share of the training time (blank: messages)")
    right.set(xlim=(start, end), xlabel=f"{run.config.time_unit} since training began")
    handles = [_patch(color, label) for label, color in used.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False)
    figure.suptitle(f"{run.config.name}: who computed, who waited and why")
    return figure


def _patch(color: str, label: str) -> Any:
    from matplotlib.patches import Patch

    return Patch(color=color, label=label)


def _draw_shares(axes: Axes, j: int, passes: Sequence[PassRecord], total: float, used: dict[str, str]) -> None:
    parts = {
        _label(kind): (sum(r.end_s - r.start_s for r in passes if r.kind == kind), COMPUTING[kind])
        for kind in COMPUTING
    }
    for reason in WAIT_REASONS:
        parts[f"waits: {reason}"] = (sum(r.waits.get(reason, 0.0) for r in passes), WAITING[reason])
    position = 0.0
    for label, (seconds, color) in parts.items():
        if seconds / total > 0.002:
            axes.barh(j, seconds / total, left=position, height=0.7, color=color)
            used[label] = color
            position += seconds / total


def _label(kind: str) -> str:
    return {TRAIN: "computes an update", FORWARD: "computes a forward-only pass"}[kind]


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
            used[f"waits: {reason}"] = WAITING[reason]


def draw_staleness(run: Run) -> Figure:
    """Staleness and reuse of what each stage trained on: median, middle half, 5th to 95th percentile, mean."""
    figure, (left, right) = _figure(10, 4, 2)
    stages = run.passes
    readers = _shown([j for j in stages if j > 1])
    values = [staleness(stages[j], stages.get(j - 1, [])) for j in readers]
    reuse = [np.array([r.times_sampled for r in stages[j] if r.kind == TRAIN and r.times_sampled]) for j in readers]
    labels = [f"stage {j}" for j in readers]
    for axes, data, what in (
        (left, values, "staleness (producer's updates)"),
        (right, reuse, "times an entry was given"),
    ):
        shown = [v if len(v) else np.array([np.nan]) for v in data]
        axes.boxplot(shown, tick_labels=labels, whis=(5, 95), showfliers=False, showmeans=True)
        axes.set(ylabel=what)
        axes.set_ylim(bottom=0)
    figure.suptitle(f"{run.config.name}: age and reuse of what each stage learns from")
    figure.supxlabel("line: median; box: middle half; whiskers: 5 to 95 %; triangle: mean", fontsize="small")
    return figure
