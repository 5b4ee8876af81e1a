"""The profile clock: how long each pass of a stage takes, in steps."""

from typing import NamedTuple

from asyncdgl.delays.laws import Law
from asyncdgl.delays.profiles import StageDelay
from asyncdgl.seeding import Draws


class PassLength(NamedTuple):
    """What one pass takes: ``step`` in steps of an unslowed stage, then a ``pause`` in the profile's unit."""

    step: float
    pause: float


class ProfileClock:
    """Lengths of the passes of one stage: v(k+1) = v(k) + step + pause. Every runtime reads this one function.

    Args:
        delay: the stage's delay.
        draws: keyed by (seed, stage); the pass number is the rest of the key.
    """

    def __init__(self, delay: StageDelay, draws: Draws) -> None:
        self.delay = delay
        self._draws = draws
        self._quantile = Law(law=delay.step_law, mean=delay.slowdown).quantile
        self._always = PassLength(delay.slowdown, 0.0) if delay.step_law == "constant" and delay.pause is None else None

    def length(self, step: int) -> PassLength:
        """The length of pass ``step`` (from 0)."""
        if self._always is not None:
            return self._always
        delay = self.delay
        length = delay.slowdown
        if delay.step_law != "constant":
            length = self._quantile(self._draws.uniform("step", step))
        pause = 0.0
        if delay.pause is not None and self._draws.uniform("pause", step) < delay.pause.probability:
            pause = delay.pause.length
        return PassLength(length, pause)
