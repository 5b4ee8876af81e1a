"""Parameters and arithmetic, found on tensors without data: nothing is assumed of the blocks."""

from __future__ import annotations

import copy
from typing import NamedTuple

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from asyncdgl.config.resolved import ResolvedConfig
from asyncdgl.config.sections import ModelConfig
from asyncdgl.nets.base import make_networks
from asyncdgl.nets.probe import measured_outputs
from asyncdgl.nets.row import make_row
from asyncdgl.nets.shape import Shape


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


def _parameters(part: nn.Module) -> int:
    return sum(parameter.numel() for parameter in part.parameters())


def _counted(part: nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, int]:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        output = part(x)
    return output, counter.get_total_flops() // 2
