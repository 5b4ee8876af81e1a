"""Auxiliary networks: from a stage's output to class scores [B, classes] (paper, Sec. 5.1 and scripts).

An output is [B, c, h, w], as in the paper, or [B, T, D] or [B, D], for which the same layers are used without space:
the mean over T takes the place of 2x2 pixels, and hidden layers have as many units as they then have inputs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn.functional import adaptive_avg_pool1d, adaptive_avg_pool2d, avg_pool2d, interpolate

from asyncdgl.errors import ConfigError
from asyncdgl.nets.conv import conv_bn_relu
from asyncdgl.nets.shape import Shape

Auxiliary = Callable[[Shape, int], nn.Module]
"""``aux(output_shape, classes)``: a module from a stage's output [B, *output_shape] to class scores [B, classes]."""

POOLED = 2
"""Every auxiliary network averages down to 2x2 before its linear layers."""


def mlp(output_shape: Shape, classes: int) -> nn.Sequential:
    """Average pool to a quarter, then to 2x2; three hidden layers of 4c units. About 5 to 7 % of the network's cost.

    [B, T, D]: mean over T, three hidden layers of D units. [B, D]: three hidden layers of D units.
    """
    if len(output_shape) == 3:
        features, *pixels = output_shape
        pools = [AveragePool(pixels, _quarter(pixels)), AveragePool(_quarter(pixels), POOLED)]
        return nn.Sequential(*pools, nn.Flatten(), *_hidden(features * POOLED**2, 3, classes))
    return nn.Sequential(*_mean("mlp", output_shape), *_hidden(output_shape[-1], 3, classes))


def mlp_sr(output_shape: Shape, classes: int) -> nn.Sequential:
    """Average pool to a quarter, three 1x1 convolutions, pool to 2x2; three hidden layers of 4c units. 7 to 9 %.

    [B, T, D]: average to a quarter of T, three convolutions of width 1, mean over T, three hidden layers of D units.
    [B, D] has no space to reduce: as ``mlp``.
    """
    if len(output_shape) == 3:
        features, *pixels = output_shape
        parts: list[nn.Module] = [AveragePool(pixels, _quarter(pixels))]
        for _ in range(3):
            parts += conv_bn_relu(features, features, kernel=1)
        pooled = AveragePool(_quarter(pixels), POOLED)
        return nn.Sequential(*parts, pooled, nn.Flatten(), *_hidden(features * POOLED**2, 3, classes))
    if len(output_shape) == 2:
        positions, features = output_shape
        parts = [_QuarterOfPositions(positions)]
        for _ in range(3):
            convolution = nn.Conv1d(features, features, 1, bias=False)
            parts += [convolution, nn.BatchNorm1d(features), nn.ReLU(inplace=True)]
        return nn.Sequential(*parts, _Mean(2), *_hidden(features, 3, classes))
    return nn.Sequential(*_mean("mlp-sr", output_shape), *_hidden(output_shape[-1], 3, classes))


def cnn(output_shape: Shape, classes: int) -> nn.Sequential:
    """Two 3x3 convolutions, average pool to 2x2, batch norm, linear. About 2.5 times the network's own cost.

    Raises:
        ConfigError: the output has no pixels.
    """
    if len(output_shape) != 3:
        raise ConfigError(_refusal("cnn", output_shape, "[B, C, H, W]"))
    features, *pixels = output_shape
    convolutions = [*conv_bn_relu(features, features), *conv_bn_relu(features, features)]
    end = [nn.BatchNorm2d(features), nn.Flatten(), nn.Linear(features * POOLED**2, classes)]
    return nn.Sequential(*convolutions, AveragePool(pixels, POOLED), *end)


def short_head(output_shape: Shape, classes: int) -> nn.Sequential:
    """The last stage's head: average pool to 2x2, two hidden layers. [B, T, D] and [B, D] as in ``mlp``."""
    if len(output_shape) == 3:
        features, *pixels = output_shape
        return nn.Sequential(AveragePool(pixels, POOLED), nn.Flatten(), *_hidden(features * POOLED**2, 2, classes))
    return nn.Sequential(*_mean("mlp-2", output_shape), *_hidden(output_shape[-1], 2, classes))


def _hidden(units: int, layers: int, classes: int) -> list[nn.Module]:
    """``layers`` hidden layers (linear, batch norm, ReLU), as wide as their input, then linear to the classes."""
    parts: list[nn.Module] = []
    for _ in range(layers):
        parts += [nn.Linear(units, units), nn.BatchNorm1d(units), nn.ReLU(inplace=True)]
    return [*parts, nn.Linear(units, classes)]


def _quarter(pixels: list[int]) -> list[int]:
    return [-(-size // 4) for size in pixels]


def _mean(word: str, output_shape: Shape) -> list[nn.Module]:
    if len(output_shape) > 2:
        raise ConfigError(_refusal(word, output_shape, "[B, C, H, W], [B, T, D] or [B, D]"))
    return [_Mean(1)] if len(output_shape) == 2 else []


def _refusal(word: str, output_shape: Shape, expected: str) -> str:
    shape = ", ".join(str(size) for size in output_shape)
    return (
        f"auxiliary network {word} reads outputs {expected}, and a stage's output is [B, {shape}]: use another "
        "model.aux, or one of your own (package.module:attribute)"
    )


class AveragePool(nn.Module):
    """[B, C, *pixels] to [B, C, *size], as ``nn.AdaptiveAvgPool2d``, whose gradient is slow on CPUs."""

    def __init__(self, pixels: int | list[int], size: int | list[int]) -> None:
        super().__init__()
        self.pixels, self.size = _pair(pixels), _pair(size)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The means over rectangles of pixels."""
        (rows, columns), (height, width) = self.pixels, self.size
        if self.pixels == self.size:
            return x
        if rows % height or columns % width:
            return adaptive_avg_pool2d(x, self.size)
        pooled: torch.Tensor = _AverageOfRectangles.apply(x, (rows // height, columns // width))
        return pooled


def _pair(size: int | list[int]) -> tuple[int, int]:
    height, width = (size, size) if isinstance(size, int) else size
    return height, width


class _AverageOfRectangles(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, k: tuple[int, int]) -> torch.Tensor:
        ctx.k = k
        return avg_pool2d(x, k)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        height, width = ctx.k
        return interpolate(gradient / (height * width), scale_factor=ctx.k, mode="nearest"), None


class _QuarterOfPositions(nn.Module):
    """[B, T, D] to [B, D, T/4], rounded up: means over neighbours."""

    def __init__(self, positions: int) -> None:
        super().__init__()
        self._size = _quarter([positions])[0]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return adaptive_avg_pool1d(x.transpose(1, 2), self._size)


class _Mean(nn.Module):
    """The mean over one dimension."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self._dim = dim

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean(self._dim)
