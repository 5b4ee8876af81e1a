"""Where to cut a network into stages, and how many threads each gets, so that the slowest is as fast as can be.

From times measured here.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import cache
from statistics import median
from typing import TYPE_CHECKING, NamedTuple

from asyncdgl.config.model import RunConfig
from asyncdgl.config.resolved import ResolvedConfig
from asyncdgl.errors import ConfigError
from asyncdgl.nets.outputs import block_outputs
from asyncdgl.nets.shape import Shape, cut
from asyncdgl.plan.machine import available_cores, visible_gpus, wanted_address
from asyncdgl.registry import find

if TYPE_CHECKING:
    from asyncdgl.data.batch import Batch

PASSES = 5
"""Measured passes of each part; the median counts."""

Part = tuple[int, int]
"""Blocks first … last of the network, from 1: a stage."""


class Balance(NamedTuple):
    """A cut and what it promises where each stage has cores of its own.

    Attributes:
        cut: the last block of each stage but the last one's.
        pass_seconds: of each stage's training pass.
    """

    cut: tuple[int, ...]
    pass_seconds: tuple[float, ...]

    @property
    def updates_per_second(self) -> float:
        """Of every stage, once the slowest sets the pace."""
        return 1 / max(self.pass_seconds)

    @property
    def efficiency(self) -> float:
        """Share of the stages' time that is computing: 1 where all take equally long."""
        return sum(self.pass_seconds) / (len(self.pass_seconds) * max(self.pass_seconds))


def best_cut(
    config: ResolvedConfig, input_shape: Shape, classes: int, check: Callable[[], None] = lambda: None
) -> Balance:
    """The best cut of the network into ``config.stages``, with its measured times.

    Args:
        config: the run; its own cut does not matter.
        input_shape: of an image, without the batch.
        classes: of the data set.
        check: called between measurements; raises where they are to stop.

    Raises:
        ConfigError: the run computes on a GPU, and this machine has none.
    """
    inputs = [input_shape, *block_outputs(config.model, input_shape, classes)]
    measured = cache(lambda part: _pass_seconds(config, part, inputs, classes, check))
    return _balance(best_parts(len(inputs) - 1, config.stages, measured), measured)


def times_of_cut(
    config: ResolvedConfig, input_shape: Shape, classes: int, check: Callable[[], None] = lambda: None
) -> Balance:
    """The measured times of the run's own cut; else as `best_cut`."""
    inputs = [input_shape, *block_outputs(config.model, input_shape, classes)]
    own = parts_of(config, len(inputs) - 1)
    return _balance(own, lambda part: _pass_seconds(config, part, inputs, classes, check))


def _balance(parts: Sequence[Part], measured: Callable[[Part], float]) -> Balance:
    return Balance(tuple(last for _, last in parts[:-1]), tuple(measured(part) for part in parts))


def open_questions(asked: RunConfig) -> tuple[bool, bool]:
    """Whether the cut and the threads are to be decided by cost.

    Raises:
        ConfigError: this machine's cores can't decide the threads.
    """
    cuts, shares = ("model.cut" in asked.open_keys, "ray.threads" in asked.open_keys)
    if shares and asked.device == "cuda":
        raise ConfigError("ray.threads cost shares out CPU cores, but the stages compute on a GPU: leave it away")
    if shares and wanted_address(asked.ray.address) is not None:
        raise ConfigError(
            "ray.threads cost shares out this machine's cores: on a cluster give a list, one for each stage"
        )
    return cuts, shares


def by_cost(
    asked: RunConfig, config: ResolvedConfig, input_shape: Shape, classes: int, check: Callable[[], None] = lambda: None
) -> tuple[ResolvedConfig, Balance | None]:
    """What ``model.balance: cost`` and ``ray.threads: cost`` leave open, decided by times measured here.

    Args:
        asked: what was asked.
        config: the run, with equal shares for what is open.
        input_shape: of an image, without the batch.
        classes: of the data set.
        check: called between measurements; raises where they are to stop.

    Returns:
        The run, and the times; None where nothing was open.

    Raises:
        ConfigError: this machine can't decide it.
    """
    cuts, shares = open_questions(asked)
    if not cuts and not shares:
        return config, None
    found = (best_cut if cuts else times_of_cut)(config, input_shape, classes, check)
    if shares:
        config = config.replace(ray={"threads": share_out(available_cores(), found.pass_seconds)})
    return config.replace(model={"cut": found.cut}), found


