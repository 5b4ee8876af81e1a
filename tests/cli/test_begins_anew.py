"""A process dies whose place no other can take alone: the run begins anew from what it has kept, by itself."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

SCRIPT = Path(sys.executable).parent / "asyncdgl"
SMALL = ("--stages", "3", "--width", "4", "--epochs", "4", "--set", "checkpoint.every=7")


def processes(driver: psutil.Process, kind: str) -> list[psutil.Process]:
    """Of an actor's class, or Ray's own of that name, in the order in which they began."""
    found = [p for p in driver.children(recursive=True) if kind == p.name() or kind in " ".join(p.cmdline()[:1])]
    return sorted(found, key=lambda process: process.create_time())


def run_and_kill(folder: Path, passes: int, kinds: tuple[str, ...], *arguments: str) -> tuple[int, str]:
    """The first process of each kind is killed once the trace has so many lines."""
    command = [str(SCRIPT), "run", *SMALL, *arguments, "--out", "run"]
    with (folder / "said.txt").open("w") as said:
        process = subprocess.Popen(command, cwd=folder, stdout=said, stderr=said)
        trace = folder / "run" / "trace.jsonl"
        while not trace.exists() or trace.read_bytes().count(b"\n") < passes:
            assert process.poll() is None
            time.sleep(0.01)
        driver = psutil.Process(process.pid)
        for victim in [processes(driver, kind)[0] for kind in kinds]:
            os.kill(victim.pid, signal.SIGKILL)
        process.wait(timeout=120)
    return process.returncode, (folder / "said.txt").read_text()


def left_by(folder: Path) -> dict:
    return json.loads((folder / "run" / "summary.json").read_text())


@pytest.mark.ray
def test_sync_dgl_comes_to_the_bits_of_sim_without_a_buffer_that_it_lost(tmp_path) -> None:
    command = [str(SCRIPT), "run", "--runtime", "sim", *SMALL[:-2], "--algorithm", "sync-dgl", "--out", "sim"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    code, said = run_and_kill(tmp_path, 200, ("BufferActor",), "--algorithm", "sync-dgl")
    assert code == 0, said
    assert "all processes begin anew, stage 1 from step" in said
    of_sim = json.loads((tmp_path / "sim" / "summary.json").read_text())
    summary = left_by(tmp_path)
    assert [s["state_sha256"] for s in summary["stages"]] == [s["state_sha256"] for s in of_sim["stages"]]
    assert [f["process"] for f in summary["faults"]] == ["buffer 1", "stage 1", "stage 2", "stage 3"]
    assert all(f["again_s"] > f["at_s"] for f in summary["faults"])


@pytest.mark.ray
def test_a_stage_that_dies_with_what_it_had_read_goes_on_as_another_incarnation(tmp_path) -> None:
    code, said = run_and_kill(tmp_path, 300, ("StageActor", "BufferActor"), "--set", "checkpoint.every=50")
    assert code == 0, said
    replayed = subprocess.run([str(SCRIPT), "replay", "run"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "bit-exact: 3 of 3 stages" in replayed.stdout, replayed.stdout + replayed.stderr


@pytest.mark.ray
@pytest.mark.parametrize("name", ["gcs_server", "raylet"])
def test_ray_itself_may_die(tmp_path, name) -> None:
    """Another cluster is started in its place."""
    code, said = run_and_kill(tmp_path, 300, (name,))
    assert code == 0, said
    assert f"Ray's {name} died: all processes begin anew, stage 1 from step" in said
    replayed = subprocess.run([str(SCRIPT), "replay", "run"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "bit-exact: 3 of 3 stages" in replayed.stdout, replayed.stdout + replayed.stderr
