"""The figure of a sweep: a measure against one key, means over seeds with their 95 % intervals."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from asyncdgl.errors import ConfigError, DataError
from asyncdgl.report.figures import save
from asyncdgl.report.labels import FRACTIONS, key_label, measure_label, setting_label, value_label
from asyncdgl.sweep.grid import FigureConfig
from asyncdgl.sweep.results import INDEX, MEASURES, Estimate, PointResult, SweepResults, points

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FORMATS = ("pdf", "svg", "png")
DPI = 300
ONE_COLUMN, TWO_COLUMNS = (3.5, 2.9), (7.0, 3.3)
"""Inches, as in most journals."""
FONT_SIZE = 8
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
"""Of Okabe and Ito: told apart by every kind of colour vision."""
MARKERS = "osD^vPX*"
BASELINES = (("#000000", "--"), ("#666666", "-."), ("#999999", ":"), ("#333333", (0, (5, 1, 1, 1, 1, 1))))
ROWS_OF_LEGEND = 14
LONGEST_LABEL = 34
"""Characters of one line beside the vertical axis."""
INCHES_OF_A_LETTER = 0.062
CROWDED = 0.06
"""Ticks nearer to each other than this share of the axis would cover each other's numbers."""

Values = Mapping[str, Any]


@dataclass(frozen=True)
class Line:
    """Points that differ in x alone, or one without an x: a baseline."""

    label: str
    points: list[tuple[Any, Estimate]]


def choose_figure(chosen: FigureConfig | None, runs: Sequence[Values]) -> FigureConfig | None:
    """What the sweep's file says, or the first numeric key with two values, or the first key; None without keys.

    Raises:
        ConfigError: the file names a key or a measure that is not there, or a logarithm that does not exist.
    """
    values = _by_key(runs)
    if chosen is None:
        numeric = (key for key, found in values.items() if len(found) > 1 and _numeric(found))
        x = next(numeric, next(iter(values), None))
        return None if x is None else FigureConfig(x=x)
    problems = []
    if chosen.x not in values:
        mend = f"choose one of {', '.join(values)}" if values else "all runs have the same settings"
        problems.append(f"figure.x: {chosen.x} is no key that differs between the runs: {mend}")
    elif chosen.log_x and not (_numeric(values[chosen.x]) and all(value > 0 for value in values[chosen.x])):
        problems.append(f"figure.log_x: {chosen.x} has values without a logarithm")
    if chosen.y not in MEASURES:
        problems.append(f"figure.y must be one of {', '.join(MEASURES)}; got {chosen.y}")
    if problems:
        raise ConfigError(problems)
    return chosen


def figure_of(results: SweepResults) -> FigureConfig | None:
    """``choose_figure`` for a sweep that was read.

    Raises:
        DataError: its index asks for a figure that can't be drawn.
    """
    try:
        return choose_figure(results.figure, [run.values for run in results.runs])
    except ConfigError as error:
        raise DataError(f"{results.path / INDEX}: {'; '.join(error.problems)}") from None


def _by_key(runs: Sequence[Values]) -> dict[str, list[Any]]:
    """The different values of each key, in the order of the sweep, without None."""
    found: dict[str, dict[str, Any]] = {key: {} for key in (runs[0] if runs else ())}
    for values in runs:
        for key, value in values.items():
            if value is not None:
                found[key].setdefault(json.dumps(value), value)
    return {key: list(of_key.values()) for key, of_key in found.items()}


def _numeric(values: Sequence[Any]) -> bool:
    return bool(values) and all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)


def lines_of(results: SweepResults, figure: FigureConfig) -> tuple[list[Line], list[Line]]:
    """The lines along x, and the baselines: points for which x means nothing."""
    measured = [point for point in points(results) if figure.y in point.estimates]
    along = [point for point in measured if point.values[figure.x] is not None]
    beside = [point for point in measured if point.values[figure.x] is None]
    return _grouped(along, figure), _grouped(beside, figure)


