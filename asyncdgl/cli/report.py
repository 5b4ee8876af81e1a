"""`asyncdgl report`: a page about a run or a sweep."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument("folders", nargs=-1, required=True, type=Path, metavar="DIR...")
def report(folders: tuple[Path, ...]) -> None:
    """Write a report into each DIR: the folder of a run, or of a sweep.

    report.html is one page that needs no other file and no network; report.md holds the same as Markdown, beside the
    numbers as CSV and the figures as PDF, SVG and PNG.
    """
    from asyncdgl.report.write import check_all, write_reports

    check_all(folders)
    for page in write_reports(folders):
        click.echo(page)
