"""Who may end a run, and takes the signals."""

from __future__ import annotations

import contextlib
import signal
import threading
from contextlib import AbstractContextManager
from typing import Protocol


class Supervisor(Protocol):
    """Whoever started a run in a process of its own, and may want to end it."""

    def check(self) -> None:
        """Called often; raises ``Interrupted`` where the run is to stop."""

    def take(self) -> None:
        """Ray has taken, or given back, the signals of this process."""

    def unhurried(self) -> AbstractContextManager[None]:
        """Work that can't hang: it may take the time that it needs."""

    def hang(self, message: str) -> None:
        """The main thread hangs for good; says why. Called in another one."""


class NoSupervisor:
    """Nobody: an interrupt comes as Python's own KeyboardInterrupt, and whoever handles signals goes on doing so."""

    def __init__(self) -> None:
        self._handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def check(self) -> None:
        """See ``Supervisor``."""

    def take(self) -> None:
        """See ``Supervisor``."""
        if threading.current_thread() is threading.main_thread():
            for number, handler in self._handlers.items():
                if handler is not None:  # None: it was not set from Python
                    signal.signal(number, handler)

    def unhurried(self) -> AbstractContextManager[None]:
        """See ``Supervisor``."""
        return contextlib.nullcontext()

    def hang(self, message: str) -> None:
        """See ``Supervisor``: Ray ends the process itself, after a minute."""
