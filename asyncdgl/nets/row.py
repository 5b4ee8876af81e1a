"""A network is a row of blocks; what makes the row is chosen by a name, or handed over as an object."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import nn

from asyncdgl.config.sections import ModelConfig
from asyncdgl.errors import ConfigError
from asyncdgl.nets.shape import Shape
from asyncdgl.registry import GIVEN, find


class Network(Protocol):
    """Makes a row of blocks: each reads what the one before it gives, and the network is cut between them.

    Random numbers come from torch alone, which is given a keyed seed. A row may make its blocks as they are asked for.
    """

    def __call__(self, input_shape: Shape, classes: int, **options: Any) -> Sequence[nn.Module]:
        """The blocks, for images or vectors [B, *input_shape] of so many classes."""


def make_row(model: ModelConfig, input_shape: Shape, classes: int) -> Sequence[nn.Module]:
    """The blocks of the network that ``model.name`` names.

    Raises:
        ConfigError: it can't be made.
    """
    part = find_part("network", model.name)
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


def find_part(kind: str, name: str) -> Any:
    """A part; while its module is imported, what it makes on the way is real, also where shapes are being found."""
    with torch.device("cpu"):
        return find(kind, name)
