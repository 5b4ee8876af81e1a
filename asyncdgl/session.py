"""A run's whole life: from what was asked to its directory, however it ends. Prints nothing and takes no signal."""

from __future__ import annotations

import contextlib
import time
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from asyncdgl.config.model import RunConfig
from asyncdgl.config.resolved import ResolvedConfig
from asyncdgl.errors import (
    ConfigError,
    DataError,
    Diverged,
    Interrupted,
    NeedsRestart,
    NotWritten,
    RunFailed,
)
from asyncdgl.observer import NullObserver, Observer, Several
from asyncdgl.plan.machine import available_cores, wanted_address
from asyncdgl.plan.memory import check_memory, checkpoints_kept
from asyncdgl.plan.resolve import planned, resolve
from asyncdgl.rundir.checkpoint import keeper, remove_checkpoints
from asyncdgl.rundir.environment import describe_environment
from asyncdgl.rundir.logs import explain
from asyncdgl.rundir.model import keep_model
from asyncdgl.rundir.outcome import Outcome
from asyncdgl.rundir.reader import Run
from asyncdgl.rundir.records import SUMMARY, Status, Summary
from asyncdgl.rundir.summary import make_summary
from asyncdgl.rundir.writer import RunWriter, check_out, make_run_dir, remove_run_dir
from asyncdgl.supervisor import NoSupervisor, Supervisor

if TYPE_CHECKING:
    from asyncdgl.data.dataset import Dataset
    from asyncdgl.engine.past import Past
    from asyncdgl.engine.restart import Attempts, Restart

REST_LIMIT_S = 5.0
"""How long those that live may take to say where they stand before all begin anew."""