def parts_of(config: ResolvedConfig, blocks: int) -> list[Part]:
    """The stages of the configured cut of so many blocks."""
    return [(own[0] + 1, own[-1] + 1) for own in cut(blocks, config.stages, config.model.cut)]


def best_parts(blocks: int, stages: int, seconds: Callable[[Part], float]) -> list[Part]:
    """The cut whose slowest part takes the least time; of equal ones, the one with more blocks in earlier stages.

    Asks only for parts that some cut into so many stages has.
    """
    # best[b]: the slowest part's time, and the parts, of the first b blocks cut into the stages so far.
    best: dict[int, tuple[float, list[Part]]] = {0: (0.0, [])}
    for stage in range(1, stages + 1):
        following: dict[int, tuple[float, list[Part]]] = {}
        lasts = [blocks] if stage == stages else range(stage, blocks - (stages - stage) + 1)
        for last in lasts:
            for before in sorted((b for b in best if b < last), reverse=True):
                slowest = max(best[before][0], seconds((before + 1, last)))
                if last not in following or slowest < following[last][0]:
                    following[last] = slowest, [*best[before][1], (before + 1, last)]
        best = following
    return best[blocks][1]


def share_out(cores: int, pass_seconds: Sequence[float]) -> tuple[int, ...]:
    """Threads of each stage: one each, and every further core for the stage that is then the slowest."""
    threads = [1] * len(pass_seconds)
    for _ in range(cores - len(threads)):
        slowest = max(range(len(threads)), key=lambda j: pass_seconds[j] / threads[j])
        threads[slowest] += 1
    return tuple(threads)


def _pass_seconds(
    config: ResolvedConfig, part: Part, inputs: Sequence[Shape], classes: int, check: Callable[[], None]
) -> float:
    """Seconds of a training pass of a stage that has these blocks: the median of a few."""
    from asyncdgl.learn.stage import Stage
    from asyncdgl.nets.base import make_stage_net

    if config.device == "cuda" and not visible_gpus():
        raise ConfigError("model.balance cost measures here, and this machine has no NVIDIA GPU: use balance blocks")
    check()
    first, last = part
    blocks = len(inputs) - 1
    ends = tuple(sorted({first - 1, last} - {0, blocks}))
    # Another number of stages: what is said stage by stage would not fit.
    own = config.replace(
        stages=len(ends) + 1,
        model={"cut": ends},
        ray={"threads": None},
        virtual={"step_times": None},
        delays={"profile": "none", "slowdown": None},
    )
    number = ends.index(last) + 1 if last in ends else len(ends) + 1
    net = make_stage_net(own, number, inputs[0], classes)
    loss = find("loss", config.model.loss)
    stage = Stage(net, config.optim, 1, config.device, config.precision == "bf16", loss=loss)
    batch = stage_input(config, first, inputs, classes)
    times = [_timed(lambda: stage.train(batch)) for _ in range(PASSES + 1)]
    return median(times[1:])  # the first one also sets up memory and kernels


def stage_input(config: ResolvedConfig, first: int, inputs: Sequence[Shape], classes: int) -> Batch:
    """A mini-batch of random numbers as the stage that begins with block ``first`` (from 1) reads it.

    Args:
        config: the run.
        first: the stage's first block.
        inputs: of each block: of an image, then the blocks' outputs.
        classes: of the data set.
    """
    import torch

    from asyncdgl.data.batch import Batch

    x = torch.rand(config.batch_size, *inputs[first - 1])
    if x.dim() == 4:
        x = x.contiguous(memory_format=torch.channels_last)
    x = x.to(torch.bfloat16) if config.precision == "bf16" and first > 1 else x
    y = torch.arange(config.batch_size) % classes
    return Batch(x.to(config.device), y.to(config.device), 0)


def _timed(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began
