"""Whether a network can be trained in stages, asked once, before anything is made: on tensors without data."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from asyncdgl.config.resolved import ResolvedConfig
from asyncdgl.errors import ConfigError
from asyncdgl.nets.base import auxiliary_of
from asyncdgl.nets.outputs import block_outputs
from asyncdgl.nets.probe import PROBE
from asyncdgl.nets.row import make_row, network_name
from asyncdgl.nets.shape import Shape, cut


def check_network(config: ResolvedConfig, input_shape: Shape, classes: int) -> None:
    """Build every stage without data, and let a mini-batch without data pass.

    Args:
        config: the run.
        input_shape: of an image, without the batch.
        classes: of the data set.

    Raises:
        ConfigError: with one message that names the block, the stage or the auxiliary network which can't be used.
    """
    name = network_name(config.model)
    outputs = block_outputs(config.model, input_shape, classes)
    if len(outputs) < config.stages:
        raise ConfigError(
            f"stages must be at most the blocks of {name}, {len(outputs)}, since a stage is at least one block; got "
            f"{config.stages}"
        )
    lasts = config.model.cut
    if lasts is not None and max(lasts, default=0) >= len(outputs):
        raise ConfigError(f"model.cut must name blocks below the last one of {name}, {len(outputs)}; got {list(lasts)}")
    with torch.device("meta"):
        row = list(make_row(config.model, input_shape, classes))
        _check_sharing(name, row)
        row = [copy.deepcopy(block).to("meta").eval() for block in row]
        x = torch.empty(PROBE, *input_shape)
        for number, blocks in enumerate(cut(len(row), config.stages, lasts), 1):
            module = nn.Sequential(*(row[index] for index in blocks))
            which = f"block {blocks[0] + 1}" if len(blocks) == 1 else f"blocks {blocks[0] + 1} to {blocks[-1] + 1}"
            if not config.in_one and not any(p.requires_grad for p in module.parameters()):
                raise ConfigError(
                    f"stage {number} ({which} of {name}) has no parameters that learn: join it with others "
                    "(model.cut), or use fewer --stages"
                )
            x = _checked_output(f"stage {number} ({which} of {name})", module, x)
            is_last = number == config.stages
            if is_last or not config.in_one:
                _check_auxiliary(config, number, outputs[blocks[-1]], classes, is_last)


def _check_sharing(name: str, row: Sequence[nn.Module]) -> None:
    """No block may hold what another one holds: in stages of their own, each would have a copy."""
    owner: dict[int, int] = {}
    for number, block in enumerate(row, 1):
        for what, tensor in (*block.named_parameters(), *block.named_buffers()):
            if is_lazy(tensor):
                raise ConfigError(f"{name}: block {number}: {what} has no shape before its first use: give its size")
            if owner.setdefault(id(tensor), number) != number:
                raise ConfigError(
                    f"{name}: block {number} shares {what} with block {owner[id(tensor)]}, but stages learn apart from "
                    "each other: make a module of its own for each block"
                )


def _checked_output(where: str, module: nn.Module, x: torch.Tensor) -> torch.Tensor:
    x = x.detach()
    before = x._version  # torch counts the changes of a tensor in place
    with torch.no_grad():
        module.train()(x)
        output: torch.Tensor = module.eval()(x)
    if x._version != before:
        raise ConfigError(
            f"{where} changes its input in place, and the replay buffer gives it again: use inplace=False"
        )
    return output


def _check_auxiliary(config: ResolvedConfig, number: int, output_shape: Shape, classes: int, is_last: bool) -> None:
    is_short = is_last and config.model.head == "mlp-2"
    where = f"stage {number}: auxiliary network {'mlp-2' if is_short else config.model.aux}"
    shown = f"[{PROBE}, {', '.join(str(size) for size in output_shape)}]"
    try:
        aux = auxiliary_of(config.model, is_last)(output_shape, classes)
        output = torch.empty(PROBE, *output_shape)
        before = output._version
        with torch.no_grad():
            aux = aux.to("meta")
            aux.train()(output)
            scores = aux.eval()(output)
    except ConfigError as error:
        raise ConfigError(f"stage {number}: {error}") from None
    except Exception as error:  # a part of the user's may raise anything
        raise ConfigError(
            f"{where} can't be used on the stage's output {shown}: {type(error).__name__}: {error}"
        ) from error
    if not isinstance(scores, torch.Tensor) or tuple(scores.shape) != (PROBE, classes):
        got = list(scores.shape) if isinstance(scores, torch.Tensor) else type(scores).__name__
        raise ConfigError(f"{where} must make class scores [{PROBE}, {classes}] of {shown}, got {got}")
    if output._version != before:
        raise ConfigError(f"{where} changes the stage's output in place, which the next stage reads: copy it first")
