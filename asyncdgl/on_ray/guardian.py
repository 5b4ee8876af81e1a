"""A small process that waits for its parent's end and then ends what the parent left. Imports no part of the package.

Its standard input is a pipe whose other end only the parent holds: the pipe closes however the parent ends, SIGKILL
included. Arguments: name and value of the environment variable that marks the processes to end.
"""

import os
import signal
import subprocess
import sys
import time

import psutil

ROUNDS = 4


def start_guardian(name: str, value: str) -> "subprocess.Popen[bytes]":
    """Start the guardian of this process: processes whose environment has ``name=value`` end when this one ends."""
    environment = {key: text for key, text in os.environ.items() if key != name}  # it must not end itself
    return subprocess.Popen([sys.executable, "-I", __file__, name, value], stdin=subprocess.PIPE, env=environment)


def main() -> None:
    """Wait, then kill all marked processes, a few times over: one may just be starting another."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    name, value = sys.argv[1:3]
    sys.stdin.buffer.read()
    for _ in range(ROUNDS):
        for process in psutil.process_iter():
            try:
                if process.pid != os.getpid() and process.environ().get(name) == value:
                    process.kill()
            except (psutil.Error, OSError):
                continue
        time.sleep(0.4)


if __name__ == "__main__":
    main()
