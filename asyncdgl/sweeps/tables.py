"""The results of a sweep as files, and as text for people."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from asyncdgl.sweeps.measures import Estimate, measured
from asyncdgl.sweeps.results import DIFFERENCE, SweepResults, cell

SHOWN = (
    "test_accuracy",
    "validation_accuracy",
    "ensemble_test_accuracy",
    "batch_age",
    "batches_unseen",
    "staleness",
    "times_sampled",
)
"""Measures of the table for people, where some run has them; where there is no room, the last leave first."""

MOST_DECIMALS = 4
"""Of a number in a table for people; with an interval, its first two digits decide."""


def shown_names(results: SweepResults) -> list[str]:
    """The measures of the table for people."""
    there = [name for name in SHOWN if any(name in point.estimates for point in results.points)]
    return [*there[:1], *([DIFFERENCE] if results.reference else []), *there[1:]]


def shown_rows(results: SweepResults, deviations: bool = True) -> tuple[list[str], list[list[str]]]:
    """The table for people: headings, and of each point its settings, its seeds and ``mean ± half (sd)``."""
    names = shown_names(results)
    headings = [*results.columns, "seeds", *(name.replace("_", " ") for name in names)]
    rows = [
        [
            *("" if value is None else str(cell(value)) for value in point.values.values()),
            point.seeds_in_words,
            *(shown(point.estimate(name), deviations) for name in names),
        ]
        for point in results.points
    ]
    return headings, rows


def shown(found: Estimate | None, deviation: bool = True) -> str:
    """Mean, half of the 95 % interval, and the deviation in brackets; no more decimals than the interval leaves."""
    if found is None:
        return ""
    if found.sd is None or found.high is None:
        return f"{found.mean:.{MOST_DECIMALS}f}"
    half = found.high - found.mean
    if half == 0:
        return f"{found.mean:.{MOST_DECIMALS}f} ± 0"
    decimals = min(MOST_DECIMALS, max(0, 1 - math.floor(math.log10(half))))
    text = f"{found.mean:.{decimals}f} ± {half:.{decimals}f}"
    return f"{text} ({found.sd:.{decimals}f})" if deviation else text


def table_notes(results: SweepResults, deviations: bool = True) -> list[str]:
    """What a reader of the table must know."""
    said = ["mean ± half of the 95 % interval (Student's t over seeds)"]
    if deviations:
        said[0] += ", standard deviation in brackets"
    if results.reference is not None:
        where = ", ".join(f"{key} = {value}" for key, value in results.reference.values.items())
        what = results.reference.measure.replace("_", " ")
        said.append(f"less reference: {what} less that with {where}, seed by seed")
    if any(point.diverged for point in results.points):
        said.append("some runs diverged: a mean is over the seeds that did not, and so looks better than the setting")
    differing = dict.fromkeys(name for point in results.points for name in point.differs_in)
    if differing:
        said.append(f"runs of one point differ in: {', '.join(differing)} (table.csv says which points)")
    missing = sum(run.summary is None for run in results.runs)
    if missing:
        said.append(f"{missing} of {len(results.runs)} runs are missing")
    return said


def points_markdown(results: SweepResults) -> str:
    """The table for people, as Markdown."""
    headings, rows = shown_rows(results)
    lines = [headings, ["---"] * len(headings), *rows]
    table = ["| " + " | ".join(text.replace("|", "\\|") for text in line) + " |" for line in lines]
    return "\n".join(table) + "\n\n" + "; ".join(table_notes(results)) + "\n"


def points_latex(results: SweepResults) -> str:
    """The table for people, as LaTeX (booktabs)."""
    import pandas as pd

    headings, rows = shown_rows(results)
    frame = pd.DataFrame(rows, columns=headings)
    style = frame.style.hide(axis="index").format(escape="latex").format_index(escape="latex", axis="columns")
    text = style.to_latex(
        hrules=True, column_format="l" * len(results.columns) + "r" * (len(headings) - len(results.columns))
    )
    return "".join(f"% {note}\n" for note in table_notes(results)) + str(text).replace("±", r"$\pm$")


def results_json(results: SweepResults) -> str:
    """The same for programs: each point with its estimates, and each finished run with its measures."""
    found = [
        {
            "values": point.values,
            "seeds": point.seeds,
            "planned": point.planned,
            "diverged": point.diverged,
            "differs_in": point.differs_in,
            **{name: asdict(value) for name, value in point.estimates.items()},
            **({DIFFERENCE: asdict(point.difference)} if point.difference else {}),
        }
        for point in results.points
    ]
    runs = [
        {"values": run.values, "seed": run.seed, "run": run.key, "status": run.summary.status} | measured(run.summary)
        for run in results.runs
        if run.summary is not None
    ]
    return json.dumps({"name": results.name, "points": found, "runs": runs}, indent=1) + "\n"


def write_tables(results: SweepResults) -> Sequence[Path]:
    """table.md, table.tex, table.csv, runs.csv and results.json in the sweep's folder."""
    written = []
    for name, text in (
        ("table.md", points_markdown(results)),
        ("table.tex", points_latex(results)),
        ("table.csv", results.table().to_csv(index=False)),
        ("runs.csv", results.runs_table().to_csv(index=False)),
        ("results.json", results_json(results)),
    ):
        part = results.path / f".{name}.part"
        part.write_text(text, encoding="utf-8")
        written.append(part.replace(results.path / name))
    return written
