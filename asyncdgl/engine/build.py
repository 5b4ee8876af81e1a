"""What every runtime shares: the parts of a run, built from its configuration, and what it tells and hands back."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from asyncdgl.buffers.buffer import ReplayBuffer
from asyncdgl.buffers.link import Link
from asyncdgl.config.model import RunConfig
from asyncdgl.delays.clock import ProfileClock
from asyncdgl.registry import find
from asyncdgl.seeding import Draws

if TYPE_CHECKING:
    from asyncdgl.data.dataset import Dataset
    from asyncdgl.data.stream import BatchStream
    from asyncdgl.learn.evaluation import Evaluator
    from asyncdgl.learn.stage import Stage


def make_buffer(config: RunConfig, after_stage: int) -> ReplayBuffer[Any]:
    """The buffer between stage ``after_stage`` and the next, with its link."""
    replay = config.replay
    link: Link[Any] = Link(
        config.profile.link(after_stage),
        Draws(config.seed, "link", after_stage),
        in_order=replay.sampler == "fifo",
        may_drop=replay.on_full == "overwrite",
    )
    return ReplayBuffer(replay, link, Draws(config.seed, "buffer", after_stage))


def make_clock(config: RunConfig, stage: int) -> ProfileClock:
    """The profile clock of a stage."""
    return ProfileClock(config.profile.stage(stage), Draws(config.seed, "clock", stage))


def steps_clock(config: RunConfig, after_stage: int) -> bool:
    """Whether entries on this link travel on the profile clock, and not on the buffer's own."""
    return config.pace == "profile" and config.profile.unit == "steps" and config.profile.link(after_stage).has_delay


def open_dataset(config: RunConfig, folder: Path) -> Dataset:
    """The data set that lies decoded in ``folder``."""
    from asyncdgl.data.cache import open_cached
    from asyncdgl.data.dataset import make_dataset

    return make_dataset(open_cached(folder), config)


def make_stream(config: RunConfig, dataset: Dataset) -> BatchStream:
    """The stream of training mini-batches."""
    from asyncdgl.data.stream import BatchStream

    return BatchStream(dataset, config.batch_size, config.data.augment, Draws(config.seed, "data"))


def make_stages(config: RunConfig, dataset: Dataset, only: int | None = None) -> list[Stage]:
    """All trained stages, or only number ``only``."""
    from asyncdgl.learn.stage import Stage
    from asyncdgl.nets.base import make_networks, make_stage_net

    input_shape, classes = dataset.input_shape, len(dataset.classes)
    if only is None:
        nets = make_networks(config, input_shape, classes)
    else:
        nets = [make_stage_net(config, only, input_shape, classes)]
    per_epoch = len(dataset.train) // config.batch_size
    bf16 = config.precision == "bf16"
    return [
        Stage(
            net,
            config.optim,
            per_epoch,
            config.device,
            bf16,
            epochs=config.epochs,
            loss=find("loss", config.model.loss),
            draws=Draws(config.seed, "stage", number),
        )
        for number, net in enumerate(nets, only or 1)
    ]


def make_evaluator(config: RunConfig, dataset: Dataset) -> Evaluator:
    """Copies of all stages for evaluation."""
    from asyncdgl.learn.evaluation import Evaluator

    return Evaluator(make_stages(config, dataset), dataset)
