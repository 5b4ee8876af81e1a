"""Sweeps: which runs a file asks for, where they are kept, and the tables made of them."""

from __future__ import annotations

import csv
import io
import itertools
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats

from asyncdgl.config.defaults import merged
from asyncdgl.config.model import RunConfig
from asyncdgl.config.yaml import dump_config, load_yaml, parse_config
from asyncdgl.errors import ConfigError, DataError
from asyncdgl.plan.resolve import on_this_machine
from asyncdgl.rundir.environment import describe_environment
from asyncdgl.rundir.records import Environment
from asyncdgl.sweeps import execution as execute_module
from asyncdgl.sweeps import identity
from asyncdgl.sweeps.execution import FAILED, WORK, Finished, RunStore, execute
from asyncdgl.sweeps.grid import SweepRun, plan_sweep
from asyncdgl.sweeps.identity import DataHashes, own_code, run_key
from asyncdgl.sweeps.measures import MEASURES, estimate, measured
from asyncdgl.sweeps.results import load_sweep, write_index
from asyncdgl.sweeps.tables import (
    points_latex,
    points_markdown,
    results_json,
    shown,
    write_tables,
)

BASE = {"runtime": "sim", "stages": 3, "epochs": 1, "batch_size": 128, "threads": 1, "device": "cpu"}


@pytest.fixture
def load(tmp_path):
    """``load(text, over)``: the sweep in a file with that text, its runs in one process."""

    def read(text: str, over: dict[str, Any] | None = None, name: str = "mine.yaml"):
        path = tmp_path / name
        path.write_text(text)
        return plan_sweep(path, merged({"runtime": "sim", "threads": 1}, over or {}))

    return read


@pytest.fixture
def refused(tmp_path):
    """``refused(text)``: what is wrong with a sweep's file, each problem without the name of the file."""

    def find(text: str) -> list[str]:
        path = tmp_path / "wrong.yaml"
        path.write_text(text)
        with pytest.raises(ConfigError) as error:
            plan_sweep(path)
        begin = f"sweep file {path}: "
        assert all(problem.startswith(begin) for problem in error.value.problems), error.value.problems
        return [problem.removeprefix(begin) for problem in error.value.problems]

    return find


def key_of(**over: Any) -> str:
    config = on_this_machine(RunConfig.checked(merged(BASE, over)))
    return run_key(config, DataHashes().of(config))


# --- The grid ---------------------------------------------------------------------------------------------------------


def test_a_grid_is_every_combination_with_every_seed(load) -> None:
    sweep = load("grid: {buffer.size: [1, 5], delays.profile: [none, lossy], epochs: [2]}\nseeds: 3\n")
    assert [(*run.values.values(), run.seed) for run in sweep.runs] == list(
        itertools.product((1, 5), ("none", "lossy"), range(3))
    )
    assert sweep.columns == ["buffer.size", "delays.profile"]  # all have the same number of epochs
    for run in sweep.runs:
        config = run.config
        assert (config.buffer.size, config.profile.name, config.seed) == (*run.values.values(), run.seed)
        assert config.epochs == 2
        assert run.key == run_key(config, DataHashes().of(config))
    assert len(sweep.distinct) == len({run.key for run in sweep.runs}) == 12


@pytest.mark.parametrize(
    ("seeds", "expected"), [("2", [0, 1]), ("[7, 3]", [7, 3]), ("null", [0]), ("[4, 4]", [4])], ids=str
)
def test_seeds_are_a_number_or_a_list(seeds, expected, load) -> None:
    assert [run.seed for run in load(f"seeds: {seeds}\n").runs] == expected
    assert [run.config.seed for run in load(f"grid: {{epochs: [1]}}\nseeds: {seeds}\n").runs] == expected


def test_the_order_is_that_of_the_file(load) -> None:
    sweep = load("grid: {epochs: [3, 1, 2]}\nseeds: [1, 0]\nalso:\n  - grid: {epochs: [5, 4]}\n    seeds: [9]\n")
    assert [(run.config.epochs, run.seed) for run in sweep.runs] == [
        *((3, 1), (3, 0), (1, 1), (1, 0), (2, 1), (2, 0)),
        *((5, 9), (4, 9)),
    ]


def test_the_name_is_that_of_the_file_or_in_it(load) -> None:
    assert load("grid: {epochs: [1]}\n", name="buffer-size.yaml").name == "buffer-size"
    assert load("name: other\ngrid: {epochs: [1]}\n").name == "other"


def test_more_grids_add_to_the_settings_above(load) -> None:
    sweep = load("""\
config: {stages: 3, buffer: {codec: bf16, size: 7}, optim: {lr: 0.2}}
grid: {epochs: [1, 2]}
seeds: 2
also:
  - config: {buffer: {size: 9}}
    grid: {optim.lr: [0.1]}
  - grid: {epochs: [2, 3]}
    seeds: [1, 5]
""")
    settings = [
        (run.config.epochs, run.config.buffer.size, run.config.optim.lr, run.seed)
        for run in sweep.runs
        if run.config.stages == 3 and run.config.buffer.codec == "bf16"
    ]
    default = 15
    assert settings == [
        *((1, 7, 0.2, 0), (1, 7, 0.2, 1), (2, 7, 0.2, 0), (2, 7, 0.2, 1)),
        *((default, 9, 0.1, 0), (default, 9, 0.1, 1)),  # the seeds of the file
        *((2, 7, 0.2, 5), (3, 7, 0.2, 1), (3, 7, 0.2, 5)),  # (2, ..., 1) is there already
    ]
    assert sweep.columns == ["epochs", "buffer.size", "optim.lr"]
    assert [list(run.values) for run in sweep.runs] == [sweep.columns] * len(sweep.runs)


