"""`asyncdgl sweep` as a process: what it makes, what it leaves alone, and how it stops."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from asyncdgl.cli.main import main
from asyncdgl.cli.sweep import threads_in_all
from asyncdgl.config.yaml import parse_config
from asyncdgl.sweep.execution import FAILED, MARK, WORK
from asyncdgl.sweep.grid import load_sweep

pytestmark = pytest.mark.timeout(600)  # each run is a process that imports torch; others may use the machine

SCRIPT = Path(sys.executable).parent / "asyncdgl"
SETTINGS = """\
config:
  {runtime: sim, stages: 2, epochs: 1, batch_size: 64, threads: 1, device: cpu, precision: float32, model: {width: 4}}
"""
SMALLER = SETTINGS + "grid: {buffer.size: [1, 2]}\n"
LARGER = SETTINGS + "grid: {buffer.size: [1, 2, 3]}\n"
SHARING = (
    SETTINGS
    + """\
grid: {optim.lr: [1.0e+30, 0.05], buffer.size: [2]}
also:
  - {config: {runtime: virtual, virtual: {train: false, batches: 5}}, grid: {buffer.size: [2]}}
"""
)
"""The first run can't be computed, the second is one of the others, the third is quick."""

MEASURED_IN_SECONDS = ("train_seconds", "updates_per_time", "busy_fraction")
ENDED_WITHIN_S = 10.0


@dataclass(frozen=True)
class Answer:
    """What `asyncdgl` said and how it ended."""

    code: int
    stdout: str
    stderr: str


def sweep(folder: Path, *arguments: str) -> Answer:
    """Call `asyncdgl sweep` in a folder."""
    done = subprocess.run(
        [str(SCRIPT), "sweep", *arguments], cwd=folder, capture_output=True, text=True, timeout=500, check=False
    )
    return Answer(done.returncode, done.stdout, done.stderr)


def ask(folder: Path, *arguments: str) -> Answer:
    """Call `asyncdgl sweep` in this process: for all that makes no run."""
    out, err = io.StringIO(), io.StringIO()
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        pytest.raises(SystemExit) as end,
    ):
        patch.chdir(folder)
        patch.setattr(sys, "argv", ["asyncdgl", "sweep", *arguments])
        try:
            main()
        finally:  # a sweep takes the signals for itself; pytest needs them back
            signal.set_wakeup_fd(-1)
            for number, handler in handlers.items():
                signal.signal(number, handler)
    return Answer(int(end.value.code or 0), out.getvalue(), err.getvalue())


