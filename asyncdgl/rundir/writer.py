"""The run directory: everything that a run leaves, with one writer and one reader."""

from __future__ import annotations

import contextlib
import itertools
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, TextIO

from pydantic import BaseModel

from asyncdgl.config.resolved import ResolvedConfig
from asyncdgl.config.yaml import dump_config
from asyncdgl.errors import ConfigError
from asyncdgl.observer import Progress
from asyncdgl.rundir.disk import to_disk
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
    Summary,
)
from asyncdgl.rundir.trace import PassRecord


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


class RunWriter:
    """The observer that writes a run directory. Each line is in the file at once, whatever happens later."""

    def __init__(self, path: Path, goes_on: bool = False) -> None:
        """Begin to write.

        Args:
            path: the run directory.
            goes_on: with what another process has written.

        Raises:
            ConfigError: another process writes there, or has written.
        """
        self.path = path
        self._trace: TextIO = (path / TRACE).open("a", encoding="utf-8")
        _claim(self._trace, path)
        if self._trace.tell() and not goes_on:
            self._trace.close()
            raise ConfigError(f"{path}: another run was written there meanwhile: choose another --out")
        self._metrics: TextIO = (path / METRICS).open("a", encoding="utf-8")
        self.records: list[PassRecord] = []
        """What stands in trace.jsonl, so that nobody needs to read it back."""
        self.environment: Environment | None = None
        self.lines: list[EpochLine | EvaluationLine] = []
        """The same of metrics.jsonl."""

    def cut(self, before: Run, passes: int, lines: int) -> None:
        """Go on with what another process has written: with its first passes and lines of metrics.

        Args:
            before: what the directory holds.
            passes: lines of the trace that are kept; what a killed run did since its checkpoint is done again.
            lines: of the metrics.
        """
        for file, kept in ((self._trace, passes), (self._metrics, lines)):
            file.truncate(_length_of_lines(Path(file.name), kept))
        self.records[:] = before.records[:passes]
        self.lines[:] = before.lines[:lines]
        (self.path / SUMMARY).unlink(missing_ok=True)

    def keep_only(self, records: Sequence[PassRecord], lines: Sequence[EpochLine | EvaluationLine]) -> None:
        """Go on with what another process has written, but for what is not needed any more.

        Each file is replaced as a whole: a process that is killed meanwhile leaves the one or the other.

        Args:
            records: lines of the trace that stay.
            lines: of the metrics.
        """
        self._trace = _replaced(self.path / TRACE, self._trace, [record.to_json() for record in records])
        self._metrics = _replaced(self.path / METRICS, self._metrics, [line.model_dump_json() for line in lines])
        self.records[:], self.lines[:] = records, lines
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

    def write_log(self, name: str, text: str) -> Path:
        """logs/<name>: the tail of a process's log where it failed."""
        (self.path / "logs").mkdir(exist_ok=True)
        path = self.path / "logs" / name
        path.write_text(text, encoding="utf-8")
        return path

    def began(self, path: Path) -> None:
        """See ``Observer``: it is this one's."""

    def passed(self, records: Sequence[PassRecord]) -> None:
        """Lines of trace.jsonl."""
        self._trace.write("".join([record.to_json() + "\n" for record in records]))
        self._trace.flush()
        self.records.extend(records)

    def progressed(self, stage: int, progress: Progress) -> None:
        """See ``Observer``: nothing of it is kept."""

    def epoch_completed(self, line: EpochLine) -> None:
        """See ``Observer``."""
        self._write_metric(line)

    def evaluated(self, line: EvaluationLine) -> None:
        """See ``Observer``."""
        self._write_metric(line)

    def noticed(self, message: str) -> None:
        """See ``Observer``: nothing of it is kept."""

    def _write_metric(self, line: EpochLine | EvaluationLine) -> None:
        """A line of metrics.jsonl."""
        self._metrics.write(line.model_dump_json() + "\n")
        self._metrics.flush()
        self.lines.append(line)

    def _replace(self, name: str, text: str) -> None:
        """Whole or not at all: a reader never meets half a file."""
        part = self.path / f".{name}.part"
        part.write_text(text, encoding="utf-8")
        part.replace(self.path / name)

    def close(self) -> None:
        """Nothing more to write."""
        self._metrics.close()
        self._trace.close()

    def as_run(
        self, config: ResolvedConfig, summary: Summary | None = None, given: Mapping[str, Any] = MappingProxyType({})
    ) -> Run:
        """What a reader of the directory would find, without reading it back."""
        return Run(self.path, config, self.environment, summary, self.lines, self.records, given)


def _claim(file: TextIO, path: Path) -> None:
    """Nobody else writes this run as long as the file is open, and nobody has begun to.

    Raises:
        ConfigError: somebody does.
    """
    try:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise ConfigError(f"{path}: a run is being written there by another process: choose another --out") from None
    except (ImportError, OSError):  # no such locks on this system, or on this file system
        pass


def _replaced(path: Path, file: TextIO, lines: Sequence[str]) -> TextIO:
    """Another file in the place of one that is open; nobody else writes there in between."""
    part = path.with_name(f".{path.name}.part")
    part.unlink(missing_ok=True)
    new = part.open("a", encoding="utf-8")
    _claim(new, path.parent)
    new.write("".join([line + "\n" for line in lines]))
    new.flush()
    to_disk(part)
    part.replace(path)
    file.close()
    return new


def _length_of_lines(path: Path, count: int) -> int:
    """Bytes of the first lines of a file."""
    with path.open("rb") as file:
        return sum(len(line) for line in itertools.islice(file, count))


def _text(record: BaseModel) -> str:
    return record.model_dump_json(indent=2) + "\n"
