"""Starting, joining and leaving Ray; and making sure that a local cluster never outlives its run.

Ray reads its settings when it is imported, so this file imports it only once they are made; where somebody imported it
before, it is told to read them again.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import secrets
import shutil
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from asyncdgl.config.resolved import ResolvedConfig
from asyncdgl.errors import ConfigError, Interrupted
from asyncdgl.on_ray.guardian import end_marked, start_guardian
from asyncdgl.on_ray.ray_processes import RayProcesses
from asyncdgl.plan.machine import visible_gpus, wanted_address

PROBE_S = 2.0
LOCAL_MARK = "ASYNCDGL_LOCAL_CLUSTER"
"""Environment variable that every process of a local cluster carries, with a value that only this run knows."""

SHARED_MEMORY = Path("/dev/shm")
STORE_BYTES = 1_000_000_000
"""Ray's object store at most. It holds weights on their way to evaluation; entries lie in their buffers' memory."""

LONGEST_SOCKET = 107
"""Characters of a socket's name, on Linux."""

LEAST_STORE_BYTES = 80_000_000
"""Ray takes no smaller one. Containers often have less shared memory: then it is on the disk, which is good enough."""

SMALL_CPUS = 0.05
"""What an actor that hardly computes asks for; with 0 it might ignore its placement group."""


def spare_cpus(config: ResolvedConfig) -> float:
    """What the spares ask for, with as many as take the place of a stage: they stay where they are."""
    return round(SMALL_CPUS * (config.ray.spares + config.stages), 4) if config.ray.spares else 0.0


# What a gRPC server, as Ray's head is, must answer to: the HTTP/2 preface with an empty SETTINGS frame.
_SETTINGS = 4
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, _SETTINGS, 0, 0, 0, 0, 0])


def check_address(address: str, configured: str | None) -> None:
    """Fail soon where nobody answers: Ray itself would retry for minutes, deaf to signals.

    Args:
        address: host and port.
        configured: what the configuration says; None where the address comes from RAY_ADDRESS.

    Raises:
        ConfigError: the address is malformed, its port does not answer, or something other than Ray does.
    """
    name = "RAY_ADDRESS" if configured is None else "ray.address"
    host, _, port = address.rpartition(":")
    if address == "auto":
        raise ConfigError(
            f"{name} auto: no Ray cluster was started on this machine; start one with `ray start --head`, or give "
            "HOST:PORT of one that this machine has joined"
        )
    if not host or "/" in host or not (port.isascii() and port.isdigit()) or not 0 < int(port) < 65536:
        raise ConfigError(f"{name} must be HOST:PORT, for example 10.0.0.5:6379; got {address!r}")
    mend = (
        "start a cluster with `ray start --head`, or leave the address and RAY_ADDRESS away to use this machine alone"
    )
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=PROBE_S) as connection:
            connection.sendall(_PREFACE)
            frame = connection.recv(9)
    except (OSError, UnicodeError) as error:
        reason = (
            "no answer" if isinstance(error, TimeoutError) else (getattr(error, "strerror", None) or "no such host")
        )
        raise ConfigError(f"{name} {address}: nobody answers there ({reason}); {mend}") from None
    if len(frame) < 4 or frame[3] != _SETTINGS:
        raise ConfigError(f"{name} {address}: something answers there, but it is not a Ray head; {mend}")


def check_temporary_folder() -> None:
    """Ray's sockets lie in its temporary folder, and the system allows them only short names.

    Raises:
        ConfigError: the folder's name is too long.
    """
    folder = os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp"
    most = LONGEST_SOCKET - len(f"/ray/session_2000-01-01_00-00-00_000000_{os.getpid()}/sockets/plasma_store")
    if not folder.isascii() or len(folder) > most:
        raise ConfigError(
            f"TMPDIR {folder}: Ray needs a temporary folder whose name has at most {most} characters, all of them "
            "ASCII; set TMPDIR=/tmp, for example"
        )


@contextlib.contextmanager
def ray_cluster(
    config: ResolvedConfig, empty_dir: Path, on_stuck: Callable[[str], None] = lambda message: None
) -> Iterator[RayProcesses]:
    """The cluster that a run asks for: a running one, or one of its own. Enter it before ray is imported.

    Args:
        config: the run.
        empty_dir: a folder without Python files, which workers will have on their module path.
        on_stuck: see ``RayProcesses``, which this gives.

    Raises:
        ConfigError: this process is in a cluster already, or can't join the one that is asked for.
        NeedsRestart: Ray's own processes died.
    """
    if "ray" in sys.modules and sys.modules["ray"].is_initialized():
        raise ConfigError(
            "this process is in a Ray cluster already, and a run starts or joins one itself: call ray.shutdown() "
            "first, and give the cluster that you want as ray.address"
        )
    if not _is_utf8(str(empty_dir)):
        raise ConfigError(f"{empty_dir} is not UTF-8, which Ray's paths have to be: choose another folder")
    address = wanted_address(config.ray.address)
    if address is not None:
        with joined_cluster(address, empty_dir):
            yield RayProcesses(on_stuck)  # not this run's: it watches none
        return
    store = STORE_BYTES
    if SHARED_MEMORY.is_dir():  # a store larger than that moves to the disk
        store = max(LEAST_STORE_BYTES, min(store, int(0.9 * shutil.disk_usage(SHARED_MEMORY).free)))
    cpus = math.ceil(config.stages * (1 + SMALL_CPUS) + 2 * SMALL_CPUS + spare_cpus(config))
    gpus = visible_gpus() if config.device == "cuda" else 0
    with RayProcesses(on_stuck) as own, local_cluster(cpus, gpus, store, empty_dir, own.rest):
        yield own


