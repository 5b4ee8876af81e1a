"""A folder to work in, which is gone afterwards: also after a kill, as soon as the next one is made."""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

PREFIX = f".decoding-{socket.gethostname()}-"
"""Locks may hold on one host alone: of a folder that several share, each host removes what it left itself."""


@contextlib.contextmanager
def scratch(parent: Path) -> Iterator[Path]:
    """A new folder in ``parent``, removed at the end.

    Its maker holds a lock on it, which the system takes back however the process ends: a folder whose lock is free
    belongs to nobody.

    Raises:
        OSError: ``parent`` can't be written.
    """
    parent.mkdir(parents=True, exist_ok=True)
    for left in parent.glob(PREFIX + "*"):
        with contextlib.suppress(OSError):  # its maker lives, or removed it just now, or it is another user's
            lock = _lock(left)
            if lock is not None:
                shutil.rmtree(left, ignore_errors=True)
                os.close(lock)
    folder, lock = _make(parent)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if lock is not None:
            os.close(lock)


@contextlib.contextmanager
def one_at_a_time(folder: Path) -> Iterator[None]:
    """No other process of this machine makes this folder meanwhile.

    Raises:
        OSError: its parent can't be written.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    path = folder.with_name(f".{folder.name}.lock")
    with path.open("wb") as file:
        with contextlib.suppress(OSError):  # a file system without locks: both make it, and one is kept
            fcntl.flock(file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            path.unlink(missing_ok=True)  # who waits for it finds the folder


def _make(parent: Path) -> tuple[Path, int | None]:
    while True:
        folder = parent / (PREFIX + secrets.token_hex(6))
        folder.mkdir()  # as the umask says: what is made in it may be for a group
        try:
            lock = _lock(folder)
        except (BlockingIOError, FileNotFoundError):  # taken for a leftover before it was locked
            continue
        if folder.is_dir():
            return folder, lock
        if lock is not None:
            os.close(lock)


def _lock(folder: Path) -> int | None:
    """Lock a folder; None where its file system has no locks.

    Raises:
        BlockingIOError: somebody else holds its lock.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        if isinstance(error, BlockingIOError):
            raise
        return None
    return descriptor
