"""Passes without arithmetic: who read which entry when, for networks larger than any machine here could train."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from asyncdgl.buffers.buffer import Sample
from asyncdgl.buffers.entry import Entry, PassName, Provenance
from asyncdgl.config.model import RunConfig
from asyncdgl.engine.passes import EpochEnd, Passed
from asyncdgl.observer import Progress
from asyncdgl.rundir.outcome import StageEnd
from asyncdgl.rundir.trace import FORWARD, TRAIN, PassRecord


class ProvenancePasses:
    """The passes of one stage as ``StagePasses`` makes them, but of their provenance alone.

    Args:
        config: the run; an epoch has ``virtual.batches`` mini-batches.
        number: the stage, from 1.
        entry_bytes: encoded size of what it would hand on.
        clock: the time now.
    """

    def __init__(self, config: RunConfig, number: int, entry_bytes: int, clock: Callable[[], float]) -> None:
        self._clock = clock
        self.number = number
        self.step = 0
        self.updates = 0
        self._per_epoch = config.virtual.batches
        self.quota = config.epochs * self._per_epoch
        self._is_last = number == config.stages
        self._entry_bytes = entry_bytes

    @property
    def next_name(self) -> PassName:
        """The name of the next pass."""
        return PassName(self.number, 0, self.step)

    @property
    def is_training(self) -> bool:
        """Whether the quota of updates is not yet done."""
        return self.updates < self.quota

    def next_kind(self, later_stages_train: bool) -> str | None:
        """See ``StagePasses``."""
        if self.updates < self.quota:
            return TRAIN
        return FORWARD if later_stages_train else None

    def run(
        self, kind: str, sample: Sample[Any] | None, sampled_s: float | None, waits: dict[str, float], start_s: float
    ) -> Passed:
        """See ``StagePasses``; the pass ends now."""
        end_s = self._clock()
        step, updates, trains = self.step, self.updates, kind == TRAIN
        name = PassName(self.number, 0, step)
        self.step += 1
        self.updates += trains
        if sample is None:
            batch = step
            record = PassRecord(
                self.number, 0, step, kind, batch, None, None, None, None, None, start_s, end_s, waits, None
            )
        else:
            source = sample.source
            batch = source.batch
            record = PassRecord(
                self.number,
                0,
                step,
                kind,
                batch,
                source.name.incarnation,
                source.name.step,
                source.update,
                sample.times_sampled,
                sampled_s,
                start_s,
                end_s,
                waits,
                None,
            )
        entry = None if self._is_last else Entry(Provenance(name, updates, trains, batch), None, self._entry_bytes)
        ends_epoch = trains and self.updates % self._per_epoch == 0
        return Passed(record, entry, self._epoch_end(end_s) if ends_epoch else None)

    def _epoch_end(self, end_s: float) -> EpochEnd:
        line = {
            "kind": "epoch",
            "stage": self.number,
            "epoch": self.updates // self._per_epoch,
            "updates": self.updates,
            "loss": None,
            "accuracy": None,
            "lr": None,
            "end_s": end_s,
        }
        return EpochEnd(line, None)

    def progress(self, stopped: bool) -> Progress:
        """How far the stage has come."""
        return Progress(self.updates // self._per_epoch, self.updates, None, None, stopped)

    def end(self, fetched_unused: int = 0) -> StageEnd:
        """What the stage reports when the run ends."""
        epochs = self.updates // self._per_epoch
        return StageEnd(self.updates, self.step - self.updates, epochs, None, fetched_unused)
