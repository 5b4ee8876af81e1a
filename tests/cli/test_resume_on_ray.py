"""`asyncdgl resume` of runs on Ray: their main process was killed, and all others with it."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest

pytestmark = pytest.mark.timeout(600)  # several runs on Ray, each with processes that import torch
SCRIPT = Path(sys.executable).parent / "asyncdgl"
SMALL = ("--stages", "3", "--width", "4", "--epochs", "4", "--set", "checkpoint.every=7")
SYNC = ("--algorithm", "sync-dgl")


def asyncdgl(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [str(SCRIPT), *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=400, check=False)


def stopped(folder: Path, command: Sequence[str], number: int, passes: int) -> tuple[int, str]:
    """A run that is sent a signal once its trace has so many lines; nothing of it lives on."""
    with (folder / "stderr.txt").open("w") as errors:  # no pipe: what lives on a moment would hold it open
        process = subprocess.Popen([str(SCRIPT), *command], cwd=folder, stdout=subprocess.DEVNULL, stderr=errors)
    trace = folder / "run" / "trace.jsonl"
    while not trace.exists() or trace.read_bytes().count(b"\n") < passes:
        assert process.poll() is None
        time.sleep(0.01)
    others = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(number)
    process.wait(timeout=60)
    deadline = time.monotonic() + 60
    while any(lives(other) for other in others):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return process.returncode, (folder / "stderr.txt").read_text()


def lives(process: psutil.Process) -> bool:
    """Who has ended and is still listed does not."""
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def summary(run: Path) -> dict[str, Any]:
    return json.loads((run / "summary.json").read_text())


def hashes(run: Path) -> list[str]:
    return [stage["state_sha256"] for stage in summary(run)["stages"]]


def check_books(run: Path) -> None:
    """Nothing is twice in the metrics, and rule 15 holds."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    epochs = [(line["stage"], line["epoch"]) for line in lines if line["kind"] == "epoch"]
    assert sorted(epochs) == [(j, e) for j in (1, 2, 3) for e in (1, 2, 3, 4)]
    evaluated = [line["epoch"] for line in lines if line["kind"] == "evaluation"]
    assert evaluated == sorted(set(evaluated))
    assert evaluated[-1] == 4
    for b in summary(run)["buffers"]:
        assert b["inserted"] == b["left"] + b["retired"] + b["overwritten_unused"], b
        assert b["sent"] == b["inserted"] + b["on_the_way"] + b["lost"] + b["dropped"] + b["lost_in_fault"], b


@pytest.fixture(scope="module")
def in_sim(tmp_path_factory) -> list[str]:
    folder = tmp_path_factory.mktemp("sim")
    done = asyncdgl(folder, "run", "--runtime", "sim", *SMALL[:-2], *SYNC, "--out", "run")
    assert done.returncode == 0, done.stderr
    return hashes(folder / "run")


@pytest.mark.ray
@pytest.mark.parametrize(("number", "code"), [(signal.SIGKILL, -9), (signal.SIGINT, 130)])
def test_sync_dgl_goes_on_to_the_bits_of_sim(in_sim, tmp_path, number, code) -> None:
    assert stopped(tmp_path, ("run", *SMALL, *SYNC, "--out", "run"), number, 200)[0] == code
    done = asyncdgl(tmp_path, "resume", "run")
    assert done.returncode == 0, done.stderr
    assert hashes(tmp_path / "run") == in_sim
    assert "bit-exact: 3 of 3 stages" in asyncdgl(tmp_path, "replay", "run").stdout
    check_books(tmp_path / "run")
    steps = [fault["passes_again"] for fault in summary(tmp_path / "run")["faults"]]
    assert len(steps) == 3


