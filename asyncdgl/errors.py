"""The errors that a user can meet. Each carries a message that says what was expected and how to mend it."""

from __future__ import annotations

import reprlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from asyncdgl.rundir.reader import Run
    from asyncdgl.sweeps.results import SweepResults

MOST_SHOWN = 10
"""Problems that one message lists; more are counted."""


class _Short(reprlib.Repr):
    def repr_int(self, x: int, level: int) -> str:
        return f"about 2^{x.bit_length()}" if x.bit_length() > 256 else super().repr_int(x, level)


_SHORT = _Short()
_SHORT.maxlevel, _SHORT.maxlist, _SHORT.maxtuple, _SHORT.maxdict = 3, 10, 10, 5
_SHORT.maxstring = _SHORT.maxlong = _SHORT.maxother = 60


def shown(value: Any) -> str:
    """A value as a message shows it: on one line, at most 60 characters, however large it is."""
    text = _SHORT.repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


class AsyncDGLError(Exception):
    """Base of all errors that asyncdgl raises on purpose."""


class ConfigError(AsyncDGLError):
    """The configuration can't be run.

    Attributes:
        problems: every one that was found, not only the first.
    """

    def __init__(self, problems: str | Sequence[str]) -> None:
        self.problems = [problems] if isinstance(problems, str) else list(problems)
        super().__init__("\n".join(self.lines))

    @property
    def lines(self) -> list[str]:
        """The first problems, and how many more there are."""
        more = len(self.problems) - MOST_SHOWN
        return self.problems[:MOST_SHOWN] + ([f"and {more} more"] if more > 0 else [])

    def __reduce__(self) -> tuple[type[ConfigError], tuple[list[str]]]:
        return ConfigError, (self.problems,)


class DataError(AsyncDGLError):
    """The images can't be used: missing, empty, corrupt or too few."""


class NotWritten(AsyncDGLError):
    """The run directory takes no more: its disk is full, or it is gone. What it had taken until then is whole."""


class NoRoom(AsyncDGLError):
    """Shared memory is full: the processes of a run on Ray could not go on."""


class StageFailed(AsyncDGLError):
    """A process of a run died or raised; the message names the stage and what it was doing.

    Attributes:
        process: the name of the process that it happened to, where that is known.
    """

    def __init__(self, message: str, process: str | None = None) -> None:
        self.process = process
        super().__init__(message)


class NeedsRestart(StageFailed):
    """A process died whose place no other can take alone: all have to begin anew from what they have kept."""


class Diverged(StageFailed):
    """A stage's loss is not finite: the run is a result, but has no accuracy."""


class RunFailed(AsyncDGLError):
    """A run failed or diverged; its directory says how far it came.

    Attributes:
        run: what it left.
    """

    def __init__(self, message: str, run: Run) -> None:
        self.run = run
        super().__init__(message)


class SweepFailed(AsyncDGLError):
    """Some runs of a sweep failed; the others are kept, and the same sweep tries the failed ones again.

    Attributes:
        results: of the runs that are finished.
    """

    def __init__(self, message: str, results: SweepResults) -> None:
        self.results = results
        super().__init__(message)


class Interrupted(KeyboardInterrupt):
    """The run is to stop.

    Attributes:
        status: of the run: ``interrupted``, or ``terminated`` by SIGTERM.
    """

    def __init__(self, status: Literal["interrupted", "terminated"], reason: str = "") -> None:
        self.status: Literal["interrupted", "terminated"] = status
        super().__init__(reason)


class PartFailed(AsyncDGLError):
    """A part of the user's own gave something else than its door asks for; the message names the part."""


class ReplayMismatch(AsyncDGLError):
    """A repeated run differs from its trace; the message names the first pass, or the stage."""


class SampleBlocked(AsyncDGLError):
    """A replay buffer has nothing to give now.

    Attributes:
        reason: ``empty``, ``below_min_size``, ``not_arrived`` or ``reused_up``.
        due: for ``not_arrived``, when the first entry on the way arrives (on the link's clock).
    """

    def __init__(self, reason: str, due: float | None = None) -> None:
        self.reason = reason
        self.due = due
        super().__init__(reason)
