"""A mini-batch of activations and where it came from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import torch


class PassName(NamedTuple):
    """The one unique name of a pass, and of the entry that it makes: a batch can be forwarded twice."""

    stage: int
    incarnation: int
    step: int


class Provenance(NamedTuple):
    """Where a batch of activations came from.

    Attributes:
        name: the pass that made it.
        update: the producer's updates completed before that pass.
        trained: whether that pass was itself an update.
        batch: the mini-batch of the data stream that it goes back to.
    """

    name: PassName
    update: int
    trained: bool
    batch: int


@dataclass(frozen=True)
class ActivationBatch:
    """What a stage reads: the output of the stage before it, or images.

    Attributes:
        x: [B, C, H, W] activations, channels-last in memory.
        y: [B] classes, int64.
        batch: number of the mini-batch in the data stream.
    """

    x: torch.Tensor
    y: torch.Tensor
    batch: int
