"""How much the buffers of a run will hold, before there is one. Without torch, for the codecs that are built in."""

from __future__ import annotations

from collections.abc import Sequence

from asyncdgl.config.resolved import ResolvedConfig
from asyncdgl.nets.shape import Shape, cut


def entries_held(config: ResolvedConfig) -> list[int]:
    """The most mini-batches that each hop holds: the buffer's, and those on the way where its link takes time."""
    if config.one_by_one:  # each entry is read at once
        return [1] * (config.stages - 1)
    links = [config.profile.link(j) for j in range(1, config.trained_stages)]
    on_the_way = [
        link.max_in_flight if link.has_delay and config.buffer.on_full == "overwrite" else 0 for link in links
    ]
    return [config.buffer.size + count for count in on_the_way]


def entry_bytes(config: ResolvedConfig, bf16: bool, outputs: Sequence[Shape]) -> list[int]:
    """Encoded bytes of one mini-batch in each buffer, labels included, from the first hop to the last.

    Zero each where there are more stages than blocks, which only runs without tensors have.

    Args:
        config: the run.
        bf16: whether the stages compute in bfloat16.
        outputs: of each block.
    """
    if config.in_one:
        return []
    if config.stages > len(outputs):
        return [0] * (config.stages - 1)
    lasts = [blocks[-1] for blocks in cut(len(outputs), config.stages, config.model.cut)[:-1]]
    return [_encoded(config, bf16, outputs[last]) + 8 * config.batch_size for last in lasts]


def _encoded(config: ResolvedConfig, bf16: bool, shape: Shape) -> int:
    codec, values = config.buffer.codec, config.batch_size
    for size in shape:
        values *= size
    if codec == "int8":
        return values + 4 * (shape[0] if len(shape) == 3 else shape[-1])
    if codec in ("none", "bf16"):
        return values * (2 if bf16 or codec == "bf16" else 4)
    from asyncdgl.buffers.codecs import encoded_bytes

    return encoded_bytes(codec, (config.batch_size, *shape), bf16)
