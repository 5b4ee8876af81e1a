"""`asyncdgl sweep`: makes the runs of a grid that are not there yet, and a table of them all."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import click
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from asyncdgl.cli.signals import EXIT_CODES, Signals
from asyncdgl.cli.tables import Column, console, drawing_failed, fitted
from asyncdgl.config.model import RunConfig
from asyncdgl.config.yaml import parse_assignment, set_key
from asyncdgl.errors import ConfigError, Interrupted
from asyncdgl.plan.machine import available_cores
from asyncdgl.plan.resolve import planned
from asyncdgl.sweep.execution import Finished, RunStore, Starter, execute, local_jobs
from asyncdgl.sweep.grid import Sweep, SweepRun, plan_sweep
from asyncdgl.sweep.results import SweepResults, cell, load_sweep, write_index
from asyncdgl.sweep.tables import shown_rows, table_notes, write_tables


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
    from asyncdgl.report.series import choose_figure
    from asyncdgl.report.sweep_figure import save_sweep_figure

    wanted = plan_sweep(sweep_file, over, _say_progress)
    choose_figure(wanted.figure, [run.values for run in wanted.runs])  # refused now, not after hours
    folder = Path("sweeps") / wanted.name if out is None else out
    store = RunStore(folder / "runs" if runs_dir is None else runs_dir)
    missing = [run for run in wanted.distinct if not store.has(run.key)]
    for run in missing:
        if (problem := store.broken(run.key)) is not None:
            click.echo(f"{problem}; this run is made again")
    click.echo(
        f"{wanted.name}: {len(wanted.runs)} points and seeds, {len(wanted.distinct)} different runs, "
        f"{len(wanted.distinct) - len(missing)} there already; {len(missing)} to make"
    )
    if dry_run:
        _show_points(wanted, {run.key for run in missing})
        return 0
    if address is not None:
        _check_cluster(address, missing)
    signals = Signals()
    signals.install()
    signals.disarm()  # the runs under way may take their time to end
    with signals.deferred():
        _prepare(wanted, sweep_file, folder, store, assignments)
        code = _make(missing, store, jobs, address, signals)
        results = load_sweep(folder)
        write_tables(results)
        warning = drawing_failed(lambda: save_sweep_figure(results))
    _show_results(results)
    click.echo(f"results: {folder}")
    if warning is not None:
        click.echo(warning, err=True)
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


def _jobs_here(runs: list[SweepRun]) -> int:
    """As many as keep the cores busy."""
    return max(1, available_cores() // max((threads_in_all(run.config) for run in runs), default=1))


def threads_in_all(asked: RunConfig) -> int:
    """CPU threads that a run computes with, its processes together."""
    if asked.runtime == "ray" and asked.ray.threads == "cost":
        return available_cores()
    config = planned(asked)
    if config.runtime != "ray":
        return config.threads
    return sum(config.threads_of(j) for j in range(1, config.stages + 1))


def _prepare(wanted: Sweep, sweep_file: Path, folder: Path, store: RunStore, assignments: Sequence[str]) -> None:
    if not store.path.is_relative_to(folder):
        try:
            store.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"--runs {store.path} can't be made: {error.strerror or error}") from None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        store.path.mkdir(parents=True, exist_ok=True)
        if not (folder / "sweep.yaml").exists() or not (folder / "sweep.yaml").samefile(sweep_file):
            shutil.copyfile(sweep_file, folder / "sweep.yaml")
        write_index(wanted, folder, store, assignments)
    except OSError as error:
        raise ConfigError(f"--out {folder} can't be made: {error.strerror or error}") from None
    store.tidy()


def _check_cluster(address: str, runs: list[SweepRun]) -> None:
    from asyncdgl.on_ray.cluster import check_address

    if any(run.config.runtime == "ray" for run in runs):
        raise ConfigError(
            "--address spreads runs of the runtimes sim and virtual; one of runtime ray takes a cluster for itself: "
            "leave --address away and set ray.address"
        )
    check_address(address, address)


@contextlib.contextmanager
def _starter(runs: list[SweepRun], jobs: int | None, address: str | None) -> Iterator[tuple[Starter, int]]:
    """What starts a run, here or on the cluster, and how many at a time."""
    if address is None:
        with local_jobs() as start:
            yield start, jobs or _jobs_here(runs)
        return
    from asyncdgl.on_ray.sweep_jobs import cluster_jobs

    with cluster_jobs(address, max(threads_in_all(run.config) for run in runs)) as (start, room):
        yield start, jobs or room


def _make(runs: list[SweepRun], store: RunStore, jobs: int | None, address: str | None, signals: Signals) -> int:
    """Returns the exit code."""
    failed: list[Finished] = []
    if not runs:
        return 0
    with _starter(runs, jobs, address) as (start, at_once), _Bar(len(runs), at_once) as bar:
        signals.take()  # Ray takes SIGTERM for itself

        def on_end(ended: Finished) -> None:
            bar.ended(ended)
            if ended.status is None:
                failed.append(ended)

        try:
            execute(runs, store, start, at_once, on_end, signals.check)
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
