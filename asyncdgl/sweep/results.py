"""The results of a sweep as tables: a row for each run, and for each point of the grid the mean over its seeds."""

from __future__ import annotations

import csv
import io
import json
import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from asyncdgl.errors import DataError
from asyncdgl.rundir.records import Summary
from asyncdgl.sweep.execution import RunStore
from asyncdgl.sweep.grid import FigureConfig, Sweep

INDEX = "sweep.json"
CONFIDENCE = 0.95

Measure = Callable[[Summary], float | None]


def _over_stages(values: Iterable[float | None]) -> float | None:
    there = [value for value in values if value is not None]
    return statistics.fmean(there) if there else None


def _updates_per_time(summary: Summary) -> float | None:
    seconds = summary.train_seconds
    return summary.stages[-1].updates / seconds if seconds and summary.runtime == "ray" else None


MEASURES: dict[str, Measure] = {
    "test_accuracy": lambda s: s.test_accuracy,
    "ensemble_test_accuracy": lambda s: s.ensemble_test_accuracy,
    "validation_accuracy": lambda s: s.validation_accuracy,
    "ensemble_validation_accuracy": lambda s: s.ensemble_validation_accuracy,
    "staleness": lambda s: _over_stages(stage.staleness.mean for stage in s.stages),
    "batch_age": lambda s: s.stages[-1].batch_age.mean,
    "batches_unseen": lambda s: s.stages[-1].batches_unseen if len(s.stages) > 1 else None,
    "times_sampled": lambda s: _over_stages(stage.times_sampled.mean for stage in s.stages),
    "entries_held": lambda s: _over_stages(buffer.mean_held for buffer in s.buffers),
    "busy_fraction": lambda s: _over_stages(stage.busy_fraction for stage in s.stages) if s.runtime != "sim" else None,
    "updates_per_time": _updates_per_time,
    "train_seconds": lambda s: s.train_seconds if s.runtime != "sim" else None,
}
"""What the tables show of each run.

Accuracies are fractions. Staleness (producer's updates), times_sampled, busy_fraction and entries_held (entries that a
reader could choose from) are means over the stages or buffers that have them; batch_age (batches) and updates_per_time
are of the last stage. Times are seconds, or steps in a virtual run without step times.
"""


@dataclass(frozen=True)
class RunResult:
    """One run of a sweep: its point, its seed, where it is kept; ``summary`` is None where it is missing."""

    values: dict[str, Any]
    seed: int
    key: str
    path: Path
    summary: Summary | None


@dataclass(frozen=True)
class SweepResults:
    """A sweep as far as its runs are finished; ``assignments`` are those of ``--set``."""

    name: str
    path: Path
    columns: list[str]
    figure: FigureConfig | None
    runs: list[RunResult]
    assignments: list[str]
    reference: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Estimate:
    """Mean of a measure over seeds, with its standard deviation and 95 % interval (Student's t); None below two."""

    mean: float
    sd: float | None
    low: float | None
    high: float | None
    count: int


@dataclass(frozen=True)
class PointResult:
    """One point of the grid: the seeds that are there, and each measure over them.

    ``difference`` is the test accuracy less that of the reference point, seed by seed: what the seeds have in common
    (weights, order of the data) does not blur it.
    """

    values: dict[str, Any]
    seeds: list[int]
    estimates: dict[str, Estimate]
    difference: Estimate | None


def estimate(values: Sequence[float]) -> Estimate:
    """Mean, standard deviation and interval of one or more numbers."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return Estimate(mean, None, None, None, len(values))
    from scipy.stats import t

    sd = statistics.stdev(values)
    half = float(t.ppf((1 + CONFIDENCE) / 2, len(values) - 1)) * sd / math.sqrt(len(values))
    return Estimate(mean, sd, mean - half, mean + half, len(values))


def write_index(sweep: Sweep, folder: Path, store: RunStore, assignments: Sequence[str] = ()) -> None:
    """sweep.json: which runs make up the sweep, and where they are kept."""
    try:
        kept = store.path.resolve().relative_to(folder.resolve()).as_posix()  # the folder can be moved as a whole
    except ValueError:
        kept = str(store.path.resolve())
    index = {
        "name": sweep.name,
        "runs_in": kept,
        "set": list(assignments),
        "columns": sweep.columns,
        "reference": sweep.reference,
        "figure": sweep.figure.model_dump() if sweep.figure else None,
        "runs": [{"values": r.values, "seed": r.seed, "key": r.key} for r in sweep.runs],
    }
    part = folder / f".{INDEX}.part"
    part.write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")
    part.replace(folder / INDEX)


def read_sweep(folder: Path) -> SweepResults:
    """A sweep's folder with whatever runs are finished.

    Raises:
        DataError: the folder holds no sweep.
    """
    if not (folder / INDEX).is_file():
        raise DataError(f"{folder} holds no sweep: it has no {INDEX}")
    index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
    store = RunStore(folder / index["runs_in"])
    runs = []
    for run in index["runs"]:
        path = store.run_dir(run["key"])
        runs.append(RunResult(run["values"], run["seed"], run["key"], path, store.summary(run["key"])))
    figure = FigureConfig.model_validate(index["figure"]) if index["figure"] else None
    return SweepResults(
        index["name"], folder, index["columns"], figure, runs, index.get("set", []), index.get("reference", {})
    )


def points(results: SweepResults) -> list[PointResult]:
    """The points of the grid with at least one finished run, in the order of the sweep."""
    grouped: dict[str, list[RunResult]] = {}
    for run in results.runs:
        if run.summary is not None:
            grouped.setdefault(json.dumps(run.values), []).append(run)
    found = []
    for runs in grouped.values():
        estimates = {}
        for name, measure in MEASURES.items():
            numbers = [value for run in runs if run.summary and (value := measure(run.summary)) is not None]
            if numbers:
                estimates[name] = estimate(numbers)
        seeds = sorted(run.seed for run in runs)
        found.append(PointResult(runs[0].values, seeds, estimates, _difference(results, grouped, runs)))
    return found


def _difference(
    results: SweepResults, grouped: Mapping[str, list[RunResult]], runs: list[RunResult]
) -> Estimate | None:
    """Paired difference to the reference: the point with the reference's values, and else this one's or none."""
    nothing = dict.fromkeys(results.columns)
    for rest in (runs[0].values, nothing) if results.reference else ():
        wanted = {**rest, **results.reference}
        other = next((there for there in grouped.values() if there[0].values == wanted), [])
        if other and other is not runs:
            theirs = {run.seed: run.summary.test_accuracy for run in other if run.summary}
            pairs = [
                ours - reference
                for run in runs
                if run.summary
                and (ours := run.summary.test_accuracy) is not None
                and (reference := theirs.get(run.seed)) is not None
            ]
            return estimate(pairs) if pairs else None
    return None


def points_csv(results: SweepResults) -> str:
    """A row for each point: its values, number of seeds, and of each measure mean, deviation and interval."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    parts = ("mean", "sd", "low", "high")
    names = [*MEASURES, *([DIFFERENCE] if results.reference else [])]
    writer.writerow([*results.columns, "seeds", *(f"{name}_{part}" for name in names for part in parts)])
    for point in points(results):
        row: list[Any] = [_cell(point.values[key]) for key in results.columns] + [len(point.seeds)]
        for name in names:
            found = point.difference if name == DIFFERENCE else point.estimates.get(name)
            row += ["" if found is None else _cell(getattr(found, part)) for part in parts]
        writer.writerow(row)
    return out.getvalue()


