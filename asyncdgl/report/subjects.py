"""Reads what a report is about, and refuses folders and files that are something else or broken."""

from __future__ import annotations

import os
from pathlib import Path

from asyncdgl.errors import DataError
from asyncdgl.report.series import figure_of
from asyncdgl.rundir.reader import Run, read_run
from asyncdgl.rundir.records import CONFIG
from asyncdgl.sweeps.results import INDEX, SweepResults, load_sweep


def read_subject(folder: Path) -> Run | SweepResults:
    """The run or the sweep in a folder, read to its end.

    Raises:
        DataError: it holds neither, a file in it is broken, or nothing can be written there.
    """
    if not folder.is_dir():
        raise DataError(f"{folder} is no folder")
    is_run, is_sweep = (folder / CONFIG).is_file(), (folder / INDEX).is_file()
    if not is_run and not is_sweep:
        raise DataError(
            f"{folder} holds neither a run nor a sweep: it has no {CONFIG} of `asyncdgl run` and no {INDEX} of "
            "`asyncdgl sweep`"
        )
    if not os.access(folder, os.W_OK):
        raise DataError(f"{folder}: the report can't be written there: no permission")
    if is_run:
        run = read_run(folder)
        _ = run.records  # a broken trace is found now, and not when half of the report is written
        return run
    results = load_sweep(folder)
    figure_of(results)
    return results
