"""A small process that waits for its parent's end and then ends what the parent left. Imports no part of the package.

Its standard input is a pipe whose other end only the parent holds: the pipe closes however the parent ends, SIGKILL
included. Arguments: name and value of the environment variable that marks the processes to end.
"""

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Mapping

import psutil

ROUNDS = 4
LOOK_S = (1.0, 30.0)
"""Between two looks at what the parent has started: at first, and later."""


def start_guardian(name: str, value: str) -> "subprocess.Popen[bytes]":
    """Start the guardian of this process: processes whose environment has ``name=value`` end when this one ends."""
    environment = {key: text for key, text in os.environ.items() if key != name}  # it must not end itself
    return subprocess.Popen([sys.executable, "-I", __file__, name, value], stdin=subprocess.PIPE, env=environment)


def main() -> None:
    """Wait, then kill all marked processes, a few times over: one may just be starting another."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    name, value = sys.argv[1:3]
    parent, began = psutil.Process(os.getppid()), time.monotonic()
    known: dict[int, psutil.Process] = {}
    while not select.select([sys.stdin], [], [], LOOK_S[time.monotonic() - began > LOOK_S[1]])[0]:
        try:
            known.update({child.pid: child for child in parent.children(recursive=True)})
        except psutil.Error:
            continue
    for _ in range(ROUNDS):
        end_marked(name, value, known)
        time.sleep(0.4)


def end_marked(name: str, value: str, known: "Mapping[int, psutil.Process] | None" = None) -> None:
    """Kill the processes whose environment has ``name=value``, but for this one, and all that they have started.

    Ray's agents overwrite their environment with their title: they are known by their parents, as long as these live.

    Args:
        name: of the environment variable.
        value: of it.
        known: others that are to be ended, by number: they are told from later processes of the same numbers.
    """
    found = dict(known or {})
    for process in psutil.process_iter():
        try:
            if process.pid != os.getpid() and process.environ().get(name) == value:
                found.update({child.pid: child for child in (process, *process.children(recursive=True))})
        except (psutil.Error, OSError):
            continue
    found.pop(os.getpid(), None)
    for process in found.values():
        try:
            process.kill()
        except (psutil.Error, OSError):
            continue


if __name__ == "__main__":
    main()
