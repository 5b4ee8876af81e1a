"""The run directory: everything that a run leaves, with one writer and one reader."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from pydantic import BaseModel

from asyncdgl.config.resolved import ResolvedConfig
from asyncdgl.config.yaml import dump_config
from asyncdgl.errors import ConfigError, NotWritten
from asyncdgl.observer import Progress
from asyncdgl.rundir.lines import Lines, cannot_be_written
from asyncdgl.rundir.reader import Run
from asyncdgl.rundir.records import (
    CONFIG,
    ENVIRONMENT,
    METRICS,
    SUMMARY,
    TRACE,
    Environment,
    EpochLine,
    EvaluationLine,
    Fault,
    Summary,
)
from asyncdgl.rundir.trace import PassRecord, read_trace


def check_out(out: Path) -> None:
    """Refuse a run directory that can't be used, before anything is computed.

    Raises:
        ConfigError: it exists and is not empty, or it can't be made.
    """
    try:
        _check_out(out)
    except OSError as error:
        raise ConfigError(f"--out {out} can't be made: {error.strerror or error}") from None


def _check_out(out: Path) -> None:
    if out.is_symlink() or out.exists():
        if not out.is_dir():
            raise ConfigError(f"--out {out} exists and is no folder: choose another one")
        if any(out.iterdir()):
            raise ConfigError(f"--out {out} exists and is not empty: choose another one, or remove it first")
    parent = next(p for p in (out, *out.absolute().parents) if p.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise ConfigError(f"--out {out} can't be made: {parent} is no folder that can be written")


def make_run_dir(out: Path | None, name: str) -> Path:
    """Make the run directory: ``out``, or a new ``runs/<time>-<name>``."""
    try:
        if out is not None:
            out.mkdir(parents=True, exist_ok=True)
            return out
        Path("runs").mkdir(exist_ok=True)
        stem = f"{time.strftime('%Y%m%d-%H%M%S')}-{name}"
        for number in range(1, 1000):
            path = Path("runs") / (stem if number == 1 else f"{stem}-{number}")
            with contextlib.suppress(FileExistsError):
                path.mkdir()
                return path
    except OSError as error:
        raise ConfigError(f"the run directory can't be made: {error}; choose another place with --out DIR") from None
    raise ConfigError("the run directory can't be made: too many runs started in this second")


def remove_run_dir(path: Path, is_given: bool, existed: bool) -> None:
    """Leave the place as it was found: an empty folder of the user's stays, an empty ``runs`` goes.

    Args:
        path: the run directory.
        is_given: whether the user has named it.
        existed: whether it was there before.
    """
    shutil.rmtree(path)
    if existed:
        path.mkdir()
    if not is_given:
        with contextlib.suppress(OSError):
            path.parent.rmdir()


class RunWriter:
    """The observer that writes a run directory. Each line is in the file at once, whatever happens later.

    Where there is no room, or the directory is gone, each of its methods raises ``NotWritten``.

    Attributes:
        passes: that stand in the trace.
        added: how many of them by this process.
        lines: what stands in metrics.jsonl, so that nobody needs to read it back.
    """

    def __init__(self, path: Path, goes_on: bool = False, remembers: bool = True) -> None:
        """Begin to write.

        Args:
            path: the run directory.
            goes_on: with what another process has written.
            remembers: whether the passes also stay in memory. A run of days must not grow; one that makes a hundred
                thousand passes a second must not read them back.

        Raises:
            ConfigError: another process writes there, or has written; or it can't be written.
        """
        self.path = path
        try:
            self._trace = Lines(path / TRACE)
            if not (self._trace.is_empty or goes_on):
                self._trace.close()
                raise ConfigError(f"{path}: another run was written there meanwhile: choose another --out")
            self._metrics = Lines(path / METRICS)
        except OSError as error:
            raise ConfigError(cannot_be_written(path, error)) from None
        self._remembers = remembers
        self._records: list[PassRecord] | None = []
        self.passes = self.added = 0
        self.environment: Environment | None = None
        self.lines: list[EpochLine | EvaluationLine] = []

    @property
    def records(self) -> list[PassRecord]:
        """What stands in the trace.

        Raises:
            DataError: somebody has changed it; who asks again finds nothing.
        """
        records = self._records  # more may be written meanwhile, where a watching thread reads
        if records is None:
            self._records = []  # for who asks again where it can't be read
            path = self.path / TRACE
            self._records = records = list(read_trace(path)) if path.is_file() else []
        return records

    def _hold(self, records: Sequence[PassRecord]) -> None:
        """These are all."""
        self.passes = len(records)
        self._records = list(records) if self._remembers else None

    def cut(self, before: Run, passes: int, lines: int) -> None:
        """Go on with what another process has written: with its first passes and lines of metrics.

        Args:
            before: what the directory holds.
            passes: lines of the trace that are kept; what a killed run did since its checkpoint is done again.
            lines: of the metrics.
        """
        self._trace.keep_first(passes)
        self._metrics.keep_first(lines)
        self._hold(before.records[:passes])
        self.lines[:] = before.lines[:lines]
        (self.path / SUMMARY).unlink(missing_ok=True)

    def keep_only(self, records: Sequence[PassRecord], lines: Sequence[EpochLine | EvaluationLine]) -> None:
        """Go on with what another process has written, but for what is not needed any more.

        Each file is replaced as a whole: a process that is killed meanwhile leaves the one or the other.

        Args:
            records: lines of the trace that stay.
            lines: of the metrics.
        """
        self._trace = self._trace.replaced([record.to_json() for record in records])
        self._metrics = self._metrics.replaced([line.model_dump_json() for line in lines])
        self._hold(records)
        self.lines[:] = lines
        (self.path / SUMMARY).unlink(missing_ok=True)

    def write_config(self, config: ResolvedConfig) -> None:
        """config.yaml: ``asyncdgl run --config`` repeats the settings."""
        self._replace(CONFIG, dump_config(config))

    def write_environment(self, environment: Environment) -> None:
        """environment.json: what the bits of a run depend on besides its configuration."""
        self._replace(ENVIRONMENT, _text(environment))
        self.environment = environment

    def write_summary(self, summary: Summary) -> None:
        """summary.json, after all lines before it."""
        self._replace(SUMMARY, _text(summary))

    def write_log(self, name: str, text: str) -> Path | None:
        """logs/<name>: the tail of a process's log where it failed; None where there is no room for it."""
        path = self.path / "logs" / name
        try:
            path.parent.mkdir(exist_ok=True)
            path.write_text(text, encoding="utf-8")
        except OSError:
            return None
        return path

    def began(self, path: Path) -> None:
        """See ``Observer``: it is this one's."""

    def passed(self, records: Sequence[PassRecord]) -> None:
        """Lines of trace.jsonl."""
        self._trace.append("".join([record.to_json() + "\n" for record in records]))
        self.passes += len(records)
        self.added += len(records)
        if self._remembers:
            self.records.extend(records)
        elif records:
            self._records = None

    def progressed(self, stage: int, progress: Progress) -> None:
        """See ``Observer``: nothing of it is kept."""

    def epoch_completed(self, line: EpochLine) -> None:
        """See ``Observer``."""
        self._write_metric(line)

    def evaluated(self, line: EvaluationLine) -> None:
        """See ``Observer``."""
        self._write_metric(line)

    def faulted(self, faults: Sequence[Fault]) -> None:
        """See ``Observer``: the summary says them."""

    def noticed(self, message: str) -> None:
        """See ``Observer``: nothing of it is kept."""

    def _write_metric(self, line: EpochLine | EvaluationLine) -> None:
        """A line of metrics.jsonl."""
        self._metrics.append(line.model_dump_json() + "\n")
        self.lines.append(line)

    def _replace(self, name: str, text: str) -> None:
        """Whole or not at all: a reader never meets half a file.

        Raises:
            NotWritten: there is no room, or the directory is gone.
        """
        part = self.path / f".{name}.part"
        try:
            part.write_text(text, encoding="utf-8")
            part.replace(self.path / name)
        except OSError as error:
            with contextlib.suppress(OSError):
                part.unlink(missing_ok=True)
            raise NotWritten(cannot_be_written(self.path, error)) from None

    def close(self) -> None:
        """Nothing more to write."""
        self._metrics.close()
        self._trace.close()

    def as_run(
        self, config: ResolvedConfig, summary: Summary | None = None, given: Mapping[str, Any] = MappingProxyType({})
    ) -> Run:
        """What a reader of the directory would find."""
        return Run(self.path, config, self.environment, summary, self.lines, self.records, given)


def _text(record: BaseModel) -> str:
    return record.model_dump_json(indent=2) + "\n"
