"""The figure of a sweep: a measure against one key, means over seeds with their 95 % intervals."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from asyncdgl.report.labels import FRACTIONS, key_label, measure_label, value_label
from asyncdgl.report.series import Series, figure_of, is_logarithmic, is_numeric, panels_of, series_of, values_by_key
from asyncdgl.report.style import COLORS, COLUMN, MARKERS, PAGE, new_figure, our_style, save
from asyncdgl.sweeps.grid import FigureConfig
from asyncdgl.sweeps.results import PointResult, SweepResults

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FORMATS = ("pdf", "svg", "png")
HEIGHTS = {"column": 2.9, "page": 3.3}
BASELINES = (("#000000", "--"), ("#666666", "-."), ("#999999", ":"), ("#333333", (0, (5, 1, 1, 1, 1, 1))))
FEW_SEEDS = 5
"""Of fewer, each is shown: an interval of three numbers says less than the numbers."""

ROWS_OF_LEGEND = 14
LONGEST_LABEL = 34
"""Characters of one line beside the vertical axis."""
INCHES_OF_A_LETTER = 0.062
CROWDED = 0.06
"""Ticks nearer to each other than this share of the axis would cover each other's numbers."""

Place = dict[str, float]
"""Where each value of x stands, on the axis or, if that is logarithmic, as logarithm."""


def draw_sweep(results: SweepResults) -> Figure | None:
    """The figure, or None where there is nothing to draw: one point only, or no finished run."""
    chosen = figure_of(results)
    if chosen is None or not any(chosen.y in point.estimates for point in results.points):
        return None
    return _draw(chosen, values_by_key([run.values for run in results.runs])[chosen.x], panels_of(results, chosen))