@contextlib.contextmanager
def running_sweep(folder: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """`asyncdgl sweep` under way, with the names of its runs' processes found by what they all carry."""
    with subprocess.Popen(
        [str(SCRIPT), "sweep", *arguments],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def run_processes(folder: Path) -> list[int]:
    """Processes of runs whose folder is below this one."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if MARK in process.environ() and Path(process.cwd().removesuffix(" (deleted)")).is_relative_to(folder):
                found.append(process.pid)
    return found


def wait_until(condition: Any, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 300
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def rows(folder: Path, name: str = "table.csv") -> list[dict[str, str]]:
    """A table without what depends on the time that something took."""
    with (folder / name).open(newline="") as file:
        return [{k: v for k, v in row.items() if not k.startswith(MEASURED_IN_SECONDS)} for row in csv.DictReader(file)]


def kept(runs: Path) -> dict[str, int]:
    """The finished runs, each with the time at which its summary was written."""
    return {path.parent.name: path.stat().st_mtime_ns for path in runs.glob("*/summary.json")}


def keys(file: Path) -> list[str]:
    return [run.key for run in load_sweep(file).runs]


@pytest.fixture(scope="module")
def top(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory with three sweeps in files."""
    path = tmp_path_factory.mktemp("sweeps")
    for name, text in (("smaller", SMALLER), ("larger", LARGER), ("sharing", SHARING)):
        (path / f"{name}.yaml").write_text(text)
    return path


@dataclass(frozen=True)
class Made:
    """A finished sweep of two points, called twice, then one of three points into the same store."""

    folder: Path
    first: Answer
    after_first: dict[str, int]
    second: Answer
    after_second: dict[str, int]
    larger: Answer
    after_larger: dict[str, int]


@pytest.fixture(scope="module")
def made(top: Path) -> Made:
    folder = top / "sweeps" / "smaller"
    first = sweep(top, "smaller.yaml", "--jobs", "2")
    after_first = kept(folder / "runs")
    second = sweep(top, "smaller.yaml")
    after_second = kept(folder / "runs")
    larger = sweep(top, "larger.yaml", "--out", "sweeps/larger", "--runs", "sweeps/smaller/runs")
    return Made(folder, first, after_first, second, after_second, larger, kept(folder / "runs"))


# --- What it makes ----------------------------------------------------------------------------------------------------


def test_it_makes_the_runs_and_a_table(made, top) -> None:
    answer = made.first
    assert (answer.code, answer.stderr) == (0, "")
    said = answer.stdout.splitlines()
    assert said[0].startswith("smaller: 2 points and seeds, 2 different runs, 0 there already; 2 to make")
    assert sorted(line.partition(":")[0].partition("  ")[2] for line in said[1:3]) == [
        "size=1, seed 0",
        "size=2, seed 0",
    ]
    assert said[-1] == "results: sweeps/smaller"
    table = (made.folder / "table.md").read_text()
    assert table in answer.stdout
    assert table.startswith("| buffer.size | seeds | test accuracy |")
    names = {path.name for path in made.folder.iterdir()}
    assert names >= {"sweep.yaml", "sweep.json", "table.md", "table.csv", "runs.csv", "runs", "figures"}
    assert not [name for name in names if name.startswith(".")]  # nothing half written
    assert (made.folder / "sweep.yaml").read_text() == SMALLER
    assert sorted(made.after_first) == sorted(keys(top / "smaller.yaml"))
    assert {path.name for path in (made.folder / "runs").iterdir()} <= {*made.after_larger, WORK}
    assert not list((made.folder / "runs" / WORK).iterdir())


def test_a_run_in_the_store_is_an_ordinary_run_directory(made, top) -> None:
    for key in keys(top / "smaller.yaml"):
        path = made.folder / "runs" / key
        names = {p.name for p in path.iterdir()}
        assert {"config.yaml", "environment.json", "metrics.jsonl", "trace.jsonl", "summary.json"} <= names
        summary = json.loads((path / "summary.json").read_text())
        [row] = [row for row in rows(made.folder, "runs.csv") if row["run"] == key]
        assert float(row["test_accuracy"]) == summary["test_accuracy"]
        assert summary["status"] == "completed"


def test_a_second_call_makes_nothing(made) -> None:
    answer = made.second
    assert (answer.code, answer.stderr) == (0, "")
    assert "2 there already; 0 to make" in answer.stdout
    assert made.after_second == made.after_first
    assert (made.folder / "table.md").read_text() in answer.stdout


def test_a_larger_grid_makes_only_what_is_missing(made, top) -> None:
    answer = made.larger
    assert (answer.code, answer.stderr) == (0, "")
    assert "3 different runs, 2 there already; 1 to make" in answer.stdout
    assert made.after_larger.items() >= made.after_first.items()
    assert sorted(made.after_larger) == sorted(keys(top / "larger.yaml"))
    assert [row["buffer.size"] for row in rows(top / "sweeps" / "larger")] == ["1", "2", "3"]
    assert rows(top / "sweeps" / "larger")[:2] == rows(made.folder)
    results = {(row["test_accuracy_mean"], row["times_sampled_mean"]) for row in rows(top / "sweeps" / "larger")}
    assert len(results) == 3  # or equal tables would mean little


def test_a_dry_run_makes_nothing(made, top) -> None:
    answer = ask(top, "larger.yaml", "--runs", "sweeps/smaller/runs", "--set", "buffer.codec=int8", "--dry-run")
    assert (answer.code, answer.stderr) == (0, "")
    [line] = answer.stdout.splitlines()
    assert line.startswith("larger: 3 points and seeds, 3 different runs, 0 there already; 3 to make")
    assert kept(made.folder / "runs") == made.after_larger


# --- Runs that fail ---------------------------------------------------------------------------------------------------


def test_a_run_that_fails_is_kept_apart_and_tried_again(made, top) -> None:
    bad, shared, other = keys(top / "sharing.yaml")
    folder, store = top / "sharing", made.folder / "runs"
    outputs = []
    for there in (1, 2):
        answer = sweep(top, "sharing.yaml", "--out", "sharing", "--runs", str(store), "--jobs", "1")
        assert answer.code == 1
        assert answer.stderr == "Error: some runs failed; the same command tries them again\n"
        count = 3 - there
        assert f"3 different runs, {there} there already; {count} to make" in answer.stdout
        assert f"1/{count}  FAILED, see {store / FAILED / bad / 'output.log'}  lr=1e+30" in answer.stdout
        assert ("2/2  " in answer.stdout) == (there == 1)  # the next one is made all the same
        assert "1 of 3 runs are missing" in answer.stdout
        output = store / FAILED / bad / "output.log"
        assert "the loss is" in output.read_text()
        assert "use a smaller --lr" in output.read_text()
        outputs.append(output.stat().st_mtime_ns)
        assert json.loads((store / FAILED / bad / "run" / "summary.json").read_text())["status"] == "failed"
        row, _ = rows(folder)
        assert row["optim.lr"] == "0.05"
        assert row["test_accuracy_mean"] == rows(made.folder)[1]["test_accuracy_mean"]
    assert outputs[1] > outputs[0]
    assert {key: at for key, at in kept(store).items() if key != other} == made.after_larger
    assert shared in made.after_larger


# --- How it stops -----------------------------------------------------------------------------------------------------


def test_stopped_and_killed_it_ends_with_the_table_of_an_undisturbed_one(made, top) -> None:
    folder, arguments = top / "disturbed", ("larger.yaml", "--out", "disturbed", "--jobs", "2")
    store = folder / "runs"

    # Ctrl-C when one or two runs are done.
    with running_sweep(top, *arguments) as process:
        wait_until(lambda: kept(store), process)
        os.killpg(process.pid, signal.SIGINT)
        stdout, stderr = process.communicate(timeout=100)
    assert process.returncode == 130
    assert stderr.strip() == "The sweep was stopped; the same command goes on where it was."
    assert run_processes(folder) == []
    first = kept(store)
    done = [key in first for key in keys(top / "larger.yaml")]
    assert 1 <= sum(done) <= 2
    assert not list((store / WORK).iterdir())
    assert not (store / FAILED).exists()
    assert f"{3 - sum(done)} of 3 runs are missing" in stdout
    undisturbed = rows(top / "sweeps" / "larger")
    assert rows(folder) == [row for row, is_there in zip(undisturbed, done, strict=True) if is_there]

    # SIGKILL at any time of the rest, or when it is done.
    seconds = random.Random().uniform(0, 3)
    with running_sweep(top, *arguments) as process:
        wait_until(lambda: run_processes(folder), process)
        time.sleep(seconds)
        was_running = process.poll() is None
        process.kill()
        process.communicate()
        deadline = time.monotonic() + ENDED_WITHIN_S
        while left := run_processes(folder):
            assert time.monotonic() < deadline, f"{left} live on, killed after {seconds:.2f} s"
            time.sleep(0.1)
    assert kept(store).items() >= first.items()
    for key in kept(store):
        assert json.loads((store / key / "summary.json").read_text())["status"] == "completed"

    answer = sweep(top, *arguments)
    assert (answer.code, answer.stderr) == (0, ""), f"killed after {seconds:.2f} s, running: {was_running}"
    assert kept(store).items() >= first.items()
    assert sorted(kept(store)) == sorted(keys(top / "larger.yaml"))
    assert not list((store / WORK).iterdir())
    assert rows(folder) == undisturbed
    assert len(undisturbed) == 3
    assert rows(folder, "runs.csv") == rows(top / "sweeps" / "larger", "runs.csv")


def test_no_run_outlives_a_sweep_that_is_killed(tmp_path) -> None:
    """Runs that would go on for hours."""
    (tmp_path / "s.yaml").write_text(SMALLER.replace("epochs: 1,", "epochs: 100000,"))
    seconds = random.Random().uniform(0, 3)
    try:
        with running_sweep(tmp_path, "s.yaml", "--jobs", "2") as process:
            wait_until(lambda: len(run_processes(tmp_path)) == 2, process)
            time.sleep(seconds)
            process.kill()
            process.communicate()
        deadline = time.monotonic() + ENDED_WITHIN_S
        while left := run_processes(tmp_path):
            assert time.monotonic() < deadline, f"{left} live on, killed after {seconds:.2f} s"
            time.sleep(0.1)
    finally:
        for pid in run_processes(tmp_path):
            os.kill(pid, signal.SIGKILL)
    assert kept(tmp_path / "sweeps" / "s" / "runs") == {}


@pytest.mark.parametrize(
    ("tree", "threads"),
    [
        ({"runtime": "sim", "threads": 2}, 2),
        ({"runtime": "ray", "stages": 3, "threads": 2}, 6),
        ({"runtime": "ray", "stages": 3, "threads": 2, "ray": {"threads": [1, 1, 2]}}, 4),
        ({"runtime": "ray", "stages": 3, "threads": 2, "ray": {"threads": "cost"}}, 12),
    ],
)
def test_what_a_run_takes_of_the_cores(tree, threads, monkeypatch) -> None:
    """A sweep makes as many runs at a time as there are cores for."""
    monkeypatch.setattr("asyncdgl.cli.sweep.available_cores", lambda: 12)
    assert threads_in_all(parse_config(tree)) == threads


# --- Wrong input ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["nowhere.yaml"], "nowhere.yaml: No such file"),
        (["larger.yaml", "--jobs", "0"], "--jobs"),
        (["larger.yaml", "--jobs", "two"], "--jobs"),
        (["larger.yaml", "--set", "epochs"], "expected KEY=VALUE"),
        (["larger.yaml", "--set", "epochs=0"], "epochs must be at least 1, got 0"),
        (["larger.yaml", "--set", "epoch=1"], "epoch: unknown key; did you mean epochs?"),
        (["larger.yaml", "--set", "seed=1"], "seed belongs to seeds"),
        (["wrong.yaml"], "buffer.size=0: buffer.size must be at least 1, got 0"),
        (["larger.yaml", "--out", "larger.yaml"], "--out larger.yaml can't be made"),
        (["larger.yaml", "--out", "larger.yaml/below"], "--out larger.yaml/below can't be made"),
        ([], "SWEEP.yaml"),
        (["larger.yaml", "--runs", "larger.yaml"], "--runs larger.yaml can't be made"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_a_wrong_input_is_one_message_and_nothing_is_made(arguments, problem, tmp_path) -> None:
    (tmp_path / "larger.yaml").write_text(LARGER)
    (tmp_path / "wrong.yaml").write_text(SETTINGS + "grid: {buffer.size: [1, 0]}\n")
    before = set(tmp_path.rglob("*"))
    answer = ask(tmp_path, *arguments)
    assert answer.code == 2
    assert problem in answer.stderr
    assert answer.stderr.startswith("Error: ")
    assert "Traceback" not in answer.stderr
    assert set(tmp_path.rglob("*")) == before
