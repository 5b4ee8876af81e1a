"""The run directory: made, refused, written while the run goes on, and read."""

from __future__ import annotations

import contextlib
import json
import math
import os
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest

from asyncdgl.errors import ConfigError, DataError, NotWritten
from asyncdgl.rundir import writer as rundir
from asyncdgl.rundir.environment import describe_environment
from asyncdgl.rundir.lines import Lines
from asyncdgl.rundir.logs import LOG_TAIL_BYTES, tail_of_log
from asyncdgl.rundir.reader import Run, read_run
from asyncdgl.rundir.records import EpochLine
from asyncdgl.rundir.writer import RunWriter, check_out, make_run_dir

# --- Made and refused -------------------------------------------------------------------------------------------------


def test_a_new_folder_is_made_with_its_parents(tmp_path) -> None:
    out = tmp_path / "a" / "b"
    check_out(out)
    assert not out.parent.exists()
    assert make_run_dir(out, "any") == out
    assert out.is_dir()


def test_an_empty_folder_is_used(tmp_path) -> None:
    check_out(tmp_path)
    assert make_run_dir(tmp_path, "any") == tmp_path


def file_in(folder: Path) -> Path:
    (folder / "kept").write_text("mine")
    return folder


def a_file(folder: Path) -> Path:
    (folder / "file").write_text("mine")
    return folder / "file"


def below_a_file(folder: Path) -> Path:
    return a_file(folder) / "run"


def dangling(folder: Path) -> Path:
    (folder / "link").symlink_to(folder / "nowhere")
    return folder / "link"


@pytest.mark.parametrize(
    ("prepare", "problem"),
    [
        pytest.param(file_in, "exists and is not empty", id="not-empty"),
        pytest.param(a_file, "exists and is no folder", id="a-file"),
        pytest.param(dangling, "exists and is no folder", id="a-dangling-link"),
        pytest.param(below_a_file, "can't be made", id="below-a-file"),
    ],
)
def test_a_folder_that_cannot_be_used_is_refused(tmp_path, prepare, problem) -> None:
    out = prepare(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ConfigError, match=problem) as error:
        check_out(out)
    assert f"--out {out}" in str(error.value)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_parent_without_permission_is_refused(tmp_path, monkeypatch) -> None:
    # Asked of the system, since tests that run as root may write anywhere.
    monkeypatch.setattr(rundir.os, "access", lambda path, mode: not (Path(path) == tmp_path and mode == os.W_OK))
    with pytest.raises(ConfigError, match="no folder that can be written"):
        check_out(tmp_path / "run")


def test_a_folder_that_fails_to_be_made_is_a_config_error(tmp_path) -> None:
    with pytest.raises(ConfigError, match="--out"):
        make_run_dir(below_a_file(tmp_path), "any")