def runs_csv(results: SweepResults) -> str:
    """A row for each finished run, for a statistic of one's own."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([*results.columns, "seed", "run", *MEASURES])
    for run in results.runs:
        if run.summary is not None:
            measured = [_cell(measure(run.summary)) for measure in MEASURES.values()]
            writer.writerow([*(_cell(run.values[key]) for key in results.columns), run.seed, run.key, *measured])
    return out.getvalue()


DIFFERENCE = "less_reference"
SHOWN = ("test_accuracy", "ensemble_test_accuracy", "staleness", "times_sampled")


def markdown(results: SweepResults) -> str:
    """The table for a person: of each shown measure the mean, its 95 % interval and the standard deviation."""
    rows = points(results)
    shown = [name for name in SHOWN if any(name in point.estimates for point in rows)]
    more = [DIFFERENCE] if results.reference else []
    lines = [_line([*results.columns, "seeds", *(name.replace("_", " ") for name in [*shown, *more])])]
    lines.append(_line(["---"] * (len(results.columns) + 1 + len(shown) + len(more))))
    for point in rows:
        cells = [str(_cell(point.values[key])) for key in results.columns] + [str(len(point.seeds))]
        estimates = [point.estimates.get(name) for name in shown] + [point.difference] * len(more)
        lines.append(_line(cells + [_shown(found) for found in estimates]))
    missing = sum(run.summary is None for run in results.runs)
    note = "mean ± half of the 95 % interval (Student's t over seeds), standard deviation in brackets"
    if results.reference:
        where = ", ".join(f"{key} = {value}" for key, value in results.reference.items())
        note += f"; less reference: test accuracy less that with {where}, seed by seed"
    if missing:
        note += f"; {missing} of {len(results.runs)} runs are missing"
    return "\n".join(lines) + f"\n\n{note}\n"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _shown(found: Estimate | None) -> str:
    if found is None:
        return ""
    if found.sd is None or found.high is None:
        return f"{found.mean:.4f}"
    return f"{found.mean:.4f} ± {found.high - found.mean:.4f} ({found.sd:.4f})"


def _cell(value: Any) -> Any:
    if value is None:
        return ""
    return json.dumps(value) if isinstance(value, dict | list) else value


def results_json(results: SweepResults) -> str:
    """The same for programs: each point with its estimates, and each finished run with its measures."""
    found = [
        {
            "values": point.values,
            "seeds": point.seeds,
            **{name: asdict(value) for name, value in point.estimates.items()},
            **({DIFFERENCE: asdict(point.difference)} if point.difference else {}),
        }
        for point in points(results)
    ]
    runs = [
        {"values": run.values, "seed": run.seed, "run": run.key, **{n: m(run.summary) for n, m in MEASURES.items()}}
        for run in results.runs
        if run.summary is not None
    ]
    return json.dumps({"name": results.name, "points": found, "runs": runs}, indent=1) + "\n"


def write_tables(results: SweepResults) -> list[Path]:
    """table.md, table.csv, runs.csv and results.json in the sweep's folder."""
    written = []
    for name, text in (
        ("table.md", markdown(results)),
        ("table.csv", points_csv(results)),
        ("runs.csv", runs_csv(results)),
        ("results.json", results_json(results)),
    ):
        part = results.path / f".{name}.part"
        part.write_text(text, encoding="utf-8")
        written.append(part.replace(results.path / name))
    return written
