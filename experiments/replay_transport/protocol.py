"""What the three programs share: sizes, what is timed, and how it is told. Needs numpy alone."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field

import numpy as np

COMPUTES_S = 0.05
"""How long a consumer that fetches ahead does something else."""

PAUSE_S = 0.01


@dataclass
class Times:
    """Seconds: a producer's blocked time; from its insert until a sample elsewhere; a sample; one fetched ahead."""

    blocked: list[float] = field(default_factory=list)
    until_sampled: list[float] = field(default_factory=list)
    sample: list[float] = field(default_factory=list)
    sample_ahead: list[float] = field(default_factory=list)

    def without_first(self, count: int) -> Times:
        """All but the first few of each."""
        return Times(*(values[count:] for values in (self.blocked, self.until_sampled, self.sample, self.sample_ahead)))


def made(nbytes: int) -> np.ndarray:
    """An array of so many bytes."""
    return np.random.default_rng(0).integers(0, 256, nbytes, dtype=np.uint8)


def report(measure: Callable[[int, int], Times], arguments: Sequence[str]) -> None:
    """Arguments: bytes and how often. One line of JSON."""
    nbytes, count = int(arguments[0]), int(arguments[1])
    print(json.dumps(asdict(measure(nbytes, count))), flush=True)
