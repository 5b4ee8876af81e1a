"""Auxiliary networks: from a stage's output [B, c, s, s] to class scores [B, classes] (paper, Sec. 5.1 and scripts)."""

from collections.abc import Callable

from torch import nn

from asyncdgl.nets.blocks import conv_bn_relu

POOLED = 2
"""Every auxiliary network averages down to 2x2 before its linear layers."""


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
    pools = [nn.AdaptiveAvgPool2d(_quarter(pixels)), nn.AdaptiveAvgPool2d(POOLED)]
    return nn.Sequential(*pools, *_hidden(features, 3, classes))


def mlp_sr(features: int, pixels: int, classes: int) -> nn.Sequential:
    """Average pool to a quarter, three 1x1 convolutions, pool to 2x2; three hidden layers. 7 to 9 % of the cost."""
    parts: list[nn.Module] = [nn.AdaptiveAvgPool2d(_quarter(pixels))]
    for _ in range(3):
        parts += conv_bn_relu(features, features, kernel=1)
    return nn.Sequential(*parts, nn.AdaptiveAvgPool2d(POOLED), *_hidden(features, 3, classes))


def cnn(features: int, pixels: int, classes: int) -> nn.Sequential:
    """Two 3x3 convolutions, average pool to 2x2, batch norm, linear. About 2.5 times the network's own cost."""
    convolutions = [*conv_bn_relu(features, features), *conv_bn_relu(features, features)]
    end = [nn.BatchNorm2d(features), nn.Flatten(), nn.Linear(features * POOLED**2, classes)]
    return nn.Sequential(*convolutions, nn.AdaptiveAvgPool2d(POOLED), *end)


def short_head(features: int, pixels: int, classes: int) -> nn.Sequential:
    """The last stage's head: average pool to 2x2, two hidden layers."""
    return nn.Sequential(nn.AdaptiveAvgPool2d(POOLED), *_hidden(features, 2, classes))


AUXILIARY: dict[str, Callable[[int, int, int], nn.Sequential]] = {"mlp": mlp, "mlp-sr": mlp_sr, "cnn": cnn}
