"""From what was asked to what is decided: nothing is left open, and it can be asked for again as it is."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from asyncdgl.config.model import RunConfig
from asyncdgl.config.resolved import ResolvedConfig
from asyncdgl.config.sections import PassTimes
from asyncdgl.config.yaml import dump_config, parse_config, parse_yaml
from asyncdgl.errors import ConfigError
from asyncdgl.nets.shape import cut
from asyncdgl.plan.balance import share_out
from asyncdgl.plan.machine import available_cores
from asyncdgl.plan.resolve import on_this_machine, planned, resolve

SMALL = {"stages": 2, "epochs": 1, "batch_size": 128, "model": {"blocks": 4, "width": 4}}

ASKED: dict[str, dict[str, Any]] = {
    "nothing": {},
    "sim": {"runtime": "sim"},
    "one-stage": {"stages": 1},
    "backprop": {"algorithm": "backprop"},
    "sequential": {"algorithm": "sequential-dgl"},
    "sync": {"algorithm": "sync-dgl", "buffer": {"size": 3, "codec": "int8"}},
    "sync-sim": {"algorithm": "sync-dgl", "runtime": "sim"},
    "blocking": {"buffer": {"on_full": "block", "max_reuse": 2}},
    "moved": {"runtime": "virtual", "stages": 9, "virtual": {"train": False}},
    "timed": {"runtime": "virtual", "virtual": {"step_times": "measure"}},
    "by-cost": {"model": {"balance": "cost"}, "ray": {"threads": "cost"}},
    "cifar10": {"data": {"dataset": "cifar10", "data_dir": "images"}},
    "given": {"model": {"cut": [1, 3, 4], "blocks": 6}, "data": {"mean": [0.2], "std": [0.3]}, "precision": "bf16"},
    "profile": {"delays": {"profile": {"name": "own", "stages": {2: {"slowdown": 3}}}}},
}


@pytest.fixture(params=ASKED)
def asked(request: pytest.FixtureRequest) -> RunConfig:
    return parse_config(ASKED[request.param])


def test_what_is_decided_can_be_asked_for_and_comes_to_the_same(asked: RunConfig) -> None:
    """So that `--config RUN/config.yaml` repeats the settings, and a run directory is read as it was written."""
    decided = planned(asked)
    tree = parse_yaml(dump_config(decided), "config.yaml")
    assert ResolvedConfig.checked(tree) == decided
    assert planned(parse_config(tree)) == decided


def test_what_was_asked_stays(asked: RunConfig) -> None:
    decided, here = planned(asked), on_this_machine(asked)
    open_keys = {"device", "precision", "threads", "data", "model", "buffer", "virtual", "ray"}
    assert decided.model_dump(exclude=open_keys) == asked.model_dump(exclude=open_keys)
    assert here.model_dump(exclude=open_keys) == asked.model_dump(exclude=open_keys)
    assert planned(here) == decided


def test_nothing_is_open(asked: RunConfig) -> None:
    decided = planned(asked)
    assert decided.device in ("cpu", "cuda")
    assert decided.precision in ("float32", "bf16")
    assert [type(decided.threads_of(j)) for j in range(1, decided.stages + 1)] == [int] * decided.stages
    assert decided.virtual.step_times != "measure"
    assert decided.ray.threads is None or len(decided.ray.threads) == decided.stages
    assert decided.data.data_dir is None or os.path.isabs(decided.data.data_dir)
    if decided.stages <= decided.model.blocks:
        model, wanted = decided.model, asked.model
        assert cut(model.blocks, decided.stages, model.cut) == cut(wanted.blocks, asked.stages, wanted.cut)
        assert len(decided.model.cut) == decided.stages - 1


def test_the_buffers_of_sync_dgl_are_what_they_do() -> None:
    for tree in ({"algorithm": "sync-dgl"}, {"algorithm": "sync-dgl", "runtime": "sim"}):
        buffer = planned(parse_config({**tree, "buffer": {"codec": "bf16"}})).buffer
        assert (buffer.sampler, buffer.max_reuse, buffer.on_full, buffer.min_size) == ("fifo", 1, "block", 1)
        assert (buffer.max_age, buffer.size, buffer.codec) == (None, 10, "bf16")
    other = parse_config({"buffer": {"sampler": "lifo"}})
    assert planned(other).buffer == other.buffer


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"device": "auto"}, "device must be one of cpu, cuda; got 'auto'"),
        ({"precision": "auto"}, "precision must be one of float32, bf16; got 'auto'"),
        ({"threads": "auto"}, "threads must be a whole number, got 'auto'"),
        ({"data": {"mean": None, "std": None}}, "data.mean must be a list, got None"),
        ({"data": {"dataset": "cifar10", "image_size": 32, "data_dir": "here"}}, "data.data_dir: must begin at the"),
        ({"model": {"cut": None}}, "model.cut must be a list, got None"),
        ({"model": {"cut": (1,)}}, "model.cut must name the last block"),
        ({"virtual": {"step_times": "measure"}}, "virtual.step_times must be a list, got 'measure'"),
        ({"ray": {"threads": "cost"}}, "ray.threads must be a list, got 'cost'"),
        ({"algorithm": "sync-dgl"}, "buffer: sync-dgl has buffers with sampler fifo, max_reuse 1, on_full block"),
    ],
)
def test_what_is_open_is_no_resolved_configuration(change: dict[str, Any], problem: str) -> None:
    config = planned(parse_config({}))
    with pytest.raises(ConfigError) as error:
        config.replace(**change)
    assert error.value.problems[0].startswith(problem)


def test_a_change_is_checked_and_leaves_the_rest() -> None:
    config = parse_config({"buffer": {"size": 5, "codec": "int8"}, "delays": {"profile": {"stages": {2: {}}}}})
    changed = config.replace(seed=3, buffer={"size": 7}, delays={"profile": {"stages": {1: {"slowdown": 2}}}})
    assert (changed.seed, changed.buffer.size, changed.buffer.codec) == (3, 7, "int8")
    assert set(changed.profile.stages) == {1}, "a value is replaced; only sections are merged"
    assert config.seed == 0
    for wrong in ({"seeds": 3}, {"buffer": {"sise": 3}}, {"buffer": {"size": 0}}, {"stages": 9}, {"buffer": None}):
        with pytest.raises(ConfigError):
            config.replace(**wrong)
    assert type(planned(config).replace(seed=4)) is ResolvedConfig


# --- With data --------------------------------------------------------------------------------------------------------


def test_the_data_decide_mean_and_deviation(digits_folder: Path) -> None:
    asked = parse_config({**SMALL, "runtime": "sim"})
    config = resolve(asked, digits_folder)
    assert (len(config.data.mean), len(config.data.std)) == (1, 1)
    assert config == planned(asked).replace(data={"mean": config.data.mean, "std": config.data.std})
    given = resolve(asked.replace(data={"mean": (0.25,), "std": (0.5,)}), digits_folder)
    assert (given.data.mean, given.data.std) == ((0.25,), (0.5,))


def test_without_data_nothing_is_measured() -> None:
    asked = parse_config({"runtime": "virtual", "virtual": {"train": False}})
    assert resolve(asked, None) == planned(asked)


def test_cost_decides_cut_and_threads(digits_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("asyncdgl.plan.balance.available_cores", lambda: 5)
    times = {(1, 1): 3.0, (2, 4): 1.0}
    monkeypatch.setattr("asyncdgl.plan.balance._pass_seconds", lambda config, part, *_: times.get(part, 9.0))
    tree = {**SMALL, "model": {**SMALL["model"], "balance": "cost"}, "ray": {"threads": "cost"}}  # type: ignore[dict-item]
    said: list[str] = []
    config = resolve(parse_config(tree), digits_folder, say=said.append)
    assert config.model.cut == (1,)
    assert config.ray.threads == share_out(5, [3.0, 1.0]) == (4, 1)
    assert said == ["measuring the stages' cost"]
    assert resolve(config, digits_folder, say=said.append) == config, "what is decided stays"
    assert said == ["measuring the stages' cost"]


def test_step_times_are_measured_once(digits_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    times = (PassTimes(train=0.2, forward=0.1),) * 2
    monkeypatch.setattr("asyncdgl.plan.step_times.measure_step_times", lambda *_: times)
    tree = {**SMALL, "runtime": "virtual", "virtual": {"step_times": "measure"}}
    config = resolve(parse_config(tree), digits_folder)
    assert config.virtual.step_times == times
    monkeypatch.delattr("asyncdgl.plan.step_times.measure_step_times")
    assert resolve(config, digits_folder) == config


# --- The machine ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("runtime", ["ray", "sim", "virtual"])
@pytest.mark.parametrize("dataset", ["digits", "synthetic"])
def test_what_decides_the_bits_of_small_data_does_not_depend_on_the_machine(
    runtime: str, dataset: str, digits_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same seed gives the same bits everywhere; and two runs at once don't fight for the cores."""
    monkeypatch.setattr("asyncdgl.plan.machine.available_cores", lambda: 64)
    asked = parse_config({"runtime": runtime, "data": {"dataset": dataset}})
    assert asked.threads == 1
    said: list[str] = []
    assert resolve(asked, digits_folder if dataset == "digits" else None, say=said.append).threads == 1
    assert said == []


