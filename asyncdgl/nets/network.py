"""From a configuration to the J pairs of module f_j and auxiliary network."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn

from asyncdgl.config.resolved import ResolvedConfig
from asyncdgl.nets.auxiliary import AUXILIARY, short_head
from asyncdgl.nets.blocks import make_block
from asyncdgl.nets.shape import block_shapes, cut
from asyncdgl.seeding import Draws


class StageNet(NamedTuple):
    """A stage's module f_j and the auxiliary network on top of it."""

    module: nn.Module
    aux: nn.Module


def make_stage_net(config: ResolvedConfig, number: int, channels: int, classes: int) -> StageNet:
    """Stage ``number`` (from 1) of the network; its initial weights depend on (seed, stage) alone.

    Args:
        config: the run.
        number: j, 1 to J.
        channels: of the images.
        classes: of the data set.
    """
    shapes = block_shapes(config.model, channels, config.data.image_size)
    own = [shapes[index] for index in cut(config.model, config.stages)[number - 1]]
    is_last = number == config.stages
    make_aux = short_head if is_last and config.model.head == "mlp-2" else AUXILIARY[config.model.aux]
    # torch initialises from its global generator: lend it a keyed seed and put its state back.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(Draws(config.seed, "weights").integer(number))
        module = nn.Sequential(*(make_block(shape) for shape in own))
        aux = make_aux(own[-1].features, own[-1].pixels, classes)
    return StageNet(module, aux)


def make_networks(config: ResolvedConfig, channels: int, classes: int) -> list[StageNet]:
    """What is trained: all J stages, or for ``backprop`` one network with the last stage's head.

    The modules of ``backprop`` start from the same weights as the stages.
    """
    nets = [make_stage_net(config, number, channels, classes) for number in range(1, config.stages + 1)]
    if config.algorithm != "backprop":
        return nets
    return [StageNet(nn.Sequential(*(net.module for net in nets)), nets[-1].aux)]
