"""A mini-batch of activations or images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


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
