"""Reads a run directory."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from asyncdgl.config.resolved import ResolvedConfig
from asyncdgl.config.yaml import load_yaml
from asyncdgl.errors import DataError
from asyncdgl.rundir.records import CONFIG, ENVIRONMENT, METRICS, SUMMARY, TRACE
from asyncdgl.rundir.trace import PassRecord, by_stage, read_trace


@dataclass(frozen=True)
class Run:
    """What a run left behind. ``summary`` is None where the run was killed."""

    path: Path
    config: ResolvedConfig
    environment: dict[str, Any]
    metrics: list[dict[str, Any]]
    trace: list[PassRecord]
    summary: dict[str, Any] | None

    @cached_property
    def passes(self) -> dict[int, list[PassRecord]]:
        """The passes of each stage, in the order in which it made them."""
        return by_stage(self.trace)


def read_run(path: Path) -> Run:
    """Read a run directory.

    Raises:
        DataError: the folder is no run directory, or a file in it is broken.
    """
    if not (path / CONFIG).is_file():
        raise DataError(f"{path} is no run directory: it has no {CONFIG}")
    metrics, trace, summary, environment = path / METRICS, path / TRACE, path / SUMMARY, path / ENVIRONMENT
    return Run(
        path=path,
        config=ResolvedConfig.checked(load_yaml(path / CONFIG)),
        environment=read_json(environment) if environment.is_file() else {},
        metrics=whole_lines(metrics) if metrics.is_file() else [],
        trace=list(read_trace(trace)) if trace.is_file() else [],
        summary=read_json(summary) if summary.is_file() else None,
    )


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        DataError: there is none in it.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise DataError(f"{path}: not readable as JSON: {error}") from None
    if not isinstance(value, dict):
        raise DataError(f"{path}: expected a JSON object")
    return value


def whole_lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a file of JSON lines, without one that a kill cut short."""
    lines = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(keepends=True), 1):
        if line.endswith("\n"):
            try:
                lines.append(json.loads(line))
            except ValueError:
                raise DataError(f"{path}, line {number}: not a line of JSON") from None
    return lines