def test_what_all_share_is_no_run_of_its_own(load) -> None:
    sweep = load("config: {stages: 2}\nalso:\n  - grid: {epochs: [1]}\n  - grid: {epochs: [2]}\n")
    assert [(run.config.stages, run.config.epochs) for run in sweep.runs] == [(2, 1), (2, 2)]


def test_settings_of_the_command_line_are_over_those_of_the_file(load) -> None:
    sweep = load(
        "config: {optim: {lr: 0.3, momentum: 0.5}}\ngrid: {epochs: [1, 2]}\nalso:\n  - grid: {epochs: [3]}\n",
        {"optim": {"lr": 0.01}},
    )
    assert [(run.config.optim.lr, run.config.optim.momentum) for run in sweep.runs] == [(0.01, 0.5)] * 3


def test_a_setting_of_the_command_line_that_the_grid_beats_is_refused(load) -> None:
    with pytest.raises(ConfigError, match="epochs"):
        load("grid: {epochs: [1, 2]}\n", {"epochs": 3})


def test_each_run_has_its_own_copy_of_a_value(load) -> None:
    """A key below another key of the grid changes one run, not all that were given the same value."""
    sweep = load(
        "grid:\n  delays.profile: [{name: a, every_link: {latency: {mean: 3}}}]\n  delays.profile.window: [1, 3, 5]\n",
        {"runtime": "virtual"},
    )
    assert [run.config.profile.window for run in sweep.runs] == [1, 3, 5]
    assert len(sweep.distinct) == 3
    sweep = load("grid: {model: [{blocks: 4, downsample: [2]}], model.width: [2, 4]}\n")
    assert [run.config.model.width for run in sweep.runs] == [2, 4]


def test_a_whole_section_can_be_a_value(load) -> None:
    sweep = load("grid: {optim: [{lr: 0.1}, {lr: 0.2, momentum: 0.5}]}\n")
    assert [(run.config.optim.lr, run.config.optim.momentum) for run in sweep.runs] == [(0.1, 0.9), (0.2, 0.5)]
    assert sweep.columns == ["optim"]
    assert [run.values["optim"]["lr"] for run in sweep.runs] == [0.1, 0.2]


def test_profiles_of_their_own_are_told_apart_by_name(load) -> None:
    sweep = load(
        "grid: {delays.profile: [{name: a, every_link: {loss: 0.1}}, {name: b, every_link: {loss: 0.2}}, lossy]}\n"
    )
    assert [run.values for run in sweep.runs] == [{"delays.profile": name} for name in ("a", "b", "lossy")]
    assert [run.config.profile.link(1).loss for run in sweep.runs] == [0.1, 0.2, 0.05]


# --- One run for points that compute the same -------------------------------------------------------------------------


def test_an_unslowed_slow_stage_is_no_delay(load) -> None:
    sweep = load("""\
grid: {delays.profile: [slow_stage2, slow_stage3], delays.slowdown: [1, 2]}
seeds: 2
also:
  - grid: {delays.profile: [none]}
""")
    by_point = {(run.values["delays.profile"], run.values["delays.slowdown"], run.seed): run.key for run in sweep.runs}
    assert len(by_point) == 10
    for seed in (0, 1):
        same = {by_point["slow_stage2", 1, seed], by_point["slow_stage3", 1, seed], by_point["none", None, seed]}
        assert len(same) == 1
        assert by_point["slow_stage2", 2, seed] != by_point["slow_stage3", 2, seed]
    assert len(sweep.distinct) == 6
    assert [run.key for run in sweep.distinct] == list(dict.fromkeys(run.key for run in sweep.runs))


def test_keys_that_mean_nothing_to_a_run_are_none(load) -> None:
    sweep = load("""\
grid: {buffer.size: [2, 5], delays.profile: [slow_stage2], delays.slowdown: [3]}
also:
  - grid: {algorithm: [sync-dgl, backprop], model.aux: [mlp]}
  - grid: {stages: [1]}
""")
    assert sweep.columns == ["buffer.size", "delays.profile", "delays.slowdown", "algorithm", "model.aux", "stages"]
    assert [tuple(run.values.values()) for run in sweep.runs] == [
        (2, "slow_stage2", 3.0, "async-dgl", "mlp", 4),
        (5, "slow_stage2", 3.0, "async-dgl", "mlp", 4),
        (None, None, None, "sync-dgl", "mlp", 4),
        (None, None, None, "backprop", None, 4),
        (None, "none", None, "async-dgl", None, 1),
    ]


NAMED = {"every_link": {"loss": 0.1}}


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"name": "a"}, {"name": "b"}),
        ({"delays": {"profile": {"name": "a", **NAMED}}}, {"delays": {"profile": {"name": "b", **NAMED}}}),
        ({"delays": {"profile": "lossy"}}, {"delays": {"profile": {"every_link": {"loss": 0.05}}}}),
        ({"delays": {"profile": "slow_stage3"}}, {"delays": {"profile": "slow_stage3", "slowdown": 2}}),
        ({"delays": {"profile": "slow_stage3", "slowdown": 1}}, {}),
        (
            {"delays": {"profile": {"links": {1: {"loss": 0.3}}}}},
            {"delays": {"profile": {"links": {1: {"loss": 0.3}, 2: {}}, "every_link": {"loss": 0.0}}}},
        ),
        ({"delays": {"profile": {"unit": "seconds", "window": 9}}}, {}),  # no lengths, and `sim` has no pace
        ({"ray": {"address": "10.0.0.5:6379"}, "runtime": "ray"}, {"runtime": "ray"}),
        ({"stages": "3"}, {"stages": 3}),
        ({"model": {"downsample": [2]}}, {}),  # the default
    ],
    ids=lambda tree: json.dumps(tree)[:40],
)
def test_what_decides_nothing_is_not_in_the_key(one, other) -> None:
    assert key_of(**one) == key_of(**other)