@pytest.mark.parametrize(("runtime", "threads"), [("ray", 8), ("sim", 48), ("virtual", 48)])
def test_where_the_machine_decides_the_threads_the_run_says_so(
    runtime: str, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("asyncdgl.plan.machine.available_cores", lambda: 48)
    asked = parse_config({"runtime": runtime, "data": {"dataset": "cifar10"}})
    said: list[str] = []
    config = resolve(asked, None, say=said.append)
    assert (asked.threads, config.threads) == ("auto", threads)
    assert len(said) == 1
    assert f"threads: {threads}, from this machine's cores" in said[0]
    said.clear()
    assert resolve(asked.replace(threads=3), None, say=said.append).threads == 3
    assert said == []


def test_cores_are_those_that_this_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 3, 5}, raising=False)
    assert available_cores() == 3
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 7)
    assert available_cores() == 7
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert available_cores() == 1


@pytest.mark.parametrize(
    ("given", "absolute"), [("images", "{cwd}/images"), ("~/images", "{home}/images"), ("/i", "/i")]
)
def test_folders_do_not_depend_on_where_one_stands(
    given: str, absolute: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/someone")
    config = planned(parse_config({"data": {"dataset": "cifar10", "data_dir": given}}))
    assert config.data.data_dir == absolute.format(cwd=tmp_path, home="/home/someone")


def test_a_gpu_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("asyncdgl.plan.machine.visible_gpus", lambda: 0)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    asked = parse_config({"device": "cuda"})
    for step in (planned, on_this_machine, lambda config: resolve(config, None)):
        with pytest.raises(ConfigError, match="no NVIDIA GPU"):
            step(asked)
    assert planned(asked.replace(ray={"address": "10.0.0.5:6379"})).device == "cuda"
    monkeypatch.setattr("asyncdgl.plan.machine.visible_gpus", lambda: 1)
    config = planned(parse_config({}))
    assert (config.device, config.precision) == ("cuda", "bf16")
