"""Algorithm 2, asynchronous DGL with replay (paper, Sec. 3.2): stages are drawn, and read what buffers give."""

from __future__ import annotations

from bisect import bisect
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING

from asyncdgl.algorithms.base import Algorithm, Stages
from asyncdgl.seeding import Draws

if TYPE_CHECKING:
    from asyncdgl.config.resolved import ResolvedConfig


def turns(stages: Stages) -> Iterator[tuple[int, float | None]]:
    """After a warm-up of turns 1, 1, 2, 2, …, J, J, so that no buffer is empty, stages are drawn."""
    for j in stages.running:
        for _ in range(2):
            if j in stages.running:
                yield j, None
    yield from drawn_turns(stages.config, lambda: stages.running)


def drawn_turns(config: ResolvedConfig, running: Callable[[], Sequence[int]]) -> Iterator[tuple[int, float]]:
    """A stage is drawn with probability proportional to 1/S_j among those that have not stopped.

    Each draw advances the time by 1/sum(1/S_i) steps, so that an unslowed stage has one turn a step on average.

    Args:
        config: the run.
        running: the stages that have not stopped, asked before each draw; none ends the schedule.

    Yields:
        The stage, and the time in steps.
    """
    draws, profile = Draws(config.seed, "turns"), config.profile
    now, number = 0.0, 0
    while stages := running():
        speeds = [1 / profile.stage(j).slowdown for j in stages]
        now += 1 / sum(speeds)
        mark = draws.uniform(number) * sum(speeds)
        number += 1
        yield stages[bisect(list(accumulate(speeds[:-1])), mark)], now


async_dgl = Algorithm(order=turns, runtimes=("ray", "sim", "virtual"), counts_lost_turns=True)