@pytest.mark.ray
def test_a_run_that_is_killed_twice_is_replayed_bit_for_bit(tmp_path) -> None:
    """With states that rest on passes of three incarnations."""
    run = tmp_path / "run"
    profile = ("--delay-profile", "slow_stage2", "--set", "delays.slowdown=1.5")
    assert stopped(tmp_path, ("run", *SMALL, *profile, "--out", "run"), signal.SIGKILL, 150)[0] == -9
    before = (run / "trace.jsonl").read_bytes().count(b"\n")
    assert stopped(tmp_path, ("resume", "run"), signal.SIGKILL, before + 80)[0] == -9
    done = asyncdgl(tmp_path, "resume", "run")
    assert done.returncode == 0, done.stderr
    assert "going on: stage 1 from step" in done.stdout
    incarnations = {json.loads(line)["incarnation"] for line in (run / "trace.jsonl").read_text().splitlines()}
    assert incarnations == {0, 1, 2}
    replayed = asyncdgl(tmp_path, "replay", "run")
    assert "bit-exact: 3 of 3 stages" in replayed.stdout, replayed.stdout + replayed.stderr
    check_books(run)
    assert max(s["staleness"]["max"] for s in summary(run)["stages"][1:]) < 60
    assert min(s["staleness"]["mean"] for s in summary(run)["stages"][1:]) >= 0


@pytest.mark.ray
def test_a_stopped_run_loses_nothing_and_damage_is_passed_over(tmp_path) -> None:
    run = tmp_path / "run"
    code, said = stopped(tmp_path, ("run", *SMALL, "--out", "run"), signal.SIGTERM, 150)
    assert (code, "`asyncdgl resume run` goes on with it" in said) == (143, True)
    shutil.copytree(run, tmp_path / "whole")
    newest = max((run / "checkpoints" / "stage-2").iterdir())
    newest.write_bytes(newest.read_bytes()[:-20])
    done = asyncdgl(tmp_path, "resume", "run")
    assert done.returncode == 0, done.stderr
    assert f"going on: {newest.relative_to(tmp_path)} is damaged" in done.stdout
    assert [fault["lost_passes"] == 0 for fault in summary(run)["faults"]] == [True, False, True]
    assert "bit-exact: 3 of 3 stages" in asyncdgl(tmp_path, "replay", "run").stdout
    assert not (run / "checkpoints").exists()
    for path in (tmp_path / "whole" / "checkpoints" / "stage-2").iterdir():
        path.write_bytes(b"nothing")
    before = (tmp_path / "whole" / "trace.jsonl").read_bytes()
    done = asyncdgl(tmp_path, "resume", "whole")
    assert (done.returncode, "can't be gone on with, and is left as it is" in done.stderr) == (2, True)
    assert (tmp_path / "whole" / "trace.jsonl").read_bytes() == before


@pytest.mark.ray
@pytest.mark.parametrize("algorithm", ["sync-dgl", "async-dgl"])
def test_more_epochs(tmp_path, algorithm) -> None:
    """Stopped when the first stage is in its last epoch, or beyond."""
    asked = ("--algorithm", algorithm, *(("--delay-profile", "slow_stage3") if algorithm == "async-dgl" else ()))
    command = ("run", "--stages", "3", "--width", "4", "--epochs", "3", "--set", "checkpoint.every=7", *asked)
    assert stopped(tmp_path, (*command, "--out", "run"), signal.SIGTERM, 350)[0] == 143
    done = asyncdgl(tmp_path, "resume", "run", "--epochs", "4")
    assert done.returncode == 0, done.stderr
    assert {stage["epochs"] for stage in summary(tmp_path / "run")["stages"]} == {4}
    assert "bit-exact: 3 of 3 stages" in asyncdgl(tmp_path, "replay", "run").stdout
    check_books(tmp_path / "run")
    if algorithm == "sync-dgl":
        in_sim = ("run", "--runtime", "sim", "--stages", "3", "--width", "4", "--epochs", "4", *asked)
        assert asyncdgl(tmp_path, *in_sim, "--out", "sim").returncode == 0
        assert hashes(tmp_path / "run") == hashes(tmp_path / "sim")
