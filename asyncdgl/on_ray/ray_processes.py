"""Ray's own processes of a local cluster. Without them its calls hang for a minute, and then Ray ends this process."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable

import psutil

from asyncdgl.errors import NeedsRestart

NAMES = ("gcs_server", "raylet")
LOOK_S = 0.2

STUCK_S = 15.0
"""How long the main thread may take to come out of a call to Ray that is dead."""


class RayProcesses:
    """Watches them from a thread of its own, from before they start. Use as a context manager.

    Args:
        on_stuck: called in that thread, with what happened, where the main thread does not get to ``check`` in time.

    Attributes:
        dead: the one that has died.
    """

    def __init__(self, on_stuck: Callable[[str], None]) -> None:
        self._on_stuck = on_stuck
        self._is_noticed = threading.Event()
        self._has_ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._others: set[int] = set()
        self._found: dict[str, psutil.Process] = {}
        self.dead: str | None = None

    def __enter__(self) -> RayProcesses:
        self._others = {child.pid for child in psutil.Process().children(recursive=True)}  # another cluster's
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, *_: object) -> None:
        self.rest()
        if self.dead is not None and isinstance(error, Exception) and not isinstance(error, NeedsRestart):
            raise NeedsRestart(f"Ray's {self.dead} died") from error

    def rest(self) -> None:
        """They are about to be ended, in order: who has not died by now does not count."""
        self._has_ended.set()
        self._thread.join()

    def check(self) -> None:
        """Called often.

        Raises:
            NeedsRestart: one has died; raised once.
        """
        if self.dead is not None and not self._is_noticed.is_set():
            self._is_noticed.set()
            raise NeedsRestart(f"Ray's {self.dead} died")

    def _watch(self) -> None:
        is_last = False
        while self.dead is None and not is_last:
            is_last = self._has_ended.wait(LOOK_S)
            if len(self._found) < len(NAMES):
                self._find()
            self.dead = next((name for name, process in self._found.items() if not _lives(process)), None)
        deadline = time.monotonic() + STUCK_S
        while self.dead is not None and not (self._is_noticed.is_set() or self._has_ended.wait(LOOK_S)):
            if time.monotonic() > deadline:
                self._on_stuck(f"Ray's {self.dead} died, and Ray does not return from a call")
                return

    def _find(self) -> None:
        for child in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if child.pid not in self._others and child.name() in NAMES:
                    self._found[child.name()] = child


def _lives(process: psutil.Process) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