class Session:
    """One run: decides what was left open, makes the run directory, trains, and leaves a summary and figures.

    Args:
        asked: a checked configuration.
        out: the run directory, or None for a new one under ``runs``.
        supervisor: may end it.

    Raises:
        ConfigError: it can't be run, or the directory can't be used.

    Attributes:
        config: the run; as far as it can be said before ``prepare``.
        path: of the run directory, once there is one.
    """

    def __init__(self, asked: RunConfig, out: Path | None, supervisor: Supervisor | None = None) -> None:
        self._asked = asked
        self._out = out
        self._supervisor = supervisor or NoSupervisor()
        self._began = time.monotonic()
        if out is not None:
            check_out(out)
        self.config = self._planned()
        self._check_place()
        self.path: Path | None = None
        self._outcome: Outcome | None = None
        self._summary: Summary | None = None
        self._data: Path | None = None
        self._dataset: Dataset | None = None
        self._past: Past | None = None
        self._restart: Restart | None = None
        self._begins_anew = False
        self._origin: float | None = None  # when training began, on this machine's monotonic clock

    def _planned(self) -> ResolvedConfig:
        return planned(self._asked)

    def _resolved(self, observer: Observer) -> ResolvedConfig:
        return resolve(self._asked, self._data, self._supervisor.check, observer.noticed)

    def _check_place(self) -> None:
        address = wanted_address(self.config.ray.address) if self.config.runtime == "ray" else None
        if address is None:
            check_memory(self.config)
        if self.config.runtime == "ray":
            from asyncdgl.on_ray.cluster import check_address, check_temporary_folder

            if address is None:
                check_temporary_folder()
            else:
                check_address(address, self.config.ray.address)

    def prepare(self, observer: Observer | None = None) -> None:
        """Read the data, and decide what was left open: nothing is made yet.

        Raises:
            ConfigError, DataError: the run can't begin.
        """
        observer = observer or NullObserver()
        if self.config.has_tensors:
            from asyncdgl.data.cache import prepare
            from asyncdgl.data.dataset import open_dataset

            def on_progress(done: int, total: int) -> None:
                if done % 10_000 == 0:
                    observer.noticed(f"decoding images: {done} of {total}")

            self._data = prepare(self.config.data, on_progress, observer.noticed)
        self.config = self._resolved(observer)
        if self._data is not None:
            self._dataset = open_dataset(self.config, self._data)

    def execute(self, observer: Observer) -> Run:
        """Run to the end.

        Raises:
            ConfigError, DataError: found only once a cluster was asked; nothing is left.
            RunFailed: it failed or diverged; its directory says how far it came.
            Interrupted, KeyboardInterrupt: it was stopped; what there is was written first.
        """
        out_existed = self._out is not None and self._out.exists()
        self.path, self._writer = self._open()
        try:
            try:
                self._begin()
            except NotWritten as error:
                raise ConfigError(f"{error}: make room there first") from None
            observer.began(self.path)
            self._train(Several(self._writer, observer))
            remove_checkpoints(self._writer.path)
        except BaseException as error:
            nothing_computed = not (self._begins_anew or self._writer.added)
            if isinstance(error, ConfigError | DataError) and nothing_computed:
                self._writer.close()
                self._remove_run_dir(out_existed)
                raise
            if self._summary is None:  # before training began
                self._conclude(error)
            self._writer.close()
            if isinstance(error, Exception):
                said = self._summary.error if self._summary is not None else None
                raise RunFailed(said or self._explain(error), self.left()) from error
            raise
        self._writer.close()
        left = self.left()
        self._draw(left)
        return left

    def _open(self) -> tuple[Path, RunWriter]:
        path = make_run_dir(self._out, self.config.name)
        # Ray starts in another working directory, where the path that the user sees would lead elsewhere.
        return path, RunWriter(path.absolute(), remembers=self.config.runtime != "ray")

    def _begin(self) -> None:
        """Write down what is to be done."""
        self._writer.write_config(self.config)
        self._write_environment()

    def left(self) -> Run:
        """What the run has left so far."""
        from asyncdgl.registry import objects_handed_over

        return self._writer.as_run(self.config, self._summary, objects_handed_over())

    def give_up(self, status: Status, message: str | None = None) -> None:
        """The main thread does not get to its end in time: write the least, and end what would outlive this process."""
        from asyncdgl.on_ray.cluster import end_local_cluster

        end_local_cluster()
        if self.path is not None and not (self._writer.path / SUMMARY).exists():
            self._writer.write_summary(self._summarise(status, message))

    # --- Training

    def _train(self, observer: Observer) -> None:
        if self.config.runtime == "ray":
            self._train_on_ray(observer)
            return
        from asyncdgl.engine.sim import Simulation
        from asyncdgl.engine.virtual import VirtualRun

        keep = keeper(self._writer, self._wall_seconds)
        engine = VirtualRun if self.config.runtime == "virtual" else Simulation
        with self._concluded():
            run = engine(self.config, self._data, observer, self._supervisor.check, keep, self._past)
            try:
                run.run()
                if self._past is not None and not self._past.is_over:
                    raise DataError("the run now ends before the passes that its trace has: it can't be gone on with")
            except (Interrupted, KeyboardInterrupt):
                with self._supervisor.unhurried():
                    run.keep()
                raise
            finally:
                self._outcome = run.outcome()

    def _train_on_ray(self, observer: Observer) -> None:
        """Where a process dies whose place no other can take alone, all begin anew, as after `asyncdgl resume`."""
        from asyncdgl.engine.restart import Attempts

        if self._data is None:
            raise TypeError("a run on Ray reads data")
        attempts = Attempts()
        while not self._train_in_cluster(self._data, attempts, observer):
            pass

    def _train_in_cluster(self, data: Path, attempts: Attempts, observer: Observer) -> bool:
        """Whether the run came to its end."""
        from asyncdgl.on_ray.cluster import ray_cluster

        observer.noticed("starting Ray")
        try:
            with ray_cluster(self.config, self._writer.path, self._hang) as ray_processes:
                from asyncdgl.on_ray.run import STOP_LIMIT_S, RayRun

                def check() -> None:
                    self._supervisor.check()
                    ray_processes.check()

                self._supervisor.take()
                self._supervisor.check()
                keep = keeper(self._writer, self._wall_seconds, checkpoints_kept(self.config))
                ray_run = RayRun(self.config, data, observer, check, keep, self._restart)
                self._restart = None  # it holds a trace
                self._outcome = ray_run.outcome()
                with self._concluded():
                    try:
                        ray_run.start()
                        self._write_environment()
                        ray_run.run()
                        self._write_environment()  # its processes may be others by now
                    except BaseException as error:
                        ray_run.stop(REST_LIMIT_S if isinstance(error, NeedsRestart) else STOP_LIMIT_S)
                        self._origin = ray_run.origin
                        raise
                    finally:
                        if ray_processes.dead is None:  # nobody would answer
                            ray_run.close()
        except NeedsRestart as error:
            self._summary = None
            self._go_back(error, attempts, observer)
            return False
        finally:
            self._supervisor.take()
        return True

    def _go_back(self, error: NeedsRestart, attempts: Attempts, observer: Observer) -> None:
        from asyncdgl.engine.restart import find_restart, go_back, with_death

        self._begins_anew = True
        attempts.failed(error, self._writer.passes)
        restart, *_ = find_restart(self.left())
        known = self._outcome.faults if self._outcome is not None else []
        at_s = 0.0 if self._origin is None else time.monotonic() - self._origin
        self._restart = replace(restart, faults=with_death(known, error.process, at_s), origin=self._origin)
        go_back(self._writer, self._restart)
        observer.noticed(f"{error}: all processes begin anew, {self._restart.where}")

    def _hang(self, message: str) -> None:
        """The main thread hangs for good, in a call to Ray."""
        self.give_up("failed", message)
        self._supervisor.hang(message)

    def _write_environment(self) -> None:
        of_ray = () if self._outcome is None else (self._outcome.processes, self._outcome.hosts)
        sha256 = self._dataset.sha256 if self._dataset is not None else None
        self._writer.write_environment(describe_environment(self.config, sha256, available_cores(), *of_ray))

    # --- The end

    @contextlib.contextmanager
    def _concluded(self) -> Iterator[None]:
        """However training ends, the summary is written at once.

        To leave Ray takes seconds, and SIGTERM then ends the process: Ray gives that signal back to the system.
        """
        try:
            yield
        except (ConfigError, DataError):
            raise
        except BaseException as error:
            self._conclude(error)
            raise
        self._conclude(None)

    def _conclude(self, error: BaseException | None) -> None:
        status: Status = "completed"
        message = None
        if isinstance(error, Interrupted):
            status = error.status
        elif isinstance(error, SystemExit):  # Ray's answer to SIGTERM as it starts
            status = "terminated"
        elif isinstance(error, KeyboardInterrupt):
            status = "interrupted"
        elif error is not None:
            status = "diverged" if isinstance(error, Diverged) else "failed"
            message = self._explain(error)
        with self._supervisor.unhurried():
            try:
                if error is None:  # the run is complete once its model is kept
                    self._save_model()
                self._summary = self._summarise(status, message)
                self._writer.write_summary(self._summary)
                if error is not None:
                    self._save_model()
            except NotWritten as full:
                if error is None:
                    self._summary = self._summarise("failed", str(full))
                    with contextlib.suppress(NotWritten):
                        self._writer.write_summary(self._summary)
                    raise
                if not isinstance(error, NotWritten):
                    warnings.warn(str(full), stacklevel=2)

    def _save_model(self) -> None:
        weights = self._outcome.weights if self._outcome is not None else {}
        if self._dataset is not None and len(weights) == self.config.trained_stages:
            keep_model(self._writer.path, weights, self._dataset)

    def _summarise(self, status: Status, message: str | None) -> Summary:
        return make_summary(self.config, self._writer, self._outcome, status, message, self._wall_seconds())

    def _wall_seconds(self) -> float:
        return time.monotonic() - self._began

    def _explain(self, error: BaseException) -> str:
        return explain(error, self._writer, self._outcome.processes if self._outcome is not None else ())

    def _remove_run_dir(self, out_existed: bool) -> None:
        if self.path is not None:
            remove_run_dir(self.path, is_given=self._out is not None, existed=out_existed)

    def _draw(self, left: Run) -> None:
        """What was computed is whole without its figures, whatever a font or a full disk comes up with."""
        from asyncdgl.report.figures import draw_figures

        try:
            draw_figures(left)
        except Exception as error:
            warnings.warn(f"the figures can't be drawn: {type(error).__name__}: {error}", stacklevel=2)
