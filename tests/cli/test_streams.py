"""Nobody listens any more, or the place is odd: what is written to the run directory is whole all the same."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest

SCRIPT = str(Path(sys.executable).parent / "asyncdgl")
SMALL = f"{SCRIPT} run --runtime sim --stages 2 --width 4 --epochs 2 --out run"
LONG = [SCRIPT, *SMALL.split()[1:], "--epochs", "300"]


def status(folder: Path) -> Any:
    return json.loads((folder / "run" / "summary.json").read_text())["status"]


@pytest.mark.parametrize(
    "command",
    [
        pytest.param(f"{SMALL} | head -1; exit ${{PIPESTATUS[0]}}", id="a-pipe-that-nobody-reads"),
        pytest.param(f"{SMALL} >&-", id="closed-output"),
        pytest.param(f"{SMALL} >&- 2>&- <&-", id="all-closed"),
        pytest.param(f"{SMALL} > /dev/full", id="a-full-disk"),
    ],
)
def test_a_run_ends_well_though_nobody_listens(tmp_path, command) -> None:
    done = subprocess.run(
        ["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert status(tmp_path) == "completed"
    assert (tmp_path / "run" / "trace.jsonl").read_bytes().startswith(b'{"stage"')


def begun(folder: Path, before: tuple[str, ...] = ()) -> subprocess.Popen[str]:
    command = [*before, *LONG]
    heard = partial(signal.signal, signal.SIGHUP, signal.SIG_DFL)  # the tests themselves may run under nohup
    process = subprocess.Popen(
        command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, preexec_fn=heard
    )
    trace = folder / "run" / "trace.jsonl"
    while not trace.exists() or trace.stat().st_size == 0:
        assert process.poll() is None
        time.sleep(0.01)
    return process


def test_a_lost_connection_stops_a_run_as_sigterm_does(tmp_path) -> None:
    process = begun(tmp_path)
    process.send_signal(signal.SIGHUP)
    _, said = process.communicate(timeout=60)
    assert (process.returncode, status(tmp_path)) == (143, "terminated")
    assert "`asyncdgl resume run` goes on with it" in said


def test_with_nohup_it_does_not(tmp_path) -> None:
    process = begun(tmp_path, ("nohup",))
    process.send_signal(signal.SIGHUP)
    made = (tmp_path / "run" / "trace.jsonl").stat().st_size
    while (tmp_path / "run" / "trace.jsonl").stat().st_size == made:
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 143


@pytest.mark.parametrize("broken", ['{"status": "ter', "", "[]", "null"])
def test_a_broken_summary_does_not_keep_a_run_from_going_on(tmp_path, broken) -> None:
    process = begun(tmp_path)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    (tmp_path / "run" / "summary.json").write_text(broken)
    (tmp_path / "run" / "environment.json").write_text(broken)
    again = subprocess.Popen([SCRIPT, "resume", "run"], cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    while (tmp_path / "run" / "summary.json").exists():  # it goes once all is repeated
        assert again.poll() is None
        time.sleep(0.01)
    again.send_signal(signal.SIGTERM)
    said, _ = again.communicate(timeout=60)
    assert again.returncode == 143
    assert "going on after" in said
    assert status(tmp_path) == "terminated"


def test_a_broken_summary_of_a_run_without_checkpoints_is_named(tmp_path) -> None:
    """It may be complete: to begin anew would throw it away."""
    assert subprocess.run(SMALL.split(), cwd=tmp_path, capture_output=True, timeout=120, check=False).returncode == 0
    (tmp_path / "run" / "summary.json").write_text("[]")
    resume = [SCRIPT, "resume", "run"]
    done = subprocess.run(resume, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, "summary.json: not a summary of a run" in done.stderr) == (2, True)


@pytest.mark.parametrize("name", ["x" * 60, "Müll"])
def test_a_temporary_folder_that_ray_cannot_use_is_found_before_anything_is_made(tmp_path, monkeypatch, name) -> None:
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setenv("TMPDIR", str(tmp_path / name))
    (tmp_path / name).mkdir()
    command = [SCRIPT, "run", "--out", "run"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr.startswith(f"Error: TMPDIR {tmp_path / name}: Ray needs")) == (2, True)
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="other systems make no such names")
def test_a_name_that_is_no_utf8(tmp_path) -> None:
    name = os.fsdecode(b"run-\xff")
    command = [SCRIPT, *SMALL.split()[1:-1], name]
    for ask in (command, [SCRIPT, "report", name], [SCRIPT, "replay", name]):
        done = subprocess.run(ask, cwd=tmp_path, capture_output=True, timeout=120, check=False)
        assert (done.returncode, done.stderr) == (0, b"")
    assert json.loads((tmp_path / name / "environment.json").read_text())["command"].endswith(r"'run-\xff'")


@pytest.mark.ray
@pytest.mark.skipif(sys.platform != "linux", reason="other systems make no such names")
def test_ray_takes_no_name_that_is_no_utf8(tmp_path) -> None:
    command = [SCRIPT, "run", "--stages", "2", "--width", "4", "--epochs", "1", "--out", os.fsdecode(b"run-\xff")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, timeout=120, check=False)
    assert done.returncode == 2
    assert b"is not UTF-8, which Ray's paths have to be: choose another folder" in done.stderr
    assert [*tmp_path.iterdir()] == []


@pytest.mark.ray
def test_whoever_writes_into_the_trace_of_a_run_takes_nothing_from_it(tmp_path) -> None:
    command = [SCRIPT, "run", "--stages", "2", "--width", "4", "--epochs", "4", "--out", "run"]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    trace = tmp_path / "run" / "trace.jsonl"
    while not (trace.exists() and trace.stat().st_size):
        assert process.poll() is None
        time.sleep(0.01)
    with trace.open("a") as file:
        file.write("mine\n")
    _, said = process.communicate(timeout=120)
    assert (process.returncode, said.count("not a line of a trace")) == (1, 1)
    assert status(tmp_path) == "failed"
    assert (tmp_path / "run" / "model.safetensors").exists()
