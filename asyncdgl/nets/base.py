"""A stage of a network: some of its blocks in a row, with an auxiliary network on top."""

from __future__ import annotations

import copy
from typing import NamedTuple

import torch
from torch import nn

from asyncdgl.config.resolved import ResolvedConfig
from asyncdgl.config.sections import ModelConfig
from asyncdgl.nets.auxiliary import Auxiliary, short_head
from asyncdgl.nets.outputs import block_outputs
from asyncdgl.nets.row import find_part, make_row
from asyncdgl.nets.shape import Shape, cut
from asyncdgl.seeding import Draws


class StageNet(NamedTuple):
    """A stage's module f_j and the auxiliary network on top of it."""

    module: nn.Module
    aux: nn.Module


def auxiliary_of(model: ModelConfig, is_last: bool) -> Auxiliary:
    """What makes a stage's auxiliary network."""
    auxiliary: Auxiliary = short_head if is_last and model.head == "mlp-2" else find_part("auxiliary", model.aux)
    return auxiliary


def make_stage_net(config: ResolvedConfig, number: int, input_shape: Shape, classes: int) -> StageNet:
    """Stage ``number`` (from 1) of the network.

    Its initial weights depend on (seed, stage) alone; those of a given row are a copy of the row's.

    Args:
        config: the run.
        number: j, 1 to J.
        input_shape: of an image, without the batch.
        classes: of the data set.
    """
    outputs = block_outputs(config.model, input_shape, classes)
    own = cut(len(outputs), config.stages, config.model.cut)[number - 1]
    make_aux = auxiliary_of(config.model, is_last=number == config.stages)
    # torch initialises from its global generator: lend it a keyed seed and put its state back.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(Draws(config.seed, "weights").integer(number))
        row = make_row(config.model, input_shape, classes)
        module = nn.Sequential(*(copy.deepcopy(row[index]) for index in own))
        aux = make_aux(outputs[own[-1]], classes)
    return StageNet(module, aux)


def make_networks(config: ResolvedConfig, input_shape: Shape, classes: int) -> list[StageNet]:
    """What is trained: all J stages, or for ``backprop`` one network with the last stage's head.

    The modules of ``backprop`` start from the same weights as the stages.
    """
    nets = [make_stage_net(config, number, input_shape, classes) for number in range(1, config.stages + 1)]
    if not config.in_one:
        return nets
    return [StageNet(nn.Sequential(*(net.module for net in nets)), nets[-1].aux)]
