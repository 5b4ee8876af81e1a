"""No room in the middle of a run: a full disk, a run directory that is gone, shared memory that others have filled."""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.timeout(600)  # several runs on Ray, each with processes that import torch
SCRIPT = Path(sys.executable).parent / "asyncdgl"
SMALL = ("run", "--stages", "2", "--width", "4", "--epochs", "12", "--set", "checkpoint.every=20")
SIM = (*SMALL, "--runtime", "sim")
VIRTUAL = (*SMALL, "--runtime", "virtual")
RUNS = {
    "sim": SIM,
    "virtual": VIRTUAL,
    "sync-on-ray": (*SMALL, "--algorithm", "sync-dgl"),
    "async-on-ray": SMALL,
}
ON_RAY = [pytest.param(name, marks=pytest.mark.ray) for name in ("sync-on-ray", "async-on-ray")]


def asyncdgl(
    folder: Path, *arguments: str, begin: Callable[[], None] | None = None, before: tuple[str, ...] = ()
) -> subprocess.CompletedProcess[str]:
    command = [*before, str(SCRIPT), *arguments]
    return subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=300, check=False, preexec_fn=begin
    )


def hashes(run: Path) -> list[str]:
    return [stage["state_sha256"] for stage in json.loads((run / "summary.json").read_text())["stages"]]


def passes(run: Path) -> int:
    return (run / "trace.jsonl").read_bytes().count(b"\n")


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Callable[[str], list[str]]:
    """The final states of runs that had room."""
    folder, known = tmp_path_factory.mktemp("whole"), {}

    def make(name: str) -> list[str]:
        if name not in known:
            in_one_process = "--runtime" in RUNS[name]
            command = RUNS[name] if in_one_process else (*RUNS[name], "--runtime", "sim")
            done = asyncdgl(folder, *command, "--out", name)
            assert done.returncode == 0, done.stderr
            known[name] = hashes(folder / name)
        return known[name]

    return make


def replayed(folder: Path) -> int:
    """How many passes a replay has looked at: those made again, and those that read what nobody recorded.

    On Ray the last records of a stage may not come, though the next one has read what these passes made.
    """
    done = asyncdgl(folder, "replay", "run")
    assert done.returncode == 0, done.stderr
    counts = re.findall(r"\((\d+) passes, every loss|: (\d+) more passes read what the trace", done.stdout)
    return sum(int(one or other) for one, other in counts)


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    """A disk with room for some of a run, and a few of its checkpoints."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=320k", "tmpfs", str(place)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("only who may mount can make a small disk")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)  # a process of Ray may end a moment later


def with_room(place: Path) -> None:
    subprocess.run(["mount", "-o", "remount,size=64m", str(place)], check=True)


@pytest.mark.parametrize("name", ["sim", "virtual", *ON_RAY])
def test_a_full_disk_ends_a_run_that_goes_on_once_there_is_room(whole, small_disk, name) -> None:
    run = small_disk / "run"
    done = asyncdgl(small_disk, *RUNS[name], "--out", "run")
    assert done.returncode == 1
    assert done.stderr == (
        f"Error: {run} can't be written: No space left on device\n"
        "Once the reason is gone, `asyncdgl resume run` goes on with it.\n"
    )
    made = passes(run)
    assert made > 0
    assert (run / "trace.jsonl").read_bytes().endswith(b"\n")
    with_room(small_disk)
    assert replayed(small_disk) == made
    assert asyncdgl(small_disk, "report", "run").returncode == 0
    done = asyncdgl(small_disk, "resume", "run")
    assert done.returncode == 0, done.stderr
    assert "bit-exact: 2 of 2 stages" in asyncdgl(small_disk, "replay", "run").stdout
    if name != "async-on-ray":
        assert hashes(run) == whole(name)


@pytest.mark.parametrize("bytes_of_a_file", [30_000, 60_000, 90_000])
def test_no_file_may_grow_any_more(whole, tmp_path, bytes_of_a_file) -> None:
    """What everybody can limit: the trace meets it in the middle of a line, small files are still written."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (bytes_of_a_file, bytes_of_a_file))

    done = asyncdgl(tmp_path, *SIM, "--out", "run", begin=limit)
    run = tmp_path / "run"
    assert done.returncode == 1
    assert done.stderr.startswith(f"Error: {run} can't be written: File too large\nOnce the reason is gone")
    assert "Traceback" not in done.stdout + done.stderr
    summary = json.loads((run / "summary.json").read_text())
    assert (summary["status"], summary["error"]) == ("failed", f"{run} can't be written: File too large")
    assert f"({passes(run)} passes, every loss" in asyncdgl(tmp_path, "replay", "run").stdout
    done = asyncdgl(tmp_path, "resume", "run")
    assert done.returncode == 0, done.stderr
    assert hashes(run) == whole("sim")


