"""The errors that a user can meet. Each carries a message that says what was expected and how to mend it."""

from collections.abc import Sequence


class AsyncDGLError(Exception):
    """Base of all errors that asyncdgl raises on purpose."""


class ConfigError(AsyncDGLError):
    """The configuration can't be run. Lists every problem found, not only the first."""

    def __init__(self, problems: str | Sequence[str]) -> None:
        self.problems = [problems] if isinstance(problems, str) else list(problems)
        super().__init__("\n".join(self.problems))

    def __reduce__(self) -> tuple[type["ConfigError"], tuple[list[str]]]:
        return ConfigError, (self.problems,)


class DataError(AsyncDGLError):
    """The images can't be used: missing, empty, corrupt or too few."""


class StageFailed(AsyncDGLError):
    """A process of a run died or raised; the message names the stage and what it was doing.

    Attributes:
        process: the name of the process that it happened to, where that is known.
    """

    def __init__(self, message: str, process: str | None = None) -> None:
        self.process = process
        super().__init__(message)


class Diverged(StageFailed):
    """A stage's loss is not finite: the run is a result, but has no accuracy."""


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
