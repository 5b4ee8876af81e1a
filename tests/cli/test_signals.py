"""Signals: the first stops a run in order, its echo is the same request, the second ends the process at once."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest

from asyncdgl.cli.signals import ONE_SIGNAL_S

SCRIPT = Path(sys.executable).parent / "asyncdgl"
ECHO_S = 0.06
assert ECHO_S < ONE_SIGNAL_S

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """``start(command, ...)``: a process in a group of its own, which does not outlive the test."""
    with ExitStack() as stack:

        def run(*command: str) -> subprocess.Popen[str]:
            process = stack.enter_context(
                subprocess.Popen(
                    command,
                    cwd=tmp_path,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                    start_new_session=True,
                )
            )
            stack.callback(process.kill)
            return process

        yield run


def said(process: subprocess.Popen[str], word: str) -> None:
    """Wait until it has said something."""
    assert process.stdout is not None
    for line in process.stdout:
        if word in line:
            return
    pytest.fail(f"it ended without {word!r}: {process.communicate()[1]}")


# --- Runs -------------------------------------------------------------------------------------------------------------

RUN = [
    *("run", "--runtime", "sim", "--stages", "2", "--epochs", "100000", "--batch-size", "256", "--width", "2"),
    *("--threads", "1", "--device", "cpu", "--precision", "float32", "--set", "evaluation.every=100000", "--out", "o"),
]


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, "interrupted"), (signal.SIGTERM, "terminated")], ids=["SIGINT", "SIGTERM"]
)
def test_a_signal_that_comes_twice_at_once_is_one_request(number, status, start, tmp_path) -> None:
    """`timeout` sends it to the process and then to its group; some terminals and schedulers take a moment longer."""
    process = start(str(SCRIPT), *RUN)
    trace, deadline = tmp_path / "o" / "trace.jsonl", time.monotonic() + 150
    while process.poll() is None and not (trace.is_file() and trace.stat().st_size > 10_000):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.kill(process.pid, number)
    for _ in range(10):
        time.sleep(ECHO_S / 10)
        os.killpg(process.pid, number)
    _, stderr = process.communicate(timeout=100)
    assert process.returncode == 128 + number
    assert "Traceback" not in stderr
    assert "`asyncdgl resume o` goes on with it" in stderr
    summary = json.loads((tmp_path / "o" / "summary.json").read_text())
    assert summary["status"] == status
    assert all(stage["state_sha256"] is not None and stage["updates"] > 0 for stage in summary["stages"])


def test_a_run_that_is_stopped_while_it_leaves_ray_has_its_summary(start, tmp_path) -> None:
    """Ray takes a second to end, and a SIGTERM then ends the process without any handler."""
    tiny = ["--stages", "2", "--epochs", "1", "--batch-size", "256", "--width", "2", "--threads", "1", "--out", "o"]
    process = start(str(SCRIPT), "run", *tiny)
    summary, deadline = tmp_path / "o" / "summary.json", time.monotonic() + 150
    while not summary.is_file():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    ray_is_there = any(child.name() == "raylet" for child in psutil.Process(process.pid).children())
    assert ray_is_there
    time.sleep(0.5)
    process.terminate()
    process.communicate(timeout=100)
    assert process.returncode in (0, -signal.SIGTERM, 143)
    assert json.loads(summary.read_text())["status"] == "completed"


LATE = """\
import os, subprocess, sys
from pathlib import Path
from asyncdgl.on_ray import cluster as ray_cluster

end = ray_cluster.end_local_cluster

def end_and_miss_one():
    end()
    print("late", subprocess.Popen(["sleep", "100"]).pid, flush=True)

ray_cluster.end_local_cluster = end_and_miss_one
try:
    with ray_cluster.local_cluster(1, 0, ray_cluster.LEAST_STORE_BYTES, Path(sys.argv[1])):
        raise KeyboardInterrupt
except KeyboardInterrupt:
    os._exit(130)
"""


def test_what_starts_while_an_interrupted_run_ends_its_cluster_ends_too(start, tmp_path) -> None:
    """Ray's daemon may just be starting another process when it is killed."""
    process = start(sys.executable, "-c", LATE, str(tmp_path))
    stdout, stderr = process.communicate(timeout=150)
    assert process.returncode == 130, stderr
    late = psutil.Process(int(stdout.split()[-1])) if psutil.pid_exists(int(stdout.split()[-1])) else None
    if late is not None:
        late.wait(timeout=20)


# --- The class itself -------------------------------------------------------------------------------------------------

BUSY = """\
import ctypes, sys, time
from asyncdgl.cli import signals

signals.GRACE_S = {grace}
handler = signals.Signals()
handler.emergency = lambda code: print("emergency", code, flush=True)
handler.install()
{work}
"""
"""A process that takes signals; what it does meanwhile is ``work``, which says when it is ready for them."""

