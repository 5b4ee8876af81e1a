"""Identity i: a `sim` or `virtual` run that was stopped anywhere and gone on with equals one that never was."""

from __future__ import annotations

import functools
import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

import asyncdgl
from asyncdgl.errors import ConfigError, DataError, Interrupted
from asyncdgl.observer import NullObserver, Recorder
from asyncdgl.resume_session import ResumeSession
from asyncdgl.rundir.checkpoint import read_checkpoint
from asyncdgl.rundir.records import METRICS, SUMMARY, TRACE, EvaluationLine
from asyncdgl.rundir.trace import PassRecord
from asyncdgl.supervisor import NoSupervisor

SMALL = {
    "stages": 3,
    "epochs": 2,
    "batch_size": 128,
    "threads": 1,
    "device": "cpu",
    "precision": "float32",
    "model": {"blocks": 3, "width": 4, "downsample": [2]},
}
TIMES = {
    "virtual": {
        "step_times": [
            {"train": 0.02, "forward": 0.01},
            {"train": 0.03, "forward": 0.02},
            {"train": 0.01, "forward": 0.01},
        ]
    }
}
RUNS: dict[str, dict[str, Any]] = {
    "sim-async": {"runtime": "sim", "delays": {"profile": "slow_stage2"}, "buffer": {"size": 4}},
    "sim-links": {"runtime": "sim", "delays": {"profile": "wan"}, "buffer": {"codec": "int8", "sampler": "uniform"}},
    "sim-bf16": {"runtime": "sim", "precision": "bf16", "buffer": {"codec": "bf16"}, "optim": {"name": "adamw"}},
    "sim-block": {"runtime": "sim", "buffer": {"size": 3, "on_full": "block", "max_reuse": 2}},
    "sim-sync": {"runtime": "sim", "algorithm": "sync-dgl"},
    "sim-sequential": {"runtime": "sim", "algorithm": "sequential-dgl"},
    "sim-backprop": {"runtime": "sim", "algorithm": "backprop"},
    "virtual-profile": {"runtime": "virtual", "delays": {"profile": "wan"}},
    "virtual-free": {
        "runtime": "virtual",
        "pace": "free",
        "delays": {"profile": "random"},
        "buffer": {"prefetch": 2, "max_reuse": 1},
        **TIMES,
    },
    "virtual-narrow": {
        "runtime": "virtual",
        "delays": {"profile": {"name": "narrow", "every_link": {"bandwidth": 1e5}}},
    },
    "virtual-block": {"runtime": "virtual", "buffer": {"size": 3, "on_full": "block", "max_reuse": 2}},
    "virtual-untrained": {
        "runtime": "virtual",
        "stages": 5,
        "delays": {"profile": "random"},
        "virtual": {"train": False},
    },
}
WALL = {"wall_seconds", "train_seconds", "busy_fraction", "wait_seconds", "staleness", "batch_age"}
"""What a summary takes from the clock of the machine, under ``sim``."""


class StopAt(NullObserver):
    """Stops a run after so many passes, as Ctrl-C does: in the middle of a turn."""

    def __init__(self, passes: int) -> None:
        self._left = passes

    def passed(self, records: Sequence[PassRecord]) -> None:
        self._left -= len(records)
        if self._left <= 0:
            raise KeyboardInterrupt


def did(path: Path) -> dict[str, Any]:
    """All that a run has left, but for wall times."""
    timed = json.loads((path / "summary.json").read_text())["runtime"] == "virtual"

    def lines(name: str) -> list[dict[str, Any]]:
        drop = () if timed else ("sampled_s", "start_s", "end_s", "waits")
        read = [json.loads(line) for line in (path / name).read_text().splitlines()]
        return [{key: value for key, value in line.items() if key not in drop} for line in read]

    summary = json.loads((path / SUMMARY).read_text())
    for key in WALL if not timed else {"wall_seconds"}:
        summary.pop(key, None)
        for stage in summary["stages"]:
            stage.pop(key, None)
    return {"summary": summary, "trace": lines(TRACE), "metrics": lines(METRICS)}


def settings(name: str) -> dict[str, Any]:
    base = {"epochs": 3} if name == "virtual-untrained" else SMALL
    return {**base, **RUNS[name]}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], dict[str, Any]]:
    """Runs that were never stopped."""
    folder = tmp_path_factory.mktemp("whole")

    @functools.cache
    def make(name: str) -> dict[str, Any]:
        return did(asyncdgl.run(settings(name), out=folder / name).path)

    return make


