"""What a sweep's tables say of a run, and of several runs that differ in their seed alone."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from asyncdgl.rundir.records import Summary

CONFIDENCE = 0.95

Measure = Callable[[Summary], float | None]


def _mean(values: Iterable[float | None]) -> float | None:
    there = [value for value in values if value is not None]
    return statistics.fmean(there) if there else None


def _at_the_same_time(summary: Summary) -> bool:
    """Whether stages compute at the same time: in `sim` they take turns, and times say nothing of the algorithm."""
    return summary.runtime != "sim"


def _updates_per_time(summary: Summary) -> float | None:
    real = summary.runtime == "ray" and summary.train_seconds > 0
    return summary.stages[-1].updates / summary.train_seconds if real else None


MEASURES: Mapping[str, Measure] = {
    "test_accuracy": lambda s: s.test_accuracy,
    "ensemble_test_accuracy": lambda s: s.ensemble_test_accuracy,
    "validation_accuracy": lambda s: s.validation_accuracy,
    "ensemble_validation_accuracy": lambda s: s.ensemble_validation_accuracy,
    "staleness": lambda s: _mean(stage.staleness.mean for stage in s.stages),
    "batch_age": lambda s: s.stages[-1].batch_age.mean,
    "batches_unseen": lambda s: s.stages[-1].batches_unseen if len(s.stages) > 1 else None,
    "times_sampled": lambda s: _mean(stage.times_sampled.mean for stage in s.stages),
    "entries_held": lambda s: _mean(buffer.mean_held for buffer in s.buffers),
    "busy_fraction": lambda s: _mean(stage.busy_fraction for stage in s.stages) if _at_the_same_time(s) else None,
    "updates_per_time": _updates_per_time,
    "train_seconds": lambda s: s.train_seconds if _at_the_same_time(s) else None,
}
"""Accuracies and batches_unseen are fractions. Staleness (producer's updates), times_sampled, busy_fraction and
entries_held (entries that a reader could choose from) are means over the stages or buffers that have them; batch_age
(batches), batches_unseen and updates_per_time are of the last stage. Times are seconds, or steps in a virtual run
without step times; None in runtimes where they say nothing.
"""


def measured(summary: Summary) -> dict[str, float]:
    """Every measure that a run has; none of one that diverged."""
    if summary.status != "completed":
        return {}
    return {name: value for name, measure in MEASURES.items() if (value := measure(summary)) is not None}


@dataclass(frozen=True)
class Estimate:
    """Mean of a measure over seeds, with its standard deviation and 95 % interval (Student's t); None below two."""

    mean: float
    sd: float | None
    low: float | None
    high: float | None
    count: int


def estimate(values: Sequence[float]) -> Estimate:
    """Mean, standard deviation and interval of one or more numbers."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return Estimate(mean, None, None, None, len(values))
    from scipy.stats import t

    sd = statistics.stdev(values)
    half = float(t.ppf((1 + CONFIDENCE) / 2, len(values) - 1)) * sd / math.sqrt(len(values))
    return Estimate(mean, sd, mean - half, mean + half, len(values))
