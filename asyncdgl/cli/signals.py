"""Ctrl-C and SIGTERM: the first stops the run in order, the second at once."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from types import FrameType


class Interrupted(BaseException):
    """A signal asks the run to stop; carries its number."""

    def __init__(self, number: int) -> None:
        self.number = number
        super().__init__(signal.Signals(number).name)

    @property
    def exit_code(self) -> int:
        """130 for Ctrl-C, 143 for SIGTERM, as shells have it."""
        return 128 + self.number


class Signals:
    """Turns the first SIGINT or SIGTERM into ``Interrupted``; a second one ends the process at once."""

    def __init__(self) -> None:
        self._seen = False
        self._atomic = False
        self._pending: int | None = None

    def install(self) -> None:
        """Take the signals; again after ``ray.init``, which takes SIGTERM for itself."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._seen:
            os._exit(128 + number)  # the guardian ends a local cluster's processes
        self._seen = True
        if self._atomic:
            self._pending = number
        else:
            raise Interrupted(number)

    @contextlib.contextmanager
    def atomic(self) -> Iterator[None]:
        """A stretch of work that happens whole: a signal takes effect at its end."""
        self._atomic = True
        try:
            yield
        finally:
            self._atomic = False
        if self._pending is not None:
            raise Interrupted(self._pending)
