"""Shapes, parameters and arithmetic, found on tensors without data: nothing is assumed of the blocks."""

from __future__ import annotations

import copy
from typing import NamedTuple

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from asyncdgl.config.resolved import ResolvedConfig
from asyncdgl.config.sections import ModelConfig
from asyncdgl.errors import ConfigError
from asyncdgl.nets.base import make_networks, make_row, network_name
from asyncdgl.nets.shape import Shape

PROBE = 3
"""Images of the mini-batch that goes through the blocks. One would hide a block that takes the batch for a feature."""


class StageCost(NamedTuple):
    """Parameters and multiply-adds of one image's forward pass, of the module and of its auxiliary network."""

    module_parameters: int
    aux_parameters: int
    module_multiply_adds: int
    aux_multiply_adds: int


def stage_costs(config: ResolvedConfig, input_shape: Shape, classes: int) -> list[StageCost]:
    """The cost of every stage. Training a pass takes about three times the forward arithmetic."""
    costs = []
    with torch.device("meta"):
        x = torch.empty(1, *input_shape)
        for net in make_networks(config, input_shape, classes):
            module, aux = net.module.to("meta").eval(), net.aux.to("meta").eval()
            output, module_cost = _counted(module, x)
            _, aux_cost = _counted(aux, output)
            costs.append(StageCost(_parameters(module), _parameters(aux), module_cost, aux_cost))
            x = output
    return costs


def block_multiply_adds(model: ModelConfig, input_shape: Shape, classes: int) -> list[int]:
    """Multiply-adds of each block's forward pass over one image.

    Raises:
        ConfigError: see ``measured_outputs``.
    """
    measured_outputs(model, input_shape, classes)
    counts = []
    with torch.device("meta"):
        x = torch.empty(1, *input_shape)
        for block in make_row(model, input_shape, classes):
            x, count = _counted(copy.deepcopy(block).to("meta").eval(), x)
            counts.append(count)
    return counts


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


def _parameters(part: nn.Module) -> int:
    return sum(parameter.numel() for parameter in part.parameters())


def _counted(part: nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, int]:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        output = part(x)
    return output, counter.get_total_flops() // 2


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
