"""Accuracy of every head, and of ensembles of the heads, on data that was not trained on.

The loss is the cross-entropy, whatever the stages make small, so that runs with different losses can be compared.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from asyncdgl.config.resolved import ResolvedConfig
from asyncdgl.data.dataset import Dataset, Images
from asyncdgl.data.stream import in_order
from asyncdgl.learn.learner import State
from asyncdgl.learn.stage import Stage, make_stages

EVALUATION_BATCH = 250


class Evaluator:
    """Copies of all stages in a row, into which published weights are loaded.

    Args:
        stages: one instance of each stage, owned by the evaluator.
        dataset: whose test and validation images are used.
    """

    def __init__(self, stages: Sequence[Stage], dataset: Dataset) -> None:
        self._stages = list(stages)
        self._dataset = dataset

    def evaluate(
        self, published: Sequence[State], check: Callable[[], None] = lambda: None
    ) -> dict[str, dict[str, Any]]:
        """Evaluate weights that stages 1 … J published.

        Args:
            published: a state of each stage.
            check: called between batches; raises where the run is to stop.

        Returns:
            ``test``, and ``validation`` where there is such a share: each with ``accuracy`` and ``loss`` of heads
            1 … J, and ``ensemble_accuracy`` of the ensembles of heads 1 … n, for every n.
        """
        for stage, state in zip(self._stages, published, strict=True):
            stage.load_published(state)
        results = {"test": self._evaluate(self._dataset.test, check)}
        if self._dataset.validation is not None:
            results["validation"] = self._evaluate(self._dataset.validation, check)
        return results

    def _evaluate(self, images: Images, check: Callable[[], None]) -> dict[str, Any]:
        heads = len(self._stages)
        correct, ensemble_correct, loss = [0] * heads, [0] * heads, [0.0] * heads
        for batch in in_order(self._dataset, images, EVALUATION_BATCH):
            check()
            x, weighted = batch.x, torch.zeros(())
            for head, stage in enumerate(self._stages):
                x, scores = stage.scores(x)
                scores = scores.cpu()
                # Ensemble of heads 1 … n (paper's scripts): scores weighted by powers of two, the last head the most.
                weighted = weighted + 2.0**head * scores
                correct[head] += int((scores.argmax(1) == batch.y).sum())
                loss[head] += float(cross_entropy(scores, batch.y, reduction="sum"))
                ensemble = weighted / (2.0 ** (head + 1) - 1)
                ensemble_correct[head] += int((ensemble.argmax(1) == batch.y).sum())
        count = len(images)
        return {
            "accuracy": [c / count for c in correct],
            "ensemble_accuracy": [c / count for c in ensemble_correct],
            "loss": [value / count for value in loss],
        }


def make_evaluator(config: ResolvedConfig, dataset: Dataset) -> Evaluator:
    """Copies of all stages for evaluation."""
    return Evaluator(make_stages(config, dataset), dataset)
