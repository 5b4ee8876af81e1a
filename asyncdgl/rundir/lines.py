"""A file of lines that grows, while others may read it, its disk may fill up, and somebody may remove it."""

from __future__ import annotations

import contextlib
import itertools
import os
import time
from collections.abc import Sequence
from pathlib import Path

from asyncdgl.errors import ConfigError, NotWritten
from asyncdgl.rundir.disk import to_disk

LOOK_S = 1.0
"""Between two looks whether the file is still where it was: what is removed can be written without an error."""


class Lines:
    """Such a file. Each line is in it at once; one for which there is no room is not begun.

    Args:
        path: of the file.

    Raises:
        ConfigError: another process writes it.
        OSError: it can't be opened.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)
        _claim(self._file, path)
        self._end = os.fstat(self._file).st_size
        self._looked_at = time.monotonic()
        self._said: str | None = None

    @property
    def is_empty(self) -> bool:
        """Whether nothing stands in it."""
        return self._end == 0

    def append(self, text: str) -> None:
        """More lines.

        Raises:
            NotWritten: there is no room, or the file is gone; from then on it takes nothing more, so that no line in
                the middle is missing.
        """
        if self._said is None:
            self._said = self._look() or self._write(text.encode())
        if self._said is not None:
            raise NotWritten(self._said)

    def _write(self, data: bytes) -> str | None:
        end = self._end + len(data)
        try:
            while data:
                data = data[os.write(self._file, data) :]
        except OSError as error:
            with contextlib.suppress(OSError):
                os.ftruncate(self._file, self._end)
            return cannot_be_written(self._path.parent, error)
        self._end = end
        return None

    def _look(self) -> str | None:
        now = time.monotonic()
        if now < self._looked_at + LOOK_S:
            return None
        self._looked_at = now
        try:
            is_there = os.path.samestat(self._path.stat(), os.fstat(self._file))
        except OSError:
            is_there = False
        return None if is_there else is_gone(self._path.parent)

    def keep_first(self, count: int) -> None:
        """Let go of all but the first lines."""
        with self._path.open("rb") as file:
            self._end = sum(len(line) for line in itertools.islice(file, count))
        os.ftruncate(self._file, self._end)

    def replaced(self, lines: Sequence[str]) -> Lines:
        """Another file in its place, as a whole; nobody else writes there in between.

        Raises:
            NotWritten: there is no room; this one stays.
        """
        part = self._path.with_name(f".{self._path.name}.part")
        try:
            part.unlink(missing_ok=True)
            new = Lines(part)
            new.append("".join([line + "\n" for line in lines]))
            to_disk(part)
            part.replace(self._path)
        except (OSError, NotWritten) as error:
            with contextlib.suppress(OSError):
                part.unlink(missing_ok=True)
            raise NotWritten(cannot_be_written(self._path.parent, error)) from None
        new._path = self._path
        self.close()
        return new

    def close(self) -> None:
        """Nothing more to write."""
        if self._file >= 0:
            with contextlib.suppress(OSError):
                os.close(self._file)
            self._file = -1


def cannot_be_written(folder: Path, error: Exception) -> str:
    """What a run says whose directory takes no more."""
    if isinstance(error, NotWritten):
        return str(error)
    if not folder.is_dir():
        return is_gone(folder)
    return f"{folder} can't be written: {getattr(error, 'strerror', None) or error}"


def is_gone(folder: Path) -> str:
    """What a run says whose directory is not there any more."""
    return (
        f"{folder} is gone: the run directory was removed or moved while the run went on. If it was "
        "moved, `asyncdgl resume` goes on with it in its new place"
    )


def _claim(file: int, path: Path) -> None:
    """Nobody else writes this run as long as the file is open, and nobody has begun to.

    Raises:
        ConfigError: somebody does.
    """
    try:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(file)
        raise ConfigError(
            f"{path.parent}: a run is being written there by another process: choose another --out"
        ) from None
    except (ImportError, OSError):  # no such locks on this system, or on this file system
        pass
