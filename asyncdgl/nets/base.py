"""A network is a row of blocks; a stage is some of them in a row, with an auxiliary network on top."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import nn

from asyncdgl.config.resolved import ResolvedConfig
from asyncdgl.config.sections import ModelConfig
from asyncdgl.errors import ConfigError
from asyncdgl.nets.auxiliary import Auxiliary, short_head
from asyncdgl.nets.shape import Shape, block_outputs, cut
from asyncdgl.registry import GIVEN, find
from asyncdgl.seeding import Draws


class Network(Protocol):
    """Makes a row of blocks: each reads what the one before it gives, and the network is cut between them.

    Random numbers come from torch alone, which is given a keyed seed. A row may make its blocks as they are asked for.
    """

    def __call__(self, input_shape: Shape, classes: int, **options: Any) -> Sequence[nn.Module]:
        """The blocks, for images or vectors [B, *input_shape] of so many classes."""


Blocks = Network | nn.Sequential
"""A network as an object: what makes the row, or the row itself, whose weights are then the ones to begin with."""


class StageNet(NamedTuple):
    """A stage's module f_j and the auxiliary network on top of it."""

    module: nn.Module
    aux: nn.Module


def make_row(model: ModelConfig, input_shape: Shape, classes: int) -> Sequence[nn.Module]:
    """The blocks of the network that ``model.name`` names.

    Raises:
        ConfigError: it can't be made.
    """
    part = _found("network", model.name)
    if isinstance(part, nn.Sequential):
        return list(part)
    options: Mapping[str, Any] = model.options
    if model.name == "conv":
        options = {"blocks": model.blocks, "width": model.width, "downsample": model.downsample}
    try:
        row: Sequence[nn.Module] = part(input_shape, classes, **options)
    except ConfigError:
        raise
    except Exception as error:  # a part of the user's may raise anything
        raise ConfigError(
            f"{network_name(model)} can't be made for input {input_shape} and {classes} classes: "
            f"{type(error).__name__}: {error}"
        ) from error
    if not hasattr(row, "__len__") or not hasattr(row, "__getitem__"):
        raise ConfigError(f"{network_name(model)} must give a list of blocks, got {type(row).__name__}")
    return row


def network_name(model: ModelConfig) -> str:
    """The network as messages call it."""
    if model.name != GIVEN:
        return f"network {model.name}"
    part = find("network", GIVEN)
    return f"the given {getattr(part, '__name__', type(part).__name__)}"


def auxiliary_of(model: ModelConfig, is_last: bool) -> Auxiliary:
    """What makes a stage's auxiliary network."""
    auxiliary: Auxiliary = short_head if is_last and model.head == "mlp-2" else _found("auxiliary", model.aux)
    return auxiliary


def _found(kind: str, name: str) -> Any:
    """A part; while its module is imported, what it makes on the way is real, also where shapes are being found."""
    with torch.device("cpu"):
        return find(kind, name)


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
    if config.algorithm != "backprop":
        return nets
    return [StageNet(nn.Sequential(*(net.module for net in nets)), nets[-1].aux)]
