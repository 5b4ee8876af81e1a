"""Runs a sweep's runs, each a process of its own, some at a time; what is finished is never made again."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import psutil

from asyncdgl.config.yaml import dump_config
from asyncdgl.errors import DataError
from asyncdgl.on_ray.guardian import start_guardian
from asyncdgl.registry import command, module_path
from asyncdgl.rundir.reader import read_record
from asyncdgl.rundir.records import SUMMARY, Status, Summary
from asyncdgl.sweeps.grid import SweepRun

MARK = "ASYNCDGL_SWEEP"
WORK, FAILED = "work", "failed"
FINISHED = ("completed", "diverged")
"""Ends of a run that are its result: the same settings would come to it again."""

POLL_S = 0.1
STOP_S = 8.0


class RunStore:
    """A folder of finished runs, each under the hash of its configuration.

    A run is made in ``work/<hash>-<pid>`` and moved to its place when it is complete: what is there is whole. Several
    sweeps may share a store.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def run_dir(self, key: str) -> Path:
        """Where the finished run is."""
        return self.path / key

    def summary(self, key: str) -> Summary | None:
        """Of a finished run; None where there is none, or what is there is broken: that run is made again."""
        try:
            return self._read(self.run_dir(key))
        except DataError:
            return None

    def broken(self, key: str) -> str | None:
        """What is wrong with what lies in the run's place; None where it is whole, or nothing is there."""
        folder = self.run_dir(key)
        try:
            whole = self._read(folder) is not None
        except DataError as error:
            return str(error)
        return None if whole or not folder.exists() else f"{folder}: no whole run"

    @staticmethod
    def _read(folder: Path) -> Summary | None:
        path = folder / SUMMARY
        summary = read_record(Summary, path) if path.is_file() else None
        return summary if summary is not None and summary.status in FINISHED else None

    def has(self, key: str) -> bool:
        """Whether the run is finished."""
        return self.summary(key) is not None

    def begin(self, run: SweepRun) -> Path:
        """A fresh folder to make a run in, with its config.yaml; the run directory will be ``run`` in it."""
        folder = self.path / WORK / f"{run.key}-{os.getpid()}"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        (folder / "config.yaml").write_text(dump_config(run.config), encoding="utf-8")
        return folder

    def keep(self, folder: Path, key: str) -> Status | None:
        """Move a run that has ended to its place if it is finished; otherwise to ``failed``, for a look at it.

        Returns:
            How a finished run ended; None of one that failed or was stopped.
        """
        try:
            ended = self._read(folder / "run")
        except DataError:
            ended = None
        if ended is not None:
            if not self.has(key):
                shutil.rmtree(self.run_dir(key), ignore_errors=True)  # half a run, or a broken one
            with contextlib.suppress(OSError):  # another sweep was quicker: the same bits
                (folder / "run").rename(self.run_dir(key))
            shutil.rmtree(folder)
            shutil.rmtree(self.path / FAILED / key, ignore_errors=True)
            return ended.status
        kept = self.path / FAILED / key
        shutil.rmtree(kept, ignore_errors=True)
        kept.parent.mkdir(exist_ok=True)
        folder.rename(kept)
        return None

    def tidy(self) -> None:
        """Remove what sweeps that live no more left unfinished."""
        for folder in self.path.glob(f"{WORK}/*-*"):
            if not psutil.pid_exists(int(folder.name.rpartition("-")[2])):
                shutil.rmtree(folder, ignore_errors=True)


class Job(Protocol):
    """A run under way."""

    def poll(self) -> int | None:
        """The exit code, or None while it runs. Once ended, the run directory is in its place."""

    def stop(self) -> None:
        """Ask it to end."""


class LocalJob:
    """A run as a process of this machine."""

    def __init__(self, folder: Path, mark: str) -> None:
        self._output = (folder / "output.log").open("wb")
        self._process = subprocess.Popen(
            [*command(module_path()), "run", "--config", "config.yaml", "--out", "run"],
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=self._output,
            stderr=subprocess.STDOUT,
            env={**os.environ, MARK: mark},
            start_new_session=True,  # Ctrl-C goes to the sweep alone, which stops its runs in order
        )

    def poll(self) -> int | None:
        """See ``Job``."""
        code = self._process.poll()
        if code is not None:
            self._output.close()
        return code

    def stop(self) -> None:
        """See ``Job``."""
        self._process.send_signal(signal.SIGTERM)


@dataclass(frozen=True)
class Finished:
    """A run that has ended: how (None: it failed), how long it took, and where it or what is left of it is."""

    run: SweepRun
    status: Status | None
    seconds: float
    path: Path


Starter = Callable[[Path], Job]


@contextlib.contextmanager
def local_jobs() -> Iterator[Starter]:
    """A starter of local runs, which end with this process however it ends."""
    mark = secrets.token_hex(8)
    guardian = start_guardian(MARK, mark)
    try:
        yield lambda folder: LocalJob(folder, mark)
    finally:
        guardian.kill()
        guardian.wait()


def execute(
    runs: Sequence[SweepRun],
    store: RunStore,
    start: Starter,
    jobs: int,
    on_end: Callable[[Finished], None],
    check: Callable[[], None],
) -> None:
    """Make the runs, so many at a time, in their order.

    Args:
        runs: those that the store lacks.
        store: where they are kept.
        start: starts a run in a prepared folder.
        jobs: runs at a time.
        on_end: called for each run that has ended.
        check: called often; where it raises, the runs under way are stopped and removed.
    """
    waiting = list(reversed(runs))
    under_way: dict[str, tuple[SweepRun, Job, Path, float]] = {}
    try:
        while waiting or under_way:
            check()
            while waiting and len(under_way) < jobs:
                run = waiting.pop()
                folder = store.begin(run)
                under_way[run.key] = (run, start(folder), folder, time.monotonic())
            for key, (run, job, folder, began) in list(under_way.items()):
                if job.poll() is None:
                    continue
                del under_way[key]
                status = store.keep(folder, key)
                path = store.run_dir(key) if status is not None else store.path / FAILED / key
                on_end(Finished(run, status, time.monotonic() - began, path))
            time.sleep(POLL_S)
    finally:
        for _, job, _, _ in under_way.values():
            job.stop()
        deadline = time.monotonic() + STOP_S
        while any(job.poll() is None for _, job, _, _ in under_way.values()) and time.monotonic() < deadline:
            time.sleep(POLL_S)
        for _, _, folder, _ in under_way.values():
            shutil.rmtree(folder, ignore_errors=True)
