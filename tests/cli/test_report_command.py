"""`asyncdgl report` on what `asyncdgl run` and `asyncdgl sweep` left, and on what they did not."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from asyncdgl.cli.main import main

SMALL = ("--runtime", "sim", "--stages", "2", "--batch-size", "256", "--width", "2", "--threads", "1")
SWEEP = """\
config: {runtime: sim, stages: 2, epochs: 1, batch_size: 256, threads: 1, model: {width: 2}}
also:
  - grid: {delays.profile: [none]}
  - grid: {delays.profile: [slow_stage2], delays.slowdown: [1]}
figure: {x: FIGURE}
"""
"""Two points that one run serves."""


@dataclass(frozen=True)
class Answer:
    """What `asyncdgl` said and how it ended."""

    code: int | str | None
    stdout: str
    stderr: str


def ask(*arguments: str) -> Answer:
    """Call `asyncdgl` in this process."""
    out, err = io.StringIO(), io.StringIO()
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        pytest.raises(SystemExit) as end,
    ):
        patch.setattr(sys, "argv", ["asyncdgl", *arguments])
        try:
            main()
        finally:  # a run takes the signals for itself; pytest needs them back
            signal.set_wakeup_fd(-1)
            for number, handler in handlers.items():
                signal.signal(number, handler)
    return Answer(end.value.code, out.getvalue(), err.getvalue())


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that the command line made."""
    path = tmp_path_factory.mktemp("finished") / "run"
    assert ask("run", *SMALL, "--epochs", "1", "--out", str(path)).code == 0
    return path


