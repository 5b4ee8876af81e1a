"""The parts of a run, built from its configuration: the same for every engine."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from asyncdgl.buffers.buffer import ReplayBuffer
from asyncdgl.buffers.entry import Entry
from asyncdgl.buffers.link import Link
from asyncdgl.buffers.size import entry_bytes
from asyncdgl.config.resolved import ResolvedConfig
from asyncdgl.delays.clock import ProfileClock
from asyncdgl.engine.passes import NoTensors, StagePasses, Tensors
from asyncdgl.learn.learner import NoArithmetic, as_arrays
from asyncdgl.plan.memory import asked_outputs
from asyncdgl.seeding import Draws

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from asyncdgl.data.dataset import Dataset
    from asyncdgl.learn.evaluation import Evaluator


@dataclass(frozen=True)
class Parts:
    """All stages of a run in one process.

    Attributes:
        passes: of each stage, from 1.
        lengths: of its passes on the profile clock.
        buffers: after stages 1 to J-1.
        evaluator: None where nothing is computed.
    """

    passes: dict[int, StagePasses]
    lengths: dict[int, ProfileClock]
    buffers: dict[int, ReplayBuffer[Any]]
    evaluator: Evaluator | None


def build(config: ResolvedConfig, data: Path | None, clock: Callable[[], float]) -> Parts:
    """The parts of a run.

    Args:
        config: the run.
        data: folder of the decoded data set; without one nothing is computed.
        clock: seconds since training began.
    """
    numbers = range(1, config.trained_stages + 1)
    evaluator = None
    if data is None:
        sizes = [*entry_bytes(config, config.precision == "bf16", asked_outputs(config)), 0]
        per_epoch = config.virtual.batches
        passes = {
            j: StagePasses(j, NoArithmetic(per_epoch), NoTensors(sizes[j - 1]), per_epoch, config, clock)
            for j in numbers
        }
    else:
        from asyncdgl.data.dataset import open_dataset
        from asyncdgl.learn.arithmetic import set_up_torch
        from asyncdgl.learn.evaluation import make_evaluator

        set_up_torch(config)
        dataset = open_dataset(config, data)
        passes = {j: make_passes(config, dataset, j, clock) for j in numbers}
        evaluator = make_evaluator(config, dataset)
    return Parts(
        passes=passes,
        lengths={j: make_clock(config, j) for j in numbers},
        buffers={j: make_buffer(config, j) for j in numbers[:-1]},
        evaluator=evaluator,
    )


def make_passes(config: ResolvedConfig, dataset: Dataset, number: int, clock: Callable[[], float]) -> StagePasses:
    """What makes the passes of stage ``number``, with its learner."""
    from asyncdgl.data.stream import make_stream
    from asyncdgl.learn.stage import make_stages

    stage = make_stages(config, dataset, only=number)[0]
    stream = make_stream(config, dataset) if number == 1 else None
    per_epoch = len(dataset.train) // config.batch_size
    return StagePasses(number, stage, Tensors(config, stream), per_epoch, config, clock)


def weights_of(passes: Mapping[int, StagePasses]) -> dict[int, Mapping[str, NDArray[Any]]]:
    """The weights that each stage has now; none where nothing is computed."""
    states = {j: own.learner.published() for j, own in passes.items()}
    return {j: as_arrays(state) for j, state in states.items() if state is not None}


def make_buffer(
    config: ResolvedConfig, after_stage: int, on_leave: Callable[[Entry[Any]], None] = lambda entry: None
) -> ReplayBuffer[Any]:
    """The buffer between stage ``after_stage`` and the next, with its link.

    Args:
        config: the run.
        after_stage: its producer.
        on_leave: see ``ReplayBuffer``.
    """
    replay = config.buffer
    link: Link[Any] = Link(
        config.profile.link(after_stage),
        Draws(config.seed, "link", after_stage),
        in_order=replay.sampler == "fifo",
        may_drop=replay.on_full == "overwrite",
        on_leave=on_leave,
    )
    return ReplayBuffer(replay, link, Draws(config.seed, "buffer", after_stage), on_leave)


def make_clock(config: ResolvedConfig, stage: int) -> ProfileClock:
    """The profile clock of a stage."""
    return ProfileClock(config.profile.stage(stage), Draws(config.seed, "clock", stage))


def steps_clock(config: ResolvedConfig, after_stage: int) -> bool:
    """Whether entries on this link travel on the profile clock, and not on the buffer's own."""
    return config.pace == "profile" and config.profile.unit == "steps" and config.profile.link(after_stage).has_delay
