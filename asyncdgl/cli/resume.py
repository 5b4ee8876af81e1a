"""`asyncdgl resume`: go on with a run that was stopped."""

from __future__ import annotations

from pathlib import Path

import click

from asyncdgl.rundir.reader import read_run


@click.command()
@click.argument("run_dir", type=Path)
@click.option("--epochs", type=int, metavar="VALUE", help="More epochs of each stage than the run was to make.")
def resume(run_dir: Path, epochs: int | None) -> int:
    """Go on with the run in RUN_DIR, which was stopped.

    A run that was stopped, killed, or failed for a reason that is gone: it goes on from its newest checkpoints, in the
    same directory. With --runtime sim or virtual, or with sync-dgl, it ends as if it had never been stopped. With
    async-dgl on Ray the passes since are lost, and counted.

    With --epochs it makes more of them: with the same algorithms as if they had been asked for from the start. A
    complete run has let go of its checkpoints, and can't be given more.
    """
    left = read_run(run_dir, to_go_on=True)
    from asyncdgl.cli.session import run_and_show
    from asyncdgl.resume_session import ResumeSession

    return run_and_show(lambda supervisor: ResumeSession(left, supervisor, epochs))