def _is_utf8(path: str) -> bool:
    """Whether the bytes of a path, as the system has them, are."""
    return not any("\ud800" <= character <= "\udfff" for character in path)


def _read_settings_again() -> None:
    """Bring Ray's idea of who may speak to it up to date: it reads RAY_AUTH_MODE at its import and a token once.

    A notebook may have imported Ray before the run. The names are private to Ray, which has no public ones for this.
    """
    if "ray" in sys.modules:
        from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]

        Config.initialize("")  # first: a token is only looked for where the mode asks for one
        AuthenticationTokenLoader.instance().reset_cache()


@contextlib.contextmanager
def _environment(settings: dict[str, str]) -> Iterator[None]:
    """Environment variables for Ray and all its processes, and afterwards those that were there before."""
    changed = (*settings, "RAY_ADDRESS", "PYTHONBREAKPOINT")  # Ray sets the last one
    before = {name: os.environ.get(name) for name in changed}
    os.environ.update(settings)
    os.environ.pop("RAY_ADDRESS", None)
    _read_settings_again()
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        _read_settings_again()


@contextlib.contextmanager
def local_cluster(
    cpus: int, gpus: int, store_bytes: int, empty_dir: Path, on_leaving: Callable[[], None] = lambda: None
) -> Iterator[None]:
    """A Ray cluster of this process alone: on loopback, with its own token; no process of it survives.

    Args:
        cpus: logical CPUs: what the actors ask for together, not what the machine has.
        gpus: GPUs to offer.
        store_bytes: size of the object store.
        empty_dir: a folder without Python files, which workers will have on their module path.
        on_leaving: called before its processes are ended.
    """
    mark = secrets.token_hex(16)
    settings = {
        LOCAL_MARK: mark,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_USAGE_STATS_ENABLED": "0",
        # Ray's GCS keeps the last hundred thousand calls, a hundred megabytes, for a dashboard that is not there.
        "RAY_task_events_report_interval_ms": "0",
        # Off Linux, Ray takes loopback as its own address and opens no other port; this asks for the same here.
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    }
    with _environment(settings):
        # A killed driver can't clean up, and Ray's agents would outlive it by a while.
        guardian = start_guardian(LOCAL_MARK, mark)
        try:
            import ray

            with _working_directory(empty_dir):
                ray.init(
                    address="local",
                    num_cpus=cpus,
                    num_gpus=gpus,
                    object_store_memory=store_bytes,
                    include_dashboard=False,
                    log_to_driver=False,
                    logging_level=logging.ERROR,
                    namespace="asyncdgl",
                    _system_config={"automatic_object_spilling_enabled": False},
                )
            yield
        finally:
            on_leaving()
            if not isinstance(sys.exc_info()[1], Interrupted | SystemExit):
                _shut_down()
                end_local_cluster()
                guardian.kill()
                guardian.wait()
            else:
                # The process is ending and has no time for Ray's own way. One of Ray's processes may just be
                # starting another, which only the guardian meets: it looks again when this process has ended.
                end_local_cluster()


@contextlib.contextmanager
def joined_cluster(address: str, empty_dir: Path) -> Iterator[None]:
    """A running cluster; its actors of this run end with this process.

    Raises:
        ConfigError: the cluster wants a token that this process does not have.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray

    try:
        with _working_directory(empty_dir):
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, namespace="asyncdgl")
    except (ray.exceptions.AuthenticationError, ConnectionError, RuntimeError) as error:
        if "uthenticat" in f"{type(error).__name__}{error}":
            raise ConfigError(
                f"the Ray cluster at {address} asks for a token: set RAY_AUTH_MODE=token and bring the head's "
                "~/.ray/auth_token here"
            ) from None
        raise ConfigError(f"the Ray cluster at {address} can't be joined: {str(error).splitlines()[0]}") from None
    try:
        yield
    finally:
        _shut_down()


def _shut_down() -> None:
    import ray

    with contextlib.suppress(Exception):
        ray.shutdown()


def end_local_cluster() -> None:
    """End every process of this process's local cluster at once, if it has one."""
    mark = os.environ.get(LOCAL_MARK)
    if mark is not None:
        end_marked(LOCAL_MARK, mark)


@contextlib.contextmanager
def _working_directory(path: Path) -> Iterator[None]:
    """Ray puts the driver's working directory first on the workers' module path: a stray queue.py would break them."""
    before = os.getcwd()
    os.chdir(path)
    try:
        yield
    finally:
        os.chdir(before)


def wait_for_placement(group: Any, needs: Mapping[str, int], seconds: float, noticed: Callable[[str], None]) -> None:
    """Wait until the bundles have their place. A cluster that grows as it is asked for more hears of them meanwhile.

    Args:
        group: the placement group.
        needs: how much of each resource.
        seconds: how long.
        noticed: told for what it waits.

    Raises:
        ConfigError: there was no room until then.
    """
    import ray

    asked = " and ".join(f"{count} {name}" for name, count in needs.items())
    deadline, has_said = time.monotonic() + seconds, False
    while not group.wait(timeout_seconds=1):
        total, free = ray.cluster_resources(), ray.available_resources()  # type: ignore[no-untyped-call]
        has = ", ".join(f"{total.get(name, 0):g} {name} ({free.get(name, 0):g} free)" for name in ("CPU", "GPU"))
        said = f"it needs {asked}; the cluster has {has}"
        if time.monotonic() > deadline:
            mend = "use fewer --stages or --threads, or more machines"
            if all(total.get(name, 0) >= count for name, count in needs.items()):
                mend = f"others use it: wait for longer than ray.wait_s {seconds:g}, or {mend}"
            raise ConfigError(f"the Ray cluster has no place for this run: {said}: {mend}")
        if not has_said:
            has_said = True
            noticed(f"waiting for room in the cluster: {said}")
