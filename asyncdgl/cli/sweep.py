"""`asyncdgl sweep`: makes the runs of a grid that are not there yet, and a table of them all."""

from __future__ import annotations

import json
import warnings
from collections.abc import Collection
from pathlib import Path
from typing import Any

import click
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from asyncdgl.cli.signals import EXIT_CODES, Signals
from asyncdgl.cli.tables import Column, console, fitted
from asyncdgl.config.yaml import parse_assignment, set_key
from asyncdgl.errors import Interrupted
from asyncdgl.sweep_session import SweepSession
from asyncdgl.sweeps.execution import Finished
from asyncdgl.sweeps.grid import Sweep, SweepRun
from asyncdgl.sweeps.results import SweepResults, cell
from asyncdgl.sweeps.tables import shown_rows, table_notes


@click.command()
@click.argument("sweep_file", type=Path, metavar="SWEEP.yaml")
@click.option("--out", type=Path, metavar="DIR", help="Folder of the sweep (default: sweeps/<name>).")
@click.option(
    "--runs", "runs_dir", type=Path, metavar="DIR", help="Where the runs are kept, to share them (default: OUT/runs)."
)
@click.option(
    "--set",
    "assignments",
    multiple=True,
    metavar="KEY=VALUE",
    help="Set a key for all runs, for example optim.lr=0.05.",
)
@click.option("--jobs", type=click.IntRange(min=1), metavar="N", help="Runs at a time (default: cores / threads).")
@click.option("--address", metavar="HOST:PORT", help="Spread runs of sim and virtual over this Ray cluster.")
@click.option("--dry-run", is_flag=True, help="List the points and the runs to make, and end.")
def sweep(
    sweep_file: Path,
    out: Path | None,
    runs_dir: Path | None,
    assignments: tuple[str, ...],
    jobs: int | None,
    address: str | None,
    dry_run: bool,
) -> int:
    """Run a grid of configurations, each with several seeds, and leave one table.

    Each run is a process of its own, and is kept under a hash of its configuration: a sweep that was stopped goes on
    where it was, and a larger grid makes only what is missing.
    """
    over: dict[str, Any] = {}
    for assignment in assignments:
        set_key(over, *parse_assignment(assignment))
    session = SweepSession(sweep_file, out, runs_dir, over, assignments, _say_progress)
    wanted, missing = session.wanted, session.missing
    for problem in session.broken:
        click.echo(f"{problem}; this run is made again")
    click.echo(
        f"{wanted.name}: {len(wanted.runs)} points and seeds, {len(wanted.distinct)} different runs, "
        f"{len(wanted.distinct) - len(missing)} there already; {len(missing)} to make"
    )
    if dry_run:
        _show_points(wanted, {run.key for run in missing})
        return 0
    if address is not None:
        session.check_address(address)
    signals = Signals()
    signals.install()
    signals.disarm()  # the runs under way may take their time to end
    with signals.deferred(), warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always", UserWarning)
        session.make_folders()
        code = _make(session, jobs, address, signals)
        results = session.results()
    _show_results(results)
    click.echo(f"results: {session.folder}")
    for warning in warned:
        click.echo(f"Warning: {warning.message}; everything else is there", err=True)
    if code == 1:
        click.echo("Error: some runs failed; the same command tries them again", err=True)
    elif code:
        click.echo("The sweep was stopped; the same command goes on where it was.", err=True)
    return code


def _say_progress(done: int, total: int) -> None:
    if done % 10_000 == 0:
        click.echo(f"decoding images: {done} of {total}")


def _show_points(wanted: Sweep, missing: Collection[str]) -> None:
    """A row for each point of the grid: its settings, its seeds and how many of its runs are to be made."""
    points: dict[str, list[SweepRun]] = {}
    for run in wanted.runs:
        points.setdefault(json.dumps(run.values), []).append(run)
    rows = list(points.values())
    columns = [
        Column(_heading(key), [_setting(runs[0].values[key]) for runs in rows], 0, words=True) for key in wanted.columns
    ]
    columns.append(Column("seeds", [", ".join(str(run.seed) for run in runs) for runs in rows], 0, words=True))
    columns.append(Column("to make", [str(sum(run.key in missing for run in runs)) for runs in rows], 0))
    out = console()
    out.print(fitted(out, columns))


def _show_results(results: SweepResults) -> None:
    """The table for people; settings first, accuracies before what explains them."""
    headings, rows = shown_rows(results, deviations=False)
    keys = len(results.columns)
    cells = list(zip(*([text.replace(" (", "\n(") for text in row] for row in rows), strict=True))
    out = console()
    if rows:
        ranks = [0 if n <= keys + 1 else n for n in range(len(headings))]
        columns = [Column(_heading(name), cells[n], ranks[n], words=n < keys) for n, name in enumerate(headings)]
        out.print(fitted(out, columns))
    for note in table_notes(results, deviations=False):
        out.print(note, markup=False)


def _heading(name: str) -> str:
    """A key without its section; a measure in as many lines as it has words."""
    return name.rpartition(".")[2].replace(" ", "\n")


def _setting(value: Any) -> str:
    return "" if value is None else str(cell(value))


def _make(session: SweepSession, jobs: int | None, address: str | None, signals: Signals) -> int:
    """Returns the exit code."""
    if not session.missing:
        return 0
    with session.starter(jobs, address) as (start, at_once), _Bar(len(session.missing), at_once) as bar:
        signals.take()  # Ray takes SIGTERM for itself
        try:
            failed = session.execute(start, at_once, bar.ended, signals.check)
        except Interrupted as interrupt:
            return EXIT_CODES[interrupt.status]
    signals.take()
    return 1 if failed else 0


class _Bar:
    """How many runs are done, and how long the rest will take at the pace so far."""

    def __init__(self, total: int, jobs: int) -> None:
        self._console = console()
        columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
        self._progress = Progress(*columns, console=self._console, disable=not self._console.is_terminal)
        self._task: TaskID = self._progress.add_task("", total=total)
        self._total, self._jobs = total, jobs
        self._seconds: list[float] = []

    def __enter__(self) -> _Bar:
        self._progress.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._progress.stop()

    def ended(self, ended: Finished) -> None:
        """Count one, and say where it is."""
        self._seconds.append(ended.seconds)
        done = len(self._seconds)
        left = (self._total - done) * sum(self._seconds) / done / self._jobs
        about = f"about {left / 60:.0f} min left" if left >= 90 else f"about {left:.0f} s left"
        self._progress.update(self._task, advance=1, description=about)
        values = ", ".join(f"{k.rpartition('.')[2]}={v}" for k, v in ended.run.values.items() if v is not None)
        state = {None: f"FAILED, see {ended.path / 'output.log'}  ", "diverged": "DIVERGED  "}.get(ended.status, "")
        line = f"{done}/{self._total}  {state}{values}, seed {ended.run.seed}: {ended.seconds:.0f} s; {about}"
        self._console.print(line, markup=False)
