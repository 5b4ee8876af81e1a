"""Sequential greedy training: stage j trains to its end before stage j+1 starts. A baseline."""

from __future__ import annotations

from collections.abc import Iterator

from asyncdgl.algorithms.base import Algorithm, Stages


def one_after_the_other(stages: Stages) -> Iterator[tuple[int, float | None]]:
    """Each batch goes through the trained stages, then the one that trains learns from it."""
    for j in stages.running:
        while stages.is_training(j):
            for i in range(1, j + 1):
                yield i, None


sequential_dgl = Algorithm(
    order=one_after_the_other,
    between={"size": 1, "sampler": "fifo", "max_reuse": 1, "on_full": "overwrite", "min_size": 1, "max_age": None},
    one_by_one=True,
)