def test_runs_of_one_second_do_not_collide(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(rundir.time, "strftime", lambda form: "20300102-030405")
    made = [make_run_dir(None, "digits-none") for _ in range(3)]
    stem = Path("runs") / "20300102-030405-digits-none"
    assert made == [stem, Path(f"{stem}-2"), Path(f"{stem}-3")]
    assert all(path.is_dir() for path in made)


def test_the_default_name_begins_with_the_time(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = make_run_dir(None, "mine")
    assert path.parent == Path("runs")
    date, time, name = path.name.split("-")
    assert (len(date), len(time), name) == (8, 6, "mine")
    assert (date + time).isdigit()


def test_too_many_runs_of_one_second_are_refused(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)

    def exists(path: Path, *args: object, **options: object) -> None:
        if path != Path("runs"):
            raise FileExistsError

    monkeypatch.setattr(Path, "mkdir", exists)
    with pytest.raises(ConfigError, match="too many runs"):
        make_run_dir(None, "mine")


# --- Written and read -------------------------------------------------------------------------------------------------


def epoch_line(stage: int = 1, epoch: int = 1, **over: object) -> EpochLine:
    values = {"updates": 11, "loss": 1 / 7, "accuracy": 0.5, "lr": 0.1, "end_s": 2 / 3, **over}
    return EpochLine(stage=stage, epoch=epoch, **values)


@pytest.mark.parametrize("remembers", [True, False])
def test_what_is_written_is_read(tmp_path, small_config, record, evaluation_of, summary_of, remembers) -> None:
    config = small_config(name="mine", delays={"profile": "slow_stage2", "slowdown": 1.1})
    trace = [record(1, 0, 1 / 3, loss=0.1), record(2, 0, 2 / 3, waits={"empty": 0.1 + 0.2})]
    lines = [epoch_line(), evaluation_of([1 / 3, 0.5, 0.75])]
    environment = describe_environment(config, "abc", 2)
    writer = RunWriter(tmp_path, remembers=remembers)
    writer.write_config(config)
    writer.write_environment(environment)
    writer.passed(trace[:1])
    assert (writer.records, writer.passes) == (trace[:1], 1)
    writer.passed(trace[1:])
    for line in lines:
        (writer.epoch_completed if isinstance(line, EpochLine) else writer.evaluated)(line)
    writer.write_summary(summary_of())
    log = writer.write_log("stage2.log", "Täil\n")
    writer.close()
    run = read_run(tmp_path)
    assert run.config == config
    assert (run.path, run.environment, run.summary) == (tmp_path, environment, summary_of())
    assert run.records == writer.records == trace
    assert run.lines == writer.lines == lines
    assert (run.epochs, run.evaluations) == (lines[:1], lines[1:])
    assert log == tmp_path / "logs" / "stage2.log"
    assert log.read_text(encoding="utf-8") == "Täil\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        ["config.yaml", "environment.json", "metrics.jsonl", "trace.jsonl", "summary.json", "logs"]
    )


def test_a_loss_that_is_no_number_is_read_again(tmp_path, small_config, evaluation_of) -> None:
    # The last update may be the one that diverges: nobody computes another loss before the evaluation.
    writer = RunWriter(tmp_path, remembers=False)
    writer.write_config(small_config())
    line = evaluation_of([0.1, 0.1, 0.1], test_loss=(math.inf, math.nan, 2.5))
    assert line.test_loss == (None, None, 2.5)
    writer.evaluated(line)
    writer.close()
    assert read_run(tmp_path).lines == writer.lines == [line]


def test_a_killed_run_is_read_as_far_as_it_came(tmp_path, small_config, record) -> None:
    writer = RunWriter(tmp_path)
    writer.write_config(small_config())
    writer.passed([record(1, 0, 1.0)])
    writer.epoch_completed(epoch_line())
    writer.close()
    for name in ("trace.jsonl", "metrics.jsonl"):
        with (tmp_path / name).open("a") as file:
            file.write('{"kind": "ep')
    run = read_run(tmp_path)
    assert (run.summary, run.environment) == (None, None)
    assert [r.step for r in run.records] == [0]
    assert run.lines == [epoch_line()]


def test_a_run_that_had_only_its_config(tmp_path, small_config) -> None:
    writer = RunWriter(tmp_path)
    writer.write_config(small_config())
    writer.close()
    for name in ("trace.jsonl", "metrics.jsonl"):
        (tmp_path / name).unlink()
    run = read_run(tmp_path)
    assert (run.records, run.lines, run.summary) == ([], [], None)
    assert run.trace().empty
    assert run.metrics().empty


def test_another_folder_is_no_run_directory(tmp_path) -> None:
    with pytest.raises(DataError, match=r"is no run directory: it has no config\.yaml"):
        read_run(tmp_path)


@pytest.mark.parametrize(
    ("name", "change", "problem"),
    [
        ("summary.json", {"train_seconds": "1"}, "train_seconds: Input should be a valid number"),
        ("summary.json", {"stages": None}, "stages: "),
        ("summary.json", {"status": "done"}, "status: Input should be 'completed', 'diverged'"),
        ("summary.json", {"forward_passes": -1}, "forward_passes: Extra inputs are not permitted"),
        ("environment.json", {"cores": [2]}, "cores: Input should be a valid integer"),
        ("environment.json", {"packages": []}, "packages: "),
    ],
)
def test_a_file_of_another_shape_is_named_with_its_key(
    tmp_path, small_config, summary_of, name, change, problem
) -> None:
    writer = RunWriter(tmp_path)
    writer.write_config(small_config())
    writer.write_summary(summary_of())
    writer.write_environment(describe_environment(small_config(), None, 2))
    writer.close()
    content = json.loads((tmp_path / name).read_text())
    (tmp_path / name).write_text(json.dumps({**content, **change}))
    with pytest.raises(DataError) as error:
        read_run(tmp_path)
    assert str(error.value).startswith(f"{tmp_path / name}: ")
    assert problem in str(error.value)


def test_an_evaluation_of_other_heads_is_refused(tmp_path, small_config, evaluation_of) -> None:
    writer = RunWriter(tmp_path)
    writer.write_config(small_config())  # three stages
    writer.evaluated(evaluation_of([0.5]))
    writer.close()
    with pytest.raises(DataError, match="the accuracies of 3 heads"):
        read_run(tmp_path)


def test_a_reader_never_meets_half_a_file(tmp_path, summary_of) -> None:
    writer = RunWriter(tmp_path)
    writer.write_summary(summary_of(error="x" * 10_000))
    with (tmp_path / "summary.json").open() as reader:
        writer.write_summary(summary_of())
        # The reader opened the old file: it stays whole, since the new one took its name only when complete.
        assert len(json.load(reader)["error"]) == 10_000
    assert json.loads((tmp_path / "summary.json").read_text())["error"] is None
    writer.close()


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch, summary_of) -> None:
    writer = RunWriter(tmp_path)
    writer.write_summary(summary_of())

    def disk_full(path: Path, text: str, encoding: str | None = None) -> int:
        with path.open("w") as file:
            file.write(text[:5])
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", disk_full)
        with pytest.raises(NotWritten, match="No space"):
            writer.write_summary(summary_of(status="failed"))
    writer.close()
    assert json.loads((tmp_path / "summary.json").read_text())["status"] == "completed"