def test_a_disk_that_is_full_at_the_start_leaves_nothing(small_disk) -> None:
    with (small_disk / "filled").open("wb", buffering=0) as file, pytest.raises(OSError, match="No space"):
        while True:
            file.write(bytes(4096))
    done = asyncdgl(small_disk, *SIM, "--out", "run")
    assert (done.returncode, "can't be written: No space left on device: make room there first" in done.stderr) == (
        2,
        True,
    )
    assert not (small_disk / "run").exists()


def removed(run: Path) -> None:
    while run.exists():  # the run may just be writing there
        shutil.rmtree(run, ignore_errors=True)


def moved(run: Path) -> None:
    run.rename(run.with_name("moved"))


@pytest.mark.parametrize("what", [removed, moved])
@pytest.mark.parametrize("name", ["sim", pytest.param("async-on-ray", marks=pytest.mark.ray)])
def test_a_run_directory_that_is_gone_ends_the_run(tmp_path, name, what) -> None:
    long = [*RUNS[name], "--epochs", "400"]
    process = subprocess.Popen(
        [str(SCRIPT), *long, "--out", "run"], cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    run = tmp_path / "run"
    while not (run / "trace.jsonl").exists() or passes(run) < 200:
        assert process.poll() is None
        time.sleep(0.01)
    what(run)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 1
    assert said == (
        f"Error: {run} is gone: the run directory was removed or moved while the run went on. If it was moved, "
        "`asyncdgl resume` goes on with it in its new place\n"
    )
    assert not run.exists()
    if what is moved and name == "sim":
        again = [str(SCRIPT), "resume", "moved"]
        process = subprocess.Popen(again, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        made = passes(tmp_path / "moved")
        while passes(tmp_path / "moved") <= made:
            assert process.poll() is None
            time.sleep(0.01)
        process.terminate()
        said, _ = process.communicate(timeout=60)
        assert (process.returncode, "going on after" in said) == (143, True)


def test_half_a_line_at_the_end_is_passed_over(whole, tmp_path) -> None:
    process = subprocess.Popen([str(SCRIPT), *SIM, "--out", "run"], cwd=tmp_path, stdout=subprocess.DEVNULL)
    run = tmp_path / "run"
    while not (run / "trace.jsonl").exists() or passes(run) < 200:
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.wait()
    for name in ("trace.jsonl", "metrics.jsonl"):
        with (run / name).open("r+b") as file:
            half = file.readline()[:40]
            file.seek(0, os.SEEK_END)
            file.write(half)
    made = passes(run)
    assert asyncdgl(tmp_path, "report", "run").returncode == 0
    assert f"({made} passes, every loss" in asyncdgl(tmp_path, "replay", "run").stdout
    done = asyncdgl(tmp_path, "resume", "run")
    assert done.returncode == 0, done.stderr
    assert hashes(run) == whole("sim")


FILLED = """
mount -t tmpfs -o size=200m tmpfs /dev/shm || exit 77
(while ! [ -s run/metrics.jsonl ]; do sleep 0.1; done; dd if=/dev/zero of=/dev/shm/filled bs=1M 2>/dev/null) &
"$@"
"""


@pytest.mark.ray
def test_shared_memory_that_others_fill_ends_a_run_that_goes_on_later(tmp_path) -> None:
    """In a mount namespace: nobody else's shared memory is touched."""
    if shutil.which("unshare") is None:
        pytest.skip("there is no unshare here")
    before = ("unshare", "-m", "bash", "-c", FILLED, "bash")
    done = asyncdgl(tmp_path, *SMALL, "--epochs", "200", "--out", "run", before=before)
    if done.returncode in (77, 1) and not (tmp_path / "run").exists():
        pytest.skip("only who may mount can make a small /dev/shm")
    assert done.returncode == 1
    assert done.stderr.startswith("Error: /dev/shm is full (")
    assert done.stderr.endswith("Once the reason is gone, `asyncdgl resume run` goes on with it.\n")
    assert done.stderr.count("\n") == 2
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["status"] == "failed"
    assert replayed(tmp_path) == passes(tmp_path / "run")
