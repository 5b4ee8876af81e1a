"""What the report of a sweep says: its grid, its figure and tables, what is missing, where it ran, how to repeat it."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from asyncdgl.config.defaults import merged
from asyncdgl.config.yaml import load_yaml, parse_assignment, set_key
from asyncdgl.errors import ConfigError, DataError
from asyncdgl.report.document import Block, Code, Column, Document, Facts, Picture, Section, Table, Text
from asyncdgl.report.environment import compare_environments
from asyncdgl.report.labels import ACCURACIES, FRACTIONS, SHORT_MEASURES, measure_label
from asyncdgl.report.series import figure_of
from asyncdgl.report.sweep_figure import FEW_SEEDS, figure_name
from asyncdgl.report.tables import NOTHING
from asyncdgl.rundir.reader import read_record
from asyncdgl.rundir.records import ENVIRONMENT, SUMMARY, Environment, Summary
from asyncdgl.sweeps.execution import FAILED
from asyncdgl.sweeps.grid import flat
from asyncdgl.sweeps.measures import MEASURES, Estimate
from asyncdgl.sweeps.results import DIFFERENCE, RunResult, SweepResults
from asyncdgl.sweeps.tables import shown, table_notes

SWEEP_FILE = "sweep.yaml"


def sweep_document(results: SweepResults, drawn: bool, notes: Sequence[Text] = ()) -> Document:
    """The report of a sweep whose figure is drawn, where there is one."""
    finished = [run for run in results.runs if run.summary is not None]
    diverged = sum(run.diverged for run in results.runs)
    missing = len(results.runs) - len(finished)
    text = _sweep_file(results.path)
    sections = [
        Section("Question and grid", _grid(results, text)),
        Section("Figure", _figure(results) if drawn else []),
        Section("Results", _result_tables(results) if finished else [Text("No run is finished.")]),
        Section("Missing and failed runs", _missing(results)),
        Section("Environment of the runs", _environment(finished)),
        Section("How to repeat it", _repetition(results, text)),
    ]
    return Document(
        title=results.name,
        subtitle="A sweep of asyncdgl",
        status=f"{missing} of {len(results.runs)} runs are missing" if missing else "complete",
        well=not missing,
        notes=notes,
        headline=[
            ("points of the grid", str(len({json.dumps(run.values) for run in results.runs}))),
            ("runs (points and seeds)", str(len(results.runs))),
            ("finished", str(len(finished))),
            *([("diverged", str(diverged))] if diverged else []),
        ],
        sections=[section for section in sections if section.blocks],
    )


def _sweep_file(folder: Path) -> str:
    path = folder / SWEEP_FILE
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""


def _grid(results: SweepResults, text: str) -> list[Block]:
    comment = []
    for line in text.splitlines():
        if not line.startswith("#"):
            break
        comment.append(line.lstrip("# "))
    blocks: list[Block] = [Text("\n".join(comment))] if comment else []
    rows = []
    for key in results.columns:
        values = [json.loads(text) for text in _order(results)[key]]
        rows.append((key, ", ".join(_value(value) for value in values if value is not None)))
    seeds = sorted({run.seed for run in results.runs})
    blocks.append(Facts([*rows, ("seeds", ", ".join(map(str, seeds)))]))
    shared = _shared_settings(results)
    return [*blocks, Text("All runs share:"), Facts(shared)] if shared else blocks


def _shared_settings(results: SweepResults) -> list[tuple[str, str]]:
    """What the sweep's file and ``--set`` say of all runs; everything else is a default."""
    path = results.path / SWEEP_FILE
    try:
        config = load_yaml(path, "sweep file").get("config") if path.is_file() else None
        over: dict[str, Any] = {}
        for assignment in results.assignments:
            set_key(over, *parse_assignment(assignment))
    except ConfigError:
        return []
    shared = flat(merged(config if isinstance(config, Mapping) else {}, over))
    return [(key, _value(value)) for key, value in shared.items() if key not in results.columns]


def _figure(results: SweepResults) -> list[Block]:
    chosen = figure_of(results)
    if chosen is None:
        return []
    drawn = [point for point in results.points if chosen.y in point.estimates]
    found = [point.estimates[chosen.y] for point in drawn]
    counts = sorted({estimate.count for estimate in found})
    seeds = f"{counts[0]} to {counts[-1]} seeds" if len(counts) > 1 else f"{counts[0]} seeds"
    says = [f"Mean over {'1 seed' if counts == [1] else seeds}"]
    if counts != [1]:
        says[0] += "; bars and bands are 95 % intervals of the mean (Student's t)"
        says[0] += ", a point of one seed has none" if counts[0] == 1 else ""
    if any(1 < count < FEW_SEEDS for count in counts):
        says.append("Small dots: the single seeds, where they are few")
    ends = [end for estimate in found for end in (estimate.low, estimate.high)]
    if chosen.y in FRACTIONS and any(end is not None and not 0 <= end <= 1 for end in ends):
        says.append("Intervals that would pass 0 or 1 are cut off there; the tables have them whole")
    if any(point.values[chosen.x] is None for point in drawn):
        says.append(f"Horizontal lines: runs for which {chosen.x} means nothing")
    if any(point.diverged for point in drawn):
        says.append("Hollow: some seeds diverged, and the mean is over the others")
    says.append("Where several bars would cover each other, points stand slightly beside their place")
    missing = sum(run.summary is None for run in results.runs)
    if missing:
        says.append(f"{missing} of {len(results.runs)} runs are missing")
    title = f"{measure_label(chosen.y)} against {chosen.x}"
    return [Picture(results.path / "figures", figure_name(results), title, ". ".join(says) + ".")]


