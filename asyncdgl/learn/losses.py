"""Losses of a stage: from its own class scores [B, classes] and the labels [B] to one number (paper, Sec. 2)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn import functional

from asyncdgl.errors import ConfigError
from asyncdgl.registry import find

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""``loss(scores, y)``: scores [B, classes], y [B] int64, to a tensor of no dimension, the mean over the batch."""

SMOOTHING = 0.1


def cross_entropy(scores: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """The paper's."""
    return functional.cross_entropy(scores, y)


def label_smoothing(scores: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Cross-entropy to labels of which a tenth is spread over all classes."""
    return functional.cross_entropy(scores, y, label_smoothing=SMOOTHING)


def check_loss(name: str, classes: int) -> None:
    """Whether a loss of one's own makes one number of scores, with a gradient.

    Raises:
        ConfigError: it fails, or gives something else.
    """
    loss: Loss = find("loss", name)
    scores, y = torch.zeros(classes, classes, requires_grad=True), torch.arange(classes)
    try:
        found = loss(scores, y)
    except Exception as error:  # a part of the user's may raise anything
        raise ConfigError(f"loss {name} fails on scores {[classes] * 2}: {type(error).__name__}: {error}") from error
    if not isinstance(found, torch.Tensor) or found.dim() or not found.requires_grad:
        got = f"shape {list(found.shape)}" if isinstance(found, torch.Tensor) else type(found).__name__
        raise ConfigError(
            f"loss {name} must give a tensor of no dimension that scores have a gradient of (the mean over the batch), "
            f"got {got}"
        )
