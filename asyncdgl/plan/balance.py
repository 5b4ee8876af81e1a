"""Where to cut a network into stages, and how many threads each gets, so that the slowest is as fast as can be.

From times measured here.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import cache
from statistics import median
from typing import TYPE_CHECKING, NamedTuple

from asyncdgl.config.defaults import available_cores
from asyncdgl.config.model import RunConfig
from asyncdgl.errors import ConfigError
from asyncdgl.nets.shape import Shape, block_outputs, cut
from asyncdgl.on_ray.cluster import wanted_address
from asyncdgl.plan.machine import visible_gpus
from asyncdgl.registry import find

if TYPE_CHECKING:
    from asyncdgl.data.batch import Batch
    from asyncdgl.nets.base import Blocks

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


def with_cut(config: RunConfig, cut: tuple[int, ...] | None) -> RunConfig:
    """The same run with this cut."""
    return config.model_copy(update={"model": config.model.model_copy(update={"cut": cut})})


def balance(
    config: RunConfig,
    input_shape: Shape,
    classes: int,
    check: Callable[[], None] = lambda: None,
    network: Blocks | None = None,
) -> Balance:
    """The best cut of the network's blocks into ``config.stages``, or the given one, with its measured times.

    Args:
        config: the run.
        input_shape: of the images.
        classes: of the data set.
        check: called between measurements; raises where it is to stop.
        network: instead of ``model.name``.

    Raises:
        ConfigError: the run computes on a GPU, and this machine has none.
    """
    if config.device == "cuda" and not visible_gpus():
        raise ConfigError("model.balance cost measures here, and this machine has no NVIDIA GPU: use balance blocks")
    inputs = [input_shape, *block_outputs(config.model, input_shape, classes, network)]
    measured = cache(lambda part: _pass_seconds(config, part, inputs, classes, check, network))
    if config.model.cut is None:
        parts = best_parts(len(inputs) - 1, config.stages, measured)
    else:
        parts = parts_of(config, len(inputs) - 1)
    return Balance(tuple(last for _, last in parts[:-1]), tuple(measured(part) for part in parts))


def open_questions(config: RunConfig) -> tuple[bool, bool]:
    """Whether the cut and the threads are still to be decided by cost.

    Raises:
        ConfigError: this machine's cores can't decide the threads.
    """
    cuts = config.model.balance == "cost" and config.model.cut is None and config.trained_stages > 1
    shares = config.runtime == "ray" and config.ray.threads == "cost"
    if shares and config.device == "cuda":
        raise ConfigError("ray.threads cost shares out CPU cores, but the stages compute on a GPU: leave it away")
    if shares and wanted_address(config.ray.address) is not None:
        raise ConfigError(
            "ray.threads cost shares out this machine's cores: on a cluster give a list, one for each stage"
        )
    return cuts, shares


def decide(
    config: RunConfig,
    input_shape: Shape,
    classes: int,
    check: Callable[[], None] = lambda: None,
    network: Blocks | None = None,
) -> tuple[RunConfig, Balance | None]:
    """What ``model.balance: cost`` and ``ray.threads: cost`` leave open, decided by times measured here.

    Returns:
        The configuration, and the times; None where nothing was open.

    Raises:
        ConfigError: this machine can't decide it.
    """
    cuts, shares = open_questions(config)
    if not cuts and not shares:
        return config, None
    blocks = len(block_outputs(config.model, input_shape, classes, network))
    given = tuple(last for _, last in parts_of(config, blocks)[:-1])
    found = balance(config if cuts else with_cut(config, given), input_shape, classes, check, network)
    if shares:
        threads = share_out(available_cores(), found.pass_seconds)
        config = config.model_copy(update={"ray": config.ray.model_copy(update={"threads": threads})})
    return with_cut(config, found.cut) if cuts else config, found


def parts_of(config: RunConfig, blocks: int) -> list[Part]:
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
    config: RunConfig,
    part: Part,
    inputs: Sequence[Shape],
    classes: int,
    check: Callable[[], None],
    network: Blocks | None,
) -> float:
    """Seconds of a training pass of a stage that has these blocks: the median of a few."""
    from asyncdgl.learn.stage import Stage
    from asyncdgl.nets.base import make_stage_net

    check()
    first, last = part
    ends = sorted({first - 1, last} - {0, len(inputs) - 1})
    own = with_cut(config.model_copy(update={"stages": len(ends) + 1}), tuple(ends))
    bf16 = config.precision == "bf16"
    number = ends.index(last) + 1 if last in ends else len(ends) + 1
    net = make_stage_net(own, number, inputs[0], classes, network)
    stage = Stage(net, config.optim, 1, config.device, bf16, loss=find("loss", config.model.loss))
    batch = stage_input(config, first, inputs, classes)
    times = [_timed(lambda: stage.train(batch)) for _ in range(PASSES + 1)]
    return median(times[1:])  # the first one also sets up memory and kernels


def stage_input(config: RunConfig, first: int, inputs: Sequence[Shape], classes: int) -> Batch:
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