STOPS = [(name, every, 3) for name in RUNS for every in (1, 3)] + [("virtual-free", 1, 12)]


@pytest.mark.parametrize(("name", "every", "count"), STOPS)
def test_a_stopped_run_is_gone_on_with_as_if_it_had_never_been_stopped(tmp_path, whole, name, every, count) -> None:
    """Twelve stops are so many that some meet a stage in a pass that reads what no buffer has any more."""
    draws = random.Random(f"{name} {every}")
    passes = len(whole(name)["trace"])
    out = tmp_path / "run"
    stops = sorted(draws.sample(range(1, passes), count))
    with pytest.raises(KeyboardInterrupt):
        asyncdgl.run(settings(name), checkpoint={"every": every}, out=out, observer=StopAt(stops[0]))
    for stop in stops[1:]:
        kept = sorted((out / "checkpoints").glob("*")) if (out / "checkpoints").is_dir() else []
        made = int(kept[-1].stem) if kept else 0
        with pytest.raises(KeyboardInterrupt):
            asyncdgl.resume(out, observer=StopAt(stop - made))
    run = asyncdgl.resume(out)
    assert run.summary.status == "completed"
    assert did(out) == whole(name)
    assert asyncdgl.load_run(out).records == run.records


class StopAtEvaluation(NullObserver):
    """Stops a run in an evaluation, between two turns."""

    def evaluated(self, line: EvaluationLine) -> None:
        raise KeyboardInterrupt


@pytest.mark.parametrize("name", ["sim-async", "sim-sequential", "virtual-profile"])
def test_a_run_that_is_stopped_between_two_turns_loses_nothing(tmp_path, whole, name) -> None:
    out = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        asyncdgl.run(settings(name), out=out, observer=StopAtEvaluation())
    made = (out / TRACE).read_text().splitlines()
    recorder = Recorder()
    asyncdgl.resume(out, observer=recorder)
    assert did(out) == whole(name)
    assert len(recorder.trace) == len(whole(name)["trace"]) - len(made)


@pytest.mark.parametrize("epochs", [None, 4])
def test_who_is_stopped_before_all_is_repeated_leaves_the_run_as_it_was(tmp_path, whole, epochs) -> None:
    """With its old epochs, too."""
    out, _ = kept_by(tmp_path)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    session = ResumeSession(asyncdgl.load_run(out), StopWhileRepeating(), epochs)
    session.prepare()
    with pytest.raises(Interrupted):
        session.execute(NullObserver())
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    asyncdgl.resume(out)
    assert did(out) == whole("sim-async")


class StopWhileRepeating(NoSupervisor):
    """Sends a signal after a few passes."""

    def __init__(self) -> None:
        super().__init__()
        self._asked = 0

    def check(self) -> None:
        self._asked += 1
        if self._asked == 5:
            raise Interrupted("interrupted")


def kept_by(tmp_path: Path) -> tuple[Path, Path]:
    """A stopped run, and its only checkpoint."""
    out = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        asyncdgl.run(settings("sim-async"), checkpoint={"every": 10}, out=out, observer=StopAt(40))
    (path,) = (out / "checkpoints").iterdir()
    return out, path


def test_a_checkpoint_that_is_cut_or_has_a_flipped_bit_is_refused(tmp_path) -> None:
    _, path = kept_by(tmp_path)
    whole = path.read_bytes()
    read_checkpoint(path, path.parents[1])
    header = 8 + int.from_bytes(whole[:8], "little")
    draws = random.Random(0)
    lengths = {*range(0, header, 61), *draws.sample(range(header, len(whole)), 30), len(whole) - 1}
    for length in lengths:
        path.write_bytes(whole[:length])
        with pytest.raises(DataError, match=r"damaged|no checkpoint"):
            read_checkpoint(path, path.parents[1])
    for place in {*range(0, header, 41), *draws.sample(range(header, len(whole)), 30)}:
        changed = bytearray(whole)
        changed[place] ^= 1 << draws.randrange(8)
        path.write_bytes(changed)
        with pytest.raises(DataError, match=r"damaged|no checkpoint"):
            read_checkpoint(path, path.parents[1])


