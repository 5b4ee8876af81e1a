"""A mini-batch of activations or images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Batch:
    """What a stage reads: the output of the stage before it, or images.

    Attributes:
        x: [B, C, H, W] (channels-last in memory), [B, T, D] or [B, D].
        y: [B] classes, int64.
        number: of the mini-batch in the data stream.
    """

    x: torch.Tensor
    y: torch.Tensor
    number: int
