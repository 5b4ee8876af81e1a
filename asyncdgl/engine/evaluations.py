"""When the test set is used, and what an evaluation leaves in metrics.jsonl."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from asyncdgl.rundir.records import EvaluationLine


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


def evaluation_line(
    results: Mapping[str, Mapping[str, Any]],
    epoch: int,
    epochs: Sequence[int],
    seconds: float,
    final: bool,
    stage: int | None = None,
) -> EvaluationLine:
    """The line of metrics.jsonl for one evaluation.

    Args:
        results: what ``Evaluator.evaluate`` gave.
        epoch: that the slowest training stage had completed.
        epochs: of each stage, the own epoch of its weights.
        seconds: when that was.
        final: whether the weights are those of the end.
        stage: ``sequential-dgl``: the one that trained.
    """
    measured = {f"{split}_{what}": tuple(values) for split, of in results.items() for what, values in of.items()}
    line = {"epoch": epoch, "epochs": tuple(epochs), "final": final, "end_s": seconds, "stage": stage}
    return EvaluationLine.model_validate({**line, **measured})
