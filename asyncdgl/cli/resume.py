"""`asyncdgl resume`: go on with a run that was stopped."""

from __future__ import annotations

from pathlib import Path

import click

from asyncdgl.rundir.reader import read_run


@click.command()
@click.argument("run_dir", type=Path)
def resume(run_dir: Path) -> int:
    """Go on with the run in RUN_DIR, which was stopped.

    A run of --runtime sim or virtual that was stopped, killed, or failed for a reason that is gone: it goes on from its
    newest checkpoint, in the same directory, and ends as if it had never been stopped.
    """
    left = read_run(run_dir)
    from asyncdgl.cli.session import run_and_show
    from asyncdgl.resume_session import ResumeSession

    return run_and_show(lambda supervisor: ResumeSession(left, supervisor))