def _draw(chosen: FigureConfig, xs: list[Any], panels: list[tuple[str, list[PointResult]]]) -> Figure:
    drawn = [(name, *series_of(points, chosen)) for name, points in panels]
    labels = list(dict.fromkeys(line.label for _, lines, _ in drawn for line in lines))
    base_labels = list(dict.fromkeys(line.label for _, _, baselines in drawn for line in baselines))
    wide = len(panels) > 1 or len(labels) + len(base_labels) > 3 or len(xs) > 6
    size = _size(chosen, wide)
    figure = new_figure(*size)
    all_axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    handles: dict[str, Any] = {}
    for axes, (name, lines, baselines) in zip(all_axes, drawn, strict=True):
        place = _horizontal_axis(axes, chosen, xs, size[0] / len(panels))
        shifts = _shifts(lines, chosen, place, is_numeric(xs))
        for line, shift in zip(lines, shifts, strict=True):
            number = labels.index(line.label)
            handle = _draw_line(axes, line, chosen.y, number, place, shift, connected=is_numeric(xs))
            handles.setdefault(line.label, handle)
        for line in baselines:
            handle = _draw_baseline(axes, line, chosen.y, *BASELINES[base_labels.index(line.label) % len(BASELINES)])
            handles.setdefault(line.label, handle)
        axes.set_title(name, fontsize=8)
        axes.set_xlabel(chosen.x_label or key_label(chosen.x))
        axes.grid(axis="y")
    label = chosen.y_label or measure_label(chosen.y)
    all_axes[0].set_ylabel(label.replace(" (", "\n(", 1) if len(label) > LONGEST_LABEL else label)
    low, high = all_axes[0].get_ylim()
    all_axes[0].set_ylim(max(low, 0.0), min(high, 1.0) if chosen.y in FRACTIONS else high)
    if chosen.title is not None:
        figure.suptitle(chosen.title, fontsize=9)
    if len(handles) > 1:
        figure.legend(
            handles.values(),
            handles.keys(),
            loc="outside right upper" if wide else "outside lower center",
            ncols=-(-len(handles) // ROWS_OF_LEGEND) if wide else 1,
            handlelength=2.6,
        )
    return figure


def _size(chosen: FigureConfig, wide: bool) -> tuple[float, float]:
    if isinstance(chosen.size, tuple):
        return chosen.size
    named = chosen.size or ("page" if wide else "column")
    return (PAGE if named == "page" else COLUMN), HEIGHTS[named]


def _horizontal_axis(axes: Axes, chosen: FigureConfig, xs: list[Any], width: float) -> Place:
    """Set scale, range and ticks. The axis has a place for runs still missing, and so stays as the sweep grows."""
    if not is_numeric(xs):
        place = {json.dumps(x): float(number) for number, x in enumerate(xs)}
        names = [value_label(chosen.x, x).replace(" ", "\n") for x in xs]
        longest = max(len(word) for name in names for word in name.split("\n"))
        crowded = longest * INCHES_OF_A_LETTER > 0.75 * width / len(xs)
        axes.set_xticks(list(place.values()), names, rotation=30 if crowded else 0, ha="right" if crowded else "center")
        axes.set_xlim(-0.5, len(xs) - 0.5)
        return place
    logarithmic = is_logarithmic(chosen, xs)
    place = {json.dumps(x): math.log10(x) if logarithmic else float(x) for x in xs}
    at = sorted(place.values())
    margin = 0.06 * (at[-1] - at[0]) or 0.5
    low, high = at[0] - margin, at[-1] + margin
    if logarithmic:
        axes.set_xscale("log")
        low, high = 10**low, 10**high
    axes.set_xlim(low, high)
    if all(second - first >= CROWDED * (at[-1] - at[0]) for first, second in pairwise(at)):
        axes.set_xticks(sorted(xs), [value_label(chosen.x, x) for x in sorted(xs)])
        axes.set_xticks([], minor=True)
    return place


def _shifts(lines: Sequence[Series], chosen: FigureConfig, place: Place, numeric: bool) -> list[float]:
    """How far each line stands beside its place: nowhere, unless bars would cover each other."""
    if not _bars_meet(lines, chosen.y):
        return [0.0] * len(lines)
    at = sorted(place.values())
    nearest = min((second - first for first, second in pairwise(at)), default=1.0)
    # A number should stay near its tick; words have room.
    largest = 0.015 * (at[-1] - at[0]) if numeric and len(at) > 1 else 0.15
    step = min(largest, 0.6 * nearest / len(lines))
    return [(number - (len(lines) - 1) / 2) * step for number in range(len(lines))]


def _bars_meet(lines: Sequence[Series], measure: str) -> bool:
    bars: dict[str, list[tuple[float, float]]] = {}
    for line in lines:
        for x, point in line.points:
            e = point.estimates[measure]
            ends = (e.mean, e.mean) if e.low is None or e.high is None else (e.low, e.high)
            bars.setdefault(json.dumps(x), []).append(ends)
    return any(second[0] <= first[1] for at_x in map(sorted, bars.values()) for first, second in pairwise(at_x))


def _draw_line(axes: Axes, line: Series, measure: str, number: int, place: Place, shift: float, connected: bool) -> Any:
    """Returns what stands for it in the legend."""
    logarithmic = axes.get_xscale() == "log"
    found = sorted(((place[json.dumps(x)] + shift, point) for x, point in line.points), key=lambda pair: pair[0])
    at = [10**x if logarithmic else x for x, _ in found]
    estimates = [point.estimates[measure] for _, point in found]
    color, marker = COLORS[number % len(COLORS)], MARKERS[number % len(MARKERS)]
    # Before the means, which then lie over them.
    few = [(x, v) for x, (_, p) in zip(at, found, strict=True) for v in _single_seeds(p, measure)]
    axes.scatter([x for x, _ in few], [v for _, v in few], s=8, color=color, alpha=0.6, linewidths=0)
    drawn = axes.errorbar(
        at,
        [e.mean for e in estimates],
        yerr=[math.nan if e.high is None else e.high - e.mean for e in estimates],
        color=color,
        marker=marker,
        linestyle=("-" if number < len(COLORS) else "--") if connected else "none",
        linewidth=1.0,
        markersize=4,
        elinewidth=0.8,
        capsize=2,
    )
    hollow = [(x, e.mean) for x, e, (_, p) in zip(at, estimates, found, strict=True) if p.diverged]
    axes.plot(*_columns(hollow), color=color, marker=marker, markersize=4, markerfacecolor="white", linestyle="none")
    return drawn


def _single_seeds(point: PointResult, measure: str) -> list[float]:
    values = point.measured[measure]
    return values if 1 < len(values) < FEW_SEEDS else []


def _columns(points: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [x for x, _ in points], [y for _, y in points]


def _draw_baseline(axes: Axes, baseline: Series, measure: str, color: str, style: Any) -> Any:
    from matplotlib.patches import Patch

    [(_, point)] = baseline.points
    e = point.estimates[measure]
    line = axes.axhline(e.mean, color=color, linestyle=style, linewidth=1.0)
    if e.low is None or e.high is None:
        return line
    # Edges in the line's own dashes: where bands lie over each other, each can still be followed.
    looks: dict[str, Any] = {"facecolor": (color, 0.1), "edgecolor": (color, 0.6), "linewidth": 0.4, "linestyle": style}
    axes.axhspan(e.low, e.high, **looks)
    return Patch(**looks), line


def save_sweep_figure(results: SweepResults) -> list[Path]:
    """Draw the figure into the sweep's folder ``figures``; returns the paths, none where there is nothing to draw."""
    with our_style():
        figure = draw_sweep(results)
        if figure is None:
            return []
        return save(figure, results.path / "figures", figure_name(results), FORMATS)


def figure_name(results: SweepResults) -> str:
    """The sweep's name as the name of a file, whatever stands in its index."""
    return re.sub(r"[^A-Za-z0-9._+-]", "_", results.name).lstrip(".") or "sweep"
