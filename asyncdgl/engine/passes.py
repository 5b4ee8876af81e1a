"""How a stage makes one pass: what it reads, learns, hands on and records. The same for every engine."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from asyncdgl.buffers.buffer import Sample
from asyncdgl.buffers.entry import Entry, PassName, Provenance
from asyncdgl.data.batch import Batch
from asyncdgl.errors import Diverged
from asyncdgl.learn.meter import EpochMeter
from asyncdgl.observer import Progress
from asyncdgl.rundir.checkpoint import StagePosition
from asyncdgl.rundir.outcome import StageEnd
from asyncdgl.rundir.records import EpochLine
from asyncdgl.rundir.trace import TRAIN, PassRecord

if TYPE_CHECKING:
    from asyncdgl.config.resolved import ResolvedConfig
    from asyncdgl.data.stream import BatchStream
    from asyncdgl.learn.learner import Learner, State


class Handling(Protocol):
    """How mini-batches come in and go out of a stage."""

    def fresh(self, number: int) -> Batch:
        """Mini-batch ``number`` of the data stream (stage 1)."""

    def read(self, sample: Sample[Any]) -> Batch:
        """What a buffer gave."""

    def write(self, output: Any, batch: Batch, step: int) -> tuple[Any, int]:
        """The output of pass ``step`` as the payload of an entry, and its encoded size in bytes."""


class Tensors:
    """Mini-batches as tensors: decoded as they come in, encoded as they go out.

    Args:
        config: the run: codec, precision, device.
        stream: of the data; stage 1 only.
    """

    def __init__(self, config: ResolvedConfig, stream: BatchStream | None) -> None:
        self._codec = config.buffer.codec
        self._bf16, self._device = config.precision == "bf16", config.device
        self._stream = stream

    def fresh(self, number: int) -> Batch:
        """See ``Handling``."""
        if self._stream is None:
            raise TypeError("only stage 1 reads the data stream")
        return self._stream.get(number)

    def read(self, sample: Sample[Any]) -> Batch:
        """See ``Handling``."""
        from asyncdgl.buffers.codecs import decode

        return decode(self._codec, sample.payload, sample.source.batch, self._bf16, self._device)

    def write(self, output: Any, batch: Batch, step: int) -> tuple[Any, int]:
        """See ``Handling``."""
        from asyncdgl.buffers.codecs import encode, payload_bytes

        payload = encode(self._codec, output, batch.y)
        return payload, payload_bytes(payload)


class NoTensors:
    """Numbers of mini-batches alone: for a learner that computes nothing.

    Args:
        nbytes: encoded size of what the stage would hand on.
    """

    def __init__(self, nbytes: int) -> None:
        self._nbytes = nbytes

    def fresh(self, number: int) -> Batch:
        """See ``Handling``."""
        return _Number(number)  # type: ignore[return-value]

    def read(self, sample: Sample[Any]) -> Batch:
        """See ``Handling``."""
        return _Number(sample.source.batch)  # type: ignore[return-value]

    def write(self, output: Any, batch: Batch, step: int) -> tuple[Any, int]:
        """See ``Handling``."""
        return None, self._nbytes


class _Number:
    """A mini-batch of which only the number is known."""

    __slots__ = ("number",)

    def __init__(self, number: int) -> None:
        self.number = number


_NOTHING_GIVEN: tuple[Any, ...] = (None,) * 5
"""Of a pass that reads the data stream."""


class StagePasses:
    """Makes the passes of one stage: names them, runs them, encodes what they hand on, and records them.

    Args:
        number: the stage, from 1.
        learner: what learns.
        handling: how mini-batches come in and go out.
        updates_per_epoch: updates that make one of the stage's own epochs.
        config: the run: quota, evaluation.
        clock: seconds since training began.

    Attributes:
        incarnation: counts how often the stage went back to a checkpoint for good (rule 31).
        step: number of the next pass, of both kinds, from 0.
        quota: updates until the stage only forwards.
        updates_per_epoch: see above.
        meter: of its epoch under way.
    """

    def __init__(
        self,
        number: int,
        learner: Learner,
        handling: Handling,
        updates_per_epoch: int,
        config: ResolvedConfig,
        clock: Callable[[], float],
    ) -> None:
        self.number = number
        self.learner = learner
        self.incarnation = 0
        self.step = 0
        self.quota = config.epochs * updates_per_epoch
        self._handling = handling
        self._clock = clock
        self.updates_per_epoch = updates_per_epoch
        self._epochs, self._every = config.epochs, config.evaluation.every
        self._is_last = number == config.trained_stages
        # Stages that train one after the other each begin with the first mini-batch.
        self._stream_length = self.quota if config.one_by_one else None
        self.meter = EpochMeter(config.batch_size)
        self._entry_bytes = 0

    @property
    def next_name(self) -> PassName:
        """The name of the next pass."""
        return PassName(self.number, self.incarnation, self.step)

    @property
    def is_training(self) -> bool:
        """Whether the quota of updates is not yet done."""
        return self.learner.updates < self.quota

    @property
    def next_batch(self) -> int:
        """The mini-batch of the data stream that the next pass of stage 1 reads."""
        return self.step if self._stream_length is None else self.step % self._stream_length

    def run(
        self,
        kind: str,
        sample: Sample[Any] | None,
        sampled_s: float | None,
        waits: dict[str, float],
        start_s: float | None = None,
    ) -> Passed:
        """Make one pass.

        Args:
            kind: ``train`` or ``forward``.
            sample: what the buffer gave; None for stage 1, which reads the data stream.
            sampled_s: when it was given.
            waits: seconds waited since the last pass, by reason.
            start_s: when the pass began, where that is not now.

        Raises:
            Diverged: the loss is not finite.
        """
        learner, step = self.learner, self.step
        updates, trains = learner.updates, kind == TRAIN
        if start_s is None:
            start_s = self._clock()
        batch = self._handling.fresh(self.next_batch) if sample is None else self._handling.read(sample)
        loss, lr = None, None
        if trains:
            lr = learner.lr
            result = learner.train(batch)
            output, loss = result.output, result.loss
            if loss is not None:
                self._count(loss, result.correct, updates)
        else:
            output = learner.forward(batch)
        entry: Entry[Any] | None = None
        if not self._is_last:
            payload, nbytes = self._handling.write(output, batch, step)
            self._entry_bytes = nbytes
            name = PassName(self.number, self.incarnation, step)
            entry = Entry(Provenance(name, updates, trains, batch.number), payload, nbytes)
        self.step = step + 1
        made = self.number, self.incarnation, step, kind, batch.number
        given = _NOTHING_GIVEN
        if sample is not None:
            (_, incarnation, of_step), update, _, _ = sample.source
            given = incarnation, of_step, update, sample.times_sampled, sampled_s
        # A third of the time that fourteen arguments take: `virtual` makes a million.
        record = PassRecord._make((*made, *given, start_s, self._clock(), waits, loss))
        ends_epoch = trains and learner.updates % self.updates_per_epoch == 0
        return Passed(record, entry, self._complete_epoch(record, lr) if ends_epoch else None)

    def _count(self, loss: float, correct: int, updates: int) -> None:
        if not math.isfinite(loss):
            raise Diverged(
                f"stage {self.number}: the loss is {loss} at its update {updates}: use a smaller --lr",
                f"stage {self.number}",
            )
        self.meter.add(loss, correct)

    def _complete_epoch(self, record: PassRecord, lr: float | None) -> EpochEnd:
        epoch = self.learner.updates // self.updates_per_epoch
        line = EpochLine(
            stage=self.number,
            epoch=epoch,
            updates=self.learner.updates,
            loss=self.meter.loss,
            accuracy=self.meter.accuracy,
            lr=lr,
            end_s=record.end_s,
        )
        self.meter.reset()
        due = epoch % self._every == 0 or epoch == self._epochs  # rule 24
        return EpochEnd(line, self.learner.published() if due else None)

    def position(self, optimizer: Iterable[str], v: float = 0.0) -> StagePosition:
        """Where the stage stands, beside its learner's state.

        Args:
            optimizer: kinds of its optimizer's state.
            v: its profile clock, in steps.
        """
        updates, loss, correct = self.meter.sums
        return StagePosition(
            stage=self.number,
            incarnation=self.incarnation,
            step=self.step,
            v=v,
            updates=self.learner.updates,
            optimizer=tuple(optimizer),
            entry_bytes=self._entry_bytes,
            epoch_updates=updates,
            epoch_loss=loss,
            epoch_correct=correct,
        )

    def exchange(self, learner: Learner, handling: Handling) -> tuple[Learner, Handling]:
        """Give the stage another learner and handling; returns those that it had."""
        before = self.learner, self._handling
        self.learner, self._handling = learner, handling
        return before

    def go_on(self, position: StagePosition) -> None:
        """Stand where the stage stood; its learner has the state of then."""
        self.step, self._entry_bytes = position.step, position.entry_bytes
        self.meter.load(position.epoch_updates, position.epoch_loss, position.epoch_correct)

    def progress(self, stopped: bool) -> Progress:
        """How far the stage has come."""
        updates = self.learner.updates
        return Progress(updates // self.updates_per_epoch, updates, self.meter.loss, self.meter.accuracy, stopped)

    def end(self, fetched_unused: int = 0, lost_turns: dict[str, int] | None = None) -> StageEnd:
        """What the stage reports when the run ends."""
        updates = self.learner.updates
        return StageEnd(
            updates=updates,
            forward_passes=max(0, self.step - updates),  # the pass in which a loss diverged was an update, and is none
            epochs=updates // self.updates_per_epoch,
            state_sha256=self.learner.state_sha256(),
            fetched_unused=fetched_unused,
            lost_turns=lost_turns,
        )


@dataclass(frozen=True)
class EpochEnd:
    """A stage completed one of its epochs: the line for metrics.jsonl, and its weights where evaluation needs them."""

    line: EpochLine
    published: State | None


class Passed(NamedTuple):
    """What a pass leaves: its record, the entry for the next stage (None from the last), and the end of an epoch."""

    record: PassRecord
    entry: Entry[Any] | None
    epoch_end: EpochEnd | None

    @property
    def compute_s(self) -> float:
        """How long it computed."""
        return self.record.end_s - self.record.start_s
