"""A run as a person at a terminal meets it: what is shown, what signals do, and the exit code."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import click

from asyncdgl.cli.display import RunDisplay
from asyncdgl.cli.signals import EXIT_CODES, Signals, end_process
from asyncdgl.cli.streams import make_streams_last
from asyncdgl.cli.tables import show_summary
from asyncdgl.errors import Interrupted, NotWritten, RunFailed
from asyncdgl.observer import Notices
from asyncdgl.rundir.reader import Run
from asyncdgl.rundir.records import TRACE
from asyncdgl.session import Session
from asyncdgl.supervisor import Supervisor


def run_and_show(begin: Callable[[Supervisor], Session]) -> int:
    """Run, and show it; returns the exit code. A run that a signal stopped ends the process here.

    Args:
        begin: makes the session, under this supervisor.

    Raises:
        ConfigError, DataError: the run can't begin; nothing is left of it.
    """
    make_streams_last()
    session = begin(signals := Signals())
    signals.install()
    try:
        session.prepare(Notices(click.echo))
    except Interrupted as interrupt:
        click.echo(f"Stopped by {interrupt} before anything was computed.", err=True)
        return EXIT_CODES[interrupt.status]
    signals.emergency = lambda code: session.give_up("interrupted" if code == 130 else "terminated")
    error = None
    with warnings.catch_warnings(record=True) as warned, RunDisplay(session.config) as display, signals.deferred():
        warnings.simplefilter("always", UserWarning)
        try:
            left = session.execute(display)
            code = 0
        except RunFailed as failed:
            left, error, code = failed.run, str(failed), 1
            if isinstance(failed.__cause__, NotWritten):  # one message: what else was not written has the same reason
                warned.clear()
        except Interrupted as interrupt:
            left, code = session.left(), EXIT_CODES[interrupt.status]
        except SystemExit:
            left = session.left()
            code = EXIT_CODES.get(left.summary.status, 1) if left.summary is not None else 1
    signals.disarm()
    _report(left, session.path, error, code, [str(warning.message) for warning in warned])
    if code in EXIT_CODES.values():
        end_process(code)
    return code


def _report(left: Run, path: Path | None, error: str | None, code: int, warned: Sequence[str]) -> None:
    if left.summary is not None:
        show_summary(left.summary, left.config.profile.name)
    is_there = (left.path / TRACE).is_file()
    if is_there:
        click.echo(f"results: {path}")
    go_on = f"`asyncdgl resume {path}` goes on with it"
    if error is not None:
        click.echo(f"Error: {error}", err=True)
        if left.summary is not None and left.summary.status == "failed" and left.records and is_there:
            click.echo(f"Once the reason is gone, {go_on}.", err=True)
    elif code:
        click.echo(f"The run was stopped before its end; what it computed is in {path}. {go_on}.", err=True)
    rest = "; everything else is there" if not code else ""
    for message in warned:
        click.echo(f"Warning: {message}{rest}", err=True)
