"""The run directory: everything that a run leaves, with one writer and one reader."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Generic, TypeVar

from pydantic import BaseModel

from asyncdgl.config.resolved import ResolvedConfig
from asyncdgl.config.yaml import dump_config
from asyncdgl.errors import ConfigError, NotWritten
from asyncdgl.observer import Progress
from asyncdgl.rundir.lines import Lines, cannot_be_written
from asyncdgl.rundir.reader import Run, read_metrics
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

Item = TypeVar("Item")


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


class _Written(Generic[Item]):
    """What stands in a file of lines: kept in memory, or read back whenever somebody asks.

    Attributes:
        count: of the lines.
    """

    def __init__(self, read: Callable[[], list[Item]], remembers: bool) -> None:
        self._read = read
        self._remembers = remembers
        self._items: list[Item] | None = []
        self.count = 0

    def add(self, items: Sequence[Item]) -> None:
        """Some more."""
        self.count += len(items)
        if self._remembers:
            self.items.extend(items)
        elif items:
            self._items = None

    def hold(self, items: Sequence[Item]) -> None:
        """These are all."""
        self.count = len(items)
        self._items = list(items) if self._remembers else None

    @property
    def items(self) -> list[Item]:
        """All of them.

        Raises:
            DataError: somebody has changed the file; who asks again finds nothing.
        """
        items = self._items  # more may be written meanwhile, where a watching thread reads
        if items is None:
            self._items = []  # for who asks again where it can't be read
            self._items = items = self._read()
        return items


class RunWriter:
    """The observer that writes a run directory. Each line is in the file at once, whatever happens later.

    Where there is no room, or the directory is gone, each of its methods raises ``NotWritten``.

    Attributes:
        added: how many passes this process has written.
    """

    def __init__(self, path: Path, goes_on: bool = False, remembers: bool = True) -> None:
        """Begin to write.

        Args:
            path: the run directory.
            goes_on: with what another process has written.
            remembers: whether what is written also stays in memory. A run of days must not grow; one that makes a
                hundred thousand passes a second must not read them back.

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
        self._passes = _Written(lambda: _read(path / TRACE, read_trace), remembers)
        self._lines = _Written(lambda: _read(path / METRICS, read_metrics), remembers)
        self.added = 0
        self.environment: Environment | None = None

    @property
    def passes(self) -> int:
        """How many stand in the trace."""
        return self._passes.count

    @property
    def metrics_lines(self) -> int:
        """How many stand in metrics.jsonl."""
        return self._lines.count

    @property
    def records(self) -> list[PassRecord]:
        """What stands in the trace.

        Raises:
            DataError: somebody has changed it; who asks again finds nothing.
        """
        return self._passes.items

    @property
    def lines(self) -> list[EpochLine | EvaluationLine]:
        """What stands in metrics.jsonl.

        Raises:
            DataError: somebody has changed it; who asks again finds nothing.
        """
        return self._lines.items

    def cut(self, before: Run, passes: int, lines: int) -> None:
        """Go on with what another process has written: with its first passes and lines of metrics.

        Args:
            before: what the directory holds.
            passes: lines of the trace that are kept; what a killed run did since its checkpoint is done again.
            lines: of the metrics.
        """
        self._trace.keep_first(passes)
        self._metrics.keep_first(lines)
        self._passes.hold(before.records[:passes])
        self._lines.hold(before.lines[:lines])
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
        self._passes.hold(records)
        self._lines.hold(lines)
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
        self._passes.add(records)
        self.added += len(records)

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
        self._lines.add([line])

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


def _read(path: Path, read: Callable[[Path], Iterable[Item]]) -> list[Item]:
    """What stands there now; nothing, where it is gone."""
    return list(read(path)) if path.is_file() else []


def _text(record: BaseModel) -> str:
    return record.model_dump_json(indent=2) + "\n"
