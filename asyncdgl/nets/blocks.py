"""Blocks of the paper's convolutional network."""

from torch import nn

from asyncdgl.nets.shape import BlockShape


def conv_bn_relu(in_features: int, features: int, kernel: int = 3) -> list[nn.Module]:
    """Convolution (same size, no bias, which the batch norm would cancel), batch norm, ReLU."""
    return [
        nn.Conv2d(in_features, features, kernel, padding=kernel // 2, bias=False),
        nn.BatchNorm2d(features),
        nn.ReLU(inplace=True),
    ]


def make_block(shape: BlockShape) -> nn.Sequential:
    """One block: an optional 2x2 max pool, then 3x3 convolution, batch norm, ReLU."""
    pool: list[nn.Module] = [nn.MaxPool2d(2)] if shape.pool else []
    return nn.Sequential(*pool, *conv_bn_relu(shape.in_features, shape.features))