DIFFERENT: list[dict[str, Any]] = [
    {},
    {"seed": 1},
    {"epochs": 2},
    {"stages": 4},
    {"threads": 2},
    {"batch_size": 64},
    {"precision": "bf16"},
    {"algorithm": "sync-dgl"},
    {"algorithm": "backprop"},
    {"runtime": "ray"},
    {"runtime": "ray", "pace": "free"},
    {"runtime": "ray", "ray": {"threads": [2, 1, 1]}},
    {"runtime": "ray", "delays": {"profile": {"window": 3}}},
    {"runtime": "virtual"},
    {"runtime": "virtual", "pace": "free"},
    {"runtime": "virtual", "virtual": {"train": False}},
    {"runtime": "virtual", "virtual": {"step_times": [{"train": 1, "forward": 1}]}},
    {"runtime": "virtual", "virtual": {"step_times": [{"train": 2, "forward": 1}]}},
    {"data": {"augment": True}},
    {"data": {"validation": 0.1}},
    {"data": {"dataset": "synthetic"}},
    {"model": {"width": 4}},
    {"model": {"aux": "cnn"}},
    {"model": {"downsample": [3]}},
    {"buffer": {"size": 4}},
    {"buffer": {"codec": "int8"}},
    {"buffer": {"max_reuse": 2}},
    {"optim": {"lr": 0.04}},
    {"optim": {"lr_milestones": [3]}},
    {"evaluation": {"every": 2}},
    {"delays": {"profile": "slow_stage2"}},
    {"delays": {"profile": "slow_stage3"}},
    {"delays": {"profile": "slow_stage3", "slowdown": 3}},
    {"delays": {"profile": "lossy"}},
    {"delays": {"profile": {"links": {1: {"loss": 0.05}}}}},
    {"delays": {"profile": {"links": {2: {"loss": 0.05}}}}},
    {"delays": {"profile": "wan"}},
    {"delays": {"profile": "straggler"}},
    {"delays": {"profile": "random"}},
]


def test_whatever_decides_something_is_in_the_key() -> None:
    keys = [key_of(**over) for over in DIFFERENT]
    assert len(set(keys)) == len(DIFFERENT)
    assert all(len(key) == 16 and set(key) <= set("0123456789abcdef") for key in keys)


def test_a_unit_counts_where_there_are_lengths_of_time() -> None:
    def profile(unit: str) -> dict[str, Any]:
        return {"runtime": "ray", "delays": {"profile": {"unit": unit, "every_link": {"latency": {"mean": 1}}}}}

    assert key_of(**profile("steps")) != key_of(**profile("seconds"))


# --- Content in the key -----------------------------------------------------------------------------------------------

IMAGES = "config: {runtime: sim, threads: 1, stages: 2, batch_size: 2, data: {dataset: image-folder, data_dir: DIR}}\n"


@pytest.fixture
def images(tmp_path, monkeypatch) -> Path:
    """An image folder with two classes, and a cache of its own."""
    from PIL import Image

    monkeypatch.setenv("ASYNCDGL_CACHE", str(tmp_path / "cache"))
    shade = 0
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            folder = tmp_path / "images" / split / name
            folder.mkdir(parents=True)
            for number in range(2):
                shade += 25
                Image.new("RGB", (8, 8), (shade, 255 - shade, number * 100)).save(folder / f"{number}.png")
    return tmp_path / "images"


def test_images_that_changed_make_other_runs(images, tmp_path, load) -> None:
    from PIL import Image

    text = IMAGES.replace("DIR", str(images))
    [before] = load(text).runs
    assert load(text).runs[0].key == before.key
    moved = images.rename(tmp_path / "moved")
    assert load(IMAGES.replace("DIR", str(moved))).runs[0].key == before.key  # where they lie decides nothing
    Image.new("RGB", (8, 8), (1, 2, 3)).save(moved / "train" / "cat" / "0.png")
    assert load(IMAGES.replace("DIR", str(moved))).runs[0].key != before.key


def test_missing_images_are_said_before_anything_is_made(tmp_path, load) -> None:
    with pytest.raises(DataError, match="nowhere"):
        load(IMAGES.replace("DIR", str(tmp_path / "nowhere")))


def test_another_torch_computes_something_else(monkeypatch) -> None:
    before = key_of()
    monkeypatch.setattr(identity.metadata, "version", lambda name: "999.0")
    assert key_of() != before


