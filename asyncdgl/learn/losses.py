"""Losses of a stage: from its own class scores [B, classes] and the labels [B] to one number (paper, Sec. 2)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn import functional

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""``loss(scores, y)``: scores [B, classes], y [B] int64, to a tensor of no dimension, the mean over the batch."""

SMOOTHING = 0.1


def cross_entropy(scores: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """The paper's."""
    return functional.cross_entropy(scores, y)


def label_smoothing(scores: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Cross-entropy to labels of which a tenth is spread over all classes."""
    return functional.cross_entropy(scores, y, label_smoothing=SMOOTHING)
