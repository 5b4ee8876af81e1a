"""What every runtime shares: the parts of a run, built from its configuration, and what it tells and hands back."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from asyncdgl.config import RunConfig
from asyncdgl.delays.clock import ProfileClock
from asyncdgl.metrics import StageEnd
from asyncdgl.replay.buffer import ReplayBuffer
from asyncdgl.replay.link import Link
from asyncdgl.seeding import Draws
from asyncdgl.trace import PassRecord

if TYPE_CHECKING:
    from asyncdgl.data.dataset import Dataset
    from asyncdgl.data.stream import BatchStream
    from asyncdgl.evaluation import Evaluator
    from asyncdgl.stage import Stage

Line = dict[str, Any]


class Observer(Protocol):
    """Who is told what happens in a run: the run directory and the display."""

    def passed(self, records: Sequence[PassRecord]) -> None:
        """Passes were made."""

    def progressed(self, stage: int, progress: Progress) -> None:
        """A stage has come so far."""

    def epoch_completed(self, line: Line) -> None:
        """A stage completed one of its own epochs."""

    def evaluated(self, line: Line) -> None:
        """The test set was used."""

    def noticed(self, message: str) -> None:
        """Something that a person would want to know while waiting."""


@dataclass(frozen=True)
class Progress:
    """How far a stage has come: own epoch and updates, mean loss and accuracy in the epoch, whether it has stopped."""

    epoch: int
    updates: int
    loss: float | None
    accuracy: float | None
    stopped: bool


@dataclass
class Outcome:
    """What a runtime hands back, complete or as far as it went.

    Attributes:
        ends: what each stage reported at its end.
        buffers: the list ``buffers`` of summary.json.
        evaluation: the last evaluation.
        processes: the Ray runtime's processes, for environment.json.
    """

    ends: dict[int, StageEnd]
    buffers: list[Line]
    evaluation: dict[str, dict[str, Any]] | None
    processes: list[Line] = field(default_factory=list)


# --- The parts of a run -----------------------------------------------------------------------------------------------


def make_buffer(config: RunConfig, after_stage: int) -> ReplayBuffer:
    """The buffer between stage ``after_stage`` and the next, with its link."""
    replay = config.replay
    link = Link(
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
    from asyncdgl.nets.network import make_networks, make_stage_net
    from asyncdgl.stage import Stage

    channels, classes = dataset.channels, len(dataset.classes)
    if only is None:
        nets = make_networks(config, channels, classes)
    else:
        nets = [make_stage_net(config, only, channels, classes)]
    per_epoch = len(dataset.train) // config.batch_size
    bf16 = config.precision == "bf16"
    return [Stage(net, config.optim, per_epoch, config.device, bf16) for net in nets]


def make_evaluator(config: RunConfig, dataset: Dataset) -> Evaluator:
    """Copies of all stages for evaluation."""
    from asyncdgl.evaluation import Evaluator

    return Evaluator(make_stages(config, dataset), dataset)


def set_up_torch(config: RunConfig, stage: int | None = None) -> None:
    """Threads and, on a GPU, deterministic algorithms: what the bits of a run depend on.

    Args:
        config: the run.
        stage: the only stage that this process computes, if there is but one.
    """
    import torch

    torch.set_num_threads(config.threads if stage is None else config.threads_of(stage))
    keep_freed_memory()
    if config.device == "cuda":
        torch.backends.cudnn.deterministic = True
        torch.backends.cudnn.benchmark = False


def keep_freed_memory() -> None:
    """Let this process keep the memory that it frees: every pass needs as much again.

    Otherwise glibc gives each pass's activations back to the system, which has to clear the same pages for the next
    one: 10 to 30 % of the time where two processes compute (experiments/throughput). No effect on other C libraries.
    """
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        libc.gnu_get_libc_version()  # raises AttributeError where it is another one
        for parameter, value in _MALLOC.items():
            libc.mallopt(parameter, value)


# M_MMAP_THRESHOLD (its largest value), M_TRIM_THRESHOLD (never) and M_TOP_PAD of malloc.h
_MALLOC = {-3: 32 << 20, -1: 2**31 - 1, -2: 64 << 20}


def evaluation_line(results: Mapping[str, Mapping[str, Any]], epoch: int, seconds: float, final: bool) -> Line:
    """The line of metrics.jsonl for one evaluation."""
    line: Line = {"kind": "evaluation", "epoch": epoch, "final": final, "end_s": seconds}
    for split, result in results.items():
        for what, values in result.items():
            line[f"{split}_{what}"] = values
    return line
