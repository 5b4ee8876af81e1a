"""How a stage makes one pass: what it reads, learns, hands on and records. The same for every runtime."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from asyncdgl.buffers.buffer import Sample
from asyncdgl.buffers.entry import Entry, PassName, Provenance
from asyncdgl.config.model import RunConfig
from asyncdgl.data.batch import Batch
from asyncdgl.engine.build import make_stream
from asyncdgl.errors import StageFailed
from asyncdgl.learn.meter import EpochMeter
from asyncdgl.observer import Line, Progress
from asyncdgl.rundir.outcome import StageEnd
from asyncdgl.rundir.trace import FORWARD, TRAIN, PassRecord

if TYPE_CHECKING:
    from asyncdgl.buffers.codecs import Payload
    from asyncdgl.data.dataset import Dataset
    from asyncdgl.learn.learner import State
    from asyncdgl.learn.stage import Stage


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
        sample: Sample[Payload] | None,
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
            assert output is not None
            if loss is not None and not math.isfinite(loss):
                raise StageFailed(
                    f"stage {self.number}: the loss is {loss} at its update {updates}: use a smaller --lr",
                    f"stage {self.number}",
                )
            self._meter.add(loss or 0.0, result.correct)
        else:
            output = self.stage.forward(batch)
        source = Provenance(name, updates, kind == TRAIN, batch.number)
        entry = None if self._is_last else self._entry(source, output, batch)
        self.step += 1
        record = PassRecord(
            stage=name.stage,
            incarnation=name.incarnation,
            step=name.step,
            kind=kind,
            batch=batch.number,
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

    def _input(self, sample: Sample[Payload] | None, number: int) -> Batch:
        from asyncdgl.buffers.codecs import decode

        if sample is not None:
            bf16 = self._config.precision == "bf16"
            return decode(self._config.buffer.codec, sample.payload, sample.source.batch, bf16, self._config.device)
        assert self._stream is not None
        return self._stream.get(number)

    def _entry(self, source: Provenance, output: Any, batch: Batch) -> Entry[Payload]:
        from asyncdgl.buffers.codecs import encode, payload_bytes

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
    entry: Entry[Any] | None
    epoch_end: EpochEnd | None
