"""asyncdgl.sweep(): what the command line does, as a function."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest

import asyncdgl
from asyncdgl.config.yaml import load_yaml
from asyncdgl.errors import ConfigError, SweepFailed

pytestmark = pytest.mark.timeout(600)  # each run is a process that imports torch; others may use the machine

SETTINGS = {
    "runtime": "sim",
    "stages": 2,
    "epochs": 1,
    "batch_size": 64,
    "threads": 1,
    "device": "cpu",
    "precision": "float32",
    "model": {"width": 4},
}
SWEEP: dict[str, Any] = {"name": "sizes", "config": SETTINGS, "grid": {"buffer.size": [1, 2]}}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_a_mapping_is_swept_quietly_and_gone_on_with(tmp_path, capfd) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    ended: list[Any] = []
    results = asyncdgl.sweep(SWEEP, jobs=2, on_end=ended.append)
    assert capfd.readouterr() == ("", "")
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
    assert sorted(run.run.values["buffer.size"] for run in ended) == [1, 2]
    assert {run.status for run in ended} == {"completed"}
    assert results.path == Path("sweeps/sizes")
    assert list(results.table()["buffer.size"]) == [1, 2]
    assert load_yaml(tmp_path / "sweeps/sizes/sweep.yaml") == SWEEP

    ended.clear()
    again = asyncdgl.sweep("sweeps/sizes/sweep.yaml", out="sweeps/sizes", on_end=ended.append)
    assert ended == []
    assert again.table().equals(results.table())
    assert asyncdgl.load_sweep("sweeps/sizes").table().equals(results.table())
    run = asyncdgl.load_run(results.runs[0].path)
    assert run.model() is not None


def test_a_failed_run_is_an_exception_with_the_others_results() -> None:
    wrong = {**SWEEP, "grid": {"buffer.size": [1_000_000_000, 2]}}
    with pytest.raises(SweepFailed, match=r"1 of 2 runs failed: see .*output\.log") as failed:
        asyncdgl.sweep(wrong, out="wrong", jobs=2)
    assert list(failed.value.results.table()["buffer.size"]) == [2]


def test_an_interrupt_leaves_the_table_of_what_is_finished() -> None:
    def stop(run: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        asyncdgl.sweep(SWEEP, out="stopped", jobs=1, on_end=stop)
    assert list(asyncdgl.load_sweep("stopped").table()["buffer.size"]) == [1]
    assert Path("stopped/table.csv").is_file()
    assert list(Path("stopped/runs/work").iterdir()) == []


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"grid": {"buffer.sizes": [1]}}, "buffer.sizes"),
        ({"grids": {}}, "grids"),
        ({"seeds": []}, "seeds: none"),
    ],
)
def test_a_wrong_sweep_leaves_nothing(tmp_path, given, message) -> None:
    with pytest.raises(ConfigError, match=message):
        asyncdgl.sweep({**SWEEP, **given})
    with pytest.raises(ConfigError, match="jobs must be at least 1"):
        asyncdgl.sweep(SWEEP, jobs=0)
    assert list(tmp_path.iterdir()) == []