def test_the_source_of_ones_own_part_is_in_the_key(tmp_path, monkeypatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    tree = {"model": {"name": "my_parts:network"}, "data": {"dataset": "digits"}}
    (tmp_path / "my_parts.py").write_text("network = 1\n")
    before = own_code(tree)
    assert list(before) == ["my_parts"]
    (tmp_path / "my_parts.py").write_text("network = 2\n")
    assert own_code(tree) != before
    assert own_code({"ray": {"address": "10.0.0.5:6379"}, "name": "a b: c"}) == {}
    with pytest.raises(ConfigError, match="no_such_module"):
        own_code({"model": {"name": "no_such_module:network"}})


def test_another_version_of_the_package_computes_something_else(monkeypatch) -> None:
    before = key_of()
    monkeypatch.setattr(identity, "__version__", "999.0")
    assert key_of() != before


def test_the_key_outlives_the_file(load, tmp_path) -> None:
    text = "grid: {delays.profile: [none, slow_stage2, {name: mine, links: {1: {loss: 0.2}}}], buffer.size: [3]}\n"
    for run in load(text).runs:
        (tmp_path / "config.yaml").write_text(dump_config(run.config))
        config = parse_config(load_yaml(tmp_path / "config.yaml"))
        assert run_key(config, DataHashes().of(config)) == run.key


# --- Wrong files ------------------------------------------------------------------------------------------------------

WRONG = {
    "a key that no sweep has": ("gird: {epochs: [1]}", ["gird: unknown key; did you mean grid?"]),
    "a key that no part has": ("also: [{name: x, grid: {epochs: [1]}}]", ["also.0.name: unknown key"]),
    "a key that no run has": (
        "grid: {epochs: [1], buffer.sizes: [4]}",
        ["epochs=1, buffer.sizes=4: buffer.sizes: unknown key; did you mean size?"],
    ),
    "a setting that no run has": ("config: {optm: {lr: 1}}\ngrid: {epochs: [3]}", ["epochs=3: optm: unknown key"]),
    "a value out of bounds": (
        "config: {runtime: sim}\ngrid: {epochs: [1, 0], optim.lr: [0.1, -1]}",
        [
            "epochs=1, optim.lr=-1: optim.lr must be above 0, got -1",
            "epochs=0, optim.lr=0.1: epochs must be at least 1, got 0",
            "epochs=0, optim.lr=-1: epochs must be at least 1, got 0",
            "epochs=0, optim.lr=-1: optim.lr must be above 0, got -1",
        ],
    ),
    "a value of another kind": ("grid: {stages: [two]}", ["stages=two: stages must be a whole number, got 'two'"]),
    "a point of a later part": (
        "grid: {epochs: [1]}\nalso:\n  - config: {buffer: {codec: zip}}\n    grid: {epochs: [2]}",
        ["buffer.codec=zip, epochs=2: buffer.codec must be one of none, bf16, int8, or package"],
    ),
    "a stage that the network lacks": (
        "config: {stages: 3}\ngrid: {delays.profile: [none, slow_stage4]}",
        ["delays.profile=slow_stage4: delays.profile slow_stage4 delays stage 4, but the network has 3 stages"],
    ),
    "a key without effect": (
        "config: {runtime: sim}\ngrid: {algorithm: [backprop], buffer.size: [3]}",
        ["algorithm=backprop, buffer.size=3: buffer.size has no effect here"],
    ),
    "no values": ("grid: {epochs: [], stages: [1], optim.lr: []}", ["grid.epochs: no values", "grid.optim.lr: no val"]),
    "no list": ("grid: {epochs: 3}", ["grid.epochs: input should be a valid list, got 3"]),
    "a seed in the grid": ("grid: {seed: [1, 2]}", ["seed belongs to seeds, not to the grid"]),
    "a seed in the settings": ("config: {seed: 3}\nseeds: 2", ["seed belongs to seeds, not to the grid"]),
    "a seed in a part": ("also: [{config: {seed: 3}}]", ["seed belongs to seeds, not to the grid"]),
    "no seeds": ("seeds: 0", ["seeds: none"]),
    "a list of no seeds": ("grid: {epochs: [1]}\nseeds: []", ["seeds: none"]),
    "fewer than no seeds": ("seeds: -2", ["seeds: none"]),
    "no seeds of a part": ("also: [{grid: {epochs: [1]}, seeds: 0}]", ["seeds: none"]),
    "a negative seed": ("grid: {epochs: [1]}\nseeds: [0, -1]", ["epochs=1: seed must be at least 0, got -1"]),
    "seeds in words": ("seeds: many", ["seeds.int must be a whole number, got 'many'", "seeds.list"]),
    "profiles without names": (
        "config: {runtime: sim}\ngrid: {delays.profile: [{every_link: {loss: 0.1}}, {every_link: {loss: 0.2}}]}",
        ["two runs can't be told apart: {}, seed 0; delay profiles in the file need a name of their own each"],
    ),
    "profiles of one name": (
        "config: {runtime: sim}\n"
        "grid: {epochs: [1, 2], delays.profile: [none, {name: none, every_link: {loss: 0.2}}]}\nseeds: [4]",
        ["two runs can't be told apart: {'epochs': 1}, seed 4; delay profiles in the file need a name of their own"],
    ),
    "a name that is no file name": ("name: a/b\ngrid: {epochs: [1]}", ["name may hold letters, digits"]),
    "a figure without x": ("grid: {epochs: [1]}\nfigure: {y: test_accuracy}", ["figure.x is missing"]),
    "no mapping of settings": ("config: [1]", ["config must be a mapping, got [1]"]),
    "a value where a section belongs": (
        "config: {model: 3}\ngrid: {model.width: [4]}",
        ["model.width=4: model.width: model is a value, not a section"],
    ),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_file_is_refused_with_the_point(what, refused) -> None:
    text, expected = WRONG[what]
    problems = refused(text)
    assert len(problems) == len(expected)
    for problem, begin in zip(problems, expected, strict=True):
        assert problem.startswith(begin)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("grid: {epochs: [1]\n", "not valid YAML: "),
        ("- epochs\n", "expected a mapping of keys to values, got a list"),
        ("seeds: 1\nseeds: 2\n", "found duplicate key"),
        ("grid: !!python/object:os.system {}\n", "not valid YAML: "),
    ],
)
def test_what_is_no_mapping_is_refused(text, problem, refused) -> None:
    [found] = refused(text)
    assert found.startswith(problem)


def test_a_missing_file_is_named(tmp_path) -> None:
    with pytest.raises(ConfigError, match=r"sweep file .*nowhere\.yaml: No such file"):
        plan_sweep(tmp_path / "nowhere.yaml")


def test_a_seed_of_the_command_line_is_refused(load) -> None:
    with pytest.raises(ConfigError, match=r"mine\.yaml: seed belongs to seeds"):
        load("grid: {epochs: [1]}\n", {"seed": 3})


# --- The store --------------------------------------------------------------------------------------------------------


@pytest.fixture
def store(tmp_path) -> RunStore:
    (tmp_path / "runs").mkdir()
    return RunStore(tmp_path / "runs")


