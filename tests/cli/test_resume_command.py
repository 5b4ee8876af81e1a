"""`asyncdgl resume`: what becomes of a run that was stopped or killed, and what is said where it can't go on."""

from __future__ import annotations

import json
import pickle
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

SCRIPT = Path(sys.executable).parent / "asyncdgl"
RUN = ("run", "--runtime", "sim", "--stages", "2", "--width", "4", "--epochs", "12", "--set", "checkpoint.every=20")
EPOCHS = 12


def asyncdgl(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [str(SCRIPT), *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, check=False)


def stopped(folder: Path, number: int, passes: int) -> subprocess.CompletedProcess[str]:
    """A run that is sent a signal once it has made so many passes."""
    process = subprocess.Popen(
        [str(SCRIPT), *RUN, "--out", "run"], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    trace = folder / "run" / "trace.jsonl"
    while not trace.exists() or trace.read_bytes().count(b"\n") < passes:
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    return subprocess.CompletedProcess([], process.returncode, out, err)


def hashes(run: Path) -> list[str]:
    return [stage["state_sha256"] for stage in json.loads((run / "summary.json").read_text())["stages"]]


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A run that was never stopped."""
    folder = tmp_path_factory.mktemp("whole")
    assert asyncdgl(folder, *RUN, "--out", "run").returncode == 0
    return folder / "run"


@pytest.fixture(scope="module")
def killed(tmp_path_factory) -> Path:
    """A run that was killed after a few hundred passes."""
    folder = tmp_path_factory.mktemp("killed")
    stopped(folder, signal.SIGKILL, 300)
    return folder / "run"


@pytest.fixture
def left(killed, tmp_path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(killed, tmp_path / "run"))


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_run_says_how_to_go_on_and_loses_no_pass(whole, tmp_path, number, code) -> None:
    done = stopped(tmp_path, number, 250)
    assert done.returncode == code
    assert "`asyncdgl resume run` goes on with it" in done.stderr
    passes = (tmp_path / "run" / "trace.jsonl").read_text().splitlines()
    done = asyncdgl(tmp_path, "resume", "run")
    assert done.returncode == 0, done.stderr
    assert f"going on after {len(passes)} passes" in done.stdout
    assert (tmp_path / "run" / "trace.jsonl").read_text().splitlines()[: len(passes)] == passes
    assert hashes(tmp_path / "run") == hashes(whole)
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_killed_run_goes_on_from_its_newest_checkpoint(whole, left) -> None:
    assert not (left / "summary.json").exists()
    done = asyncdgl(left.parent, "resume", "run")
    assert done.returncode == 0, done.stderr
    assert hashes(left) == hashes(whole)
    assert "bit-exact: 2 of 2 stages" in asyncdgl(left.parent, "replay", "run").stdout
    done = asyncdgl(left.parent, "resume", "run")
    assert (done.returncode, done.stderr) == (2, "Error: run: the run is complete, there is nothing to go on with\n")


def test_one_of_two_that_go_on_at_once_is_refused(left) -> None:
    first = subprocess.Popen([SCRIPT, "resume", "run"], cwd=left.parent, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    trace, before = left / "trace.jsonl", (left / "trace.jsonl").read_bytes()
    while trace.read_bytes() == before:
        assert first.poll() is None
        time.sleep(0.01)
    second = asyncdgl(left.parent, "resume", "run")
    assert (second.returncode, "being written there by another process" in second.stderr) == (2, True)
    assert first.wait(60) == 0
    assert json.loads((left / "summary.json").read_text())["status"] == "completed"


def test_another_version_of_the_run_is_refused_and_left_as_it_is(left) -> None:
    trace = (left / "trace.jsonl").read_text().splitlines(keepends=True)
    line = json.loads(trace[100])
    trace[100] = json.dumps({**line, "batch": line["batch"] + 1}) + "\n"
    (left / "trace.jsonl").write_text("".join(trace))
    before = {path: path.read_bytes() for path in left.rglob("*") if path.is_file()}
    done = asyncdgl(left.parent, "resume", "run")
    assert done.returncode == 2
    assert "line 101 of the trace is not what this version of asyncdgl does there" in done.stderr
    assert {path: path.read_bytes() for path in left.rglob("*") if path.is_file()} == before


class Bomb:
    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (Path("executed"),)


def test_a_damaged_checkpoint_is_named_and_the_older_one_used(whole, left) -> None:
    older, newer = sorted((left / "checkpoints").iterdir())
    newer.write_bytes(pickle.dumps(Bomb()))
    done = asyncdgl(left.parent, "resume", "run")
    assert done.returncode == 0, done.stderr
    assert f"{newer.name} is damaged, or no file of a run" in done.stdout.replace("\n", "")
    assert f"going on after {int(older.stem)} passes" in done.stdout
    assert hashes(left) == hashes(whole)
    assert not (left.parent / "executed").exists()


def test_where_no_checkpoint_can_be_used_nothing_is_thrown_away(left) -> None:
    for path in (left / "checkpoints").iterdir():
        path.write_bytes(path.read_bytes()[:-1])
    before = {path: path.read_bytes() for path in left.rglob("*") if path.is_file()}
    done = asyncdgl(left.parent, "resume", "run")
    assert done.returncode == 2
    assert done.stderr.startswith("Error: run can't be gone on with, and is left as it is: ")
    assert done.stderr.count("is damaged") == 2
    assert {path: path.read_bytes() for path in left.rglob("*") if path.is_file()} == before


def test_without_a_checkpoint_the_run_begins_anew(whole, left) -> None:
    shutil.rmtree(left / "checkpoints")
    done = asyncdgl(left.parent, "resume", "run")
    assert (
        done.returncode,
        "there is no checkpoint yet, so the same passes are made from the first one" in done.stdout,
    ) == (0, True)
    assert hashes(left) == hashes(whole)


def test_what_is_no_run_is_refused(tmp_path) -> None:
    done = asyncdgl(tmp_path, "resume", "nothing")
    assert (done.returncode, "is no run directory" in done.stderr) == (2, True)


def test_more_epochs(left) -> None:
    done = asyncdgl(left.parent, "resume", "run", "--epochs", "6")
    assert (done.returncode, done.stderr) == (2, "Error: --epochs can only be raised: the run has 12, got 6\n")
    done = asyncdgl(left.parent, "resume", "run", "--epochs", "14")
    assert done.returncode == 0, done.stderr
    asked = [*RUN[: RUN.index("--epochs")], "--epochs", "14"]
    assert asyncdgl(left.parent, *asked, "--out", "from-the-start").returncode == 0
    assert hashes(left) == hashes(left.parent / "from-the-start")
    assert "bit-exact: 2 of 2 stages" in asyncdgl(left.parent, "replay", "run").stdout