def _grouped(found: Sequence[PointResult], figure: FigureConfig) -> list[Line]:
    others = [key for key in (found[0].values if found else ()) if key != figure.x]
    differing = [key for key in others if len({json.dumps(point.values[key]) for point in found}) > 1]
    groups: dict[str, Line] = {}
    for point in found:
        settings = {key: point.values[key] for key in differing}
        names = [setting_label(key, value) for key, value in settings.items() if value is not None]
        label = ", ".join(names) or _name_of(point, figure)
        line = groups.setdefault(json.dumps(settings), Line(label, []))
        line.points.append((point.values[figure.x], point.estimates[figure.y]))
    return list(groups.values())


def _name_of(point: PointResult, figure: FigureConfig) -> str:
    """Of the only line of its kind: its algorithm, where the sweep has several."""
    if point.values.get("algorithm") is not None:
        return value_label("algorithm", point.values["algorithm"])
    return "" if point.values[figure.x] is not None else setting_label(figure.x, None)


def draw_sweep(results: SweepResults) -> Figure | None:
    """The figure, or None where there is nothing to draw: one point only, or no finished run."""
    from matplotlib import rc_context

    chosen = figure_of(results)
    lines, baselines = ([], []) if chosen is None else lines_of(results, chosen)
    if chosen is None or not lines + baselines:
        return None
    # parse_math: a name with dollar signs is a name
    with rc_context({"font.size": FONT_SIZE, "axes.formatter.useoffset": False, "text.parse_math": False}):
        return _draw(chosen, _by_key([run.values for run in results.runs])[chosen.x], lines, baselines)