@pytest.fixture
def one(load) -> SweepRun:
    [run] = load("grid: {epochs: [2]}\nseeds: [3]\n").runs
    return run


@pytest.fixture
def end(summary_of):
    """``end(folder, status, mark)``: a run leaves in its folder what it leaves at its end."""

    def leave(folder: Path, status: str | None = "completed", mark: str = "") -> None:
        (folder / "output.log").write_text("what it said")
        (folder / "run").mkdir()
        (folder / "run" / "trace.jsonl").write_text(mark)
        if status is not None:
            text = summary_of(status=status, error=mark or None).model_dump_json()
            (folder / "run" / "summary.json").write_text(text)

    return leave


def names(path: Path) -> set[str]:
    return {p.relative_to(path).as_posix() for p in path.rglob("*") if p.is_file()}


def test_a_run_begins_in_a_fresh_folder_with_its_configuration(store, one, end) -> None:
    folder = store.begin(one)
    assert folder == store.path / WORK / f"{one.key}-{os.getpid()}"
    config = parse_config(load_yaml(folder / "config.yaml"))
    assert (config, run_key(config, DataHashes().of(config))) == (one.config, one.key)
    end(folder, "interrupted")
    assert names(store.begin(one)) == {"config.yaml"}
    assert not store.has(one.key)


def test_a_complete_run_is_moved_to_its_place(store, one, end) -> None:
    store.keep(failed := store.begin(one), one.key)
    assert not failed.exists()
    assert (store.path / FAILED / one.key).is_dir()
    folder = store.begin(one)
    end(folder, mark="new")
    assert not store.has(one.key)
    assert store.keep(folder, one.key)
    assert store.has(one.key)
    assert names(store.path) == {f"{one.key}/trace.jsonl", f"{one.key}/summary.json"}
    assert not (store.path / FAILED / one.key).exists()  # it has come good
    assert store.run_dir(one.key) == store.path / one.key


@pytest.mark.parametrize("status", ["failed", "interrupted", "terminated", None])
def test_another_end_is_kept_apart(status, store, one, end) -> None:
    for mark in ("first", "second"):
        folder = store.begin(one)
        end(folder, status, mark)
        assert not store.keep(folder, one.key)
        assert not store.has(one.key)
        assert not folder.exists()
        kept = store.path / FAILED / one.key
        assert (kept / "output.log").read_text() == "what it said"
        assert (kept / "run" / "trace.jsonl").read_text() == mark


def test_where_another_sweep_was_quicker_its_run_stays(store, one, end, summary_of) -> None:
    folder = store.begin(one)
    end(folder, mark="mine")
    store.run_dir(one.key).mkdir()
    (store.run_dir(one.key) / "summary.json").write_text(summary_of(error="theirs").model_dump_json())
    assert store.keep(folder, one.key)
    assert store.summary(one.key).error == "theirs"
    assert not folder.exists()


def test_half_a_run_at_its_place_gives_way(store, one, end) -> None:
    store.run_dir(one.key).mkdir()
    (store.run_dir(one.key) / "trace.jsonl").write_text("half a copy, without a summary")
    folder = store.begin(one)
    end(folder, mark="whole")
    assert store.broken(one.key) == f"{store.run_dir(one.key)}: no whole run"
    assert store.keep(folder, one.key) == "completed"
    assert store.has(one.key)
    assert store.broken(one.key) is None


def test_what_dead_sweeps_left_is_removed(store, one, end) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    own = store.begin(one)
    left = store.path / WORK / f"{one.key}-{dead.pid}"
    left.mkdir()
    end(left, "completed")
    end(store.begin(one), "completed")
    store.keep(own, one.key)
    own = store.begin(one)
    store.tidy()
    assert not left.exists()
    assert own.is_dir()
    assert store.has(one.key)
    RunStore(store.path / "nowhere").tidy()


BROKEN = ["", '{"status": "comp', "[]", "{}", "null", '{"status": "completed"}', "\0"]


@pytest.mark.parametrize("content", BROKEN)
def test_a_run_whose_summary_is_broken_is_made_again(store, one, end, content) -> None:
    end(folder := store.begin(one))
    store.keep(folder, one.key)
    (store.run_dir(one.key) / "summary.json").write_text(content)
    assert not store.has(one.key)
    assert store.broken(one.key).startswith(f"{store.run_dir(one.key) / 'summary.json'}: not a summary of a run")
    end(folder := store.begin(one), mark="again")
    assert store.keep(folder, one.key) == "completed"
    assert store.summary(one.key).error == "again"


def test_a_failed_run_in_the_place_of_a_whole_one_is_made_again(store, one, summary_of) -> None:
    store.run_dir(one.key).mkdir()
    (store.run_dir(one.key) / "summary.json").write_text(summary_of(status="failed").model_dump_json())
    assert not store.has(one.key)
    assert store.broken(one.key) == f"{store.run_dir(one.key)}: no whole run"


def test_a_diverged_run_is_a_result(store, one, end) -> None:
    end(folder := store.begin(one), "diverged")
    assert store.keep(folder, one.key) == "diverged"
    assert store.has(one.key)


# --- Execution --------------------------------------------------------------------------------------------------------


class FakeJob:
    """Ends at its ``polls``-th poll with what ``status`` says; None: it never ends by itself."""

    def __init__(self, folder: Path, polls: int | None, status: str, under_way: set[Path], end: Any) -> None:
        self.folder, self.polls, self.status, self.under_way, self.end = folder, polls, status, under_way, end
        self.stopped = False
        under_way.add(folder)

    def poll(self) -> int | None:
        if self.folder not in self.under_way:
            return 0
        if self.stopped or self.polls == 0:
            self.end(self.folder, "terminated" if self.stopped else self.status)
            self.under_way.remove(self.folder)
            return 0
        if self.polls is not None:
            self.polls -= 1
        return None

    def stop(self) -> None:
        self.stopped = True


