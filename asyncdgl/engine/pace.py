"""Pace ``profile``: which pass may start when, so that relative speeds are the profile's whatever the hardware."""

from __future__ import annotations

from heapq import heappop, heappush


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
        self._moving = _Earliest()
        self._awaited = _Earliest()
        self.now = 0.0

    def request(self, stage: int, v: float) -> float | None:
        """Stage ``stage`` is able to make a pass at its clock ``v``.

        Returns:
            The clock at which the pass starts, or None while it has to wait for others.
        """
        self._awaited.remove(stage)
        before = self._moving.get(stage)
        if before is None or before < v:
            v = max(v, self.now)
            self._moving.put(stage, v)
            earliest = self._advance()
        else:
            v, earliest = before, self._moving.earliest()
        return v if earliest is None or v <= earliest + self._window else None

    def release(self, stage: int) -> None:
        """The stage waits for something else, or has stopped: it holds nobody."""
        self._awaited.remove(stage)
        if self._moving.remove(stage):
            self._advance()

    def expect(self, stage: int, time: float) -> None:
        """Stage ``stage`` waits for an entry that arrives at ``time``; from then on it is able to move."""
        self._moving.remove(stage)
        self._awaited.put(stage, time)
        self._advance()

    @property
    def limit(self) -> float | None:
        """Passes up to this clock may start; None while nobody moves."""
        earliest = self._moving.earliest()
        return None if earliest is None else earliest + self._window

    def _advance(self) -> float | None:
        """The time follows the slowest moving stage; where nobody moves, it jumps to the next arrival.

        Returns:
            The clock of the slowest moving stage, if any moves.
        """
        slowest = self._moving.earliest()
        time = self._awaited.earliest() if slowest is None else slowest
        if time is not None and time > self.now:
            self.now = time
        # Who has what it waited for counts as moving before it asks: the time must not run away from it.
        while (first := self._awaited.earliest()) is not None and first <= self.now:
            stage = self._awaited.pop()
            if self._moving.get(stage) is None:
                self._moving.put(stage, self.now)
            slowest = self._moving.earliest()
        return slowest


class _Earliest:
    """A time for each of some stages, and the earliest of them without looking at all: there may be a thousand."""

    def __init__(self) -> None:
        self._times: dict[int, float] = {}
        self._heap: list[tuple[float, int]] = []  # also holds what was replaced or removed since

    def get(self, stage: int) -> float | None:
        return self._times.get(stage)

    def put(self, stage: int, time: float) -> None:
        if self._times.get(stage) != time:
            self._times[stage] = time
            heappush(self._heap, (time, stage))

    def remove(self, stage: int) -> bool:
        return self._times.pop(stage, None) is not None

    def earliest(self) -> float | None:
        heap, times = self._heap, self._times
        while heap:
            time, stage = heap[0]
            if times.get(stage) == time:
                return time
            heappop(heap)
        return None

    def pop(self) -> int:
        """Remove the stage with the earliest time."""
        self.earliest()
        _, stage = heappop(self._heap)
        del self._times[stage]
        return stage
