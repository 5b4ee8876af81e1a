"""What an actor answers to the driver; a process that died or raised becomes one clear error."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import ray

from asyncdgl.errors import NeedsRestart, StageFailed

POLL_S = 0.2

BURIED_S = 2.0
"""How long a process may still be seen after others have lost it: its connections end first."""


class ProcessDied(StageFailed):
    """The process that was asked has died."""


class Restarting(ProcessDied):
    """Ray is about to start another one in its place."""


def result(
    ref: Any,
    who: str,
    doing: str,
    check: Callable[[], None],
    dead_process: Callable[[], str | None],
    timeout: float | None = None,
) -> Any:
    """A call's result.

    Args:
        ref: of the call.
        who: the name of the process that was asked.
        doing: what it does, for messages.
        check: called while it is waited for; raises where the run is to stop.
        dead_process: the name of a process of the run that is known to be dead.
        timeout: in seconds.

    Raises:
        TimeoutError: there was none in that time.
        ProcessDied: the process that was asked is dead.
        NeedsRestart: it met one that is dead, and that it can't do without.
        StageFailed: it raised.
    """
    deadline = None if timeout is None else time.monotonic() + timeout
    while not ray.wait([ref], timeout=POLL_S if deadline is None else min(POLL_S, left(deadline)))[0]:
        check()
        if deadline is not None and time.monotonic() >= deadline:
            raise TimeoutError
    try:
        return ray.get(ref)
    except ray.exceptions.OutOfMemoryError:
        raise StageFailed(f"{who}, {doing}: out of memory; use a smaller --buffer-size", who) from None
    except ray.exceptions.RayTaskError as error:  # first: one about a dead actor is an error of both kinds
        cause = error.cause
        if isinstance(cause, MemoryError):
            raise StageFailed(f"{who}, {doing}: {first_line(cause)}", who) from None
        if isinstance(cause, StageFailed):
            raise type(cause)(str(cause), who) from None
        if isinstance(cause, ray.exceptions.RayActorError):
            dead = _found_soon(dead_process)
            named = f"the process of {dead} died" if dead else "a process that it uses died"
            raise NeedsRestart(f"{who}, {doing}: {named} ({first_line(cause)})", dead or who) from None
        raise StageFailed(f"{who}, {doing}: {type(cause).__name__}: {first_line(cause)}", who) from error
    except ray.exceptions.ActorUnavailableError as error:
        raise Restarting(f"{who}, {doing}: its process died ({first_line(error)})", who) from None
    except ray.exceptions.RayActorError as error:
        if "creation task" in str(error):  # its own error stands below Ray's story of it
            reason = str(error).strip().splitlines()[-1]
            raise StageFailed(f"{who}, {doing}: {reason}", who) from None
        raise ProcessDied(f"{who}, {doing}: its process died ({first_line(error)})", who) from None


def once_there(ref: Any, ask: Callable[[], Any], get: Callable[[Any], Any], deadline: float) -> Any:
    """An actor's answer, asked for again while Ray starts it again.

    Args:
        ref: of the first call.
        ask: calls again.
        get: see ``result``.
        deadline: on the monotonic clock.
    """
    while True:
        try:
            return get(ref)
        except Restarting:
            if not left(deadline):
                raise
            time.sleep(0.05)
            ref = ask()


def _found_soon(dead_process: Callable[[], str | None]) -> str | None:
    deadline = time.monotonic() + BURIED_S
    while (dead := dead_process()) is None and time.monotonic() < deadline:
        time.sleep(0.02)
    return dead


def left(deadline: float) -> float:
    """Seconds until then."""
    return max(0.0, deadline - time.monotonic())


def first_line(error: BaseException) -> str:
    """Of an error's message."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
