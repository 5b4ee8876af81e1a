"""Whether the buffers fit into memory, asked before anything starts."""

from __future__ import annotations

from collections.abc import Sequence

from asyncdgl.buffers.size import entries_held, entry_bytes
from asyncdgl.config.model import RunConfig
from asyncdgl.config.resolved import ResolvedConfig
from asyncdgl.errors import ConfigError
from asyncdgl.nets.outputs import block_outputs
from asyncdgl.nets.shape import Shape
from asyncdgl.plan.limits import memory_left
from asyncdgl.rundir.checkpoint import KEPT

SHARE_OF_MEMORY = 0.8

KEPT_BYTES, KEPT_LEAST = 256_000_000, 8
"""What a reader reads between two checkpoints, at most: so many bytes, but at least so many entries."""

GO_BACK = 4
"""Where all stages go back together, so many times fewer passes lie between two checkpoints."""

UNACKNOWLEDGED = 4
"""Inserts that a producer has on the wire at most, and places that it has for them."""


def places_given(prefetch: int) -> int:
    """How many of the entries given last keep their places: what the reader computes with and what it has asked for."""
    return prefetch + 2


def most_places(held: int, prefetch: int, kept: int) -> int:
    """The most places that a buffer on Ray uses: one more while the oldest makes room.

    Args:
        held: entries that it and its link hold.
        prefetch: that its reader fetches ahead.
        kept: passes between two checkpoints of its reader: what those read is kept until the next one counts, too.
    """
    return held + UNACKNOWLEDGED + 2 * kept + places_given(prefetch) + 1


def kept_for_restart(config: ResolvedConfig, sizes: Sequence[int] | None = None) -> list[int]:
    """Passes that stages 2 … J make at most between two checkpoints: the buffers keep what these read.

    Args:
        config: the run.
        sizes: encoded bytes of the entries of stages 1 … J-1, where they are known already.
    """
    if sizes is None:
        sizes = entry_bytes(config, config.precision == "bf16", asked_outputs(config))
    every = config.checkpoint.every
    return [max(KEPT_LEAST, KEPT_BYTES // size) if every is None else every for size in sizes]


def asked_outputs(config: RunConfig) -> list[Shape]:
    """Shapes of the blocks' outputs, before the data set is decoded."""
    if config.model.name == "conv":  # of its outputs neither channels nor classes decide anything
        return block_outputs(config.model, (3, config.data.image_size, config.data.image_size), 10)
    from asyncdgl.data.cache import data_shape

    return block_outputs(config.model, *data_shape(config.data))


def checkpoint_every(config: ResolvedConfig) -> int | None:
    """Passes between two checkpoints of a stage on Ray; None: as often as costs little.

    With `sync-dgl` all stages need one at the same step: there is always a number.
    """
    every: int | None = config.checkpoint.every
    if every is None and config.algorithm == "sync-dgl":
        kept = min(kept_for_restart(config), default=None)
        return None if kept is None else max(KEPT_LEAST, kept // GO_BACK)
    return every


def checkpoints_kept(config: ResolvedConfig) -> int:
    """How many checkpoints of a stage on Ray stay on the disk: with `sync-dgl` the last stage must have one of them."""
    every = checkpoint_every(config)
    if every is None or config.algorithm != "sync-dgl":
        return KEPT
    ahead = (config.stages - 1) * (config.buffer.size + places_given(config.buffer.prefetch))
    return KEPT + -(-ahead // every)


def buffer_bytes(config: ResolvedConfig, outputs: Sequence[Shape] | None = None) -> list[int]:
    """The most that each buffer and the link before it will take, encoded.

    Args:
        config: the run.
        outputs: of the network's blocks, where they are known already.
    """
    outputs = asked_outputs(config) if outputs is None else outputs
    sizes = entry_bytes(config, config.precision == "bf16", outputs)
    counts = entries_held(config)
    if config.runtime == "ray":
        kept = kept_for_restart(config, sizes)
        counts = [most_places(n, config.buffer.prefetch, k) for n, k in zip(counts, kept, strict=True)]
    return [count * size for count, size in zip(counts, sizes, strict=True)]


def usable_bytes(config: ResolvedConfig) -> int:
    """Memory that the buffers may take: this machine's or container's, or its GPU's where entries stay there."""
    if config.device == "cuda" and config.runtime != "ray":
        import torch

        free, _ = torch.cuda.mem_get_info()
        return int(free * SHARE_OF_MEMORY)
    import psutil

    available, left = psutil.virtual_memory().available, memory_left()
    return int((available if left is None else min(available, left)) * SHARE_OF_MEMORY)


def check_memory(config: ResolvedConfig, outputs: Sequence[Shape] | None = None) -> None:
    """Refuse buffers that this machine can't hold.

    Args:
        config: the run.
        outputs: of the network's blocks, where they are known already.

    Raises:
        ConfigError: with the buffer size that would fit.
    """
    if not config.has_tensors:
        return
    outputs = asked_outputs(config) if outputs is None else outputs
    need, usable = sum(buffer_bytes(config, outputs)), usable_bytes(config)
    if need <= usable:
        return
    one_each = sum(entry_bytes(config, config.precision == "bf16", outputs))
    fits = config.buffer.size - -(-(need - usable) // one_each)
    mend = f"--buffer-size {fits} would fit" if fits > 0 else "not even one mini-batch fits"
    if config.runtime == "ray" and config.checkpoint.every is not None:
        mend += f", beside the {2 * config.checkpoint.every} that are kept for a restart (checkpoint.every)"
    raise ConfigError(
        f"buffer.size {config.buffer.size}: the buffers would need {megabytes(need)}, but this machine can give "
        f"{megabytes(usable)}; {mend} (or a smaller --batch-size or --width, or --codec bf16 or int8)"
    )


def megabytes(count: int) -> str:
    """A size for people."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"
