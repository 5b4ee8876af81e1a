"""Why a run failed: one sentence, and the end of the log that belongs to it."""

from __future__ import annotations

import os
import stat
import traceback
from collections.abc import Iterable
from pathlib import Path

from asyncdgl.errors import AsyncDGLError, StageFailed
from asyncdgl.rundir.records import Process
from asyncdgl.rundir.writer import RunWriter

LOG_TAIL_BYTES = 20_000


def tail_of_log(path: str | None) -> str | None:
    """The end of a log; None where there is none.

    Ray's folder of logs can be written by everybody: what lies there under the log's name is read only if it is a file
    of this user, and no second name of another one, which a reader of the run directory might not be meant to see.
    """
    if path is None:
        return None
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
        with os.fdopen(file, "rb") as log:
            about = os.fstat(file)
            own = not hasattr(os, "getuid") or about.st_uid == os.getuid()
            if not (stat.S_ISREG(about.st_mode) and own and about.st_nlink == 1):
                return None
            log.seek(max(0, about.st_size - LOG_TAIL_BYTES))
            return log.read().decode(errors="replace")
    except OSError:
        return None


def explain(error: BaseException, writer: RunWriter, processes: Iterable[Process]) -> str:
    """One sentence for a failed run; the end of the failed process's log goes to the run directory.

    Args:
        error: why it failed.
        writer: of its directory.
        processes: of the run.
    """
    if isinstance(error, StageFailed):
        kept = _keep_log(error.process, writer, processes)
        return f"{error}; the end of its log is in {kept}" if kept else str(error)
    if isinstance(error, AsyncDGLError):
        return str(error)
    kept = writer.write_log("traceback.log", "".join(traceback.format_exception(error)))
    return f"{type(error).__name__}: {error}" + (f"; the traceback is in {kept}" if kept else "")


def _keep_log(name: str | None, writer: RunWriter, processes: Iterable[Process]) -> Path | None:
    tail = tail_of_log(next((process.log for process in processes if process.name == name), None))
    return None if name is None or tail is None else writer.write_log(f"{name.replace(' ', '-')}.log", tail)
