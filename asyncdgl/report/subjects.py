"""Reads what a report is about, and refuses folders and files that are something else or broken."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from asyncdgl.config.messages import readable
from asyncdgl.errors import ConfigError, DataError
from asyncdgl.report.sweep_figure import figure_of
from asyncdgl.report.tables import DISTRIBUTIONS, evaluations_of
from asyncdgl.rundir.reader import Run, read_json, read_run
from asyncdgl.rundir.records import CONFIG, ENVIRONMENT, METRICS, SUMMARY, TRACE
from asyncdgl.sweep.grid import FigureConfig
from asyncdgl.sweep.results import INDEX, MEASURES, SweepResults, read_sweep

NUMBERS_OF_A_STAGE = ("stage", "updates", "forward_passes", "epochs", "busy_fraction")


def read_subject(folder: Path) -> Run | SweepResults:
    """The run or the sweep in a folder.

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
    return read_checked_run(folder) if is_run else _read_sweep(folder)


def read_checked_run(folder: Path) -> Run:
    """``read_run``, and whether what is in its files is what a run writes there.

    Raises:
        DataError: it is not; or see ``read_run``.
    """
    for name in (METRICS, TRACE):
        _check_text(folder / name)
    try:
        run = read_run(folder)
    except ConfigError as error:
        place = f"{folder / CONFIG}: "
        raise DataError(place + "; ".join(error.problems).replace(f"config file {place}", "")) from None
    _check_metrics(run)
    if run.summary is not None:
        _check_summary(run.summary, folder / SUMMARY)
    return run


def _check_text(path: Path) -> None:
    try:
        if path.exists():
            with path.open(encoding="utf-8") as file:
                for _ in file:
                    pass
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not readable: {error}") from None


def _check_metrics(run: Run) -> None:
    path, heads = run.path / METRICS, run.config.trained_stages
    if not all(isinstance(line, dict) for line in run.metrics):
        raise DataError(f"{path}: a line is no JSON object")
    for line in run.metrics:
        needs = {"kind", *(("stage", "epoch", "loss") if line.get("kind") == "epoch" else ())}
        if not needs <= line.keys():
            raise DataError(f"{path}: a line lacks its {' or '.join(sorted(needs - line.keys()))}")
    for line in evaluations_of(run):
        values = (line.get("test_accuracy"), line.get("test_ensemble_accuracy"))
        if not {"epoch", "end_s"} <= line.keys() or any(not isinstance(v, list) or len(v) != heads for v in values):
            raise DataError(
                f"{path}: a line of kind evaluation lacks its epoch, its time or the accuracies of {heads} heads"
            )


def _check_summary(summary: Any, path: Path) -> None:
    if not isinstance(summary, Mapping):
        raise DataError(f"{path}: not the summary of a run: expected a JSON object")
    for key, kind in {"status": str, "stages": list, "buffers": list, "faults": list}.items():
        if not isinstance(summary.get(key), kind):
            raise DataError(f"{path}: not the summary of a run: {key} is missing or of another kind")
    for stage in summary["stages"]:
        whole = isinstance(stage, Mapping) and all(isinstance(stage.get(k), int | float) for k in NUMBERS_OF_A_STAGE)
        maps = ("wait_seconds", *DISTRIBUTIONS, "lost_turns")
        if not whole or not all(isinstance(stage.get(k, {}), Mapping) for k in maps) or "wait_seconds" not in stage:
            raise DataError(f"{path}: not the summary of a run: an item of stages lacks a number")


def _read_sweep(folder: Path) -> SweepResults:
    index = read_json(folder / INDEX)
    try:
        results = read_sweep(folder)
        same_keys = all(list(run.values) == results.columns for run in results.runs)
    except ValidationError as error:
        raise DataError(f"{folder / INDEX}: figure: {'; '.join(readable(error, FigureConfig))}") from None
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{folder / INDEX}: not the index of a sweep: {type(error).__name__} {error}") from None
    except (OSError, ValueError):
        for run in index["runs"]:  # the index was read: one of the runs is broken, and this names it
            summary = folder / index["runs_in"] / run["key"] / SUMMARY
            if summary.exists():
                read_json(summary)
        raise
    if not same_keys or not isinstance(results.columns, list):
        raise DataError(f"{folder / INDEX}: not the index of a sweep: a run has other keys than columns says")
    for result in results.runs:
        if result.summary is not None:
            _check_measures(result.summary, result.path / SUMMARY)
            if (result.path / ENVIRONMENT).is_file():
                read_json(result.path / ENVIRONMENT)
    figure_of(results)
    return results


def _check_measures(summary: Mapping[str, Any], path: Path) -> None:
    _check_summary(summary, path)
    for name, measure in MEASURES.items():
        try:
            measure(summary)
        except (KeyError, TypeError):
            raise DataError(f"{path}: not the summary of a run: it lacks {name.replace('_', ' ')}") from None