def test_each_line_is_in_the_file_at_once(tmp_path, record) -> None:
    writer = RunWriter(tmp_path)
    for number in range(3):
        writer.passed([record(1, number, 1.0 + number)])
        assert len((tmp_path / "trace.jsonl").read_text().splitlines()) == number + 1
    writer.epoch_completed(epoch_line())
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 1
    writer.close()


def test_a_second_writer_goes_on_where_the_first_ended(tmp_path, record) -> None:
    for step in range(2):
        writer = RunWriter(tmp_path, goes_on=step > 0)
        writer.passed([record(1, step, 1.0)])
        writer.epoch_completed(epoch_line(epoch=step + 1))
        writer.close()
    assert len((tmp_path / "trace.jsonl").read_text().splitlines()) == 2
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 2


def test_two_runs_that_began_together_do_not_share_a_directory(tmp_path, record) -> None:
    first = RunWriter(tmp_path)
    for goes_on in (False, True):
        with pytest.raises(ConfigError, match="being written there by another process"):
            RunWriter(tmp_path, goes_on)
    first.passed([record(1, 0, 1.0)])
    first.close()
    with pytest.raises(ConfigError, match="another run was written there meanwhile"):
        RunWriter(tmp_path)


def test_nothing_is_read_back_of_what_the_writer_has(tmp_path, small_config, record, evaluation_of) -> None:
    writer = RunWriter(tmp_path)
    writer.passed([record(1, 0, 1.0)])
    writer.evaluated(evaluation_of([0.5, 0.5, 0.5]))
    writer.close()
    for name in ("trace.jsonl", "metrics.jsonl"):
        (tmp_path / name).unlink()
    run = writer.as_run(small_config())
    assert (run.records, run.evaluations) == ([record(1, 0, 1.0)], [evaluation_of([0.5, 0.5, 0.5])])


# --- Frames -----------------------------------------------------------------------------------------------------------


def test_the_trace_as_a_frame(tmp_path, small_config, record) -> None:
    trace = [
        record(1, 0, 1.0, waits={"pace": 0.25}),
        record(2, 0, 2.0, kind="forward", loss=None, waits={"empty": 0.5}, **SOURCE),
    ]
    frame = Run(tmp_path, small_config(), None, None, [], trace).trace()
    assert list(frame["stage"]) == [1, 2]
    assert list(frame["source_step"].isna()) == [True, False]
    assert frame["source_step"][1] == 3
    assert list(frame["wait_pace"]) == [0.25, 0.0]
    assert list(frame["wait_empty"]) == [0.0, 0.5]
    assert list(frame["loss"].isna()) == [False, True]
    assert frame["end_s"].sum() == 3.0


