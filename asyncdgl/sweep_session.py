"""A sweep's whole life: its runs, those that are missing, and the tables. Prints nothing and takes no signal."""

from __future__ import annotations

import contextlib
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from asyncdgl.config.model import RunConfig
from asyncdgl.config.yaml import dump_tree
from asyncdgl.errors import ConfigError
from asyncdgl.plan.machine import available_cores
from asyncdgl.plan.resolve import planned
from asyncdgl.sweeps.execution import Finished, RunStore, Starter, execute, local_jobs
from asyncdgl.sweeps.grid import SweepRun, plan_sweep
from asyncdgl.sweeps.results import SweepResults, load_sweep, write_index
from asyncdgl.sweeps.tables import write_tables

SWEEP_FILE = "sweep.yaml"


class SweepSession:
    """One sweep: checked at once; nothing is made before ``execute``.

    Args:
        source: the file of a sweep, or its content.
        out: the sweep's folder; by default ``sweeps/<name>``.
        runs_dir: where the runs are kept, to share them; by default ``out/runs``.
        over: settings that all runs share, over those of the file.
        assignments: how these were spelt on the command line.
        on_progress: is told how many images of how many are decoded.

    Raises:
        ConfigError, DataError: with every problem found.

    Attributes:
        wanted: the sweep.
        folder: where its tables lie.
        missing: the runs to make.
        broken: what is wrong with runs that are there and are made again.
    """

    def __init__(
        self,
        source: Path | Mapping[str, Any],
        out: Path | None = None,
        runs_dir: Path | None = None,
        over: Mapping[str, Any] = MappingProxyType({}),
        assignments: Sequence[str] = (),
        on_progress: Callable[[int, int], None] | None = None,
    ) -> None:
        from asyncdgl.report.series import choose_figure

        self._source = source
        self._assignments = assignments
        self.wanted = plan_sweep(source, over, on_progress)
        choose_figure(self.wanted.figure, [run.values for run in self.wanted.runs])  # refused now, not after hours
        self.folder = Path("sweeps") / self.wanted.name if out is None else out
        self._store = RunStore(self.folder / "runs" if runs_dir is None else runs_dir)
        self.missing = [run for run in self.wanted.distinct if not self._store.has(run.key)]
        problems = (self._store.broken(run.key) for run in self.missing)
        self.broken = [problem for problem in problems if problem is not None]

    def check_address(self, address: str) -> None:
        """Whether the missing runs can be spread over a cluster.

        Raises:
            ConfigError: one of them needs a cluster for itself, or there is none at this address.
        """
        from asyncdgl.on_ray.cluster import check_address

        if any(run.config.runtime == "ray" for run in self.missing):
            raise ConfigError(
                "--address spreads runs of the runtimes sim and virtual; one of runtime ray takes a cluster for "
                "itself: leave --address away and set ray.address"
            )
        check_address(address, address)

    def make_folders(self) -> None:
        """The sweep's folder, with its file and its index.

        Raises:
            ConfigError: they can't be made.
        """
        store, folder = self._store, self.folder
        if not store.path.is_relative_to(folder):
            try:
                store.path.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise ConfigError(f"--runs {store.path} can't be made: {error.strerror or error}") from None
        try:
            folder.mkdir(parents=True, exist_ok=True)
            store.path.mkdir(parents=True, exist_ok=True)
            kept = folder / SWEEP_FILE
            if isinstance(self._source, Mapping):
                kept.write_text(dump_tree({"name": self.wanted.name, **self._source}), encoding="utf-8")
            elif not kept.exists() or not kept.samefile(self._source):
                shutil.copyfile(self._source, kept)
            write_index(self.wanted, folder, store, self._assignments)
        except OSError as error:
            raise ConfigError(f"--out {folder} can't be made: {error.strerror or error}") from None
        store.tidy()

    @contextlib.contextmanager
    def starter(self, jobs: int | None, address: str | None) -> Iterator[tuple[Starter, int]]:
        """What starts a run, here or on the cluster, and how many at a time."""
        if address is None:
            with local_jobs() as start:
                yield start, jobs or jobs_here(self.missing)
            return
        from asyncdgl.on_ray.sweep_jobs import cluster_jobs

        with cluster_jobs(address, max(threads_in_all(run.config) for run in self.missing)) as (start, room):
            yield start, jobs or room

    def execute(
        self,
        start: Starter,
        at_once: int,
        on_end: Callable[[Finished], None],
        check: Callable[[], None] = lambda: None,
    ) -> list[Finished]:
        """Make the missing runs; returns those that failed. Where ``check`` raises, the runs under way are removed."""
        failed: list[Finished] = []

        def ended(run: Finished) -> None:
            on_end(run)
            if run.status is None:
                failed.append(run)

        execute(self.missing, self._store, start, at_once, ended, check)
        return failed

    def results(self) -> SweepResults:
        """Tables and figure of the runs that are finished; what can't be drawn is a warning."""
        from asyncdgl.report.sweep_figure import save_sweep_figure

        found = load_sweep(self.folder)
        write_tables(found)
        try:
            save_sweep_figure(found)
        except Exception as error:  # whatever a drawing library, a font or a full disk comes up with
            warnings.warn(f"the figures can't be drawn: {type(error).__name__}: {error}", stacklevel=2)
        return found


def jobs_here(runs: Sequence[SweepRun]) -> int:
    """As many as keep the cores busy."""
    return max(1, available_cores() // max((threads_in_all(run.config) for run in runs), default=1))


def threads_in_all(asked: RunConfig) -> int:
    """CPU threads that a run computes with, its processes together."""
    if asked.runtime == "ray" and asked.ray.threads == "cost":
        return available_cores()
    config = planned(asked)
    if config.runtime != "ray":
        return config.threads
    return sum(config.threads_of(j) for j in range(1, config.stages + 1))
