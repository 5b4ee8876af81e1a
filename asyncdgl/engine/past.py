"""Going on with a run of `sim` or `virtual` that was stopped: what it did is repeated first, without its arithmetic.

Nothing of who reads which entry when depends on a number that was computed. So the engine begins anew, and its stages
only pretend: they count updates, and hand on the entries that the checkpoint kept. Each pretended pass is compared with
the trace. After the last one the stages take their kept states, and the run goes on with clocks, buffers, links,
algorithms and samplers of the user's own as they stood, none of which can be read from outside.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from asyncdgl.data.batch import Batch
from asyncdgl.engine.passes import NoTensors, StagePasses
from asyncdgl.errors import DataError
from asyncdgl.learn.learner import NoArithmetic, State
from asyncdgl.observer import Observer, Progress
from asyncdgl.rundir import checkpoint as names
from asyncdgl.rundir.checkpoint import Checkpoint
from asyncdgl.rundir.records import EpochLine, EvaluationLine, Fault
from asyncdgl.rundir.trace import PassRecord


class Past:
    """What a run has done already.

    Args:
        kept: its checkpoint.
        records: the first lines of its trace, as many passes as the checkpoint rests on.
        evaluations: that it had made by then.
        timed: whether times are part of what is repeated (`virtual`).
        on_over: called once all of it is repeated, before anything new is told.

    Attributes:
        evaluations: see above.
    """

    def __init__(
        self,
        kept: Checkpoint,
        records: Sequence[PassRecord],
        evaluations: Sequence[EvaluationLine],
        timed: bool,
        on_over: Callable[[], None],
    ) -> None:
        self.evaluations = list(evaluations)
        self._kept = kept
        self._records = records
        self._timed = timed
        self._on_over = on_over
        self._checked = 0
        self._real: dict[int, tuple[Any, Any]] = {}
        self.is_over = False

    @property
    def passes(self) -> int:
        """How many passes are to be repeated."""
        return len(self._records)

    @property
    def elapsed_s(self) -> float:
        """Since training began, at the checkpoint."""
        return self._kept.position.elapsed_s

    def now(self, made: int) -> float:
        """The time of the next pass that is repeated; never goes back."""
        return self._records[min(made, len(self._records) - 1)].end_s

    def begin(self, passes: Mapping[int, StagePasses]) -> None:
        """From now on the stages pretend."""
        for j, own in passes.items():
            stage = self._kept.of(j)
            learner = _Pretending(j, own.updates_per_epoch, self._kept)
            self._real[j] = own.exchange(learner, _Kept(j, stage.entry_bytes, self._kept))

    def end(self, passes: Mapping[int, StagePasses]) -> None:
        """All of it is repeated: the stages have the states that they had.

        Raises:
            DataError: the checkpoint does not fit the run.
        """
        for j, own in passes.items():
            stage = self._kept.of(j)
            if (own.learner.updates, own.step) != (stage.updates, stage.step):
                raise DataError(f"the checkpoint says {stage.updates} updates of stage {j}, the trace says otherwise")
            learner, handling = self._real[j]
            own.exchange(learner, handling)
            go_on(own, self._kept)
        self.is_over = True
        self._on_over()

    def compare(self, records: Sequence[PassRecord]) -> None:
        """What was repeated must be what the trace says.

        Raises:
            DataError: it is not.
        """
        for record in records:
            kept = self._records[self._checked]
            if self._seen(record) != self._seen(kept):
                raise DataError(
                    f"line {self._checked + 1} of the trace is not what this version of asyncdgl does there: the run "
                    "can't be gone on with"
                )
            self._checked += 1

    def _seen(self, record: PassRecord) -> PassRecord:
        timeless = record._replace(loss=None)
        return timeless if self._timed else timeless._replace(sampled_s=None, start_s=0.0, end_s=0.0, waits={})


def go_on(passes: StagePasses, kept: Checkpoint) -> None:
    """A stage takes the state that a checkpoint has of it, and stands where it stood."""
    stage = passes.number
    position = kept.of(stage)
    passes.learner.load_state_dict(
        {
            "weights": _tensors(kept.part(names.weights(stage))),
            "optimizer": {kind: _tensors(kept.part(f"{names.optimizer(stage)}{kind}/")) for kind in position.optimizer},
            "updates": position.updates,
        }
    )
    passes.go_on(position)


def _tensors(arrays: Mapping[str, Any]) -> State:
    if not arrays:
        return {}
    import torch

    return {name: torch.tensor(value) for name, value in arrays.items()}


class _Pretending(NoArithmetic):
    """Counts updates, and publishes what the checkpoint kept."""

    def __init__(self, stage: int, updates_per_epoch: int, kept: Checkpoint) -> None:
        super().__init__(updates_per_epoch)
        self._stage, self._kept = stage, kept

    def published(self) -> State | None:  # type: ignore[override]
        """See ``Learner``; only what an evaluation may still need was kept."""
        return _tensors(self._kept.part(names.published(self._stage, self.completed_epochs))) or None


class _Kept(NoTensors):
    """Hands on the entries that the checkpoint kept; nobody reads the others any more."""

    def __init__(self, stage: int, nbytes: int, kept: Checkpoint) -> None:
        super().__init__(nbytes)
        self._stage, self._kept = stage, kept
        self._steps = {int(rest.partition("/")[0]) for rest in kept.part(names.entries(stage))}

    def write(self, output: Any, batch: Batch, step: int) -> tuple[Any, int]:
        """See ``Handling``."""
        _, nbytes = super().write(output, batch, step)
        if step not in self._steps:
            return None, nbytes
        from asyncdgl.buffers.codecs import from_arrays

        return from_arrays(self._kept.part(names.entry(self._stage, step))), nbytes


class Resumed:
    """An observer of a run that is gone on with: is told only what is new.

    Args:
        past: what was done already.
        observer: who is told.
    """

    def __init__(self, past: Past, observer: Observer) -> None:
        self._past, self._observer = past, observer

    def began(self, path: Path) -> None:
        """See ``Observer``."""
        self._observer.began(path)

    def passed(self, records: Sequence[PassRecord]) -> None:
        """See ``Observer``."""
        if self._past.is_over:
            self._observer.passed(records)
        else:
            self._past.compare(records)

    def progressed(self, stage: int, progress: Progress) -> None:
        """See ``Observer``."""
        if self._past.is_over:
            self._observer.progressed(stage, progress)

    def epoch_completed(self, line: EpochLine) -> None:
        """See ``Observer``."""
        if self._past.is_over:
            self._observer.epoch_completed(line)

    def evaluated(self, line: EvaluationLine) -> None:
        """See ``Observer``."""
        self._observer.evaluated(line)

    def faulted(self, faults: Sequence[Fault]) -> None:
        """See ``Observer``."""
        self._observer.faulted(faults)

    def noticed(self, message: str) -> None:
        """See ``Observer``."""
        self._observer.noticed(message)
