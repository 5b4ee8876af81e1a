"""`asyncdgl sweep`: makes the runs of a grid that are not there yet, and a table of them all."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import click
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from asyncdgl.cli.display import console
from asyncdgl.cli.signals import Interrupted, Signals
from asyncdgl.config_file import parse_assignment, set_key
from asyncdgl.defaults import available_cores
from asyncdgl.errors import ConfigError
from asyncdgl.study.execute import Finished, RunStore, execute, local_jobs
from asyncdgl.study.results import markdown, read_sweep, write_index, write_tables
from asyncdgl.study.sweep import Sweep, SweepRun, load_sweep


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
@click.option("--dry-run", is_flag=True, help="Print how many runs there would be, and end.")
def sweep(
    sweep_file: Path,
    out: Path | None,
    runs_dir: Path | None,
    assignments: tuple[str, ...],
    jobs: int | None,
    dry_run: bool,
) -> int:
    """Run a grid of configurations, each with several seeds, and leave one table.

    Each run is a process of its own, and is kept under a hash of its configuration: a sweep that was stopped goes on
    where it was, and a larger grid makes only what is missing.
    """
    over: dict[str, Any] = {}
    for assignment in assignments:
        set_key(over, *parse_assignment(assignment))
    wanted = load_sweep(sweep_file, over)
    folder = Path("sweeps") / wanted.name if out is None else out
    store = RunStore(folder / "runs" if runs_dir is None else runs_dir)
    missing = [run for run in wanted.distinct if not store.has(run.key)]
    at_once = jobs or _jobs_here(missing)
    click.echo(
        f"{wanted.name}: {len(wanted.runs)} points and seeds, {len(wanted.distinct)} different runs, "
        f"{len(wanted.distinct) - len(missing)} there already; {len(missing)} to make, {at_once} at a time"
    )
    if dry_run:
        return 0
    signals = Signals()
    signals.install()
    signals.disarm()  # the runs under way may take their time to end
    with signals.deferred():
        _prepare(wanted, sweep_file, folder, store)
        code = _make(missing, store, at_once, signals)
        results = read_sweep(folder)
        write_tables(results)
    click.echo(markdown(results))
    click.echo(f"results: {folder}")
    if code == 1:
        click.echo("Error: some runs failed; the same command tries them again", err=True)
    elif code:
        click.echo("The sweep was stopped; the same command goes on where it was.", err=True)
    return code


def _jobs_here(runs: list[SweepRun]) -> int:
    """As many as keep the cores busy."""
    threads = max((r.config.threads * (r.config.stages if r.config.runtime == "ray" else 1) for r in runs), default=1)
    return max(1, available_cores() // threads)


def _prepare(wanted: Sweep, sweep_file: Path, folder: Path, store: RunStore) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        store.path.mkdir(parents=True, exist_ok=True)
        if not (folder / "sweep.yaml").exists() or not (folder / "sweep.yaml").samefile(sweep_file):
            shutil.copyfile(sweep_file, folder / "sweep.yaml")
        write_index(wanted, folder, store)
    except OSError as error:
        raise ConfigError(f"--out {folder} can't be made: {error.strerror or error}") from None
    store.tidy()


def _make(missing: list[SweepRun], store: RunStore, jobs: int, signals: Signals) -> int:
    """Returns the exit code."""
    failed: list[Finished] = []
    with _Bar(len(missing), jobs) as bar, local_jobs() as start:

        def on_end(ended: Finished) -> None:
            bar.ended(ended)
            if not ended.completed:
                failed.append(ended)

        try:
            execute(missing, store, start, jobs, on_end, signals.check)
        except Interrupted as interrupt:
            return interrupt.exit_code
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
        state = "" if ended.completed else f"FAILED, see {ended.path / 'output.log'}  "
        line = f"{done}/{self._total}  {state}{values}, seed {ended.run.seed}: {ended.seconds:.0f} s; {about}"
        self._console.print(line, markup=False)
