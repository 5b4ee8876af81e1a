"""What the stages of a run report goes into its directory; and what of it a stage, or the run, can go on from."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from asyncdgl.config.resolved import ResolvedConfig
from asyncdgl.engine.checkpoints import SHARE
from asyncdgl.engine.evaluations import Evaluation, Evaluations
from asyncdgl.engine.history import Completeness, Faults, History
from asyncdgl.engine.restart import Restart
from asyncdgl.errors import NeedsRestart
from asyncdgl.observer import Observer, Progress
from asyncdgl.rundir import checkpoint as names
from asyncdgl.rundir.checkpoint import Checkpoint, Keep, StagePosition, unsaved
from asyncdgl.rundir.records import EpochLine
from asyncdgl.rundir.trace import PassRecord

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Arrays = Mapping[str, NDArray[Any]]


SOONEST_SAVED_S = 10.0
"""Between two checkpoints on the disk, where their number is not given."""


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

    @property
    def longest_pass_s(self) -> float:
        """What one of its passes took at most; 0 where it made none."""
        return max((record.end_s - record.start_s for record in self.records), default=0.0)


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
        self.faults = Faults(observer.faulted)
        self.histories = {j: History(j, self.faults) for j in self._numbers}
        # No evaluation uses initial weights: it is due when every stage has completed an epoch, and published it.
        self.evaluations: Evaluations[Any] = Evaluations([None] * config.stages, config.epochs, config.evaluation.every)
        self._epochs, self._every = config.epochs, config.evaluation.every
        self._made: set[int] = set()  # epochs that were evaluated before the run was stopped
        self._known_until_s = dict.fromkeys(self._numbers, 0.0)
        self._to_save: dict[int, deque[Checkpoint]] = {j: deque() for j in self._numbers}
        self._saved = dict.fromkeys(self._numbers, 0)  # the newest step of which there is one on the disk
        self._saving = Saving(config)
        self.end_s = 0.0
        if restart is not None:
            self._go_on(restart)
        self._complete = Completeness([self.histories[j].made for j in self._numbers])

    def _go_on(self, restart: Restart) -> None:
        self.end_s = restart.elapsed_s
        self._made = {line.epoch for line in restart.evaluations}
        self.faults.all.extend(restart.faults)
        for j, stage in sorted(restart.stages.items()):
            read = {r.source_step for r in stage.live if r.source_step is not None}
            self.histories[j].begin(stage.kept, stage.incarnation, read)
            self._saved[j] = stage.kept.of(j).step if stage.kept is not None else 0
            self.faults.gone_on(f"stage {j}", restart.elapsed_s, stage.again, stage.lost)
            for line in restart.epochs_of(j):
                is_due = line.epoch % self._every == 0 or line.epoch == self._epochs
                weights = stage.kept.part(names.published(j, line.epoch)) if stage.kept is not None else {}
                self.evaluations.completed(j, line.end_s, weights if is_due else None)
                self.histories[j].completes(line.epoch)

    @property
    def trained(self) -> list[int]:
        """The stages that have done their quota of updates."""
        return [j for j, history in self.histories.items() if history.epochs == self._epochs]

    def made(self, j: int) -> int:
        """How many passes a stage is known to have made: those recorded, and those whose entries were read."""
        history, reader = self.histories[j], self.histories.get(j + 1)
        newest_read = -1 if reader is None else reader.newest_read.get(history.incarnation, -1)
        return max(history.made, newest_read + 1)

    def check_whole(self) -> None:
        """Whether all that was read was recorded by whoever made it.

        Raises:
            NeedsRestart: a stage died before it could tell, with the buffer that knew: the run has to go back.
        """
        for j, history in self.histories.items():
            if self.made(j) > history.made:
                raise NeedsRestart(
                    f"stage {j + 1} read what stage {j} made in step {self.made(j) - 1}, and the record of that pass "
                    f"was lost with the process of stage {j}",
                    f"stage {j}",
                )

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
            if evaluation.epoch in self._made:
                continue
            if all(publication.weights for publication in evaluation.of):
                due.append(evaluation)
            else:  # they were published, and not yet evaluated, when the main process ended
                self._observer.noticed(f"the evaluation of epoch {evaluation.epoch} was lost when the run was stopped")
        return due

    def write(self, j: int, chunk: Chunk, is_last: bool = False) -> None:
        """What a report says goes to the run directory, and then what rests on it.

        Args:
            j: the stage.
            chunk: its report.
            is_last: whether the run ends with it: then its checkpoint goes to the disk.
        """
        history = self.histories[j]
        if not history.repeats:  # the run ends with that; nobody may go on from what rests on other bits
            return
        new = history.news(chunk.records)
        self._observer.passed(new)
        self._complete.add(j, new)
        self.end_s = max([self.end_s, *(r.end_s for r in new[-1:])])
        if chunk.progress is not None:
            self._observer.progressed(j, chunk.progress)
        for line, published in chunk.epochs:
            if history.completes(line.epoch):
                self._observer.epoch_completed(line)
                self.evaluations.completed(j, line.end_s, published and _copied(published))
        if chunk.progress is not None:  # its line may have been lost, and an earlier process may have written it
            history.completes(chunk.progress.epoch)
        if chunk.checkpoint is not None:
            # A process that takes this one's place needs no more, as long as this one lives. The run may have to go on
            # without: then all that the checkpoint rests on must be in the trace.
            position, state = chunk.checkpoint
            kept = unsaved(None, self.end_s, (position,), _copied(state))
            history.count(kept)
            self._counts(j, position.step)
            if is_last or self._saving.is_due(j, position.step):
                self._to_save[j].append(kept)
        self._save_complete()

    def save_newest(self) -> None:
        """All stages may have to go back: those whose processes are gone, to what is only in memory so far."""
        for j, history in self.histories.items():
            newest = max((kept.of(j).step for kept in self._to_save[j]), default=self._saved[j])
            # Where all go back together, what the others don't have would take the place of what they have.
            if self._saving.together or history.kept is None or not history.repeats:
                continue
            if history.kept.of(j).step > newest:
                self._to_save[j].append(history.kept)
        self._save_complete()

    def _save_complete(self) -> None:
        """Save what waits for it, as far as all that it rests on is in the trace."""
        for j, to_save in self._to_save.items():
            while to_save and to_save[0].of(j).step <= self._complete.of(j):
                self._saved[j] = to_save[0].of(j).step
                self._save(j, to_save.popleft())

    def _save(self, j: int, kept: Checkpoint) -> None:
        position = kept.of(j)
        published = {
            f"{names.published(j, publication.epoch)}{name}": value
            for stage, publication in self.evaluations.published
            if stage == j and publication.weights
            for name, value in publication.weights.items()
        }
        began = time.perf_counter()
        try:
            self._keep(None, self.end_s, (position,), {**kept.arrays, **published}, j)
        except OSError as error:
            self._observer.noticed(f"no checkpoint of stage {j} before step {position.step}: {error}")
        self._saving.took(j, time.perf_counter() - began)


def _copied(arrays: Arrays) -> Arrays:
    """They may lie in Ray's store, which is small: what is kept must not stay there."""
    return {name: value.copy() for name, value in arrays.items()}


class Saving:
    """Which checkpoints go to the disk: all where their number is given, otherwise as many as cost little.

    With `sync-dgl` those of all stages at the same steps: only these can be gone on from.

    Args:
        config: the run.

    Attributes:
        together: whether it is.
    """

    def __init__(self, config: ResolvedConfig) -> None:
        self._all = config.checkpoint.every is not None
        self.together = config.algorithm == "sync-dgl"
        self._stages = config.stages
        self._not_before_s = dict.fromkeys(range(1, config.stages + 1), time.perf_counter() + SOONEST_SAVED_S)
        self._chosen: set[int] = set()

    def is_due(self, stage: int, step: int) -> bool:
        """Whether a stage's checkpoint goes to the disk."""
        if self._all or step in self._chosen:
            return True
        if self.together and stage > 1:  # stage 1 comes to each step first, and chooses
            return False
        is_due = time.perf_counter() >= self._not_before_s[stage]
        if is_due and self.together:
            self._chosen.add(step)
        return is_due

    def took(self, stage: int, seconds: float) -> None:
        """To save a checkpoint took so long."""
        wait_s = max(SOONEST_SAVED_S, seconds * self._stages / SHARE)
        self._not_before_s[stage] = time.perf_counter() + wait_s
