"""What a stage's turn needs of a learner; and a learner that computes nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

if TYPE_CHECKING:
    from asyncdgl.data.batch import ActivationBatch
    from asyncdgl.learn.stage import State


class Learned(NamedTuple):
    """What one training pass gives.

    Attributes:
        output: the module's output, detached, from before the update.
        loss: of the stage's own head; None where nothing is computed.
        correct: images of the batch that it classified right.
    """

    output: Any
    loss: float | None
    correct: int


class Learner(Protocol):
    """One decoupled learner: it sees batches and its own loss, and knows nothing of time, buffers or other stages.

    Attributes:
        updates: passes with an optimizer step so far.
    """

    updates: int

    @property
    def lr(self) -> float | None:
        """The learning rate of the next update."""

    def train(self, batch: ActivationBatch) -> Learned:
        """One update on the stage's own loss (Algorithms 1 and 2: update of theta_j and gamma_j)."""

    def forward(self, batch: ActivationBatch) -> Any:
        """The module's output in evaluation mode; nothing of the stage changes."""

    def published(self) -> State:
        """A copy of the weights and buffers: what evaluation needs."""

    def state_sha256(self) -> str | None:
        """Hash of all that the next update depends on; None where there is no state."""


class NoArithmetic:
    """Counts its updates and computes nothing: who reads which entry when, in networks larger than any machine."""

    lr = None

    def __init__(self) -> None:
        self.updates = 0

    def train(self, batch: ActivationBatch) -> Learned:
        """See ``Learner``."""
        self.updates += 1
        return _NOTHING

    def forward(self, batch: ActivationBatch) -> None:
        """See ``Learner``."""

    def published(self) -> State:
        """See ``Learner``."""
        return {}

    def state_sha256(self) -> None:
        """See ``Learner``."""


_NOTHING = Learned(None, None, 0)