@pytest.fixture
def run_dir(finished: Path, tmp_path: Path) -> Path:
    """A copy of it, to write a report into."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


def files(folder: Path) -> set[Path]:
    """Everything in it."""
    return set(folder.rglob("*"))


def test_several_runs_each_get_their_own(run_dir, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("asyncdgl.report.write.FORMATS", ("svg",))
    other = Path(shutil.copytree(run_dir, tmp_path / "other"))
    answer = ask("report", str(run_dir), f"{other}/")
    assert (answer.code, answer.stderr) == (0, "")
    assert answer.stdout.splitlines() == [str(run_dir / "report.html"), str(other / "report.html")]
    accuracy = json.loads((run_dir / "summary.json").read_text())["test_accuracy"]
    for folder in (run_dir, other):
        assert f"{accuracy:.4f}" in (folder / "report.html").read_text()
        assert {path.name for path in folder.iterdir()} >= {"report.html", "report.md", "stages.csv", "figures"}


def test_one_wrong_folder_and_nothing_is_written(run_dir, tmp_path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine")
    before = files(tmp_path)
    for wrong in ("other", "nowhere", "other/notes.txt"):
        answer = ask("report", str(run_dir), str(tmp_path / wrong))
        assert answer.code == 2
        assert answer.stdout == ""
        [line] = answer.stderr.splitlines()
        assert line.startswith(f"Error: {tmp_path / wrong} ")
        assert files(tmp_path) == before


def test_a_broken_file_is_one_message(run_dir) -> None:
    (run_dir / "summary.json").write_text("{")
    before = files(run_dir)
    answer = ask("report", str(run_dir))
    assert answer.code == 2
    [line] = answer.stderr.splitlines()
    assert line.startswith(f"Error: {run_dir / 'summary.json'}: ")
    assert files(run_dir) == before


def test_a_folder_is_needed() -> None:
    answer = ask("report")
    assert answer.code == 2
    assert "DIR" in answer.stderr


def test_a_killed_run_has_a_report(tmp_path) -> None:
    path = tmp_path / "run"
    command = [sys.executable, "-m", "asyncdgl", "run", *SMALL, "--epochs", "5000", "--out", str(path)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 100
        while not (path / "trace.jsonl").is_file() or (path / "trace.jsonl").stat().st_size < 5000:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    assert not (path / "summary.json").exists()
    answer = ask("report", str(path))
    assert (answer.code, answer.stderr) == (0, "")
    assert "the run was killed, or still goes on" in (path / "report.html").read_text()


def test_a_sweep_draws_its_figure_and_has_a_report(tmp_path) -> None:
    (tmp_path / "mine.yaml").write_text(SWEEP.replace("FIGURE", "delays.profile"))
    folder = tmp_path / "sweep"
    assert ask("sweep", str(tmp_path / "mine.yaml"), "--out", str(folder)).code == 0
    figures = {folder / "figures" / f"mine.{form}" for form in ("pdf", "svg", "png")}
    assert figures == files(folder / "figures")
    (folder / "table.csv").unlink()
    answer = ask("report", str(folder))
    assert (answer.code, answer.stdout) == (0, f"{folder / 'report.html'}\n")
    assert (folder / "table.csv").is_file()
    assert "complete" in (folder / "report.md").read_text()


def test_a_figure_that_cannot_be_drawn_stops_a_sweep_before_it_begins(tmp_path) -> None:
    (tmp_path / "mine.yaml").write_text(SWEEP.replace("FIGURE", "buffer.sizes"))
    answer = ask("sweep", str(tmp_path / "mine.yaml"), "--out", str(tmp_path / "sweep"))
    assert answer.code == 2
    assert "figure.x: buffer.sizes" in answer.stderr
    assert not (tmp_path / "sweep").exists()


def test_a_run_with_anothers_backend_has_its_figures_and_ends_well(tmp_path) -> None:
    """A notebook sets MPLBACKEND for its children too, whose environment may lack its package."""
    command = [sys.executable, "-m", "asyncdgl", "run", *SMALL, "--epochs", "1", "--out", "run"]
    environment = {**os.environ, "MPLBACKEND": "module://no_such_package.backend_inline"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert {path.name for path in (tmp_path / "run" / "figures").iterdir()} == {
        *("learning_curves.png", "timeline.png", "staleness.png"),
    }


def test_a_figure_that_fails_is_a_warning_after_the_table(tmp_path, monkeypatch) -> None:
    def fail(run: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("asyncdgl.report.figures.draw_figures", fail)
    answer = ask("run", *SMALL, "--epochs", "1", "--out", str(tmp_path / "run"))
    assert answer.code == 0
    assert answer.stderr.startswith("Warning: the figures can't be drawn: OSError: [Errno 28] No space left")
    assert "(last stage)" in answer.stdout
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["status"] == "completed"


def test_a_run_that_diverges_says_so_and_has_no_count_below_0(tmp_path) -> None:
    path = tmp_path / "run"
    answer = ask("run", *SMALL, "--epochs", "1", "--lr", "1e30", "--out", str(path))
    assert answer.code == 1
    assert "use a smaller --lr" in answer.stderr
    summary = json.loads((path / "summary.json").read_text())
    assert summary["status"] == "diverged"
    assert all(stage["forward_passes"] == 0 and stage["updates"] >= 0 for stage in summary["stages"])
    assert ask("report", str(path)).code == 0
    assert "diverged: a loss was not finite" in (path / "report.md").read_text()


def test_times_of_a_run_in_one_process_are_no_results(finished, tmp_path) -> None:
    summary = json.loads((finished / "summary.json").read_text())
    assert summary["images_per_second"] is None
    answer = ask("run", *SMALL[2:], "--runtime", "virtual", "--epochs", "1", "--out", str(tmp_path / "virtual"))
    assert "images/s" not in answer.stdout
    last = answer.stdout.splitlines()[-2]
    assert " steps of virtual time, computed here in " in last


def test_help_and_version_load_no_figures() -> None:
    heavy = "{'matplotlib', 'jinja2', 'numpy', 'pandas', 'ray', 'torch'}"
    code = f"import sys, asyncdgl.cli.main; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