SOURCE = {"source_incarnation": 0, "source_step": 3, "source_update": 3, "times_sampled": 1, "sampled_s": 1.5}


def test_the_metrics_as_a_frame(tmp_path, small_config, evaluation_of) -> None:
    lines = [epoch_line(2), evaluation_of([0.5, 0.25, 0.75], epochs=(3, 2, 1), validation_accuracy=(0.1, 0.2, 0.3))]
    frame = Run(tmp_path, small_config(), None, None, lines, []).metrics()
    epochs, evaluations = (frame[frame["kind"] == kind] for kind in ("epoch", "evaluation"))
    assert (list(epochs["stage"]), list(epochs["loss"])) == ([2], [1 / 7])
    assert list(evaluations["stage"]) == [1, 2, 3]
    assert list(evaluations["weights_epoch"]) == [3, 2, 1]
    assert list(evaluations["test_accuracy"]) == [0.5, 0.25, 0.75]
    assert list(evaluations["validation_accuracy"]) == [0.1, 0.2, 0.3]


# --- No room ----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def files_end_at(nbytes: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (nbytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_line_for_which_there_is_no_room_is_not_begun_and_none_follows_it(tmp_path) -> None:
    lines = Lines(tmp_path / "trace.jsonl")
    lines.append("whole\n")
    with files_end_at(10), pytest.raises(NotWritten, match="can't be written: File too large"):
        lines.append("too long\n")
    with pytest.raises(NotWritten, match="File too large"):
        lines.append("1\n")
    assert (tmp_path / "trace.jsonl").read_text() == "whole\n"
    with pytest.raises(NotWritten, match="File too large"):
        lines.append("")


def test_a_replacement_for_which_there_is_no_room_leaves_the_file_as_it_was(tmp_path) -> None:
    lines = Lines(tmp_path / "trace.jsonl")
    lines.append("whole\n")
    with files_end_at(10), pytest.raises(NotWritten, match="File too large"):
        lines.replaced(["another", "and more"])
    assert [path.name for path in tmp_path.iterdir()] == ["trace.jsonl"]
    lines.append("goes on\n")
    assert (tmp_path / "trace.jsonl").read_text() == "whole\ngoes on\n"


@pytest.mark.parametrize("to", [None, "moved"])
def test_a_file_that_is_gone_is_missed(tmp_path, monkeypatch, to) -> None:
    monkeypatch.setattr("asyncdgl.rundir.lines.LOOK_S", 0.0)
    folder = tmp_path / "run"
    folder.mkdir()
    lines = Lines(folder / "trace.jsonl")
    lines.append("whole\n")
    if to is None:
        (folder / "trace.jsonl").unlink()
    else:
        folder.rename(tmp_path / to)
    with pytest.raises(NotWritten, match="is gone: the run directory was removed or moved"):
        lines.append("lost\n")


# --- The log of a process that died -----------------------------------------------------------------------------------


def test_the_end_of_a_log_is_read(tmp_path) -> None:
    (tmp_path / "log").write_bytes(b"a" * LOG_TAIL_BYTES + b"the end\xff")
    tail = tail_of_log(str(tmp_path / "log"))
    assert tail is not None
    assert (len(tail), tail.endswith("the end\ufffd")) == (LOG_TAIL_BYTES, True)
    assert tail_of_log(None) is None
    assert tail_of_log(str(tmp_path / "missing")) is None


def test_what_is_put_in_the_place_of_a_log_is_not_published(tmp_path) -> None:
    (tmp_path / "secret").write_text("mine")
    (tmp_path / "log").symlink_to(tmp_path / "secret")
    assert tail_of_log(str(tmp_path / "log")) is None
    os.link(tmp_path / "secret", tmp_path / "second-name")
    assert tail_of_log(str(tmp_path / "second-name")) is None
    os.mkfifo(tmp_path / "pipe")
    assert tail_of_log(str(tmp_path / "pipe")) is None
    assert tail_of_log(str(tmp_path)) is None
