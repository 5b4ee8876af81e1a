"""Ctrl-C, SIGTERM, and SIGHUP of a lost connection: the first stops in order, within seconds; the second at once."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType

import click

from asyncdgl.errors import Interrupted

GRACE_S = 3.0
"""Time for an orderly end. Ray can keep the main thread in a call for longer than that."""


ONE_SIGNAL_S = 0.3
"""`timeout` and some schedulers send a signal to the process and at once to its group: that is one request, not two."""


EXIT_CODES = {"interrupted": 130, "terminated": 143}
"""Of what a signal stopped, by status: as shells have it."""


HANGUP = getattr(signal, "SIGHUP", None)
STOPS = (signal.SIGINT, signal.SIGTERM, *([HANGUP] if HANGUP is not None else []))


def _code(number: int) -> int:
    return EXIT_CODES["interrupted" if number == signal.SIGINT else "terminated"]


def _interrupted(number: int) -> Interrupted:
    return Interrupted("interrupted" if number == signal.SIGINT else "terminated", signal.Signals(number).name)


class Signals:
    """Turns the first SIGINT or SIGTERM into ``Interrupted``; a second one ends the process at once.

    A thread hears of the signal even while the main thread is inside a call that never returns to Python; if the main
    thread has not ended the process within ``GRACE_S``, that thread does.

    Attributes:
        emergency: what that thread does first: called with the exit code.
    """

    def __init__(self) -> None:
        self._first_at: float | None = None
        self._deferred = False
        self._pending: int | None = None
        self._unhurried = threading.Event()
        self.emergency: Callable[[int], None] = lambda code: None

    def install(self) -> None:
        """Take the signals, and start the thread that hears of them."""
        heard, wakeup = socket.socketpair()
        wakeup.setblocking(False)
        signal.set_wakeup_fd(wakeup.fileno(), warn_on_full_buffer=False)
        self._sockets = heard, wakeup  # kept open for the life of the process
        threading.Thread(target=self._watch, args=(heard,), daemon=True).start()
        self.take()

    def take(self) -> None:
        """Take the signals again: ``ray.init`` takes SIGTERM for itself, ``ray.shutdown`` gives it to the system."""
        for number in STOPS:
            if number != HANGUP or signal.getsignal(number) != signal.SIG_IGN:  # `nohup` means what it says
                signal.signal(number, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._first_at is not None:
            if time.monotonic() - self._first_at < ONE_SIGNAL_S:
                return
            os._exit(_code(number))  # the guardian ends a local cluster's processes
        self._first_at = time.monotonic()
        if self._deferred:
            self._pending = number
        else:
            raise _interrupted(number)

    def _watch(self, heard: socket.socket) -> None:
        number, first_at = _next_stop(heard), time.monotonic()
        heard.settimeout(GRACE_S)
        heard_at = first_at
        while heard_at - first_at < ONE_SIGNAL_S:
            try:
                _next_stop(heard)  # the second signal, also while the main thread can't hear it
                heard_at = time.monotonic()
            except TimeoutError:
                if self._unhurried.is_set():
                    continue
                try:
                    self.emergency(_code(number))
                finally:
                    os._exit(_code(number))
        os._exit(_code(number))

    @contextlib.contextmanager
    def unhurried(self) -> Iterator[None]:
        """Work that can't hang: the main thread may take the time that it needs."""
        self.disarm()
        try:
            yield
        finally:
            self._unhurried.clear()

    def hang(self, message: str) -> None:
        """See ``Supervisor``."""
        with contextlib.suppress(OSError, ValueError):
            click.echo(f"Error: {message}. Once the reason is gone, `asyncdgl resume` goes on with the run.", err=True)
        end_process(1)

    def disarm(self) -> None:
        """From now on nothing can hang."""
        self._unhurried.set()

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """Work that no signal breaks in the middle: it takes effect at the next ``check`` alone."""
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False

    def check(self) -> None:
        """Raise ``Interrupted`` if a signal came in the meantime."""
        number, self._pending = self._pending, None
        if number is not None:
            raise _interrupted(number)


def _next_stop(heard: socket.socket) -> int:
    number = 0
    while number not in STOPS:
        number = heard.recv(1)[0]
    return number


def end_process(code: int) -> None:
    """End now, without what libraries do at exit: after an interrupt, Ray would wait for processes that are gone."""
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)