def _result_tables(results: SweepResults) -> list[Block]:
    chosen = figure_of(results)
    there = [name for name in MEASURES if any(name in point.estimates for point in results.points)]
    main = [name for name in dict.fromkeys([*([chosen.y] if chosen else []), *ACCURACIES]) if name in there]
    rest = [name for name in there if name not in main]
    if results.reference is not None:
        main.insert(1, DIFFERENCE)
    files = "Also in this folder: table.csv (every deviation and both ends of each interval), table.tex, runs.csv."
    said = "; ".join(table_notes(results, deviations=False))
    blocks: list[Block] = [_result_table(results, main, f"{said}. {files}")]
    if rest:
        note = (
            "Staleness, times given, busy (share of the time) and entries held are means over stages or buffers; batch "
            "age, batches never seen and updates per time are those of the last stage."
        )
        blocks.append(_result_table(results, rest, note))
    return blocks


def _result_table(results: SweepResults, names: Sequence[str], note: str) -> Table:
    order = _order(results)
    found = sorted(results.points, key=lambda point: [order[key][json.dumps(v)] for key, v in point.values.items()])
    columns = [Column(key.rpartition(".")[2], words=True) for key in results.columns]
    columns += [Column(_heading(name)) for name in names] + [Column("seeds")]
    rows = [
        [
            *(_value(v) for v in point.values.values()),
            *(_cell(point.estimate(name)) for name in names),
            point.seeds_in_words,
        ]
        for point in found
    ]
    return Table(columns, rows, note)


def _cell(found: Estimate | None) -> str:
    return shown(found, deviation=False).replace(" ", "\u00a0") or NOTHING


def _heading(name: str) -> str:
    return "less reference" if name == DIFFERENCE else SHORT_MEASURES.get(name, measure_label(name))


def _order(results: SweepResults) -> dict[str, dict[str, int]]:
    """The place of each value of each key: numbers by size, words as in the sweep, what means nothing last."""
    order = {}
    for key in results.columns:
        values = {json.dumps(run.values[key]): run.values[key] for run in results.runs}
        numeric = all(isinstance(value, int | float) for value in values.values() if value is not None)
        ranked = sorted(values.items(), key=lambda item: (item[1] is None, item[1] if numeric and item[1] else 0))
        order[key] = {text: place for place, (text, _) in enumerate(ranked)}
    return order


def _value(value: Any) -> str:
    """As it stands in a sweep's file."""
    return NOTHING if value is None else f"{value:g}" if isinstance(value, float) else _words(value)


def _words(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _missing(results: SweepResults) -> list[Block]:
    """A row for each point and reason."""
    seeds: dict[tuple[str, str], list[int]] = {}
    values: dict[str, Mapping[str, Any]] = {}
    for run in results.runs:
        if run.summary is None:
            point = json.dumps(run.values)
            values[point] = run.values
            seeds.setdefault((point, _reason(run)), []).append(run.seed)
    columns = [Column(name, words=True) for name in (*results.columns, "seeds", "what is known")]
    rows = [
        [*(_value(values[point][key]) for key in results.columns), ", ".join(map(str, sorted(of))), reason]
        for (point, reason), of in seeds.items()
    ]
    return [Table(columns, rows)] if rows else []


def _reason(run: RunResult) -> str:
    if run.broken is not None:
        return f"broken, the same sweep makes it again: {run.broken}"
    kept = run.path.parent / FAILED / run.key
    if not kept.is_dir():
        return "not made yet"
    try:
        error = read_record(Summary, kept / "run" / SUMMARY).error
    except DataError:
        error = None
    if error is None:
        lines = [line for line in _tail(kept / "output.log").splitlines() if line.strip()]
        error = lines[-1] if lines else "it left no word"
    return f"failed: {error} (runs: {FAILED}/{run.key})"


def _tail(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace")[-2000:] if path.is_file() else ""


def _environment(finished: Sequence[RunResult]) -> list[Block]:
    paths = dict.fromkeys(run.path / ENVIRONMENT for run in finished)
    rows, differing = compare_environments(
        [read_record(Environment, path) if path.is_file() else None for path in paths]
    )
    if not rows:
        return []
    blocks: list[Block] = [Facts(rows)]
    if differing:
        blocks.insert(0, Text(f"The runs differ in: {', '.join(differing)}.", warning=True))
    return blocks


def _repetition(results: SweepResults, text: str) -> list[Block]:
    kept = results.runs[0].path.parent if results.runs else results.path / "runs"
    if kept.is_relative_to(results.path):
        kept = kept.relative_to(results.path)
    assigned = "".join(f" --set {shlex.quote(text)}" for text in results.assignments)
    commands = (
        f"asyncdgl sweep {SWEEP_FILE} --out . --runs {kept}{assigned}\nasyncdgl run --config {kept}/RUN/config.yaml"
    )
    what = (
        "In this folder: the first command makes what is missing; the second repeats one run, RUN being its name in "
        "runs.csv."
    )
    blocks: list[Block] = [Text(what), Code(commands)]
    return [*blocks, Code(text, SWEEP_FILE)] if text else blocks
