"""What the stages of a run report goes into its directory; and what of it a stage, or the run, can go on from."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from asyncdgl.config.resolved import ResolvedConfig
from asyncdgl.engine.evaluations import Evaluation, Evaluations
from asyncdgl.engine.history import Completeness, Faults, History
from asyncdgl.engine.restart import Restart
from asyncdgl.observer import Observer, Progress
from asyncdgl.rundir import checkpoint as names
from asyncdgl.rundir.checkpoint import Keep, StagePosition
from asyncdgl.rundir.records import EpochLine
from asyncdgl.rundir.trace import PassRecord

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Arrays = Mapping[str, NDArray[Any]]


@dataclass
class Chunk:
    """What a stage did since the last one. It belongs to whoever asked for it: a stage that dies takes nothing with it.

    Attributes:
        records: its passes.
        epochs: it completed: the line for metrics.jsonl, and the weights where evaluation needs them.
        checkpoint: where it stood after the last of these passes, and its state; with one the chunk ends.
        progress: how far it has come.
        until_s: there is no more of what it did until then.
    """

    records: list[PassRecord] = field(default_factory=list)
    epochs: list[tuple[EpochLine, Arrays | None]] = field(default_factory=list)
    checkpoint: tuple[StagePosition, Arrays] | None = None
    progress: Progress | None = None
    until_s: float = 0.0


class Reports:
    """Takes the reports of all stages.

    Args:
        config: the run.
        observer: is told of every pass and epoch, once.
        keep: writes a stage's checkpoint.
        restart: where the run goes on; None where it begins.
        counts: called with each stage whose checkpoint counts now, and with its step.

    Attributes:
        histories: of each stage.
        faults: what died.
        end_s: when the last pass ended, in seconds since training began.
        saving_s: what it takes to save a checkpoint of every stage.
    """

    def __init__(
        self,
        config: ResolvedConfig,
        observer: Observer,
        keep: Keep,
        restart: Restart | None,
        counts: Callable[[int, int], None],
    ) -> None:
        self._observer, self._keep, self._counts = observer, keep, counts
        self._numbers = range(1, config.stages + 1)
        self.faults = Faults()
        self.histories = {j: History(j, self.faults) for j in self._numbers}
        # No evaluation uses initial weights: it is due when every stage has completed an epoch, and published it.
        self.evaluations: Evaluations[Any] = Evaluations([None] * config.stages, config.epochs, config.evaluation.every)
        self._epochs, self._every = config.epochs, config.evaluation.every
        self._made = 0  # evaluations that were made before the run was stopped
        self._known_until_s = dict.fromkeys(self._numbers, 0.0)
        self._kept: dict[int, deque[tuple[StagePosition, Arrays]]] = {j: deque() for j in self._numbers}
        self.end_s = self.saving_s = 0.0
        if restart is not None:
            self._go_on(restart)
        self._complete = Completeness([self.histories[j].made for j in self._numbers])

    def _go_on(self, restart: Restart) -> None:
        self.end_s = restart.elapsed_s
        self._made = len(restart.evaluations)
        for j, stage in restart.stages.items():
            read = {r.source_step for r in stage.live if r.source_step is not None}
            self.histories[j].begin(stage.kept, stage.incarnation, read)
            self.faults.gone_on(f"stage {j}", restart.elapsed_s, stage.again, stage.lost)
            for line in restart.epochs_of(j):
                is_due = line.epoch % self._every == 0 or line.epoch == self._epochs
                weights = stage.kept.part(names.published(j, line.epoch)) if stage.kept is not None else {}
                self.evaluations.completed(j, line.end_s, weights if is_due else None)
                self.histories[j].completes(line.epoch)

    def take(self, j: int, chunk: Chunk) -> list[Evaluation[Any]]:
        """A stage's next report.

        Returns:
            The evaluations that are due now.

        Raises:
            StageFailed: it does not fit what is known of the stage.
        """
        self.write(j, chunk)
        stopped = chunk.progress is not None and chunk.progress.stopped
        self._known_until_s[j] = math.inf if stopped else chunk.until_s
        return self._due()

    def _due(self) -> list[Evaluation[Any]]:
        due = []
        for evaluation in self.evaluations.due(min(self._known_until_s.values())):
            if self._made:
                self._made -= 1
            elif all(publication.weights for publication in evaluation.of):
                due.append(evaluation)
            else:  # they were published, and not yet evaluated, when the main process ended
                self._observer.noticed(f"the evaluation of epoch {evaluation.epoch} was lost when the run was stopped")
        return due

    def write(self, j: int, chunk: Chunk) -> None:
        """What a report says goes to the run directory, and then what rests on it."""
        history = self.histories[j]
        new = history.news(chunk.records)
        self._observer.passed(new)
        self._complete.add(j, new)
        self.end_s = max([self.end_s, *(r.end_s for r in new[-1:])])
        if chunk.progress is not None:
            self._observer.progressed(j, chunk.progress)
        for line, published in chunk.epochs:
            if history.completes(line.epoch):
                self._observer.epoch_completed(line)
                self.evaluations.completed(j, line.end_s, published)
        if chunk.checkpoint is not None:
            self._kept[j].append(chunk.checkpoint)
        for of_stage, kept in self._kept.items():
            while kept and kept[0][0].step <= self._complete.of(of_stage):
                self._save(of_stage, *kept.popleft())

    def _save(self, j: int, position: StagePosition, arrays: Arrays) -> None:
        began = time.perf_counter()
        published = {
            f"{names.published(j, publication.epoch)}{name}": value
            for stage, publication in self.evaluations.published
            if stage == j and publication.weights
            for name, value in publication.weights.items()
        }
        try:
            self.histories[j].count(self._keep(None, self.end_s, (position,), {**arrays, **published}, j))
        except OSError as error:
            self._observer.noticed(f"no checkpoint of stage {j} before step {position.step}: {error}")
            return
        self.saving_s = (time.perf_counter() - began) * len(self._numbers)
        self._counts(j, position.step)
