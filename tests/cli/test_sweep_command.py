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
from asyncdgl.config.yaml import parse_config
from asyncdgl.sweep_session import threads_in_all
from asyncdgl.sweeps.execution import FAILED, MARK, WORK
from asyncdgl.sweeps.grid import plan_sweep

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
grid: {buffer.size: [1000000000, 2]}
also:
  - {config: {runtime: virtual}, grid: {buffer.size: [2]}}
"""
)
"""The first run does not fit into memory, the second is one of the others, the third is quick."""

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


def shown_table(stdout: str) -> list[str]:
    """Settings and seeds of each row of the table at a sweep's end."""
    rows = [line.split() for line in stdout.splitlines() if line.startswith("  ") and line.strip()]
    return [f"{row[0]}  {row[1]}" for row in rows if row[0].isdigit()]


def rows(folder: Path, name: str = "table.csv") -> list[dict[str, str]]:
    """A table without what depends on the time that something took."""
    with (folder / name).open(newline="") as file:
        return [{k: v for k, v in row.items() if not k.startswith(MEASURED_IN_SECONDS)} for row in csv.DictReader(file)]


def kept(runs: Path) -> dict[str, int]:
    """The finished runs, each with the time at which its summary was written."""
    return {path.parent.name: path.stat().st_mtime_ns for path in runs.glob("*/summary.json")}


def keys(file: Path) -> list[str]:
    return [run.key for run in plan_sweep(file).runs]


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
    assert (made.folder / "table.md").read_text().startswith("| buffer.size | seeds | test accuracy |")
    assert "|" not in answer.stdout  # the table of a terminal is for people, and not Markdown
    assert shown_table(answer.stdout) == ["1  1", "2  1"]
    names = {path.name for path in made.folder.iterdir()}
    assert names >= {"sweep.yaml", "sweep.json", "table.md", "table.tex", "table.csv", "runs.csv", "runs", "figures"}
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
    assert shown_table(answer.stdout) == ["1  1", "2  1"]


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
    first, *table = answer.stdout.splitlines()
    assert first == "larger: 3 points and seeds, 3 different runs, 0 there already; 3 to make"
    heading, _, *points = [line.split() for line in table if line.strip()]
    assert heading == ["size", "seeds", "to", "make"]
    assert points == [[size, "0", "1"] for size in "123"]
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
        assert f"1/{count}  FAILED, see {store / FAILED / bad / 'output.log'}  size=1000000000" in answer.stdout
        assert ("2/2  " in answer.stdout) == (there == 1)  # the next one is made all the same
        assert "1 of 3 runs are missing" in answer.stdout
        output = store / FAILED / bad / "output.log"
        assert "the buffers would need" in output.read_text()
        outputs.append(output.stat().st_mtime_ns)
        row, _ = rows(folder)
        assert row["buffer.size"] == "2"
        assert row["test_accuracy_mean"] == rows(made.folder)[1]["test_accuracy_mean"]
    assert outputs[1] > outputs[0]
    assert {key: at for key, at in kept(store).items() if key != other} == made.after_larger
    assert shared in made.after_larger


# --- Content and what becomes of it -----------------------------------------------------------------------------------


def test_images_that_changed_are_not_the_old_ones(tmp_path, monkeypatch) -> None:
    from PIL import Image

    monkeypatch.setenv("ASYNCDGL_CACHE", str(tmp_path / "cache"))
    for n, (split, name) in enumerate([(s, c) for s in ("train", "test") for c in ("cat", "dog")], 1):
        (tmp_path / "pics" / split / name).mkdir(parents=True)
        for number in range(4):
            Image.new("RGB", (16, 16), (60 * n, 40 * number, 9)).save(
                tmp_path / "pics" / split / name / f"{number}.png"
            )
    (tmp_path / "s.yaml").write_text("""\
config:
  runtime: sim
  threads: 1
  epochs: 1
  stages: 2
  batch_size: 4
  model: {blocks: 2, width: 2, downsample: [2]}
  data: {dataset: image-folder, data_dir: pics, image_size: 16}
grid: {optim.lr: [0.1]}
""")
    assert "0 there already; 1 to make" in sweep(tmp_path, "s.yaml").stdout
    assert "1 there already; 0 to make" in ask(tmp_path, "s.yaml", "--dry-run").stdout
    for path in (tmp_path / "pics" / "train" / "cat").iterdir():
        Image.new("RGB", (16, 16), (9, 9, 200)).save(path)
    assert "0 there already; 1 to make" in ask(tmp_path, "s.yaml", "--dry-run").stdout


def test_a_diverged_run_and_a_broken_one(tmp_path) -> None:
    """One diverges and is a result; then the other's summary is cut: it alone is made again, and that is said."""
    (tmp_path / "s.yaml").write_text(SETTINGS + "grid: {optim.lr: [1.0e+30, 0.05]}\n")
    answer = sweep(tmp_path, "s.yaml", "--jobs", "2")
    assert (answer.code, answer.stderr) == (0, "")
    assert "DIVERGED  lr=1e+30, seed 0" in answer.stdout
    assert "(1 diverged)" in answer.stdout
    assert "some runs diverged: a mean is over the seeds that did not" in answer.stdout
    folder = tmp_path / "sweeps" / "s"
    assert [(row["seeds"], row["planned"], row["diverged"]) for row in rows(folder)] == [
        ("0", "1", "1"),
        ("1", "1", "0"),
    ]
    diverged, whole = (folder / "runs" / key / "summary.json" for key in keys(tmp_path / "s.yaml"))
    summary = json.loads(diverged.read_text())
    assert summary["status"] == "diverged"
    assert "the loss is" in summary["error"]
    assert all(stage["forward_passes"] >= 0 for stage in summary["stages"])
    before = rows(folder, "runs.csv")
    whole.write_text(whole.read_text()[:100])
    answer = sweep(tmp_path, "s.yaml")
    assert answer.code == 0
    assert f"{whole.relative_to(tmp_path)}: not a summary of a run" in answer.stdout
    assert "this run is made again" in answer.stdout
    assert "1 there already; 1 to make" in answer.stdout
    assert rows(folder, "runs.csv") == before


def test_a_figure_that_fails_ends_no_sweep(made, top, monkeypatch) -> None:
    def fail(results: object) -> None:
        raise RuntimeError("no font")

    monkeypatch.setattr("asyncdgl.report.sweep_figure.save_sweep_figure", fail)
    answer = ask(top, "smaller.yaml")
    assert answer.code == 0
    assert answer.stderr.startswith("Warning: the figures can't be drawn: RuntimeError: no font")
    assert "results: sweeps/smaller" in answer.stdout


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
    monkeypatch.setattr("asyncdgl.sweep_session.available_cores", lambda: 12)
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
        (["no-data.yaml"], "pictures"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_a_wrong_input_is_one_message_and_nothing_is_made(arguments, problem, tmp_path) -> None:
    (tmp_path / "larger.yaml").write_text(LARGER)
    (tmp_path / "wrong.yaml").write_text(SETTINGS + "grid: {buffer.size: [1, 0]}\n")
    (tmp_path / "no-data.yaml").write_text(
        "config: {runtime: sim, data: {dataset: image-folder, data_dir: pictures}}\n"
    )
    before = set(tmp_path.rglob("*"))
    answer = ask(tmp_path, *arguments)
    assert answer.code == 2
    assert problem in answer.stderr
    assert answer.stderr.startswith("Error: ")
    assert "Traceback" not in answer.stderr
    assert set(tmp_path.rglob("*")) == before
