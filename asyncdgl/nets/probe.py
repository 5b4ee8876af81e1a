"""What the blocks of a row make of a mini-batch without data: nothing is assumed of them."""

from __future__ import annotations

import copy

import torch
from torch import nn

from asyncdgl.config.sections import ModelConfig
from asyncdgl.errors import ConfigError
from asyncdgl.nets.row import make_row, network_name
from asyncdgl.nets.shape import Shape

PROBE = 3
"""Images of the mini-batch that goes through the blocks. One would hide a block that takes the batch for a feature."""


def measured_outputs(model: ModelConfig, input_shape: Shape, classes: int) -> list[Shape]:
    """Shape of each block's output, from the first to the last.

    Raises:
        ConfigError: a block can't be used in a row; the message names it.
    """
    name = network_name(model)
    shapes: list[Shape] = []
    with torch.device("meta"), torch.no_grad():
        x = torch.empty(PROBE, *input_shape)
        for number, block in enumerate(make_row(model, input_shape, classes), 1):
            x = _output(f"{name}: block {number}", block, x)
            shapes.append(tuple(x.shape[1:]))
    if not shapes:
        raise ConfigError(f"{name} has no blocks")
    return shapes


def _output(where: str, block: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """What a block makes of the probe, or a message that says what is wrong with it."""
    if not isinstance(block, nn.Module):
        raise ConfigError(f"{where} must be a torch.nn.Module, got {type(block).__name__}")
    where = f"{where} ({type(block).__name__})"
    before = f"[B, {', '.join(str(size) for size in x.shape[1:])}]"
    try:
        output = copy.deepcopy(block).to("meta").eval()(x)
    except Exception as error:  # a part of the user's may raise anything
        raise ConfigError(
            f"{where} can't be called with its one input, {before} as the block before it gives it (tried without "
            f"data, on torch's device meta): {type(error).__name__}: {_first_line(error)}"
        ) from error
    if not isinstance(output, torch.Tensor):
        raise ConfigError(
            f"{where} must return one tensor, which is all that the next stage gets; got {type(output).__name__}"
        )
    if output.dim() < 2 or output.shape[0] != x.shape[0]:
        raise ConfigError(
            f"{where} must keep the batch as the first dimension: {x.shape[0]} images became {list(output.shape)}"
        )
    return output


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0]
