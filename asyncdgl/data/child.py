"""Decoding in a process of its own: it can be interrupted at once, and it dies with its parent.

The parent writes the task to a file; the child answers with lines of JSON, and ends when its standard input does.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import threading
import traceback
from dataclasses import replace
from pathlib import Path
from typing import Any

from asyncdgl.data.base import File, Request
from asyncdgl.data.sources import find_source
from asyncdgl.errors import AsyncDGLError, DataError
from asyncdgl.registry import module_path

TASK = "task.json"
LONGEST_LINE = 500
# The child's modules are found where the parent's are: also one of the user's, and asyncdgl itself.
_START = (
    f"import json, os, pathlib, sys; task = json.loads(pathlib.Path({TASK!r}).read_bytes()); "
    "sys.path[:] = task['path']; os.chdir(task['here'] or '.'); from asyncdgl.data.child import main; main(task)"
)


def run_in_child(dataset: str, request: Request, target: Path, download: bool = False) -> None:
    """Decode a data set into the folder ``target``, or download its files there.

    What the child needs and says besides lies beside that folder.

    Raises:
        DataError: what the child says that is wrong, or how it ended.
        OSError: the child could not write there.
    """
    try:
        here = os.getcwd()
    except OSError:  # it was deleted: nothing can be found there
        here = ""
    task = {
        "here": here,
        "path": module_path(),
        "dataset": dataset,
        "image_size": request.image_size,
        "folder": str(request.folder),
        "files": request.files,
        "target": str(target),
        "download": download,
    }
    problem = unwritable = None
    place = target.parent
    (place / TASK).write_text(json.dumps(task))
    command = [sys.executable, "-c", _START]
    with (place / "log").open("w+", errors="replace") as log:
        # A folder without Python files as working directory: it comes first in the module path while Python starts.
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, cwd=place
        ) as child:
            try:
                for line in child.stdout or ():
                    message = _parse(line)
                    if "done" in message:
                        request.on_progress(message["done"], message["total"])
                    problem = message.get("problem", problem)
                    unwritable = message.get("unwritable", unwritable)
                code = child.wait()
            except BaseException:
                child.kill()
                raise
        if unwritable is not None:
            raise OSError(errno.EIO, unwritable)
        if problem is None and code != 0:
            log.seek(0)
            problem = f"decoding {dataset} failed: {_how_it_ended(code, log.read())}"
    if problem is not None:
        raise DataError(problem)


def _parse(line: str) -> dict[str, Any]:
    try:
        message = json.loads(line)
    except ValueError:  # something that was printed while Python started
        return {}
    return message if isinstance(message, dict) else {}


def _how_it_ended(code: int, log: str) -> str:
    if code < 0:
        hint = ", which the system sends where memory runs out" if code == -signal.SIGKILL else ""
        return f"its process was ended by {signal.Signals(-code).name}{hint}"
    lines = log.strip().splitlines()
    return f"its process ended with code {code}" + (f": {lines[-1]}" if lines else "")


def main(task: dict[str, Any]) -> None:
    """What the child does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a terminal, meant for the parent, which ends this process
    threading.Thread(target=_die_with_parent, daemon=True).start()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer

    def say(**message: Any) -> None:
        answers.write(json.dumps(message) + "\n")
        answers.flush()

    def on_progress(done: int, total: int) -> None:
        say(done=done, total=total)

    dataset, target = task["dataset"], Path(task["target"])
    files = tuple(File(*file) for file in task["files"])
    request = Request(task["image_size"], Path(task["folder"]), files, on_progress)
    try:
        if task["download"]:
            _download(dataset, request, target)
        else:
            decode_here(dataset, request, target)
    except AsyncDGLError as error:
        say(problem=str(error))
    except OSError as error:
        say(unwritable=error.strerror or str(error))
    except BaseException as error:  # also an exit: this process must not end as if all were well
        say(problem=f"decoding {dataset} failed: {own_line(error)}")
    else:
        os._exit(0)
    os._exit(1)


def decode_here(dataset: str, request: Request, target: Path) -> None:
    """Decode a data set into a folder, in this process.

    Raises:
        DataError: also of whatever a source raises; the message says what and where.
        OSError: the folder can't be written.
    """
    from asyncdgl.data.store import save

    notices: list[str] = []
    try:
        decoded = find_source(dataset).decode(replace(request, on_notice=notices.append))
    except AsyncDGLError:
        raise
    except Exception as error:
        raise DataError(f"decoding {dataset} failed: {own_line(error)}") from error
    save(decoded, target, notices)


def _download(dataset: str, request: Request, target: Path) -> None:
    source = find_source(dataset)
    try:
        if source.download is not None:
            source.download(target)
    except Exception as error:  # torchvision raises whatever its mirrors do
        reason = " ".join(str(error).split()) or type(error).__name__
        try:
            source.decode(request)
        except DataError as missing:
            raise DataError(f"{missing} (it can't be downloaded from here: {reason})") from None
        raise


def own_line(error: BaseException) -> str:
    """The error as Python's last line would say it, and where it was raised."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    line = traceback.format_exception_only(error)[-1].strip()
    return f"{line[:LONGEST_LINE]} ({os.path.basename(last.filename)}, line {last.lineno})"


def _die_with_parent() -> None:
    """The parent holds the other end of standard input: when it ends, however it does, so does this process."""
    while os.read(0, 4096):
        pass
    os._exit(1)
