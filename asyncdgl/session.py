"""A run's whole life: from what was asked to its directory, however it ends. Prints nothing and takes no signal."""

from __future__ import annotations

import contextlib
import shutil
import signal
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from asyncdgl.config.model import RunConfig
from asyncdgl.config.resolved import ResolvedConfig
from asyncdgl.errors import ConfigError, DataError, Diverged, Interrupted, NotWritten, RunFailed
from asyncdgl.observer import NullObserver, Observer, Several
from asyncdgl.plan.machine import available_cores, wanted_address
from asyncdgl.plan.memory import check_memory, checkpoints_kept
from asyncdgl.plan.resolve import planned, resolve
from asyncdgl.rundir.checkpoint import keeper, remove_checkpoints
from asyncdgl.rundir.environment import describe_environment
from asyncdgl.rundir.lines import cannot_be_written
from asyncdgl.rundir.logs import explain
from asyncdgl.rundir.model import save_model
from asyncdgl.rundir.outcome import Outcome
from asyncdgl.rundir.reader import Run
from asyncdgl.rundir.records import SUMMARY, Status, Summary
from asyncdgl.rundir.summary import make_summary
from asyncdgl.rundir.writer import RunWriter, check_out, make_run_dir

if TYPE_CHECKING:
    from asyncdgl.data.dataset import Dataset
    from asyncdgl.engine.past import Past
    from asyncdgl.engine.restart import Restart


class Supervisor(Protocol):
    """Whoever started a run in a process of its own, and may want to end it."""

    def check(self) -> None:
        """Called often; raises ``Interrupted`` where the run is to stop."""

    def take(self) -> None:
        """Ray has taken, or given back, the signals of this process."""

    def unhurried(self) -> AbstractContextManager[None]:
        """Work that can't hang: it may take the time that it needs."""


class NoSupervisor:
    """Nobody: an interrupt comes as Python's own KeyboardInterrupt, and whoever handles signals goes on doing so."""

    def __init__(self) -> None:
        self._handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def check(self) -> None:
        """See ``Supervisor``."""

    def take(self) -> None:
        """See ``Supervisor``."""
        if threading.current_thread() is threading.main_thread():
            for number, handler in self._handlers.items():
                if handler is not None:  # None: it was not set from Python
                    signal.signal(number, handler)

    def unhurried(self) -> AbstractContextManager[None]:
        """See ``Supervisor``."""
        return contextlib.nullcontext()


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

    def _planned(self) -> ResolvedConfig:
        return planned(self._asked)

    def _resolved(self, observer: Observer) -> ResolvedConfig:
        return resolve(self._asked, self._data, self._supervisor.check, observer.noticed)

    def _check_place(self) -> None:
        address = wanted_address(self.config.ray.address) if self.config.runtime == "ray" else None
        if address is None:
            check_memory(self.config)
            return
        from asyncdgl.on_ray.cluster import check_address

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
        except (ConfigError, DataError):  # nothing was computed
            self._writer.close()
            self._remove_run_dir(out_existed)
            raise
        except BaseException as error:
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
        return path, RunWriter(path.absolute())

    def _begin(self) -> None:
        """Write down what is to be done."""
        self._writer.write_config(self.config)
        self._write_environment()

    def left(self) -> Run:
        """What the run has left so far."""
        from asyncdgl.registry import objects_handed_over

        return self._writer.as_run(self.config, self._summary, objects_handed_over())

    def give_up(self, status: Status) -> None:
        """The main thread does not get to its end in time: write the least, and end what would outlive this process."""
        from asyncdgl.on_ray.cluster import end_local_cluster

        end_local_cluster()
        if self.path is not None and not (self._writer.path / SUMMARY).exists():
            self._writer.write_summary(self._summarise(status, None))

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
        if self._data is None:
            raise TypeError("a run on Ray reads data")
        from asyncdgl.on_ray.cluster import ray_cluster

        observer.noticed("starting Ray")
        try:
            with ray_cluster(self.config, self._writer.path):
                from asyncdgl.on_ray.run import RayRun

                self._supervisor.take()
                self._supervisor.check()
                keep = keeper(self._writer, self._wall_seconds, checkpoints_kept(self.config))
                ray_run = RayRun(self.config, self._data, observer, self._supervisor.check, keep, self._restart)
                self._outcome = ray_run.outcome()
                with self._concluded():
                    try:
                        ray_run.start()
                        self._write_environment()
                        ray_run.run()
                        self._write_environment()  # its processes may be others by now
                    except BaseException:
                        ray_run.stop()
                        raise
                    finally:
                        ray_run.close()
        finally:
            self._supervisor.take()

    def _write_environment(self) -> None:
        processes = self._outcome.processes if self._outcome is not None else ()
        sha256 = self._dataset.sha256 if self._dataset is not None else None
        self._writer.write_environment(describe_environment(self.config, sha256, available_cores(), processes))

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
            self._summary = self._summarise(status, message)
            try:
                if error is None:  # the run is complete once its model is kept
                    self._save_model()
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
        """Whole or not at all: a stage that could not say its weights any more leaves none of the others'.

        Raises:
            NotWritten: there is no room.
        """
        weights = self._outcome.weights if self._outcome is not None else {}
        if self._dataset is not None and len(weights) == self.config.trained_stages:
            try:
                save_model(self._writer.path, weights, self._dataset)
            except OSError as error:
                raise NotWritten(cannot_be_written(self._writer.path, error)) from None
            except Exception as error:  # numbers that the format has no name for
                warnings.warn(f"the model was not kept: {type(error).__name__}: {error}", stacklevel=2)

    def _summarise(self, status: Status, message: str | None) -> Summary:
        return make_summary(self.config, self._writer, self._outcome, status, message, self._wall_seconds())

    def _wall_seconds(self) -> float:
        return time.monotonic() - self._began

    def _explain(self, error: BaseException) -> str:
        return explain(error, self._writer, self._outcome.processes if self._outcome is not None else ())

    def _remove_run_dir(self, out_existed: bool) -> None:
        """Leave the place as it was found: an empty folder of the user's stays, an empty ``runs`` goes."""
        if self.path is None:
            return
        shutil.rmtree(self.path)
        if out_existed:
            self.path.mkdir()
        if self._out is None:
            with contextlib.suppress(OSError):
                self.path.parent.rmdir()

    def _draw(self, left: Run) -> None:
        """What was computed is whole without its figures, whatever a font or a full disk comes up with."""
        from asyncdgl.report.figures import draw_figures

        try:
            draw_figures(left)
        except Exception as error:
            warnings.warn(f"the figures can't be drawn: {type(error).__name__}: {error}", stacklevel=2)
