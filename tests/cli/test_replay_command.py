"""`asyncdgl replay` on a run that the command line made, as it is and with one thing changed."""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from asyncdgl.cli.main import main
from asyncdgl.config.yaml import dump_config
from asyncdgl.rundir.reader import read_run

SCRIPT = Path(sys.executable).parent / "asyncdgl"
RUN = [
    *("run", "--runtime", "sim", "--epochs", "4", "--batch-size", "32", "--width", "4", "--threads", "1"),
    *("--device", "cpu", "--precision", "float32", "--delay-profile", "slow_stage4"),
]
"""Four stages, about a thousand passes, of both kinds."""


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


def process(*arguments: str) -> Answer:
    """Call `asyncdgl` as a process of its own."""
    done = subprocess.run([str(SCRIPT), *arguments], capture_output=True, text=True, timeout=170, check=False)
    return Answer(done.returncode, done.stdout, done.stderr)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("finished") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("asyncdgl.report.figures.draw_figures", lambda run: None)
        assert ask(*RUN, "--out", str(path)).code == 0
    return path


@pytest.fixture
def run_dir(finished: Path, tmp_path: Path) -> Path:
    """A copy of the run, to change."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


def edit(path: Path, change: Callable[[Any], Any]) -> None:
    """Change a JSON file in place."""
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value, indent=2) + "\n")


def edit_pass(run_dir: Path, stage: int, step: int, change: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
    """Change one line of the trace; returns it as it was."""
    lines = [json.loads(line) for line in (run_dir / "trace.jsonl").read_text().splitlines()]
    [record] = [line for line in lines if (line["stage"], line["step"]) == (stage, step)]
    was = dict(record)
    change(record)
    assert record != was
    (run_dir / "trace.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return was


def one_message(answer: Answer, code: int) -> str:
    """The message of a command that ended with an error: one line, no traceback."""
    assert answer.code == code, answer
    [line] = answer.stderr.splitlines()
    assert line.startswith("Error: ")
    return line.removeprefix("Error: ")


# --- Equal or not -----------------------------------------------------------------------------------------------------


def test_a_finished_run_is_repeated_bit_for_bit(finished) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*")}
    answer = process("replay", str(finished))
    assert (answer.code, answer.stderr) == (0, "")
    first, last = answer.stdout.splitlines()
    passes = len((finished / "trace.jsonl").read_text().splitlines())
    assert first == f"{finished}: async-dgl on sim, {passes} passes of 4 stages, 1 thread for each stage, float32"
    assert last == f"bit-exact: 4 of 4 stages ({passes} passes, every loss; every final state)"
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*")} == before  # it writes nothing


def test_one_altered_bit_is_named(run_dir) -> None:
    was = edit_pass(run_dir, 3, 40, lambda r: r.update(loss=math.nextafter(r["loss"], 0)))
    answer = process("replay", str(run_dir))
    message = one_message(answer, 1)
    assert message.startswith("not bit-exact: stage 3, step 40 (train): loss is " + repr(was["loss"]))
    assert "bit-exact" not in answer.stdout
    assert "differs" not in answer.stdout
    assert "environment" not in message


def test_an_altered_source_and_an_altered_state_are_named(run_dir) -> None:
    was = edit_pass(run_dir, 2, 30, lambda r: r.update(source_step=r["source_step"] + 1))
    assert "stage 2, step 30 (train): batch is" in one_message(ask("replay", str(run_dir)), 1)
    edit_pass(run_dir, 2, 30, lambda r: r.update(was))
    edit(run_dir / "summary.json", lambda s: s["stages"][1].update(state_sha256="0" * 64))
    assert "stage 2: every loss is equal, but its state after" in one_message(ask("replay", str(run_dir)), 1)


def test_a_stopped_run_is_repeated_as_far_as_it_went(run_dir) -> None:
    lines = (run_dir / "trace.jsonl").read_text().splitlines(keepends=True)
    (run_dir / "trace.jsonl").write_text("".join(lines[:300]) + lines[300][:20])
    message = one_message(ask("replay", str(run_dir)), 1)  # the summary says that it is complete
    assert message.startswith("not bit-exact: stage ")
    edit(run_dir / "summary.json", lambda s: s.update(status="interrupted"))
    answer = ask("replay", str(run_dir))
    assert (answer.code, answer.stderr) == (0, "")
    expected = "bit-exact: as far as the run went, 4 of 4 stages (300 passes, every loss; 0 final states"
    assert expected in answer.stdout
    (run_dir / "summary.json").unlink()
    assert expected in ask("replay", str(run_dir)).stdout


def test_passes_that_read_what_a_stopped_run_lacks_are_counted(run_dir) -> None:
    lines = [json.loads(line) for line in (run_dir / "trace.jsonl").read_text().splitlines()]
    kept = [line for line in lines if line["stage"] != 2 or line["step"] < 20]
    (run_dir / "trace.jsonl").write_text("".join(json.dumps(line) + "\n" for line in kept))
    (run_dir / "summary.json").unlink()
    answer = ask("replay", str(run_dir))
    assert answer.code == 0
    third = [line for line in lines if line["stage"] == 3]
    possible = next(i for i, line in enumerate(third) if line["source_step"] >= 20)
    assert f"stage 3: {len(third) - possible} more passes read what the trace" in answer.stdout


# --- The environment --------------------------------------------------------------------------------------------------


def test_what_bits_depend_on_and_is_not_the_same_here_is_named(run_dir) -> None:
    def change(environment: dict[str, Any]) -> None:
        environment["packages"]["torch"] = "1.13.0"
        environment["threads_per_stage"] = 7
        environment["cpu"]["features"] = ["avx2", "amx_fp64"]
        environment["data_sha256"] = "abc"

    edit(run_dir / "environment.json", change)
    answer = ask("replay", str(run_dir))
    assert answer.code == 0
    said = answer.stdout.splitlines()
    assert f"differs from where it ran: torch 1.13.0 there, {torch.__version__.partition('+')[0]}" in answer.stdout
    assert "differs from where it ran: threads of each stage 7 there, 1 here" in said
    assert "differs from where it ran: CPU features avx2 amx_fp64 there, " in answer.stdout
    assert "differs from where it ran: data (sha256) abc there, " in answer.stdout
    assert sum(line.startswith("differs") for line in said) == 4
    assert said[-1].startswith("bit-exact: 4 of 4 stages")


def test_threads_are_those_that_the_processes_counted(run_dir) -> None:
    shared = {"pid": 7, "node": "127.0.0.1", "log": None, "version": "1", "path": "/"}
    counted = {"the pace keeper": None, "stage 1": 1, "stage 2": 3}
    processes = [{"name": name, "threads": threads, **shared} for name, threads in counted.items()]
    edit(run_dir / "environment.json", lambda e: e.update(processes=processes))
    assert "differs from where it ran: threads of each stage 1, 3 there, 1 here" in ask("replay", str(run_dir)).stdout
    edit(run_dir / "environment.json", lambda e: e.update(processes=processes[:2], threads_per_stage=9))
    assert "differs" not in ask("replay", str(run_dir)).stdout


def test_a_mismatch_points_at_the_environment_if_that_differs(run_dir) -> None:
    edit_pass(run_dir, 1, 3, lambda r: r.update(loss=0.5))
    edit(run_dir / "environment.json", lambda e: e.update(python="3.10.1"))
    answer = ask("replay", str(run_dir))
    assert "differs from where it ran: python 3.10.1 there" in answer.stdout
    assert "stage 1, step 3 " in one_message(answer, 1)
    assert answer.stderr.rstrip().endswith("(the environment differs, see above)")


def test_without_a_file_about_the_environment_everything_is_unknown(run_dir) -> None:
    (run_dir / "environment.json").unlink()
    answer = ask("replay", str(run_dir))
    assert answer.code == 0
    assert "differs from where it ran: the environment is not recorded there\n" in answer.stdout
    assert answer.stdout.splitlines()[-1].startswith("bit-exact: 4 of 4 stages")


# --- What is no run ---------------------------------------------------------------------------------------------------


def test_no_run_directory(tmp_path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    for wrong in (tmp_path, tmp_path / "nowhere", tmp_path / "notes.txt"):
        message = one_message(process("replay", str(wrong)), 2)
        assert message == f"{wrong} is no run directory: it has no config.yaml"


def test_a_run_directory_is_needed() -> None:
    answer = ask("replay")
    assert answer.code == 2
    assert "RUN_DIR" in answer.stderr


def broken_line(path: Path) -> None:
    lines = (path / "trace.jsonl").read_text().splitlines(keepends=True)
    (path / "trace.jsonl").write_text("".join([*lines[:6], '{"stage": 1, "ste\n', *lines[7:]]))


def another_line(path: Path) -> None:
    lines = (path / "trace.jsonl").read_text().splitlines(keepends=True)
    (path / "trace.jsonl").write_text("".join([*lines[:6], '{"stage": 1}\n', *lines[7:]]))


def another_type(path: Path) -> None:
    lines = (path / "trace.jsonl").read_text().splitlines(keepends=True)
    record = json.loads(lines[6])
    lines[6] = json.dumps({**record, "stage": str(record["stage"])}) + "\n"
    (path / "trace.jsonl").write_text("".join(lines))


BROKEN = {
    "half a line in the middle of the trace": (broken_line, "trace.jsonl, line 7: not a line of a trace"),
    "a line of something else": (another_line, "trace.jsonl, line 7: not a line of a trace"),
    "half a summary": (
        lambda p: (p / "summary.json").write_text('{"status": "comp'),
        "summary.json: not a summary of a run: Invalid JSON",
    ),
    "a summary that is a list": (lambda p: (p / "summary.json").write_text("[]"), "summary.json: not a summary"),
    "an environment that is none": (
        lambda p: (p / "environment.json").write_text("x"),
        "environment.json: not an environment",
    ),
    "no trace": (lambda p: (p / "trace.jsonl").unlink(), "no passes in its trace: there is nothing to replay"),
    "a configuration that is none": (lambda p: (p / "config.yaml").write_text("stages: [\n"), "not valid YAML"),
    "a configuration of another version": (
        lambda p: (p / "config.yaml").write_text("stages: 2\nspeed: 3\n"),
        "speed: unknown key",
    ),
    "a summary without status": (lambda p: (p / "summary.json").write_text("{}"), "status: Field required"),
    "a summary without stages": (
        lambda p: (p / "summary.json").write_text('{"status": "completed"}'),
        "algorithm: Field required",
    ),
    "a trace that is no text": (
        lambda p: (p / "trace.jsonl").write_bytes(b"\xff\xfe\n"),
        "trace.jsonl, line 1: not a line",
    ),
    "a pass with a word for a number": (another_type, "trace.jsonl, line 7: not a line of a trace"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_run_directory_is_one_message(what, run_dir) -> None:
    damage, expected = BROKEN[what]
    damage(run_dir)
    assert expected in one_message(ask("replay", str(run_dir)), 2)


def test_missing_data_is_one_message(run_dir, tmp_path) -> None:
    config = read_run(run_dir).config
    config = config.replace(data={"dataset": "image-folder", "data_dir": str(tmp_path / "gone")})
    (run_dir / "config.yaml").write_text(dump_config(config))
    assert str(tmp_path / "gone") in one_message(ask("replay", str(run_dir)), 2)


def test_a_run_that_computed_nothing_is_refused(tmp_path) -> None:
    path = tmp_path / "moved"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("asyncdgl.report.figures.draw_figures", lambda run: None)
        settings = ("--set", "virtual.train=false", "--set", "virtual.batches=5", "--epochs", "1")
        assert ask("run", "--runtime", "virtual", *settings, "--out", str(path)).code == 0
    assert "computed nothing (virtual.train false)" in one_message(ask("replay", str(path)), 2)


# --- Ctrl-C -----------------------------------------------------------------------------------------------------------


def test_ctrl_c_ends_it_without_a_traceback(finished) -> None:
    command = [str(SCRIPT), "replay", str(finished)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        try:
            assert running.stdout is not None
            assert "passes of 4 stages" in running.stdout.readline()  # from now on it repeats
            os.kill(running.pid, signal.SIGINT)
            stdout, stderr = running.communicate(timeout=100)
        finally:
            running.kill()
    assert running.returncode == 130
    assert "Traceback" not in stderr
    assert "bit-exact" not in stdout
