"""Which points of a sweep make a line of its figure, and under which name."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from asyncdgl.errors import ConfigError, DataError
from asyncdgl.report.labels import setting_label, value_label
from asyncdgl.report.style import spans_a_decade
from asyncdgl.sweeps.grid import FigureConfig
from asyncdgl.sweeps.measures import MEASURES
from asyncdgl.sweeps.results import INDEX, PointResult, SweepResults

Values = Mapping[str, Any]


@dataclass(frozen=True)
class Series:
    """Points that differ in x alone, or one without an x: a baseline."""

    label: str
    points: list[tuple[Any, PointResult]]


def is_logarithmic(chosen: FigureConfig, xs: Sequence[Any]) -> bool:
    """Whether the horizontal axis is: as the file says, or where its values span a decade."""
    return chosen.log_x if chosen.log_x is not None else is_numeric(xs) and spans_a_decade(xs)


def choose_figure(chosen: FigureConfig | None, runs: Sequence[Values]) -> FigureConfig | None:
    """What the sweep's file says, or the first numeric key with two values, or the first key; None without keys.

    Raises:
        ConfigError: the file names a key or a measure that is not there, or a logarithm that does not exist.
    """
    values = values_by_key(runs)
    if chosen is None:
        numeric = (key for key, found in values.items() if len(found) > 1 and is_numeric(found))
        x = next(numeric, next(iter(values), None))
        return None if x is None else FigureConfig(x=x)
    problems = []
    if chosen.x not in values:
        mend = f"choose one of {', '.join(values)}" if values else "all runs have the same settings"
        problems.append(f"figure.x: {chosen.x} is no key that differs between the runs: {mend}")
    elif chosen.log_x and not (is_numeric(values[chosen.x]) and all(value > 0 for value in values[chosen.x])):
        problems.append(f"figure.log_x: {chosen.x} has values without a logarithm")
    if chosen.facets is not None and chosen.facets not in values:
        problems.append(f"figure.facets: {chosen.facets} is no key that differs between the runs")
    elif chosen.facets == chosen.x:
        problems.append("figure.facets must be another key than figure.x")
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


def values_by_key(runs: Sequence[Values]) -> dict[str, list[Any]]:
    """The different values of each key, in the order of the sweep, without None."""
    found: dict[str, dict[str, Any]] = {key: {} for key in (runs[0] if runs else ())}
    for values in runs:
        for key, value in values.items():
            if value is not None:
                found[key].setdefault(json.dumps(value), value)
    return {key: list(of_key.values()) for key, of_key in found.items()}


def is_numeric(values: Sequence[Any]) -> bool:
    """Whether all are numbers, and there is one."""
    return bool(values) and all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)


def series_of(points: Sequence[PointResult], figure: FigureConfig) -> tuple[list[Series], list[Series]]:
    """The lines along x, and the baselines: points for which x means nothing."""
    measured = [point for point in points if figure.y in point.estimates]
    along = [point for point in measured if point.values[figure.x] is not None]
    beside = [point for point in measured if point.values[figure.x] is None]
    return _grouped(along, figure), _grouped(beside, figure)


def _grouped(found: Sequence[PointResult], figure: FigureConfig) -> list[Series]:
    others = [key for key in (found[0].values if found else ()) if key not in (figure.x, figure.facets)]
    differing = [key for key in others if len({json.dumps(point.values[key]) for point in found}) > 1]
    groups: dict[str, Series] = {}
    for point in found:
        settings = {key: point.values[key] for key in differing}
        names = [setting_label(key, value) for key, value in settings.items() if value is not None]
        label = ", ".join(names) or _name_of(point, figure)
        line = groups.setdefault(json.dumps(settings), Series(label, []))
        line.points.append((point.values[figure.x], point))
    return list(groups.values())


def _name_of(point: PointResult, figure: FigureConfig) -> str:
    """Of the only line of its kind: its algorithm, where the sweep has several."""
    if point.values.get("algorithm") is not None:
        return value_label("algorithm", point.values["algorithm"])
    return "" if point.values[figure.x] is not None else setting_label(figure.x, None)


def panels_of(results: SweepResults, figure: FigureConfig) -> list[tuple[str, list[PointResult]]]:
    """The points of each panel, under its name; those for which the panels' key means nothing stand in all of them."""
    if figure.facets is None:
        return [("", results.points)]
    key = figure.facets
    shared = [point for point in results.points if point.values[key] is None]
    return [
        (setting_label(key, value), [p for p in results.points if p.values[key] == value] + shared)
        for value in values_by_key([run.values for run in results.runs])[key]
    ]
