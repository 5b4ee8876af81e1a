"""One run from its checked configuration to its end, however it ends."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click

from asyncdgl.cli.display import RunDisplay
from asyncdgl.cli.signals import Interrupted, Signals, end_process
from asyncdgl.cli.tables import drawing_failed, show_summary
from asyncdgl.config.model import RunConfig
from asyncdgl.data.cache import prepare
from asyncdgl.data.dataset import open_dataset
from asyncdgl.errors import AsyncDGLError, ConfigError, DataError, Diverged, StageFailed
from asyncdgl.on_ray.cluster import end_local_cluster, ray_cluster
from asyncdgl.plan.machine import available_cores
from asyncdgl.plan.resolve import planned, resolve
from asyncdgl.rundir.environment import describe_environment
from asyncdgl.rundir.outcome import Outcome
from asyncdgl.rundir.records import SUMMARY, Status, Summary
from asyncdgl.rundir.summary import make_summary
from asyncdgl.rundir.writer import RunWriter, make_run_dir

LOG_TAIL_BYTES = 20_000
STOPPED: dict[int, Status] = {130: "interrupted", 143: "terminated"}
"""Exit codes of runs that a signal stopped, and their status."""


@dataclass(frozen=True)
class _End:
    """How a run ended: the exit code, what went wrong, and what stands in summary.json."""

    code: int
    message: str | None
    summary: Summary


class Session:
    """Makes the run directory, trains, and leaves a summary and figures.

    Args:
        asked: a checked configuration.
        out: the run directory, or None for a new one under ``runs``.
    """

    def __init__(self, asked: RunConfig, out: Path | None) -> None:
        self._asked = asked
        self._config = planned(asked)
        self._out = out
        self._began = time.monotonic()
        self._signals = Signals()
        self._outcome: Outcome | None = None
        self._end: _End | None = None
        self._data_sha256: str | None = None

    def execute(self) -> int:
        """Run; returns the exit code. A run that a signal stopped ends the process here.

        Raises:
            ConfigError, DataError: the run can't begin; nothing is left of it.
        """
        self._signals.install()
        try:
            data = self._prepare()
            with self._signals.deferred():
                code = self._run_in_directory(data)
        except Interrupted as interrupt:
            click.echo(f"Stopped by {interrupt} before anything was computed.", err=True)
            return interrupt.exit_code
        if code in STOPPED:
            end_process(code)
        return code

    def _prepare(self) -> Path | None:
        """Read the data, and decide what was left open."""

        def on_progress(done: int, total: int) -> None:
            if done % 10_000 == 0:
                click.echo(f"decoding images: {done} of {total}")

        data = prepare(self._config.data, on_progress, click.echo) if self._config.has_tensors else None
        with self._signals.deferred():
            self._config = resolve(self._asked, data, self._signals.check, click.echo)
        if data is not None:
            self._data_sha256 = open_dataset(self._config, data).sha256
        return data

    def _run_in_directory(self, data: Path | None) -> int:
        self._out_existed = self._out is not None and self._out.exists()
        self._path = make_run_dir(self._out, self._config.name)
        # Ray starts in another working directory, where the path that the user sees would lead elsewhere.
        self._writer = RunWriter(self._path.absolute())
        self._signals.emergency = self._give_up
        with RunDisplay(self._config, self._writer) as display:
            try:
                self._writer.write_config(self._config)
                self._writer.write_environment(describe_environment(self._config, self._data_sha256, available_cores()))
                display.say(f"run directory: {self._path}")
                self._train(data, display)
            except (ConfigError, DataError):  # found only once the cluster was asked: nothing was computed
                self._writer.close()
                self._remove_run_dir()
                raise
            except BaseException as error:
                if self._end is None:  # before training began
                    self._conclude(error)
        assert self._end is not None
        self._signals.disarm()
        self._writer.close()
        warning = drawing_failed(self._draw) if self._end.code == 0 else None
        self._report(self._end)
        if warning is not None:
            click.echo(warning, err=True)
        return self._end.code

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
        code, message = 0, None
        if isinstance(error, Interrupted | SystemExit):
            code = error.exit_code if isinstance(error, Interrupted) else 143  # Ray's answer to SIGTERM as it starts
            status = STOPPED[code]
        elif error is not None:
            status = "diverged" if isinstance(error, Diverged) else "failed"
            code, message = 1, self._explain(error)
        with self._signals.unhurried():
            summary = self._summarise(status, message)
            self._writer.write_summary(summary)
        self._end = _End(code, message, summary)

    def _remove_run_dir(self) -> None:
        """Leave the place as it was found: an empty folder of the user's stays, an empty ``runs`` goes."""
        shutil.rmtree(self._path)
        if self._out_existed:
            self._path.mkdir()
        if self._out is None:
            with contextlib.suppress(OSError):
                self._path.parent.rmdir()

    def _train(self, data: Path | None, display: RunDisplay) -> None:
        if self._config.runtime == "ray":
            assert data is not None
            return self._train_on_ray(data, display)
        from asyncdgl.engine.sim import Simulation
        from asyncdgl.engine.virtual import VirtualRun

        if self._config.runtime == "virtual":
            run: Simulation | VirtualRun = VirtualRun(self._config, data, display, self._signals.check)
        else:
            assert data is not None
            run = Simulation(self._config, data, display, self._signals.check)
        with self._concluded():
            try:
                run.run()
            finally:
                self._outcome = run.outcome()

    def _train_on_ray(self, data: Path, display: RunDisplay) -> None:
        display.noticed("starting Ray")
        try:
            with ray_cluster(self._config, self._writer.path):
                from asyncdgl.on_ray.run import RayRun

                self._signals.take()
                self._signals.check()
                ray_run = RayRun(self._config, data, display, self._signals.check)
                self._outcome = ray_run.outcome()
                with self._concluded():
                    try:
                        ray_run.start()
                        self._writer.write_environment(
                            describe_environment(
                                self._config, self._data_sha256, available_cores(), self._outcome.processes
                            )
                        )
                        ray_run.run()
                    except BaseException:
                        ray_run.stop()
                        raise
                    finally:
                        ray_run.close()
        finally:
            self._signals.take()

    def _explain(self, error: BaseException) -> str:
        """One sentence for a failed run; the tail of the failed process's log goes to the run directory."""
        if isinstance(error, StageFailed):
            kept = self._keep_log(error.process)
            return f"{error}; the end of its log is in {kept}" if kept else str(error)
        if isinstance(error, AsyncDGLError):
            return str(error)
        kept = self._writer.write_log("traceback.log", "".join(traceback.format_exception(error)))
        return f"{type(error).__name__}: {error}; the traceback is in {kept}"

    def _keep_log(self, process: str | None) -> Path | None:
        processes = self._outcome.processes if self._outcome is not None else []
        log = next((p.log for p in processes if p.name == process), None)
        if process is None or log is None or not os.path.isfile(log):
            return None
        with Path(log).open("rb") as file:
            file.seek(max(0, os.path.getsize(log) - LOG_TAIL_BYTES))
            tail = file.read().decode(errors="replace")
        return self._writer.write_log(f"{process.replace(' ', '-')}.log", tail)

    def _summarise(self, status: Status, message: str | None) -> Summary:
        wall_seconds = time.monotonic() - self._began
        return make_summary(self._config, self._writer, self._outcome, status, message, wall_seconds)

    def _give_up(self, code: int) -> None:
        """The main thread did not get to its end in time: write the least, and end what would outlive this process."""
        end_local_cluster()
        if not (self._writer.path / SUMMARY).exists():
            self._writer.write_summary(self._summarise(STOPPED[code], None))

    def _draw(self) -> None:
        from asyncdgl.report.figures import draw_figures

        draw_figures(self._writer.as_run(self._config))

    def _report(self, end: _End) -> None:
        show_summary(end.summary, self._config.profile.name)
        click.echo(f"results: {self._path}")
        if end.message is not None:
            click.echo(f"Error: {end.message}", err=True)
        elif end.code:
            click.echo(
                f"The run was stopped before its end; what it computed is in {self._path}. "
                f"`asyncdgl run --config {self._path}/config.yaml` repeats it from the start.",
                err=True,
            )
