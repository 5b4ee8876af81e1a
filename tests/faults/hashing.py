"""A learner whose arithmetic is a hash: equal states and equal inputs, and nothing else, give equal outputs.

So the bits of a whole run can be computed again from its trace alone, in a moment.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from asyncdgl.data.batch import Batch
from asyncdgl.learn.learner import TrainResult

TRAINED, GIVEN, FORWARDED, LOST, MOVED, LEARNT, DATA = range(7)
"""What a number is made for."""


def mixed(*values: int) -> int:
    """A number that depends on all of these."""
    return hash(values) & 0x3FFF_FFFF_FFFF_FFFF


class Value:
    """A number as a tensor is handled."""

    dtype = np.dtype(np.int64)

    def __init__(self, value: int) -> None:
        self._value = value

    def cpu(self) -> Value:
        return self

    def numpy(self) -> Any:
        return np.array([self._value], np.int64)


class State(NamedTuple):
    """Of a stage."""

    weights: int
    momentum: int
    updates: int

    @classmethod
    def first(cls, seed: int, stage: int) -> State:
        return cls(mixed(seed, stage, TRAINED), 0, 0)

    def trained(self, x: int) -> tuple[State, int, float]:
        """The state after an update, what it hands on, and its loss."""
        momentum = mixed(self.momentum, self.weights, x, self.updates, MOVED)
        after = State(mixed(self.weights, momentum, LEARNT), momentum, self.updates + 1)
        return after, mixed(self.weights, x, GIVEN), mixed(self.weights, x, LOST) % 1_000_003 / 1_000_003

    def forwarded(self, x: int) -> int:
        """What it hands on without an update."""
        return mixed(self.weights, x, FORWARDED)

    @property
    def accuracy(self) -> float:
        return self.weights % 1009 / 1009


def data(seed: int, batch: int) -> int:
    """A mini-batch of the data stream."""
    return mixed(seed, batch, DATA)


class HashLearner:
    """See ``Learner``.

    Args:
        seed: of the run.
        stage: its number.
        per_epoch: updates of an epoch.
        compute: takes the time of a pass; returns whether the machine errs.
    """

    lr = 0.1

    def __init__(self, seed: int, stage: int, per_epoch: int, compute: Callable[[], bool]) -> None:
        self.state = State.first(seed, stage)
        self._per_epoch, self._compute = per_epoch, compute

    @property
    def updates(self) -> int:
        return self.state.updates

    @property
    def completed_epochs(self) -> int:
        return self.updates // self._per_epoch

    def train(self, batch: Batch) -> TrainResult:
        errs = self._compute()  # first: what it reads has to stay where it is until the pass is over
        self.state, output, loss = self.state.trained(int(batch.x[0]) + errs)
        return TrainResult(output, loss, 1)

    def forward(self, batch: Batch) -> int:
        self._compute()
        return self.state.forwarded(int(batch.x[0]))

    def published(self) -> dict[str, Any]:
        return {"w": Value(self.state.weights)}

    def state_dict(self) -> dict[str, Any]:
        momentum = {"momentum": {"w": Value(self.state.momentum)}}
        return {"weights": self.published(), "optimizer": momentum, "updates": self.updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        momentum = state["optimizer"].get("momentum", {}).get("w", [0])
        self.state = State(int(state["weights"]["w"][0]), int(momentum[0]), state["updates"])

    def state_sha256(self) -> str:
        return str(self.state)


class HashHandling:
    """See ``Handling``."""

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def fresh(self, number: int) -> Batch:
        return Batch([data(self._seed, number)], None, number)  # type: ignore[arg-type]

    def read(self, sample: Any) -> Batch:
        return Batch(sample.payload["x"], sample.payload["y"], sample.source.batch)

    def write(self, output: int, batch: Batch, step: int) -> tuple[Any, int]:
        return {"x": Value(output), "y": Value(batch.number)}, 16


class HashEvaluator:
    """See ``Evaluator``."""

    def __init__(self, compute: Callable[[], None]) -> None:
        self._compute = compute

    def evaluate(self, published: Sequence[Any]) -> dict[str, dict[str, Any]]:
        self._compute()
        values = [State(int(state["w"][0]), 0, 0).accuracy for state in published]
        return {"test": {"accuracy": values, "ensemble_accuracy": values, "loss": values}}
