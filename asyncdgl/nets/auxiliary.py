"""Auxiliary networks: from a stage's output [B, c, s, s] to class scores [B, classes] (paper, Sec. 5.1 and scripts)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn.functional import adaptive_avg_pool2d, avg_pool2d, interpolate

from asyncdgl.nets.blocks import conv_bn_relu

POOLED = 2
"""Every auxiliary network averages down to 2x2 before its linear layers."""


class AveragePool(nn.Module):
    """[B, C, pixels, pixels] to [B, C, size, size], as ``nn.AdaptiveAvgPool2d``, whose gradient is slow on CPUs."""

    def __init__(self, pixels: int, size: int) -> None:
        super().__init__()
        self.pixels, self.size = pixels, size

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The means over squares of pixels."""
        if self.pixels == self.size:
            return x
        if self.pixels % self.size:
            return adaptive_avg_pool2d(x, self.size)
        pooled: torch.Tensor = _AverageOfSquares.apply(x, self.pixels // self.size)
        return pooled


class _AverageOfSquares(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, k: int) -> torch.Tensor:
        ctx.k = k
        return avg_pool2d(x, k)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        return interpolate(gradient / ctx.k**2, scale_factor=ctx.k, mode="nearest"), None


def _hidden(features: int, layers: int, classes: int) -> list[nn.Module]:
    """``layers`` hidden layers of 4c units (linear, batch norm, ReLU), then linear to the classes."""
    units = features * POOLED**2
    parts: list[nn.Module] = [nn.Flatten()]
    for _ in range(layers):
        parts += [nn.Linear(units, units), nn.BatchNorm1d(units), nn.ReLU(inplace=True)]
    return [*parts, nn.Linear(units, classes)]


def _quarter(pixels: int) -> int:
    return -(-pixels // 4)


def mlp(features: int, pixels: int, classes: int) -> nn.Sequential:
    """Average pool to a quarter, then to 2x2; three hidden layers. About 5 to 7 % of the network's multiply-adds."""
    pools = [AveragePool(pixels, _quarter(pixels)), AveragePool(_quarter(pixels), POOLED)]
    return nn.Sequential(*pools, *_hidden(features, 3, classes))


def mlp_sr(features: int, pixels: int, classes: int) -> nn.Sequential:
    """Average pool to a quarter, three 1x1 convolutions, pool to 2x2; three hidden layers. 7 to 9 % of the cost."""
    parts: list[nn.Module] = [AveragePool(pixels, _quarter(pixels))]
    for _ in range(3):
        parts += conv_bn_relu(features, features, kernel=1)
    return nn.Sequential(*parts, AveragePool(_quarter(pixels), POOLED), *_hidden(features, 3, classes))


def cnn(features: int, pixels: int, classes: int) -> nn.Sequential:
    """Two 3x3 convolutions, average pool to 2x2, batch norm, linear. About 2.5 times the network's own cost."""
    convolutions = [*conv_bn_relu(features, features), *conv_bn_relu(features, features)]
    end = [nn.BatchNorm2d(features), nn.Flatten(), nn.Linear(features * POOLED**2, classes)]
    return nn.Sequential(*convolutions, AveragePool(pixels, POOLED), *end)


def short_head(features: int, pixels: int, classes: int) -> nn.Sequential:
    """The last stage's head: average pool to 2x2, two hidden layers."""
    return nn.Sequential(AveragePool(pixels, POOLED), *_hidden(features, 2, classes))


AUXILIARY: dict[str, Callable[[int, int, int], nn.Sequential]] = {"mlp": mlp, "mlp-sr": mlp_sr, "cnn": cnn}
