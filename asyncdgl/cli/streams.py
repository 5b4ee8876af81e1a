"""Standard output and error that end before the run does: a closed terminal, a pipe that nobody reads, a full disk."""

from __future__ import annotations

import contextlib
import os
import sys
from typing import Any


class Lasting:
    """A stream that swallows what nobody can take any more: the run directory has it all.

    Args:
        stream: the process's own.
    """

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """See ``TextIO``."""
        try:
            return int(self._stream.write(text))
        except OSError:
            self._end()
            return len(text)

    def flush(self) -> None:
        """See ``TextIO``."""
        try:
            self._stream.flush()
        except OSError:
            self._end()

    def _end(self) -> None:
        """From now on what is written, and what is still to be, goes nowhere."""
        with contextlib.suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)
            self._stream.flush()


def make_streams_last() -> None:
    """A run does not end because nobody listens any more."""
    sys.stdout, sys.stderr = Lasting(sys.stdout), Lasting(sys.stderr)


def fill_closed_streams() -> None:
    """What a shell has closed (`>&-`) goes nowhere; otherwise the next file that is opened would get its number."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free is this one
            setattr(sys, name, os.fdopen(number, "w" if number else "r", closefd=False))
