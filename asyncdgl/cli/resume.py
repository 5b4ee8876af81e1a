"""`asyncdgl resume`: go on with a run that was stopped."""

from __future__ import annotations

from pathlib import Path

import click

from asyncdgl.rundir.reader import read_run


@click.command()
@click.argument("run_dir", type=Path)
def resume(run_dir: Path) -> int:
    """Go on with the run in RUN_DIR, which was stopped.

    A run that was stopped, killed, or failed for a reason that is gone: it goes on from its newest checkpoints, in the
    same directory. With --runtime sim or virtual, or with sync-dgl, it ends as if it had never been stopped. With
    async-dgl on Ray the passes since are lost, and counted.
    """
    left = read_run(run_dir)
    from asyncdgl.cli.session import run_and_show
    from asyncdgl.resume_session import ResumeSession

    return run_and_show(lambda supervisor: ResumeSession(left, supervisor))
