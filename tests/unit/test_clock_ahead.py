"""Machines' monotonic clocks count from their start: the driver asks how far another one is ahead."""

from __future__ import annotations

import time

import pytest

from asyncdgl.on_ray.greeting import clock_ahead


@pytest.mark.parametrize("ahead_s", [1e5, -3600.0])
def test_the_shortest_round_trip_counts(ahead_s) -> None:
    delays = iter([0.3, 0.2, 0.002, 0.1, 0.2])  # all of it on the way there: the middle would be wrong by half

    def read() -> float:
        time.sleep(next(delays))
        return time.monotonic() + ahead_s

    assert clock_ahead(read) == pytest.approx(ahead_s, abs=0.03)