IN_PYTHON = """\
try:
    print("ready", flush=True)
    while True:
        time.sleep(0.01)
except signals.Interrupted as stop:
    time.sleep({end})  # an orderly end takes its time
    print("in order", flush=True)
    signals.end_process(signals.EXIT_CODES[stop.status])
"""
IN_C = """\
libc, mutex = ctypes.CDLL(None), ctypes.create_string_buffer(128)
libc.pthread_mutex_lock(mutex)
print("ready", flush=True)
libc.pthread_mutex_lock(mutex)  # for ever, and no signal breaks it
"""
DEFERRED = """\
with handler.deferred():
    try:
        print("ready", flush=True)
        time.sleep(0.5)
    except BaseException:
        print("broken", flush=True)
    print("whole", flush=True)
    try:
        handler.check()
    except signals.Interrupted as stop:
        handler.check()  # it is raised once
        print("at the check", flush=True)
        signals.end_process(signals.EXIT_CODES[stop.status])
"""

UNHURRIED = """\
with handler.deferred():
    with handler.unhurried():
        print("ready", flush=True)
        time.sleep(2.5)
        print("whole", flush=True)
    {then}
    time.sleep({rest})
print("to the end", flush=True)
"""


@pytest.mark.parametrize(
    ("then", "rest", "code", "says"),
    [("pass", 100, 143, "emergency 143"), ("handler.disarm()", 2.5, 0, "to the end")],
    ids=["hurried-again", "disarmed"],
)
def test_what_cannot_hang_may_take_its_time(then, rest, code, says, start) -> None:
    process = start(sys.executable, "-c", BUSY.format(grace=1.0, work=UNHURRIED.format(then=then, rest=rest)))
    said(process, "ready")
    process.send_signal(signal.SIGTERM)
    stdout, _ = process.communicate(timeout=60)
    assert (process.returncode, stdout) == (code, f"whole\n{says}\n")


def test_an_echo_does_not_break_an_orderly_end(start) -> None:
    process = start(sys.executable, "-c", BUSY.format(grace=30, work=IN_PYTHON.format(end=0.8)))
    said(process, "ready")
    for _ in range(3):
        process.send_signal(signal.SIGTERM)
        time.sleep(ECHO_S / 2)
    stdout, _ = process.communicate(timeout=60)
    assert (process.returncode, stdout) == (143, "in order\n")


def test_a_second_request_ends_the_process_at_once(start) -> None:
    process = start(sys.executable, "-c", BUSY.format(grace=100, work=IN_PYTHON.format(end=100)))
    said(process, "ready")
    process.send_signal(signal.SIGINT)
    time.sleep(2 * ONE_SIGNAL_S)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    stdout, _ = process.communicate(timeout=50)
    assert (process.returncode, stdout) == (130, "")


def test_a_process_that_cannot_hear_is_ended_after_a_while(start) -> None:
    process = start(sys.executable, "-c", BUSY.format(grace=1.0, work=IN_C))
    said(process, "ready")
    time.sleep(0.3)
    process.send_signal(signal.SIGTERM)
    time.sleep(ECHO_S)
    process.send_signal(signal.SIGTERM)  # the echo
    stdout, _ = process.communicate(timeout=60)
    assert (process.returncode, stdout) == (143, "emergency 143\n")


def test_a_process_that_cannot_hear_is_ended_at_once_by_a_second_request(start) -> None:
    process = start(sys.executable, "-c", BUSY.format(grace=100, work=IN_C))
    said(process, "ready")
    time.sleep(0.3)
    process.send_signal(signal.SIGTERM)
    time.sleep(2 * ONE_SIGNAL_S)
    process.send_signal(signal.SIGINT)
    stdout, _ = process.communicate(timeout=50)
    assert (process.returncode, stdout) == (143, "")


def test_deferred_work_is_not_broken_in_the_middle(start) -> None:
    process = start(sys.executable, "-c", BUSY.format(grace=30, work=DEFERRED))
    said(process, "ready")
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=60)
    assert (process.returncode, stdout) == (130, "whole\nat the check\n"), stderr


WHILE_IT_IS_IMPORTED = """
import builtins, os, signal
signal.signal(signal.SIGINT, signal.default_int_handler)
plain = builtins.__import__
def importing(name, *args, **kwargs):
    if name == "click":
        os.kill(os.getpid(), signal.SIGINT)
    return plain(name, *args, **kwargs)
builtins.__import__ = importing
from asyncdgl.__main__ import main
print("still here")
"""


def test_whoever_stops_it_while_it_is_imported_sees_no_traceback(tmp_path) -> None:
    command = [sys.executable, "-c", WHILE_IT_IS_IMPORTED]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, "", "")
