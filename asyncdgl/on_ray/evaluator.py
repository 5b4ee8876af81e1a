"""The actor that evaluates published weights beside the training."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ray

from asyncdgl.config.resolved import ResolvedConfig
from asyncdgl.data.dataset import open_dataset
from asyncdgl.learn.arithmetic import set_up_torch
from asyncdgl.learn.evaluation import make_evaluator
from asyncdgl.on_ray.greeting import hello
from asyncdgl.registry import handed_over


class EvaluationActor:
    """Evaluates published weights beside the training."""

    def __init__(self, config: ResolvedConfig, data: Path, given: Mapping[str, Any]) -> None:
        set_up_torch(config)
        self._config = config
        with handed_over(given):
            self._evaluator = make_evaluator(config, open_dataset(config, data))

    def hello(self) -> dict[str, Any]:
        """See ``hello``."""
        return hello()

    def evaluate(self, published: list[Any]) -> dict[str, dict[str, Any]]:
        """See ``Evaluator.evaluate``; the weights come as references to numpy arrays."""
        import torch

        set_up_torch(self._config)  # see StageActor.run
        states = [{name: torch.from_numpy(value.copy()) for name, value in s.items()} for s in ray.get(published)]
        return self._evaluator.evaluate(states)
