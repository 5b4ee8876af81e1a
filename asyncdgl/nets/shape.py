"""Shapes of a network without building it: what the dry run and the memory check need, without torch."""

from __future__ import annotations

import itertools
from typing import NamedTuple

from asyncdgl.config.resolved import ResolvedConfig
from asyncdgl.config.sections import ModelConfig


class BlockShape(NamedTuple):
    """One block: features and pixels of a side of its output, features of its input, whether it begins with a pool."""

    in_features: int
    features: int
    pixels: int
    pool: bool


def block_shapes(model: ModelConfig, channels: int, image_size: int) -> list[BlockShape]:
    """The blocks of the paper's network: width F, doubled at every pool, which halves the pixels."""
    shapes = []
    before, features, pixels = channels, model.width, image_size
    for number in range(1, model.blocks + 1):
        pool = number in model.downsample
        if pool:
            features, pixels = 2 * features, pixels // 2
        shapes.append(BlockShape(before, features, pixels, pool))
        before = features
    return shapes


def cut(model: ModelConfig, stages: int) -> list[range]:
    """Blocks of each stage, from 0: as ``model.cut`` says, or equally many, the earlier stages taking one more."""
    share, more = divmod(model.blocks, stages)
    ends = [share * j + min(j, more) for j in range(stages + 1)]
    if model.cut is not None:
        ends = [0, *model.cut, model.blocks]
    return [range(start, end) for start, end in itertools.pairwise(ends)]


def entries_held(config: ResolvedConfig) -> list[int]:
    """The most mini-batches that each hop holds: the buffer's, and those on the way where its link takes time."""
    if config.algorithm == "sequential-dgl":  # each entry is read at once
        return [1] * (config.stages - 1)
    links = [config.profile.link(j) for j in range(1, config.trained_stages)]
    on_the_way = [
        link.max_in_flight if link.has_delay and config.buffer.on_full == "overwrite" else 0 for link in links
    ]
    return [config.buffer.size + count for count in on_the_way]


def entry_bytes(config: ResolvedConfig, bf16: bool) -> list[int]:
    """Encoded bytes of one mini-batch in each buffer, labels included, from the first hop to the last.

    Zero each where there are more stages than blocks, which only runs without tensors have.
    """
    if config.algorithm == "backprop":
        return []
    if config.stages > config.model.blocks:
        return [0] * (config.stages - 1)
    shapes = block_shapes(config.model, 3, config.data.image_size)
    sizes = []
    for blocks in cut(config.model, config.stages)[:-1]:
        last = shapes[blocks[-1]]
        values = config.batch_size * last.features * last.pixels**2
        if config.buffer.codec == "int8":
            encoded = values + 4 * last.features
        else:
            encoded = values * (2 if bf16 or config.buffer.codec == "bf16" else 4)
        sizes.append(encoded + 8 * config.batch_size)
    return sizes
