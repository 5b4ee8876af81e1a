"""A sweep's runs spread over a Ray cluster: each is a task that starts a process and brings back its run directory."""

from __future__ import annotations

import contextlib
import io
import os
import secrets
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import ray

import asyncdgl
from asyncdgl.on_ray.cluster import joined_cluster
from asyncdgl.on_ray.guardian import start_guardian
from asyncdgl.registry import command, module_path

MARK = "ASYNCDGL_SWEEP_TASK"
FAILED = 1


def run_here(config: str, version: str, places: Sequence[str]) -> tuple[int, bytes, bytes]:
    """On one of the cluster's machines: make a run.

    Args:
        config: content of its config.yaml; the data must be readable on this machine.
        version: of the asyncdgl that asks.
        places: where its process finds modules, which come last here.

    Returns:
        Exit code, output, and the run directory as a tar file (empty where there is none).
    """
    if asyncdgl.__version__ != version:
        message = f"this machine has asyncdgl {asyncdgl.__version__}, the sweep {version}: install the same everywhere"
        return FAILED, message.encode(), b""
    mark = secrets.token_hex(8)
    guardian = start_guardian(MARK, mark)  # a cancelled task's process must not leave its run behind
    try:
        with tempfile.TemporaryDirectory() as folder:
            Path(folder, "config.yaml").write_text(config, encoding="utf-8")
            own = [*sys.path, *(place for place in places if place not in sys.path)]
            environment = {**os.environ, MARK: mark}
            environment.pop("OMP_NUM_THREADS", None)  # Ray's; a run sets its threads itself
            done = subprocess.run(
                [*command(own), "run", "--config", "config.yaml", "--out", "run"],
                check=False,
                cwd=folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
            )
            packed = io.BytesIO()
            if Path(folder, "run").is_dir():
                with tarfile.open(fileobj=packed, mode="w:gz") as tar:
                    tar.add(Path(folder, "run"), "run")
            return done.returncode, done.stdout, packed.getvalue()
    finally:
        guardian.kill()
        guardian.wait()


class RayJob:
    """A run as a task of the cluster; see ``sweeps.execution.Job``."""

    def __init__(self, folder: Path, threads: int) -> None:
        self._folder = folder
        task = ray.remote(run_here).options(num_cpus=threads, max_retries=2)
        config = (folder / "config.yaml").read_text(encoding="utf-8")
        self._ref = task.remote(config, asyncdgl.__version__, module_path())
        self._code: int | None = None

    def poll(self) -> int | None:
        """The exit code, or None while it runs; then the run directory is in its folder."""
        if self._code is None and ray.wait([self._ref], timeout=0)[0]:
            try:
                self._code, output, packed = ray.get(self._ref)
            except ray.exceptions.RayError as error:
                self._code, output, packed = FAILED, f"the task was lost: {error}".encode(), b""
            (self._folder / "output.log").write_bytes(output)
            if packed:
                with tarfile.open(fileobj=io.BytesIO(packed)) as tar:
                    tar.extractall(self._folder, filter="data")
        return self._code

    def stop(self) -> None:
        """End it at once."""
        ray.cancel(self._ref, force=True)
        self._code = FAILED


@contextlib.contextmanager
def cluster_jobs(address: str, threads: int) -> Iterator[tuple[Callable[[Path], RayJob], int]]:
    """A starter of runs on the cluster at ``address``, and how many it has room for at a time."""
    with tempfile.TemporaryDirectory() as empty, joined_cluster(address, Path(empty)):
        cpus = ray.cluster_resources().get("CPU", 1)  # type: ignore[no-untyped-call]
        room = int(cpus // threads)
        yield lambda folder: RayJob(folder, threads), max(1, room)
