"""Parameters and arithmetic of each stage, counted on tensors without data."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch.utils.flop_counter import FlopCounterMode

from asyncdgl.config.resolved import ResolvedConfig
from asyncdgl.nets.network import make_networks


class StageCost(NamedTuple):
    """Parameters and multiply-adds of one image's forward pass, of the module and of its auxiliary network."""

    module_parameters: int
    aux_parameters: int
    module_multiply_adds: int
    aux_multiply_adds: int


def stage_costs(config: ResolvedConfig, channels: int, classes: int) -> list[StageCost]:
    """The cost of every stage. Training a pass takes about three times the forward arithmetic."""
    costs = []
    with torch.device("meta"):
        nets = make_networks(config, channels, classes)
        x = torch.empty(1, channels, config.data.image_size, config.data.image_size)
        for net in nets:
            counts = []
            for part in (net.module.eval(), net.aux.eval()):
                with FlopCounterMode(display=False) as counter, torch.no_grad():
                    out = part(x)
                counts.append(counter.get_total_flops() // 2)
                if part is net.module:
                    x = out
            sizes = [sum(p.numel() for p in part.parameters()) for part in net]
            costs.append(StageCost(*sizes, *counts))
    return costs
