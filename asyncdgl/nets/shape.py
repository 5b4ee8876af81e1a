"""Shapes of the built-in network's blocks, and where a network is cut; without torch."""

from __future__ import annotations

import itertools
from typing import NamedTuple

from asyncdgl.errors import ConfigError

Shape = tuple[int, ...]
"""Of one image or activation, without the batch: (C, H, W), (T, D) or (D,)."""


class BlockShape(NamedTuple):
    """A block of the built-in network: features of its input and output, its output's height and width, the pool."""

    in_features: int
    features: int
    height: int
    width: int
    pool: bool


def conv_shapes(input_shape: Shape, blocks: int, width: int, downsample: tuple[int, ...]) -> list[BlockShape]:
    """The blocks of the paper's network: width F, doubled at every pool, which halves the pixels of a side.

    Raises:
        ConfigError: the inputs are no images.
    """
    if len(input_shape) != 3:
        shape = ", ".join(str(size) for size in input_shape)
        raise ConfigError(f"model.name conv needs images [B, C, H, W]; the data set has [B, {shape}]")
    shapes = []
    before, rows, columns = input_shape
    features = width
    for number in range(1, blocks + 1):
        pool = number in downsample
        if pool:
            features, rows, columns = 2 * features, rows // 2, columns // 2
        shapes.append(BlockShape(before, features, rows, columns, pool))
        before = features
    return shapes


def cut(blocks: int, stages: int, lasts: tuple[int, ...] | None = None) -> list[range]:
    """Blocks of each stage, from 0: up to ``lasts`` (``model.cut``), or equally many, the earlier taking one more."""
    share, more = divmod(blocks, stages)
    ends = [share * j + min(j, more) for j in range(stages + 1)]
    if lasts is not None:
        ends = [0, *lasts, blocks]
    return [range(start, end) for start, end in itertools.pairwise(ends)]
