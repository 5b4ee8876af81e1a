"""`asyncdgl replay`: repeat a run from its trace and compare every bit."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

from asyncdgl.cli.signals import EXIT_CODES, Signals
from asyncdgl.cli.tables import console
from asyncdgl.errors import ConfigError, Interrupted, ReplayMismatch
from asyncdgl.plan.machine import available_cores, visible_gpus
from asyncdgl.report.labels import threads_of_stages
from asyncdgl.rundir.environment import describe_environment, environment_differences
from asyncdgl.rundir.reader import Run, read_run

SHOW_EVERY_S = 0.2


@click.command()
@click.argument("run_dir", type=Path)
def replay(run_dir: Path) -> int:
    """Repeat the run in RUN_DIR from its trace, in one process, and compare it.

    Compares the loss of every pass and each stage's final state, bit for bit. Ends with 0 if all are equal; otherwise
    names the first pass that differs and ends with 1.
    """
    run = read_run(run_dir)
    if run.config.device == "cuda" and not visible_gpus():
        raise ConfigError(f"{run_dir} computed on a GPU, and this machine has none: its bits can't be repeated here")
    from asyncdgl.data.cache import prepare
    from asyncdgl.data.dataset import open_dataset

    data = prepare(run.config.data)
    here = describe_environment(run.config, open_dataset(run.config, data).sha256, available_cores())
    differences = environment_differences(run.environment, here)
    signals = Signals()
    signals.install()
    signals.disarm()  # nothing is lost by waiting for the pass under way
    with signals.deferred():
        return _replay(run, data, differences, signals)


def _replay(run: Run, data: Path, differences: Sequence[str], signals: Signals) -> int:
    from asyncdgl.engine.replayer import Replay

    config = run.config
    click.echo(
        f"{run.path}: {config.algorithm} on {config.runtime}, {len(run.records)} passes of {config.trained_stages} "
        f"stages, {threads_of_stages(config)}, {config.precision}"
    )
    for difference in differences:
        click.echo(f"differs from where it ran: {difference}")
    out = console()
    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=out, disable=not out.is_terminal, transient=True) as progress:
        task = progress.add_task("", total=len(run.records))
        done, shown_at = 0, time.monotonic()

        def count() -> None:
            nonlocal done, shown_at
            signals.check()
            done += 1
            if time.monotonic() - shown_at > SHOW_EVERY_S:
                shown_at = time.monotonic()
                progress.update(task, completed=done)

        try:
            stages = Replay(run, data, count).run()
            signals.check()
        except Interrupted as interrupt:
            click.echo(f"Stopped by {interrupt} after {done} of {len(run.records)} passes; nothing differed.", err=True)
            return EXIT_CODES[interrupt.status]
        except ReplayMismatch as mismatch:
            hint = " (the environment differs, see above)" if differences else ""
            raise ReplayMismatch(f"not bit-exact: {mismatch}{hint}") from None
    _report(run, stages)
    return 0


def _report(run: Run, stages: list[Any]) -> None:
    stopped = run.summary is None or run.summary.status != "completed"
    passes = sum(s.passes for s in stages)
    compared = sum(s.state_equal is not None for s in stages)
    states = "every final state" if compared == len(stages) else f"{compared} final states (the others are not known)"
    how_far = "as far as the run went, " if stopped else ""
    click.echo(f"bit-exact: {how_far}{len(stages)} of {len(stages)} stages ({passes} passes, every loss; {states})")
    for s in stages:
        if s.passes < s.recorded:
            click.echo(
                f"stage {s.stage}: {s.recorded - s.passes} more passes read what the trace of the stopped run lacks"
            )
