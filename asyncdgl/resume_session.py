"""Going on with a run that was stopped: the rest of its life, in its own directory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from asyncdgl.config.resolved import ResolvedConfig
from asyncdgl.engine.raised import is_before_the_end, only_trained, with_epochs
from asyncdgl.errors import ConfigError, DataError
from asyncdgl.observer import NullObserver, Observer
from asyncdgl.plan.machine import available_cores
from asyncdgl.rundir.checkpoint import newest_checkpoint, remove_checkpoints_after
from asyncdgl.rundir.environment import describe_environment, environment_differences
from asyncdgl.rundir.reader import Run, read_run
from asyncdgl.rundir.records import EvaluationLine
from asyncdgl.rundir.writer import RunWriter
from asyncdgl.session import Session
from asyncdgl.supervisor import Supervisor


class ResumeSession(Session):
    """The rest of a run. One of `sim`, `virtual` or `sync-dgl` becomes the run that was never stopped.

    Args:
        left: what it has left.
        supervisor: may end it.
        epochs: of each stage, from now on; None for as many as it has.

    Raises:
        ConfigError: there is nothing that could be gone on with, or not for so many epochs.
    """

    def __init__(self, left: Run, supervisor: Supervisor | None = None, epochs: int | None = None) -> None:
        if left.summary is not None and left.summary.status == "completed":
            more = "; its checkpoints are gone, so more epochs need a new run" if epochs is not None else ""
            raise ConfigError(f"{left.path}: the run is complete, there is nothing to go on with{more}")
        self._goal = with_epochs(left, epochs)
        self._is_raised = self._goal.epochs > left.config.epochs
        self._left = left
        super().__init__(self._goal, None, supervisor)

    def _planned(self) -> ResolvedConfig:
        return self._goal

    def _resolved(self, observer: Observer) -> ResolvedConfig:
        return self._goal

    def prepare(self, observer: Observer | None = None) -> None:
        """See ``Session``; finds the newest checkpoint that can be used.

        Raises:
            ConfigError, DataError: another process writes the run, its data are not there, or none of its checkpoints
                can be used.
        """
        super().prepare(observer)
        self._writer = RunWriter(self._left.path.absolute(), goes_on=True, remembers=self.config.runtime != "ray")
        self._find_past(observer or NullObserver())

    def _open(self) -> tuple[Path, RunWriter]:
        return self._left.path, self._writer

    def _begin(self) -> None:
        """Nothing of a run in one process is touched before all of it is repeated."""
        if self._restart is not None:
            from asyncdgl.engine.restart import go_back

            go_back(self._writer, self._restart)
            self._left.let_go()
            self._raise()
        elif self._past is None:
            self._cut(0, 0)

    def _cut(self, passes: int, lines: int) -> None:
        """Keep these first passes and lines of metrics."""
        if self._is_raised:
            remove_checkpoints_after(self._writer.path, passes)
        self._writer.cut(self._left, passes, lines)
        self._raise()

    def _raise(self) -> None:
        """Last: who is killed before it goes on with the run as it was."""
        if self._is_raised:
            self._writer.write_config(self._goal)

    def _find_past(self, observer: Observer) -> None:
        writer = self._writer
        # Once more, now that nobody else writes there.
        left = self._left = read_run(self._left.path, self._left.given, to_go_on=True)
        writer.environment = left.environment
        sha256 = self._dataset.sha256 if self._dataset is not None else None
        here = describe_environment(self.config, sha256, available_cores())
        for difference in environment_differences(left.environment, here):
            observer.noticed(f"going on: {difference}")
        if self.config.runtime == "ray":
            self._find_restart(observer)
        else:
            self._find_checkpoint(observer)

    def _find_restart(self, observer: Observer) -> None:
        from asyncdgl.engine.restart import find_restart

        same_bits = self._is_raised and self.config.algorithm == "sync-dgl"
        restart, problems, anew = find_restart(self._left, only_trained if same_bits else lambda kept, stage: True)
        self._refuse(anew)
        for text in problems:
            observer.noticed(f"going on: {text}")
        observer.noticed(f"going on: {restart.where}")
        kept = [stage.kept.position.wall_seconds for stage in restart.stages.values() if stage.kept is not None]
        self._began -= max(kept, default=0.0)
        self._restart = restart

    def _refuse(self, problems: Sequence[str]) -> None:
        """Where nothing that was kept can be used: to begin anew would throw away what was computed.

        Raises:
            DataError: there are problems.
        """
        if problems:
            self._writer.close()
            raise DataError(f"{self._left.path} can't be gone on with, and is left as it is: {'; '.join(problems)}")

    def _find_checkpoint(self, observer: Observer) -> None:
        from asyncdgl.engine.past import Past

        left = self._left
        kept, problems = newest_checkpoint(left, lambda c: not self._is_raised or is_before_the_end(left, c))
        self._refuse(problems if kept is None else [])
        for problem in problems:
            observer.noticed(f"going on: {problem}")
        if kept is None:
            from_when = " from before a stage's last epoch" if self._is_raised else " yet"
            observer.noticed(
                f"going on: there is no checkpoint{from_when}, so the same passes are made from the first one"
            )
            return
        position = kept.position
        observer.noticed(f"going on after {position.passes} passes")
        self._began -= position.wall_seconds
        self._past = Past(
            kept,
            left.records[: position.passes],
            [line for line in left.lines[: position.metrics_lines] if isinstance(line, EvaluationLine)],
            timed=self.config.runtime == "virtual",
            on_over=lambda: self._cut(position.passes, position.metrics_lines),
        )

    def _conclude(self, error: BaseException | None) -> None:
        """Who is stopped before all is repeated leaves the run as it was."""
        if self._past is None or self._past.is_over:
            super()._conclude(error)
        else:
            self._summary = self._left.summary

    def left(self) -> Run:
        """What the run has left so far."""
        return self._left if self._past is not None and not self._past.is_over else super().left()

    def _remove_run_dir(self, out_existed: bool) -> None:
        """What was computed stays."""
