"""Pace ``profile``: which pass may start when, so that relative speeds are the profile's whatever the hardware."""

from __future__ import annotations


class Pace:
    """Keeps the profile clocks of all stages together. Reads no clock of its own and never waits.

    Pass k of stage j may start when v_j(k) <= min v_i + window, the minimum over the stages that are able to move. A
    stage that waits for something else, or has stopped, holds nobody; when it moves again its clock is set to the
    minimum if it was behind.

    Attributes:
        now: the time in steps: the largest minimum so far. Latencies in steps pass on it.
    """

    def __init__(self, window: float) -> None:
        self._window = window
        self._moving: dict[int, float] = {}
        self._awaited: dict[int, float] = {}
        self.now = 0.0

    def request(self, stage: int, v: float) -> float | None:
        """Stage ``stage`` is able to make a pass at its clock ``v``.

        Returns:
            The clock at which the pass starts, or None while it has to wait for others.
        """
        self._awaited.pop(stage, None)
        if stage not in self._moving:
            v = max(v, self.now)
        self._moving[stage] = max(v, self._moving.get(stage, v))
        self._advance()
        v = self._moving[stage]
        return v if v <= min(self._moving.values()) + self._window else None

    def release(self, stage: int) -> None:
        """The stage waits for something else, or has stopped: it holds nobody."""
        self._awaited.pop(stage, None)
        if self._moving.pop(stage, None) is not None:
            self._advance()

    def expect(self, stage: int, time: float) -> None:
        """Stage ``stage`` waits for an entry that arrives at ``time``; from then on it is able to move."""
        self._moving.pop(stage, None)
        self._awaited[stage] = time
        self._advance()

    def _advance(self) -> None:
        """The time follows the slowest moving stage; where nobody moves, it jumps to the next arrival."""
        times = self._moving or self._awaited
        if times:
            self.now = max(self.now, min(times.values()))
        # Who has what it waited for counts as moving before it asks: the time must not run away from it.
        arrived = [stage for stage, time in self._awaited.items() if time <= self.now]
        for stage in arrived:
            del self._awaited[stage]
            self._moving.setdefault(stage, self.now)