@pytest.fixture
def at_once(monkeypatch) -> None:
    """No waiting between two polls."""
    monkeypatch.setattr(execute_module, "POLL_S", 0.0)


def test_runs_are_made_in_order_some_at_a_time(at_once, load, store, end) -> None:
    runs = load("grid: {epochs: [1, 2, 3, 4, 5]}\n").runs
    started: list[str] = []
    under_way: set[Path] = set()
    most = 0

    def start(folder: Path) -> FakeJob:
        nonlocal most
        started.append(folder.name.partition("-")[0])
        job = FakeJob(folder, len(started) % 3, "failed" if len(started) == 2 else "completed", under_way, end)
        most = max(most, len(under_way))
        return job

    ended: list[Finished] = []
    execute(runs, store, start, 2, ended.append, lambda: None)
    assert started == [run.key for run in runs]
    assert most == 2
    assert {(e.run.key, e.status is not None) for e in ended} == {(run.key, run is not runs[1]) for run in runs}
    for e in ended:
        assert e.path == (store.path if e.status is not None else store.path / FAILED) / e.run.key
        assert (e.path / "summary.json" if e.status is not None else e.path / "output.log").is_file()
        assert e.seconds >= 0
    assert [store.has(run.key) for run in runs] == [True, False, True, True, True]
    assert list((store.path / WORK).iterdir()) == []


def test_a_stop_ends_what_is_under_way_and_keeps_what_is_done(at_once, load, store, end) -> None:
    runs = load("grid: {epochs: [1, 2, 3]}\n").runs
    under_way: set[Path] = set()
    ended: list[Finished] = []

    def check() -> None:
        if ended:
            raise KeyboardInterrupt

    def start(folder: Path) -> FakeJob:
        return FakeJob(folder, 0 if runs[0].key in folder.name else None, "completed", under_way, end)

    with pytest.raises(KeyboardInterrupt):
        execute(runs, store, start, 2, ended.append, check)
    assert [e.run.key for e in ended] == [runs[0].key]
    assert [store.has(run.key) for run in runs] == [True, False, False]
    assert under_way == set()
    assert list((store.path / WORK).iterdir()) == []
    assert not (store.path / FAILED).exists()  # a run that was stopped has not failed


# --- Estimates --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("values", [[0.5, 0.6], [0.91, 0.93, 0.92], [3.0, 3.0, 3.0], list(np.linspace(-2, 9, 17))])
def test_mean_deviation_and_interval(values) -> None:
    found = estimate(values)
    assert found.count == len(values)
    assert found.mean == pytest.approx(np.mean(values))
    assert found.sd == pytest.approx(np.std(values, ddof=1))
    if found.sd:
        scale = scipy.stats.sem(values)
        low, high = scipy.stats.t.interval(0.95, len(values) - 1, loc=np.mean(values), scale=scale)
        assert (found.low, found.high) == (pytest.approx(low), pytest.approx(high))
    else:
        assert found.low == found.mean == found.high


def test_an_interval_by_hand() -> None:
    # t of 97.5 % with two degrees of freedom is 4.30265; sd 0.1, n 3.
    found = estimate([0.4, 0.5, 0.6])
    assert found.sd == pytest.approx(0.1)
    assert found.high == pytest.approx(0.5 + 4.30265 * 0.1 / math.sqrt(3), abs=1e-5)


def test_one_number_has_no_interval() -> None:
    found = estimate([0.25])
    assert (found.mean, found.sd, found.low, found.high, found.count) == (0.25, None, None, None, 1)


# --- Tables -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def results_of(load, tmp_path, summary_of):
    """``results_of(text, accuracies)``: the results of a sweep with those test accuracies; None is a missing run, and
    DIVERGED one that diverged."""

    def summary(accuracy: float, staleness: float | None) -> str:
        """Without a staleness, of a run with one stage."""
        nothing = {"stages": summary_of().stages[:1], "buffers": ()} if staleness is None else {}
        status = "diverged" if accuracy == DIVERGED else "completed"
        accuracies = {"test_accuracy": max(accuracy, 0.0), "ensemble_test_accuracy": min(max(accuracy, 0.0) + 0.01, 1)}
        return summary_of(status=status, **accuracies, **nothing).model_dump_json()

    def make(text: str, accuracies: list[float | None], staleness: float | None = 2.5, runs: str = "sweep/runs"):
        sweep = load(text)
        folder = tmp_path / "sweep"
        folder.mkdir(exist_ok=True)
        kept = RunStore(tmp_path / runs)
        for run, accuracy in zip(sweep.runs, accuracies, strict=True):
            if accuracy is not None:
                kept.run_dir(run.key).mkdir(parents=True)
                (kept.run_dir(run.key) / "summary.json").write_text(summary(accuracy, staleness))
        write_index(sweep, folder, kept)
        return load_sweep(folder)

    return make


DIVERGED = -1.0
TWO_POINTS = "grid: {buffer.size: [2, 5]}\nseeds: 3\n"


