"""`asyncdgl predict`: what the network that a run left makes of some images."""

from __future__ import annotations

from pathlib import Path

import click

from asyncdgl.cli.tables import Column, console, fitted
from asyncdgl.observer import Notices

BEST = 3
"""Classes that are shown of each image."""


@click.command()
@click.argument("run_dir", type=Path)
@click.argument("images", nargs=-1, required=True, type=Path, metavar="IMAGE...")
def predict(run_dir: Path, images: tuple[Path, ...]) -> None:
    """Classify each IMAGE by the trained network of the run in RUN_DIR.

    Shows the most probable classes, by the last head. Images are read as the run's own were: made as large as those,
    and grey where those were.
    """
    from asyncdgl.api import load_run
    from asyncdgl.trained import predict_images

    probabilities = predict_images(load_run(run_dir), images, Notices(click.echo))
    best = [row.nlargest(BEST) for _, row in probabilities.iterrows()]
    shown = [path.name for path in images]
    if len(set(shown)) < len(shown):
        shown = [str(path) for path in images]
    columns = [Column("image", shown, 0, words=True)]
    for rank in range(min(BEST, probabilities.shape[1])):
        names = [str(row.index[rank]) for row in best]
        columns.append(Column("class" if rank == 0 else f"{rank + 1}.", names, rank, words=True))
        columns.append(Column("", [f"{row.iloc[rank]:.1%}" for row in best], rank))
    out = console()
    out.print(fitted(out, columns, names_dropped=False))