def _draw(chosen: FigureConfig, xs: list[Any], lines: list[Line], baselines: list[Line]) -> Figure:
    from matplotlib.figure import Figure

    named = [line.label for line in lines + baselines]
    wide = len(named) > 3 or len(xs) > 6
    size = TWO_COLUMNS if wide else ONE_COLUMN
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.add_subplot()
    place = _horizontal_axis(axes, chosen, xs, size[0])
    handles = [
        _draw_line(axes, line, number, place, shift, connected=_numeric(xs))
        for number, (line, shift) in enumerate(zip(lines, _shifts(lines, place, _numeric(xs)), strict=True))
    ]
    handles += [_draw_baseline(axes, line, *BASELINES[n % len(BASELINES)]) for n, line in enumerate(baselines)]
    axes.set_xlabel(chosen.x_label or key_label(chosen.x))
    label = chosen.y_label or measure_label(chosen.y)
    axes.set_ylabel(label.replace(" (", "\n(", 1) if len(label) > LONGEST_LABEL else label)
    low, high = axes.get_ylim()
    axes.set_ylim(max(low, 0.0), min(high, 1.0) if chosen.y in FRACTIONS else high)
    axes.grid(axis="y", linewidth=0.4, alpha=0.5)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    if len(handles) > 1:
        columns = -(-len(named) // ROWS_OF_LEGEND) if wide else 1
        figure.legend(
            handles,
            named,
            loc="outside right upper" if wide else "outside lower center",
            ncols=columns,
            frameon=False,
            handlelength=2.6,
        )
    return figure


Place = dict[str, float]
"""Where each value of x stands, on the axis or, if that is logarithmic, as logarithm."""


def _horizontal_axis(axes: Axes, chosen: FigureConfig, xs: list[Any], width: float) -> Place:
    """Set scale, range and ticks. The axis has a place for runs still missing, and so stays as the sweep grows."""
    if not _numeric(xs):
        place = {json.dumps(x): float(number) for number, x in enumerate(xs)}
        names = [value_label(chosen.x, x).replace(" ", "\n") for x in xs]
        longest = max(len(word) for name in names for word in name.split("\n"))
        crowded = longest * INCHES_OF_A_LETTER > 0.75 * width / len(xs)
        axes.set_xticks(list(place.values()), names, rotation=30 if crowded else 0, ha="right" if crowded else "center")
        axes.set_xlim(-0.5, len(xs) - 0.5)
        return place
    place = {json.dumps(x): math.log10(x) if chosen.log_x else float(x) for x in xs}
    at = sorted(place.values())
    margin = 0.06 * (at[-1] - at[0]) or 0.5
    low, high = at[0] - margin, at[-1] + margin
    if chosen.log_x:
        axes.set_xscale("log")
        low, high = 10**low, 10**high
    axes.set_xlim(low, high)
    if all(second - first >= CROWDED * (at[-1] - at[0]) for first, second in pairwise(at)):
        axes.set_xticks(sorted(xs), [value_label(chosen.x, x) for x in sorted(xs)])
        axes.set_xticks([], minor=True)
    return place


def _shifts(lines: Sequence[Line], place: Place, numeric: bool) -> list[float]:
    """How far each line stands beside its place: nowhere, unless bars would cover each other."""
    if not _bars_meet(lines):
        return [0.0] * len(lines)
    at = sorted(place.values())
    nearest = min((second - first for first, second in pairwise(at)), default=1.0)
    # A number should stay near its tick; words have room.
    largest = 0.015 * (at[-1] - at[0]) if numeric and len(at) > 1 else 0.15
    step = min(largest, 0.6 * nearest / len(lines))
    return [(number - (len(lines) - 1) / 2) * step for number in range(len(lines))]


def _bars_meet(lines: Sequence[Line]) -> bool:
    bars: dict[str, list[tuple[float, float]]] = {}
    for line in lines:
        for x, e in line.points:
            ends = (e.mean, e.mean) if e.low is None or e.high is None else (e.low, e.high)
            bars.setdefault(json.dumps(x), []).append(ends)
    return any(second[0] <= first[1] for at_x in map(sorted, bars.values()) for first, second in pairwise(at_x))


def _draw_line(axes: Axes, line: Line, number: int, place: Place, shift: float, connected: bool) -> Any:
    """Returns what stands for it in the legend."""
    found = sorted(((place[json.dumps(x)] + shift, e) for x, e in line.points), key=lambda pair: pair[0])
    at = [10**x if axes.get_xscale() == "log" else x for x, _ in found]
    halves = [math.nan if e.high is None else e.high - e.mean for _, e in found]
    return axes.errorbar(
        at,
        [e.mean for _, e in found],
        yerr=halves,
        color=COLORS[number % len(COLORS)],
        marker=MARKERS[number % len(MARKERS)],
        linestyle=("-" if number < len(COLORS) else "--") if connected else "none",
        linewidth=1.0,
        markersize=4,
        elinewidth=0.8,
        capsize=2,
    )


def _draw_baseline(axes: Axes, baseline: Line, color: str, style: Any) -> Any:
    from matplotlib.patches import Patch

    [(_, e)] = baseline.points
    line = axes.axhline(e.mean, color=color, linestyle=style, linewidth=1.0)
    if e.low is None or e.high is None:
        return line
    # Edges in the line's own dashes: where bands lie over each other, each can still be followed.
    looks: dict[str, Any] = {"facecolor": (color, 0.1), "edgecolor": (color, 0.6), "linewidth": 0.4, "linestyle": style}
    axes.axhspan(e.low, e.high, **looks)
    return Patch(**looks), line


def save_sweep_figure(results: SweepResults) -> list[Path]:
    """Draw the figure into the sweep's folder ``figures``; returns the paths, none where there is nothing to draw."""
    figure = draw_sweep(results)
    if figure is None:
        return []
    return save(figure, results.path / "figures", figure_name(results), FORMATS, DPI)


def figure_name(results: SweepResults) -> str:
    """The sweep's name as the name of a file, whatever stands in its index."""
    return re.sub(r"[^A-Za-z0-9._+-]", "_", str(results.name)).lstrip(".") or "sweep"
