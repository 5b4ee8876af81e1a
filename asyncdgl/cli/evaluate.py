"""`asyncdgl evaluate`: how good the network is that a run left."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from asyncdgl.cli.completion import folders
from asyncdgl.cli.tables import Column, console, fitted, number, some_of
from asyncdgl.observer import Notices

if TYPE_CHECKING:
    import pandas as pd


@click.command()
@click.argument("run_dir", type=Path)
@click.option(
    "--data-dir",
    type=Path,
    metavar="DIR",
    shell_complete=folders,
    help="Other images of the same classes: DIR/<class>/, DIR/test/<class>/, or files as those of the run's data set.",
)
def evaluate(run_dir: Path, data_dir: Path | None) -> None:
    """Measure the trained network of the run in RUN_DIR.

    Shows accuracy and loss of every head, and of the ensembles of heads 1 to n: on the run's own test set and
    validation set, or on the images in --data-dir, which are read as the run's own were.
    """
    from asyncdgl.api import load_run
    from asyncdgl.trained import evaluate_run

    measured = evaluate_run(load_run(run_dir), data_dir, Notices(click.echo))
    where = f" in {data_dir}" if data_dir is not None else ""
    for split, rows in measured.groupby("split", sort=False):
        _show(rows, f"{split} set, {rows['images'].iloc[0]} images{where}")


def _show(rows: pd.DataFrame, title: str) -> None:
    shown = some_of(len(rows))

    def cells(name: str, form: str) -> list[str]:
        return [number(None if at is None else rows[name].iloc[at], form) for at in shown]

    out = console()
    columns = [
        Column("head", ["…" if at is None else str(at + 1) for at in shown], 0),
        Column("accuracy", cells("accuracy", ".4f"), 0),
        Column("ensemble of 1 to here", cells("ensemble_accuracy", ".4f"), 1),
        Column("loss", cells("loss", ".4f"), 2),
    ]
    out.print(fitted(out, columns, title))
