"""What every runtime shares: the parts of a run, built from its configuration, and how a stage makes one pass."""

from __future__ import annotations

import contextlib
import ctypes
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from asyncdgl.batch import ActivationBatch, PassName, Provenance
from asyncdgl.config import RunConfig
from asyncdgl.delays.clock import ProfileClock
from asyncdgl.errors import StageFailed
from asyncdgl.metrics import EpochMeter, StageEnd
from asyncdgl.replay.buffer import ReplayBuffer, Sample
from asyncdgl.replay.entry import Entry
from asyncdgl.replay.link import Link
from asyncdgl.seeding import Draws
from asyncdgl.trace import FORWARD, TRAIN, PassRecord

if TYPE_CHECKING:
    from asyncdgl.data.dataset import Dataset
    from asyncdgl.data.stream import BatchStream
    from asyncdgl.evaluation import Evaluator
    from asyncdgl.stage import Stage, State

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


# --- One stage's passes -----------------------------------------------------------------------------------------------


class StagePasses:
    """Makes the passes of one stage: names them, runs them, encodes what they hand on, and records them.

    Args:
        config: the run.
        dataset: its data.
        number: the stage, from 1.
        stage: the learner.
        clock: seconds since training began.
    """

    def __init__(
        self, config: RunConfig, dataset: Dataset, number: int, stage: Stage, clock: Callable[[], float]
    ) -> None:
        self.number = number
        self.stage = stage
        self.step = 0
        self._config = config
        self._clock = clock
        self._stream = make_stream(config, dataset) if number == 1 else None
        self._updates_per_epoch = len(dataset.train) // config.batch_size
        self.quota = config.epochs * self._updates_per_epoch
        self._is_last = number == config.trained_stages
        self._meter = EpochMeter(config.batch_size)
        self._published: State | None = None

    @property
    def next_name(self) -> PassName:
        """The name of the next pass."""
        return PassName(self.number, 0, self.step)

    @property
    def is_training(self) -> bool:
        """Whether the quota of updates is not yet done."""
        return self.stage.updates < self.quota

    def next_kind(self, later_stages_train: bool) -> str | None:
        """``train``, then ``forward`` as long as a later stage still trains, then None: the stage stops."""
        if self.is_training:
            return TRAIN
        return FORWARD if later_stages_train else None

    def run(
        self,
        kind: str,
        sample: Sample | None,
        sampled_s: float | None,
        waits: Mapping[str, float],
        number: int | None = None,
        start_s: float | None = None,
    ) -> Passed:
        """Make one pass.

        Args:
            kind: ``train`` or ``forward``.
            sample: what the buffer gave; None for stage 1, which reads the data stream.
            sampled_s: when it was given.
            waits: seconds waited since the last pass, by reason.
            number: stage 1 only: which batch of the stream it reads; the next one if not given.
            start_s: when the pass began, where that is not now.
        """
        name, updates = self.next_name, self.stage.updates
        start_s = self._clock() if start_s is None else start_s
        batch = self._input(sample, self.step if number is None else number)
        loss: float | None = None
        lr = self.stage.lr
        if kind == TRAIN:
            result = self.stage.train(batch)
            output, loss = result.output, result.loss
            if not math.isfinite(loss):
                raise StageFailed(
                    f"stage {self.number}: the loss is {loss} at its update {updates}: use a smaller --lr",
                    f"stage {self.number}",
                )
            self._meter.add(result.loss, result.correct)
        else:
            output = self.stage.forward(batch)
        source = Provenance(name, updates, kind == TRAIN, batch.batch)
        entry = None if self._is_last else self._entry(source, output, batch)
        self.step += 1
        record = PassRecord(
            stage=name.stage,
            incarnation=name.incarnation,
            step=name.step,
            kind=kind,
            batch=batch.batch,
            source_incarnation=sample.source.name.incarnation if sample else None,
            source_step=sample.source.name.step if sample else None,
            source_update=sample.source.update if sample else None,
            times_sampled=sample.times_sampled if sample else None,
            sampled_s=sampled_s if sample else None,
            start_s=start_s,
            end_s=self._clock(),
            waits=dict(waits),
            loss=loss,
        )
        return Passed(record, entry, self._complete_epoch(record, lr) if kind == TRAIN else None)

    def _input(self, sample: Sample | None, number: int) -> ActivationBatch:
        from asyncdgl.replay.codecs import decode

        if sample is not None:
            return decode(sample.payload, sample.source.batch, self._config.precision == "bf16", self._config.device)
        assert self._stream is not None
        return self._stream.get(number)

    def _entry(self, source: Provenance, output: Any, batch: ActivationBatch) -> Entry:
        from asyncdgl.replay.codecs import encode, payload_bytes

        payload = encode(self._config.buffer.codec, output, batch.y)
        return Entry(source, payload, payload_bytes(payload))

    def _complete_epoch(self, record: PassRecord, lr: float) -> EpochEnd | None:
        if self.stage.updates % self._updates_per_epoch:
            return None
        epoch = self.stage.completed_epochs
        line = {
            "kind": "epoch",
            "stage": self.number,
            "epoch": epoch,
            "updates": self.stage.updates,
            "loss": self._meter.loss,
            "accuracy": self._meter.accuracy,
            "lr": lr,
            "end_s": record.end_s,
        }
        self._meter.reset()
        # Stages that train one after the other are evaluated at each one's end; otherwise the last epoch is the run's.
        last = self._config.algorithm != "sequential-dgl" or self._is_last
        due = epoch % self._config.evaluation.every == 0 and not (last and epoch == self._config.epochs)
        return EpochEnd(line, self.stage.published() if due else None)

    def progress(self, stopped: bool) -> Progress:
        """How far the stage has come."""
        return Progress(
            self.stage.completed_epochs, self.stage.updates, self._meter.loss, self._meter.accuracy, stopped
        )

    def end(self, fetched_unused: int = 0, lost_turns: Mapping[str, int] | None = None) -> StageEnd:
        """What the stage reports when the run ends."""
        return StageEnd(
            updates=self.stage.updates,
            forward_passes=self.step - self.stage.updates,
            epochs=self.stage.completed_epochs,
            state_sha256=self.stage.state_sha256(),
            fetched_unused=fetched_unused,
            lost_turns=lost_turns,
        )


@dataclass(frozen=True)
class EpochEnd:
    """A stage completed one of its epochs: the line for metrics.jsonl, and its weights where evaluation needs them."""

    line: Line
    published: State | None


@dataclass(frozen=True)
class Passed:
    """What a pass leaves: its record, the entry for the next stage (None from the last), and the end of an epoch."""

    record: PassRecord
    entry: Entry | None
    epoch_end: EpochEnd | None


def evaluation_line(results: Mapping[str, Mapping[str, Any]], epoch: int, seconds: float, final: bool) -> Line:
    """The line of metrics.jsonl for one evaluation."""
    line: Line = {"kind": "evaluation", "epoch": epoch, "final": final, "end_s": seconds}
    for split, result in results.items():
        for what, values in result.items():
            line[f"{split}_{what}"] = values
    return line
