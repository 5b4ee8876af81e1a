"""Algorithm 1, synchronous DGL (paper, Sec. 3.1): every batch goes through stages 1 … J, each learning from it once."""

from __future__ import annotations

from collections.abc import Iterator

from asyncdgl.algorithms.base import Algorithm, Stages


def in_turn(stages: Stages) -> Iterator[tuple[int, float | None]]:
    """Stage 1 … J on each batch."""
    while running := stages.running:
        for j in running:
            yield j, None


sync_dgl = Algorithm(
    order=in_turn,
    # In processes of their own the same: first in, first out, each entry once, nobody ahead of a full buffer.
    between={"sampler": "fifo", "max_reuse": 1, "on_full": "block", "min_size": 1, "max_age": None},
    runtimes=("ray", "sim"),
)
