"""What is measured while a run goes on, and when the test set is due."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from asyncdgl.trace import TRAIN, PassRecord, batch_age, by_stage, distribution, staleness


class EpochMeter:
    """Mean loss and accuracy of a stage's updates since its epoch began."""

    def __init__(self, batch_size: int) -> None:
        self._batch_size = batch_size
        self.reset()

    def reset(self) -> None:
        """A new epoch begins."""
        self._updates, self._loss, self._correct = 0, 0.0, 0

    def add(self, loss: float, correct: int) -> None:
        """Count one update."""
        self._updates += 1
        self._loss += loss
        self._correct += correct

    @property
    def loss(self) -> float | None:
        """Mean training loss, or None before the first update."""
        return self._loss / self._updates if self._updates else None

    @property
    def accuracy(self) -> float | None:
        """Share of training images classified right, or None before the first update."""
        return self._correct / (self._updates * self._batch_size) if self._updates else None


class EvaluationSchedule:
    """When the test set is used: each time the slowest stage completes an epoch that is due, but not the last.

    The last epoch needs no turn here: a run that ends is evaluated with its final weights.
    """

    def __init__(self, stages: int, epochs: int, every: int) -> None:
        self._completed = dict.fromkeys(range(1, stages + 1), 0)
        self._epochs = epochs
        self._every = every
        self._evaluated = 0

    def completed(self, stage: int, epoch: int) -> list[int]:
        """Stage ``stage`` has completed its own epoch ``epoch``; returns the epochs whose evaluation is now due."""
        self._completed[stage] = epoch
        slowest = min(self._completed.values())
        due = [e for e in range(self._evaluated + 1, slowest + 1) if e % self._every == 0 and e < self._epochs]
        self._evaluated = max(self._evaluated, slowest)
        return due


@dataclass(frozen=True)
class StageEnd:
    """What a stage reports when it ends.

    Attributes:
        updates, forward_passes, epochs: its own counts.
        state_sha256: hash of its final state.
        fetched_unused: entries fetched ahead and never used.
        lost_turns: ``sim`` only: turns lost, by reason.
    """

    updates: int
    forward_passes: int
    epochs: int
    state_sha256: str | None
    fetched_unused: int = 0
    lost_turns: Mapping[str, int] | None = None


def stage_summaries(
    records: Sequence[PassRecord],
    ends: Mapping[int, StageEnd],
    train_seconds: float,
    test_accuracy: Sequence[float | None],
) -> list[dict[str, Any]]:
    """The list ``stages`` of summary.json."""
    stages = by_stage(records)
    summaries: list[dict[str, Any]] = []
    for number, end in sorted(ends.items()):
        passes = stages.get(number, [])
        waits: Counter[str] = Counter()
        for record in passes:
            if record.waits:
                waits.update(record.waits)
        busy = sum(record.end_s - record.start_s for record in passes)
        reuse = [r.times_sampled for r in passes if r.kind == TRAIN and r.times_sampled is not None]
        summary = {
            "stage": number,
            "updates": end.updates,
            "forward_passes": end.forward_passes,
            "epochs": end.epochs,
            "test_accuracy": test_accuracy[number - 1],
            "busy_fraction": busy / train_seconds if train_seconds > 0 else 0.0,
            "wait_seconds": dict(waits),
            "staleness": distribution(staleness(passes, stages.get(number - 1, []))),
            "batch_age": distribution(batch_age(passes, stages.get(1, []))),
            "times_sampled": distribution(_array(reuse)),
            "state_sha256": end.state_sha256,
        }
        if end.lost_turns is not None:
            summary["lost_turns"] = dict(end.lost_turns)
        summaries.append(summary)
    return summaries


def _array(values: Sequence[int]) -> Any:
    import numpy as np

    return np.array(values, np.int64)