def test_a_checkpoint_of_another_configuration_is_refused(tmp_path) -> None:
    out, path = kept_by(tmp_path)
    with (out / "config.yaml").open("a") as file:
        file.write("# another seed, for example\n")
    with pytest.raises(DataError, match=r"belongs to another configuration than the config.yaml"):
        read_checkpoint(path, path.parents[1])


def test_a_full_disk_is_a_warning_and_the_run_goes_on(tmp_path, whole, monkeypatch) -> None:
    def full(*arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("asyncdgl.rundir.checkpoint.save_arrays", full)
    with pytest.warns(UserWarning, match=r"no checkpoint after .* passes: .*No space left"):
        run = asyncdgl.run(settings("sim-async"), checkpoint={"every": 10}, out=tmp_path / "run")
    assert did(run.path) == whole("sim-async")


def test_an_own_network_goes_on_where_it_is_handed_over_again(tmp_path) -> None:
    def net() -> torch.nn.Sequential:
        torch.manual_seed(0)
        hidden = (
            torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Dropout(0.2)) for _ in range(2)
        )
        return torch.nn.Sequential(torch.nn.Flatten(), *hidden)

    own = {"runtime": "sim", "stages": 2, "epochs": 2, "batch_size": 128, "threads": 1, "optim": {"name": "adam"}}
    own |= {"model": {"aux": "mlp"}, "checkpoint": {"every": 5}}
    once = asyncdgl.run(own, net=net(), out=tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        asyncdgl.run(own, net=net(), out=tmp_path / "run", observer=StopAt(33))
    with pytest.raises(ConfigError, match="handed to run"):
        asyncdgl.resume(tmp_path / "run")
    run = asyncdgl.resume(tmp_path / "run", net=net())
    assert did(run.path) == did(once.path)


# --- More epochs ------------------------------------------------------------------------------------------------------


def raised(name: str, epochs: int) -> dict[str, Any]:
    return {**settings(name), "epochs": epochs}


@pytest.fixture(scope="module")
def whole_of_four(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], dict[str, Any]]:
    """Runs that were asked for four epochs from the start."""
    folder = tmp_path_factory.mktemp("four")

    @functools.cache
    def make(name: str) -> dict[str, Any]:
        return did(asyncdgl.run(raised(name, 4), out=folder / name).path)

    return make


@pytest.mark.parametrize("name", ["sim-async", "sim-sync", "sim-backprop", "virtual-profile", "virtual-free"])
@pytest.mark.parametrize("share", [0.3, 0.97])
def test_epochs_are_raised_as_if_they_had_been_asked_for(tmp_path, whole, whole_of_four, name, share) -> None:
    """A stop near the end comes after the faster stages have done their quota: what they did since is made anew."""
    stop = int(share * len(whole(name)["trace"]))
    out = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        asyncdgl.run(settings(name), checkpoint={"every": 5}, out=out, observer=StopAt(stop))
    with pytest.raises(KeyboardInterrupt):  # and is stopped again, soon after the configuration was raised
        asyncdgl.resume(out, epochs=4, observer=StopAt(3))
    assert asyncdgl.load_run(out).config.epochs == 4
    run = asyncdgl.resume(out)
    assert run.config.epochs == 4
    assert did(out) == whole_of_four(name)


def test_epochs_that_cannot_be_raised_are_refused(tmp_path) -> None:
    out, _ = kept_by(tmp_path)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    with pytest.raises(ConfigError, match="can only be raised: the run has 2, got 1"):
        asyncdgl.resume(out, epochs=1)
    with pytest.raises(ConfigError, match="epochs"):
        asyncdgl.resume(out, epochs=10**7)
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    asyncdgl.resume(out, epochs=2)
    with pytest.raises(ConfigError, match=r"complete, .* checkpoints are gone, so more epochs need a new run"):
        asyncdgl.resume(out, epochs=4)


def test_a_schedule_that_spreads_over_all_epochs_cannot_be_raised(tmp_path) -> None:
    out = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        asyncdgl.run(settings("sim-async"), optim={"schedule": "cosine"}, out=out, observer=StopAt(40))
    with pytest.raises(ConfigError, match=r"optim\.schedule cosine spreads over all epochs"):
        asyncdgl.resume(out, epochs=4)
