"""Going on with a run that was stopped: the rest of its life, in its own directory."""

from __future__ import annotations

from pathlib import Path

from asyncdgl.config.resolved import ResolvedConfig
from asyncdgl.errors import ConfigError, DataError
from asyncdgl.observer import NullObserver, Observer
from asyncdgl.plan.machine import available_cores
from asyncdgl.rundir.checkpoint import newest_checkpoint
from asyncdgl.rundir.environment import describe_environment, environment_differences
from asyncdgl.rundir.reader import Run, read_run
from asyncdgl.rundir.records import CONFIG, EvaluationLine
from asyncdgl.rundir.writer import RunWriter
from asyncdgl.session import Session, Supervisor


class ResumeSession(Session):
    """The rest of a run of `sim` or `virtual`, which becomes the run that was never stopped.

    Args:
        left: what it has left.
        supervisor: may end it.

    Raises:
        ConfigError: there is nothing that could be gone on with.
    """

    def __init__(self, left: Run, supervisor: Supervisor | None = None) -> None:
        if left.config.runtime == "ray":
            raise ConfigError(
                f"{left.path}: a run on Ray keeps no checkpoints and can't be gone on with; `asyncdgl run --config "
                f"{left.path / CONFIG}` begins it anew"
            )
        if left.summary is not None and left.summary.status == "completed":
            raise ConfigError(f"{left.path}: the run is complete, there is nothing to go on with")
        self._left = left
        super().__init__(left.config, None, supervisor)

    def _planned(self) -> ResolvedConfig:
        return self._left.config

    def _resolved(self, observer: Observer) -> ResolvedConfig:
        return self._left.config

    def prepare(self, observer: Observer | None = None) -> None:
        """See ``Session``; finds the newest checkpoint that can be used.

        Raises:
            ConfigError, DataError: another process writes the run, its data are not there, or none of its checkpoints
                can be used.
        """
        super().prepare(observer)
        self._writer = RunWriter(self._left.path.absolute(), goes_on=True)
        self._find_past(observer or NullObserver())

    def _open(self) -> tuple[Path, RunWriter]:
        return self._left.path, self._writer

    def _begin(self) -> None:
        """Nothing of the run is touched before all of it is repeated."""
        if self._past is None:
            self._writer.cut(self._left, 0, 0)

    def _find_past(self, observer: Observer) -> None:
        from asyncdgl.engine.past import Past

        writer = self._writer
        left = self._left = read_run(self._left.path, self._left.given)  # now that nobody else writes there
        writer.environment = left.environment
        sha256 = self._dataset.sha256 if self._dataset is not None else None
        here = describe_environment(self.config, sha256, available_cores())
        kept, problems = newest_checkpoint(left)
        if kept is None and problems:  # to begin anew would throw away what was computed
            writer.close()
            raise DataError(f"{left.path} can't be gone on with, and is left as it is: {'; '.join(problems)}")
        for problem in (*environment_differences(left.environment, here), *problems):
            observer.noticed(f"going on: {problem}")
        if kept is None:
            observer.noticed("going on: there is no checkpoint yet, so the same passes are made from the first one")
            return
        position = kept.position
        observer.noticed(f"going on after {position.passes} passes")
        self._began -= position.wall_seconds
        self._past = Past(
            kept,
            left.records[: position.passes],
            [line for line in left.lines[: position.metrics_lines] if isinstance(line, EvaluationLine)],
            timed=self.config.runtime == "virtual",
            on_over=lambda: writer.cut(left, position.passes, position.metrics_lines),
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
