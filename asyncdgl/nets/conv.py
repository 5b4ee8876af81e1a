"""The paper's convolutional network: blocks of 3x3 convolution, batch norm and ReLU, some with a pool before."""

from __future__ import annotations

from collections.abc import Sequence
from typing import overload

from torch import nn

from asyncdgl.nets.shape import BlockShape, Shape, conv_shapes


def blocks(
    input_shape: Shape, classes: int, *, blocks: int, width: int, downsample: tuple[int, ...]
) -> Sequence[nn.Module]:
    """The built-in network.

    Args:
        input_shape: (C, H, W) of the images.
        classes: of no matter here.
        blocks: how many.
        width: features F of the first block.
        downsample: blocks, from 1, that begin with a 2x2 max pool and double the features.
    """
    return _Row(conv_shapes(input_shape, blocks, width, downsample))


class _Row(Sequence[nn.Module]):
    """Each block is made when it is asked for: a stage makes its own ones alone, with its own seed's numbers."""

    def __init__(self, shapes: Sequence[BlockShape]) -> None:
        self._shapes = shapes

    def __len__(self) -> int:
        return len(self._shapes)

    @overload
    def __getitem__(self, index: int) -> nn.Module: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[nn.Module]: ...
    def __getitem__(self, index: int | slice) -> nn.Module | Sequence[nn.Module]:
        if isinstance(index, slice):
            return _Row(self._shapes[index])
        shape = self._shapes[index]
        pool: list[nn.Module] = [nn.MaxPool2d(2)] if shape.pool else []
        return nn.Sequential(*pool, *conv_bn_relu(shape.in_features, shape.features))


def conv_bn_relu(in_features: int, features: int, kernel: int = 3) -> list[nn.Module]:
    """Convolution (same size, no bias, which the batch norm would cancel), batch norm, ReLU."""
    return [
        nn.Conv2d(in_features, features, kernel, padding=kernel // 2, bias=False),
        nn.BatchNorm2d(features),
        nn.ReLU(inplace=True),
    ]