def test_a_point_is_the_mean_over_its_seeds(results_of) -> None:
    first, second = results_of(TWO_POINTS, [0.5, 0.6, 0.7, 0.8, 0.9, 0.85]).points
    assert (first.values, first.seeds) == ({"buffer.size": 2}, [0, 1, 2])
    assert (second.values, second.seeds) == ({"buffer.size": 5}, [0, 1, 2])
    assert set(first.estimates) == {name for name in MEASURES if "validation" not in name}
    assert (first.planned, first.diverged, first.differs_in) == (3, 0, [])
    assert first.measured["test_accuracy"] == [0.5, 0.6, 0.7]
    assert first.estimates["test_accuracy"] == estimate([0.5, 0.6, 0.7])
    assert second.estimates["test_accuracy"] == estimate([0.8, 0.9, 0.85])
    assert second.estimates["ensemble_test_accuracy"].mean == pytest.approx(0.86)
    others = {"staleness": 2.5, "times_sampled": 2.5, "batch_age": 2.5, "batches_unseen": 0.25}
    others |= {"busy_fraction": 0.5, "entries_held": 1.5}
    assert {name: second.estimates[name].mean for name in others} == others
    assert second.estimates["updates_per_time"].mean == 4.0
    assert second.estimates["train_seconds"].mean == 7.5


def test_the_table_shows_interval_and_deviation(results_of) -> None:
    text = points_markdown(results_of(TWO_POINTS, [0.4, 0.5, 0.6, 0.8, 0.8, 0.8]))
    header, rule, first, second, empty, note = text.splitlines()
    assert header == (
        "| buffer.size | seeds | test accuracy | ensemble test accuracy | batch age | batches unseen | staleness | "
        "times sampled |"
    )
    assert set(rule) == set("|- ")
    half = 4.302652729911275 * 0.1 / math.sqrt(3)
    assert first.startswith(f"| 2 | 3 | 0.50 ± {half:.2f} (0.10) | 0.51 ± ")
    assert second.startswith("| 5 | 3 | 0.8000 ± 0 |")
    assert len({line.count("|") for line in (header, rule, first, second)}) == 1
    assert empty == ""
    assert "95 % interval" in note
    assert "missing" not in note
    assert "diverged" not in note


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.1, 0.9, 0.5], "0.50 ± 0.99 (0.40)"),
        ([0.91, 0.92, 0.93], "0.920 ± 0.025 (0.010)"),
        ([9.950075642965205, 9.95, 9.95], "9.9500 ± 0.0001 (0.0000)"),
        ([100.0, 300.0, 200.0], "200 ± 248 (100)"),
        ([0.25], "0.2500"),
    ],
)
def test_a_number_has_the_decimals_that_its_interval_leaves(values, expected) -> None:
    assert shown(estimate(values)) == expected


def test_missing_runs_are_noted_and_their_points_left_out(results_of) -> None:
    results = results_of(TWO_POINTS, [0.5, None, 0.7, None, None, None])
    [only] = results.points
    assert (only.values, only.seeds) == ({"buffer.size": 2}, [0, 2])
    assert only.estimates["test_accuracy"] == estimate([0.5, 0.7])
    assert points_markdown(results).rstrip().endswith("; 4 of 6 runs are missing")
    assert "| 2 | 2 of 3 |" in points_markdown(results)
    assert "| 5 |" not in points_markdown(results)
    assert len(results.runs_table()) == 2


def test_diverged_runs_are_counted_and_the_mean_says_so(results_of) -> None:
    results = results_of(TWO_POINTS, [0.5, DIVERGED, 0.7, DIVERGED, DIVERGED, DIVERGED])
    some, none = results.points
    assert (some.seeds, some.planned, some.diverged) == ([0, 2], 3, 1)
    assert some.estimates["test_accuracy"] == estimate([0.5, 0.7])
    assert (none.seeds, none.diverged, none.estimates) == ([], 3, {})
    text = points_markdown(results)
    assert "| 2 | 2 of 3 (1 diverged) | 0.6" in text
    assert "| 5 | 0 of 3 (3 diverged) |  |" in text
    assert "some runs diverged: a mean is over the seeds that did not" in text
    assert "missing" not in text
    frame = results.table()
    assert (list(frame["seeds"]), list(frame["planned"]), list(frame["diverged"])) == ([2, 0], [3, 3], [1, 3])
    assert frame["test_accuracy_mean"].isna().tolist() == [False, True]
    runs = results.runs_table()
    assert list(runs["status"]) == ["completed", "diverged", "completed", *["diverged"] * 3]
    assert runs["test_accuracy"].isna().tolist() == [False, True, False, True, True, True]
    found = json.loads(results_json(results))
    assert [point["diverged"] for point in found["points"]] == [1, 3]


def test_what_differs_within_a_point_is_named(results_of, small_config) -> None:
    results = results_of(TWO_POINTS, [0.5, 0.6, 0.7, 0.8, 0.9, 0.85])
    for number, run in enumerate(results.runs):
        cut = [1, 2] if number == 1 else [1, 3]
        config = small_config(stages=3, model={"blocks": 4, "cut": cut})
        (run.path / "config.yaml").write_text(dump_config(config))
        environment = describe_environment(config, "abc", 2).model_dump()
        environment["packages"]["numpy"] = "1.0" if number == 5 else "2.0"
        (run.path / "environment.json").write_text(Environment.model_validate(environment).model_dump_json())
    results = load_sweep(results.path)
    assert [point.differs_in for point in results.points] == [["model.cut"], ["numpy"]]
    assert "runs of one point differ in: model.cut, numpy" in points_markdown(results)
    assert list(results.table()["differs_in"]) == ["model.cut", "numpy"]


def test_validation_accuracy_is_in_every_table(results_of, summary_of) -> None:
    results = results_of("grid: {buffer.size: [2]}\n", [0.5])
    held_out = {"validation_accuracy": 0.75, "ensemble_validation_accuracy": 0.875}
    (results.runs[0].path / "summary.json").write_text(summary_of(**held_out).model_dump_json())
    results = load_sweep(results.path)
    assert "| validation accuracy |" in points_markdown(results)
    assert results.table()["validation_accuracy_mean"][0] == 0.75
    assert results.runs_table()["ensemble_validation_accuracy"][0] == 0.875


