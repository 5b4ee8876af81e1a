"""What a stage's turn needs of a learner, and the learner that computes nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

    from asyncdgl.data.batch import Batch

State = dict[str, "torch.Tensor"]
"""Weights and statistics of a stage, by name."""


@dataclass(frozen=True, slots=True)
class TrainResult:
    """What one training pass gives.

    Attributes:
        output: [B, ...] the module's output, detached, from before the update; None where nothing is computed.
        loss: the stage's own loss, a mean over the batch; None where nothing is computed.
        correct: how many of the batch its own head classified right.
    """

    output: Any
    loss: float | None
    correct: int


def as_arrays(state: State) -> dict[str, NDArray[Any]]:
    """For a file or another process. numpy has no bfloat16: it becomes float32, which holds every value of it."""
    return {name: (value.float() if "bfloat16" in str(value.dtype) else value).numpy() for name, value in state.items()}


class Learner(Protocol):
    """Learns from batches, and knows nothing of time, buffers or other stages."""

    updates: int

    @property
    def completed_epochs(self) -> int:
        """Own epochs completed."""

    @property
    def lr(self) -> float | None:
        """The learning rate of the next update."""

    def train(self, batch: Batch) -> TrainResult:
        """One update."""

    def forward(self, batch: Batch) -> Any:
        """The module's output in evaluation mode; nothing of the learner changes."""

    def published(self) -> State | None:
        """A copy of the weights: what evaluation needs."""

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next update depends on: ``weights``, ``optimizer`` (by kind and name) and ``updates``."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on exactly where ``state_dict`` was taken."""

    def state_sha256(self) -> str | None:
        """Hash of everything that the next update depends on."""


_NOTHING = TrainResult(None, None, 0)


class NoArithmetic:
    """Counts updates and computes nothing: for who read which entry when, in networks that no machine here could train.

    Args:
        updates_per_epoch: updates that make an epoch.
    """

    lr = None

    def __init__(self, updates_per_epoch: int) -> None:
        self._updates_per_epoch = updates_per_epoch
        self.updates = 0

    @property
    def completed_epochs(self) -> int:
        """See ``Learner``."""
        return self.updates // self._updates_per_epoch

    def train(self, batch: Batch) -> TrainResult:
        """Counts."""
        self.updates += 1
        return _NOTHING

    def forward(self, batch: Batch) -> None:
        """Nothing."""

    def published(self) -> None:
        """There are no weights."""

    def state_dict(self) -> dict[str, Any]:
        """See ``Learner``."""
        return {"weights": {}, "optimizer": {}, "updates": self.updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See ``Learner``."""
        self.updates = state["updates"]

    def state_sha256(self) -> None:
        """There is no state."""