@pytest.mark.parametrize(
    ("runtime", "absent"),
    [
        ("ray", set()),
        ("virtual", {"updates_per_time"}),
        ("sim", {"updates_per_time", "train_seconds", "busy_fraction"}),
    ],
)
def test_times_stand_only_where_they_mean_something(summary_of, runtime, absent) -> None:
    timed = {"updates_per_time", "train_seconds", "busy_fraction"}
    assert timed - set(measured(summary_of(runtime=runtime))) == absent


def test_the_table_as_latex(results_of) -> None:
    text = points_latex(results_of(HARD, [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 1 / 3, 0.5]))
    assert "\\toprule" in text
    assert r"delays.profile & model.downsample & algorithm & seeds & test accuracy" in text
    assert r'a, "b" | c &' in text
    assert r"0.15 $\pm$ 0.64 (0.07)" in text
    assert text.count(r"\\") == 6


def test_one_seed_has_a_mean_alone(results_of) -> None:
    results = results_of("grid: {buffer.size: [2, 5]}\n", [0.5, 0.75])
    assert "| 5 | 1 | 0.7500 | 0.7600 | 2.5000 | 0.2500 | 2.5000 | 2.5000 |" in points_markdown(results)
    [_, row] = list(csv.DictReader(io.StringIO(results.table().to_csv(index=False))))
    assert (row["test_accuracy_mean"], row["test_accuracy_sd"]) == ("0.75", "")
    assert (row["test_accuracy_low"], row["test_accuracy_high"]) == ("", "")


def test_a_measure_that_no_run_has_is_no_column_for_a_person(results_of) -> None:
    results = results_of("config: {stages: 1}\ngrid: {epochs: [1, 2]}\n", [0.5, 0.75], staleness=None)
    assert "staleness" not in points_markdown(results)
    [row, _] = list(csv.DictReader(io.StringIO(results.table().to_csv(index=False))))
    assert row["staleness_mean"] == ""
    [row, _] = list(csv.DictReader(io.StringIO(results.runs_table().to_csv(index=False))))
    assert row["staleness"] == ""


HARD = """\
grid:
  delays.profile: [none, {name: 'a, "b" | c', every_link: {loss: 0.1}}]
  model.downsample: [[2], [2, 3]]
seeds: [1, 8]
also:
  - grid: {algorithm: [backprop]}
    seeds: [5]
"""
"""Values with all that a CSV or a Markdown table gives a meaning to, lists, and a key that means nothing to a point."""


def test_csv_tables_parse_back(results_of) -> None:
    accuracies = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 1 / 3, 0.123456789012345678]
    results = results_of(HARD, accuracies)
    keys = ["delays.profile", "model.downsample", "algorithm"]
    assert results.columns == keys
    rows = list(csv.DictReader(io.StringIO(results.runs_table().to_csv(index=False))))
    assert list(rows[0]) == [*keys, "seed", "run", "status", *MEASURES]
    assert [float(row["test_accuracy"]) for row in rows] == accuracies  # every bit
    assert [row["run"] for row in rows] == [run.key for run in results.runs]
    assert [row["seed"] for row in rows] == ["1", "8"] * 4 + ["5"]
    shown = [(row["delays.profile"], json.loads(row["model.downsample"]), row["algorithm"]) for row in rows]
    name = 'a, "b" | c'
    assert shown == [
        *([("none", [2], "async-dgl")] * 2 + [("none", [2, 3], "async-dgl")] * 2),
        *([(name, [2], "async-dgl")] * 2 + [(name, [2, 3], "async-dgl")] * 2),
        ("", [2], "backprop"),
    ]
    rows = list(csv.DictReader(io.StringIO(results.table().to_csv(index=False))))
    parts = ("mean", "sd", "low", "high")
    counts = ["seeds", "planned", "diverged", "differs_in"]
    assert list(rows[0]) == [*keys, *counts, *(f"{name}_{part}" for name in MEASURES for part in parts)]
    assert [row["seeds"] for row in rows] == ["2"] * 4 + ["1"]
    assert float(rows[4]["test_accuracy_mean"]) == accuracies[8]
    expected = estimate(accuracies[2:4])
    assert [float(rows[1][f"test_accuracy_{part}"]) for part in parts] == [getattr(expected, part) for part in parts]
    assert '| a, "b" \\| c | [2, 3] | async-dgl | 2 |' in points_markdown(results)


def test_tables_are_written_whole(results_of) -> None:
    results = results_of(TWO_POINTS, [0.5, 0.6, 0.7, 0.8, 0.9, 0.85])
    written = write_tables(results)
    texts = {"table.md": points_markdown(results), "table.tex": points_latex(results)}
    for name, text in texts.items():
        assert results.path / name in written
        assert (results.path / name).read_text(encoding="utf-8") == text
    assert {path.name for path in results.path.iterdir()} == {"sweep.json", "runs", *(path.name for path in written)}


def test_a_sweep_can_be_moved_with_its_runs(results_of, tmp_path) -> None:
    before = results_of(TWO_POINTS, [0.5, 0.6, 0.7, 0.8, 0.9, 0.85]).points
    (tmp_path / "sweep").rename(tmp_path / "elsewhere")
    assert load_sweep(tmp_path / "elsewhere").points == before


def test_runs_that_are_shared_stay_where_they_are(results_of, tmp_path) -> None:
    before = results_of(TWO_POINTS, [0.5, 0.6, 0.7, 0.8, 0.9, 0.85], runs="shared").points
    assert len(before) == 2
    (tmp_path / "sweep").rename(tmp_path / "elsewhere")
    assert load_sweep(tmp_path / "elsewhere").points == before


def test_another_folder_is_no_sweep(tmp_path) -> None:
    with pytest.raises(DataError, match=r"holds no sweep: it has no sweep\.json"):
        load_sweep(tmp_path)
