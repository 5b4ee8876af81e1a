"""Configurations: defaults, YAML in and out, and every wrong input as a readable problem."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asyncdgl.config.defaults import merged
from asyncdgl.config.model import RunConfig
from asyncdgl.config.yaml import dump_config, load_yaml, parse_assignment, parse_config, parse_yaml, set_key
from asyncdgl.errors import ConfigError

PROFILE = {
    "name": "mixed",
    "unit": "steps",
    "every_stage": {"slowdown": 1.25},
    "stages": {2: {"slowdown": 3, "step_law": "exponential", "pause": {"probability": 0.1, "length": 5}}},
    "links": {1: {"latency": {"law": "uniform", "mean": 4, "spread": 1}, "bandwidth": 1e6, "loss": 0.01}},
    "window": 3.5,
}


def problems(tree: dict[str, Any], given: tuple[str, ...] = ()) -> list[str]:
    with pytest.raises(ConfigError) as error:
        parse_config(tree, given)
    assert str(error.value) == "\n".join(error.value.lines)
    return error.value.problems


# --- Defaults ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dataset", "expected"),
    [
        (
            "digits",
            "4 stages, 15 epochs of 32, 8 pixels, blocks 4 x 16 (2,), mlp, lr 0.05 every 6, augment False",
        ),
        (
            "fashion-mnist",
            "4 stages, 12 epochs of 128, 28 pixels, blocks 4 x 32 (2, 4), mlp-sr, lr 0.1 every 5, augment True",
        ),
        (
            "cifar10",
            "6 stages, 50 epochs of 128, 32 pixels, blocks 6 x 128 (2, 4), mlp-sr, lr 0.1 every 15, augment True",
        ),
        (
            "image-folder",
            "6 stages, 50 epochs of 128, 32 pixels, blocks 6 x 128 (2, 4), mlp-sr, lr 0.1 every 15, augment True",
        ),
        (
            "synthetic",
            "4 stages, 2 epochs of 32, 16 pixels, blocks 4 x 16 (2, 4), mlp, lr 0.05 every 15, augment False",
        ),
    ],
)
def test_defaults_by_data_set(dataset, expected) -> None:
    data = {"dataset": dataset, **({"data_dir": "/images"} if dataset == "image-folder" else {})}
    c = parse_config({"data": data})
    assert (
        f"{c.stages} stages, {c.epochs} epochs of {c.batch_size}, {c.data.image_size} pixels, blocks {c.model.blocks} "
        f"x {c.model.width} {c.model.downsample}, {c.model.aux}, lr {c.optim.lr} every {c.optim.lr_decay_every}, "
        f"augment {c.data.augment}"
    ) == expected
    assert c.name == f"{dataset}-none"


def test_cifar10_is_trained_as_in_the_paper() -> None:
    c = parse_config({"data": {"dataset": "cifar10"}})
    assert c.data.mean == (0.4914, 0.4822, 0.4465)
    assert c.data.std == (0.2023, 0.1994, 0.2010)
    assert (c.optim.momentum, c.optim.weight_decay, c.optim.lr_decay_factor) == (0.9, 5e-4, 5.0)


def test_nothing_given_is_the_default_run() -> None:
    c = parse_config({})
    assert (c.algorithm, c.runtime, c.pace, c.data.dataset, c.seed) == ("async-dgl", "ray", "profile", "digits", 0)
    assert c.buffer.model_dump() == {
        "size": 10,
        "sampler": "priority_lifo",
        "max_reuse": None,
        "codec": "none",
        "on_full": "overwrite",
        "min_size": 1,
        "max_age": None,
        "prefetch": 1,
    }
    assert (c.data.validation, c.model.head, c.evaluation.every, c.delays.profile) == (0, "mlp-2", 1, "none")


@pytest.mark.parametrize(
    ("tree", "expected"),
    [
        ({}, ("ray", 1)),
        ({"runtime": "sim"}, ("sim", 0)),
        ({"algorithm": "backprop"}, ("sim", 0)),
        ({"algorithm": "sync-dgl"}, ("ray", 1)),
    ],
    ids=["default", "sim", "backprop", "sync-dgl"],
)
def test_runtime_and_prefetch_follow_the_algorithm(tree, expected) -> None:
    c = parse_config(tree)
    assert (c.runtime, c.buffer.prefetch) == expected


@pytest.mark.parametrize(
    ("tree", "name"),
    [
        ({"delays": {"profile": "slow_stage2"}}, "digits-slow_stage2"),
        ({"algorithm": "sync-dgl"}, "digits-sync-dgl"),
        ({"data": {"dataset": "synthetic"}, "delays": {"profile": {"name": "mine"}}}, "synthetic-mine"),
        ({"delays": {"profile": {}}}, "digits-custom"),
        ({"name": "mine"}, "mine"),
    ],
    ids=["profile", "algorithm", "inline-profile", "inline-without-name", "given"],
)
def test_a_run_has_a_telling_name(tree, name) -> None:
    assert parse_config(tree).name == name


def test_milestones_replace_the_regular_drops() -> None:
    c = parse_config({"optim": {"lr_milestones": [10, 20]}})
    assert (c.optim.lr_decay_every, c.optim.lr_milestones) == (None, (10, 20))


def test_what_is_given_beats_the_default_and_leaves_the_rest() -> None:
    c = parse_config({"data": {"dataset": "cifar10"}, "model": {"width": 8}, "epochs": 1})
    assert (c.model.width, c.epochs) == (8, 1)
    assert (c.model.blocks, c.batch_size) == (6, 128)


def test_merged_keeps_its_arguments() -> None:
    base, over = {"a": {"b": 1, "c": 2}, "d": 3}, {"a": {"b": 4}, "d": {"e": 5}}
    assert merged(base, over) == {"a": {"b": 4, "c": 2}, "d": {"e": 5}}
    assert base == {"a": {"b": 1, "c": 2}, "d": 3}


@pytest.mark.parametrize(("algorithm", "stages"), [("async-dgl", 3), ("sync-dgl", 3), ("backprop", 1)])
def test_trained_stages(algorithm, stages) -> None:
    assert parse_config({"algorithm": algorithm, "stages": 3}).trained_stages == stages


def test_a_configuration_does_not_change() -> None:
    with pytest.raises(ValueError, match="frozen"):
        parse_config({}).epochs = 3


# --- YAML in and out --------------------------------------------------------------------------------------------------


def read_back(config: RunConfig) -> RunConfig:
    return parse_config(parse_yaml(dump_config(config), "config.yaml"))


@pytest.mark.parametrize(
    "tree",
    [
        pytest.param({}, id="default"),
        pytest.param({"runtime": "sim", "stages": 1}, id="one-stage"),
        pytest.param({"algorithm": "backprop", "threads": 3}, id="backprop"),
        pytest.param({"algorithm": "sync-dgl", "runtime": "sim"}, id="sync-dgl-sim"),
        pytest.param({"algorithm": "sync-dgl", "delays": {"profile": "wan"}}, id="sync-dgl-ray"),
        pytest.param({"data": {"dataset": "cifar10", "data_dir": "/a b"}, "precision": "bf16"}, id="cifar10"),
        pytest.param(
            {"data": {"dataset": "image-folder", "data_dir": "/x", "image_size": 64, "validation": 0.1}}, id="folder"
        ),
        pytest.param({"data": {"dataset": "synthetic", "mean": [0.5] * 3, "std": [0.25] * 3}}, id="synthetic"),
        pytest.param({"delays": {"profile": "slow_stage3", "slowdown": 1.1}}, id="slowdown"),
        pytest.param({"delays": {"profile": PROFILE}}, id="inline-profile"),
        pytest.param({"optim": {"lr_milestones": [3, 5], "weight_decay": 1e-9}}, id="milestones"),
        pytest.param({"optim": {"lr_decay_every": None, "momentum": 0}}, id="no-drop"),
        pytest.param(
            {"buffer": {"size": 3, "on_full": "block", "max_reuse": 2, "min_size": 2, "max_age": 9, "codec": "int8"}},
            id="buffer",
        ),
        pytest.param({"ray": {"address": "host:6379"}, "pace": "free"}, id="ray"),
    ],
)
def test_a_configuration_survives_its_file(tree) -> None:
    config = parse_config(tree)
    again = read_back(config)
    assert again == config
    assert again.profile == config.profile
    assert dump_config(again) == dump_config(config)


NAMES = st.from_regex(r"\A[A-Za-z0-9_][A-Za-z0-9._+-]{0,20}\Z") | st.sampled_from(
    ["null", "true", "no", "1e5", "0x1F", "007", "1_000", "2030-01-02", "1.5", "_", "NaN", "0o17"]
)
POSITIVE = st.floats(1e-12, 1e12)


@given(
    NAMES,
    st.integers(0, 2**63 - 1),
    POSITIVE,
    st.floats(0, 1, exclude_max=True),
    st.text(st.characters(codec="utf-8", exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=20),
    st.floats(1, 1e6),
)
@settings(max_examples=40)
def test_every_value_survives_its_file(name, seed, lr, share, folder, slowdown) -> None:
    config = parse_config(
        {
            "name": name,
            "seed": seed,
            "optim": {"lr": lr, "momentum": share},
            "data": {"dataset": "cifar10", "data_dir": folder, "validation": share},
            "delays": {"profile": "slow_stage1", "slowdown": slowdown},
        }
    )
    assert read_back(config) == config


def test_a_profile_from_a_file_becomes_part_of_the_configuration(tmp_path) -> None:
    path = tmp_path / "mixed.yaml"
    path.write_text("stages:\n  2: {slowdown: 3}\nlinks:\n  1:\n    latency: {law: exponential, mean: 2}\n")
    config = parse_config({"delays": {"profile": str(path)}})
    assert config.profile.name == "mixed"
    assert config.profile.stage(2).slowdown == 3
    assert config.profile.link(1).latency.mean == 2
    assert config.name == "digits-mixed"
    path.unlink()
    assert read_back(config) == config


def test_a_profile_file_may_name_itself(tmp_path) -> None:
    path = tmp_path / "file.yml"
    path.write_text("name: own\n")
    assert parse_config({"delays": {"profile": str(path)}}).profile.name == "own"


def test_a_profile_that_is_wrong_names_its_place(tmp_path) -> None:
    path = tmp_path / "mixed.yaml"
    path.write_text("stages:\n  2: {slowdown: 0.5}\n")
    (found,) = problems({"delays": {"profile": str(path)}})
    assert found.startswith("delays.profile.stages.2.slowdown must be at least 1")
    missing = str(tmp_path / "none.yaml")
    assert problems({"delays": {"profile": missing}}) == [f"delay profile {missing}: No such file or directory"]


@pytest.mark.parametrize("name", ["my profile", "größer", ".hidden"])
def test_a_profile_may_have_any_name(name, tmp_path) -> None:
    """The name of the run is made from it; nobody asked for that one, so that it can't be what is wrong."""
    assert parse_config({"delays": {"profile": {"name": name}}}).profile.name == name
    path = tmp_path / f"{name}.yaml"
    path.write_text("window: 3\n")
    assert parse_config({"delays": {"profile": str(path)}}).profile.window == 3


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        pytest.param(b"a: 1\nb: 2\na: 3\n", 'found duplicate key "a"', id="key-twice"),
        pytest.param(b"a: [1, 2\n", "not valid YAML: ", id="bracket-open"),
        pytest.param(b"a: b: c\n", "not valid YAML: mapping values are not allowed here, line 1", id="two-colons"),
        pytest.param(b"- 1\n", "expected a mapping of keys to values, got a list", id="list"),
        pytest.param(b"text\n", "expected a mapping of keys to values, got a text", id="text"),
        pytest.param(b"3\n", "expected a mapping of keys to values, got a number", id="number"),
        pytest.param(b"2030-01-02\n", "expected a mapping of keys to values, got date", id="date"),
        pytest.param(b"a: \xff\n", "not a text file in UTF-8", id="not-utf-8"),
        pytest.param(b"a: !!python/object/apply:os.getcwd []\n", "not valid YAML: ", id="python-object"),
        pytest.param(b"a: 2030-99-99\n", "not valid YAML: ", id="impossible-date"),
        pytest.param(b"a: \x01\n", "not valid YAML: ", id="control-character"),
    ],
)
def test_a_file_that_is_no_configuration(tmp_path, content, problem) -> None:
    path = tmp_path / "config.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as error:
        load_yaml(path)
    assert str(error.value).startswith(f"config file {path}: ")
    assert problem in str(error.value)


def test_files_that_cannot_be_read(tmp_path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        load_yaml(tmp_path / "none.yaml")
    with pytest.raises(ConfigError, match="Is a directory"):
        load_yaml(tmp_path)


def test_files_are_read_to_a_limit(tmp_path) -> None:
    """What would never end, or take minutes, is refused at once."""
    large = tmp_path / "large.yaml"
    large.write_text("model:\n  downsample: [" + ", ".join(["1"] * 10**6) + "]\n")
    os.mkfifo(tmp_path / "fifo.yaml")
    (tmp_path / "zero.yaml").symlink_to("/dev/zero")
    for name, problem in (("large", "larger than 256 KB"), ("fifo", "not a regular file"), ("zero", "not a regular")):
        path = tmp_path / f"{name}.yaml"
        began = time.process_time()
        with pytest.raises(ConfigError, match=problem):
            load_yaml(path)
        assert problem in problems({"delays": {"profile": str(path)}})[0]
        assert time.process_time() - began < 1
    with pytest.raises(ConfigError, match="NUL"):
        load_yaml(tmp_path / "a\0b.yaml")
    with pytest.raises(ConfigError, match="File name too long") as error:
        load_yaml(tmp_path / ("x" * 100_000))
    assert len(str(error.value)) < 200


@pytest.mark.parametrize("text", ["", "# none\n", "---\n", "{}\n"])
def test_an_empty_profile_file_is_no_profile(tmp_path, text) -> None:
    """Nobody who names a file means no delay."""
    path = tmp_path / "p.yaml"
    path.write_text(text)
    (found,) = problems({"delays": {"profile": str(path)}})
    assert found.startswith(f"delay profile {path}: the file is empty")
    assert "asyncdgl profiles" in found


@pytest.mark.parametrize("text", ["", "# only a comment\n", "---\n"], ids=["empty", "comment", "document"])
def test_an_empty_file_is_an_empty_mapping(tmp_path, text) -> None:
    (tmp_path / "config.yaml").write_text(text)
    assert load_yaml(tmp_path / "config.yaml") == {}


def test_yaml_is_version_1_2() -> None:
    assert parse_yaml("{a: no, b: 1e-3, c: 0o17, d: null}", "here") == {"a": "no", "b": 0.001, "c": 15, "d": None}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("buffer.size=30", ("buffer.size", 30)),
        ("a=b=c", ("a", "b=c")),
        ("name=", ("name", None)),
        ("model.downsample=[3, 5]", ("model.downsample", [3, 5])),
        (" epochs = 3", ("epochs", 3)),
    ],
)
def test_assignments(text, expected) -> None:
    assert parse_assignment(text) == expected


@pytest.mark.parametrize("text", ["epochs", "=3", "a..b=1", ".a=1", "a.=1", ""])
def test_wrong_assignments(text) -> None:
    with pytest.raises(ConfigError, match="expected KEY=VALUE"):
        parse_assignment(text)


def test_an_assignment_of_no_yaml_names_its_key() -> None:
    with pytest.raises(ConfigError, match=r"--set model\.downsample: not valid YAML"):
        parse_assignment("model.downsample=[3")


def test_keys_are_set_in_sections() -> None:
    tree: dict[str, Any] = {"a": {"b": 1}}
    set_key(tree, "a.c", 2)
    set_key(tree, "d.e.f", 3)
    set_key(tree, "g", 4)
    assert tree == {"a": {"b": 1, "c": 2}, "d": {"e": {"f": 3}}, "g": 4}
    with pytest.raises(ConfigError, match=r"g\.h: g is a value, not a section"):
        set_key(tree, "g.h", 5)


# --- Wrong inputs -----------------------------------------------------------------------------------------------------


def test_all_problems_of_fields_are_told_together() -> None:
    tree = {
        "epochs": 0,
        "seed": -1,
        "batch_size": "many",
        "data": {"dataset": "mnist", "validation": 1},
        "optim": {"lr": 0, "momentum": float("nan")},
        "buffer": {"sizes": 3},
        "nonsense": 1,
    }
    found = problems(tree)
    assert len(found) == 9
    for part in (
        "epochs must be at least 1, got 0",
        "seed must be at least 0, got -1",
        "batch_size must be a whole number, got 'many'",
        "data.dataset must be one of digits, fashion-mnist, cifar10, image-folder, synthetic, or package.module:",
        "data.validation must be below 1",
        "optim.lr must be above 0",
        "optim.momentum must be a finite number, got nan",
        "buffer.sizes: unknown key; did you mean size?",
        "nonsense: unknown key",
    ):
        assert [line for line in found if line.startswith(part)], part


def test_all_problems_between_fields_are_told_together() -> None:
    tree = {
        "stages": 5,
        "model": {"blocks": 4, "downsample": [2, 2, 7]},
        "data": {"dataset": "cifar10", "image_size": 16, "mean": [0.5], "std": [0.5, 0.5]},
        "buffer": {"min_size": 20, "on_full": "block"},
        "optim": {"lr_decay_every": 3, "lr_milestones": [5, 5]},
        "delays": {"profile": {"stages": {9: {}}, "links": {5: {}}}},
    }
    found = problems(tree)
    for part in (
        "stages must be at most model.blocks (4)",
        "model.downsample names block 7, but the network has 4 blocks",
        "model.downsample names a block twice",
        "data.image_size of cifar10 is 32, got 16",
        "data.mean has 1 channels and data.std 2",
        "buffer.min_size must be at most buffer.size (10), got 20",
        "buffer.on_full block needs a finite buffer.max_reuse",
        "optim.lr_decay_every and optim.lr_milestones exclude each other",
        "optim.lr_milestones must grow",
        "delays.profile custom delays stage 9, but the network has 5 stages",
        "delays.profile custom delays link 5, but the network has 4 links",
    ):
        assert [line for line in found if line.startswith(part)], part
    assert len(found) == 11


def test_the_problems_of_an_error_survive_a_process_boundary() -> None:
    error = pickle.loads(pickle.dumps(ConfigError(["one", "two"])))
    assert error.problems == ["one", "two"]
    assert str(error) == "one\ntwo"
    assert ConfigError("alone").problems == ["alone"]


@pytest.mark.parametrize(
    ("tree", "problem"),
    [
        pytest.param({"algorithm": "backprop", "runtime": "ray"}, "use --runtime sim", id="backprop-ray"),
        pytest.param({"data": {"dataset": "image-folder"}}, "needs --data-dir", id="folder-without-place"),
        pytest.param({"device": "cuda", "ray": {"spares": 1}}, "ray.spares goes with --device cpu", id="spares-cuda"),
        pytest.param({"ray": {"spares": -1}}, "ray.spares must be", id="spares-negative"),
        pytest.param({"ray": {"spares": 65}}, "ray.spares must be", id="spares-many"),
        pytest.param({"runtime": "sim", "ray": {"spares": 1}}, "ray.spares has no effect here", id="spares-sim"),
        pytest.param({"data": {"dataset": "synthetic", "mean": [0.5]}}, "must be given together", id="mean-alone"),
        pytest.param(
            {"data": {"dataset": "synthetic", "image_size": 6}, "model": {"downsample": [1, 2]}},
            "would have 1 pixels",
            id="too-small-images",
        ),
        pytest.param({"delays": {"profile": "slow_stage9"}}, "delays stage 9", id="stage-that-is-not"),
        pytest.param({"delays": {"profile": "straggler"}, "stages": 1}, "delays stage 2", id="straggler-alone"),
        pytest.param(
            {"runtime": "sim", "delays": {"profile": {"unit": "seconds", "every_link": {"latency": {"mean": 1}}}}},
            "runtime sim has no clock (latency of link 1)",
            id="seconds-in-sim",
        ),
        pytest.param({"data": 5}, "data must be a mapping of keys to values, got 5", id="no-section"),
        pytest.param({"model": {"downsample": 2}}, "model.downsample must be a list, got 2", id="no-list"),
        pytest.param({"model": {"downsample": [0]}}, "model.downsample.0 must be at least 1, got 0", id="block-0"),
        pytest.param({"name": "a b"}, "name may hold letters, digits", id="name-with-a-space"),
        pytest.param({"name": 3}, "name must be a text, got 3", id="name-no-text"),
        pytest.param({"name": "x" * 81}, "name: string should have at most 80 characters", id="name-too-long"),
        pytest.param({"stages": 2.5}, "stages must be a whole number, got 2.5", id="half-a-stage"),
        pytest.param({"stages": "x"}, "stages must be a whole number, got 'x'", id="stages-no-number"),
        pytest.param({"data": {"augment": "maybe"}}, "data.augment must be true or false", id="no-truth-value"),
        pytest.param({"delays": {"profile": 5}}, "delays.profile must be a mapping", id="profile-a-number"),
        pytest.param({"delays": {"profile": {"stages": [1]}}}, "stages must be a mapping", id="profile-stages-a-list"),
        pytest.param(
            {"delays": {"profile": {"stages": {2: {"pause": {"length": 2}}}}}},
            "delays.profile.stages.2.pause.probability is missing",
            id="pause-without-probability",
        ),
        pytest.param(
            {"delays": {"profile": {"every_link": {"latency": {"law": "constant", "sigma": 1}}}}},
            "delays.profile.every_link.latency: sigma applies only to the law lognormal, not to constant, got {",
            id="sigma-of-constant",
        ),
        pytest.param(
            {"delays": {"profile": {"every_link": {"latency": {"law": "uniform", "mean": 1, "spread": 2}}}}},
            "spread must be at most the mean (1), got 2",
            id="spread-beyond-mean",
        ),
        pytest.param({"delays": {"profile": "slow stage"}}, "there is no profile 'slow stage'", id="unknown-profile"),
        pytest.param({"delays": {"profile": "lossi"}}, "did you mean lossy?", id="misspelt-profile"),
        pytest.param({"data": {"dataset": ["digits"]}}, "data.dataset must be one of", id="list-of-data-sets"),
        pytest.param({"stages": float("inf")}, "stages must be", id="endless-stages"),
        pytest.param({1: 2}, "1: ", id="key-no-text"),
    ],
)
def test_one_problem(tree, problem) -> None:
    found = problems(tree)
    assert len(found) == 1
    assert problem in found[0]


@pytest.mark.parametrize(
    ("at_the_limit", "beyond_it"),
    [
        ({"buffer": {"size": 4, "min_size": 4}}, {"buffer": {"size": 4, "min_size": 5}}),
        ({"stages": 3, "model": {"blocks": 3}}, {"stages": 4, "model": {"blocks": 3}}),
        ({"model": {"downsample": [4]}}, {"model": {"downsample": [5]}}),
        ({"model": {"downsample": [1, 2]}}, {"model": {"downsample": [1, 2, 3]}}),
        ({"delays": {"profile": "slow_stage4"}}, {"delays": {"profile": "slow_stage5"}}),
        ({"delays": {"profile": {"links": {3: {}}}}}, {"delays": {"profile": {"links": {4: {}}}}}),
        ({"batch_size": 2}, {"batch_size": 1}),
        ({"seed": 2**63 - 1}, {"seed": 2**63}),
        ({"data": {"validation": 0.999}}, {"data": {"validation": 1.0}}),
        (
            {"delays": {"profile": {"every_link": {"loss": 0.999}}}},
            {"delays": {"profile": {"every_link": {"loss": 1}}}},
        ),
        ({"delays": {"profile": {"unit": "seconds"}}, "runtime": "sim"}, {"delays": {"profile": {"unit": "hours"}}}),
    ],
)
def test_limits_are_allowed_and_no_more(at_the_limit, beyond_it) -> None:
    parse_config(at_the_limit)
    assert len(problems(beyond_it)) == 1


def test_a_tree_that_is_no_mapping_is_refused() -> None:
    with pytest.raises(ValueError, match="RunConfig"):
        RunConfig.model_validate(3)


@pytest.mark.parametrize(
    ("tree", "suggestion"),
    [
        ({"epoch": 3}, "epoch: unknown key; did you mean epochs?"),
        ({"buffer_size": 3}, "buffer_size: unknown key; did you mean buffer.size?"),
        ({"buffer-size": 3}, "did you mean buffer.size?"),
        ({"max_reuse": 3}, "did you mean buffer.max_reuse?"),
        ({"learning_rate": 3}, "did you mean optim.lr?"),
        ({"delay_profile": "none"}, "did you mean delays.profile?"),
        ({"evaluation_every": 3}, "did you mean evaluation.every?"),
        ({"data_dir": 3}, "did you mean data.data_dir?"),
        ({"lr": 3}, "did you mean optim.lr?"),
        ({"bufer": {}}, "bufer: unknown key; did you mean buffer?"),
        ({"buffer": {"max_reuses": 1}}, "did you mean max_reuse?"),
        ({"optim": {"learning": 1}}, "optim.learning: unknown key; known keys: name, lr, momentum, weight_decay"),
        ({"runtime": "simm"}, "did you mean sim?"),
        ({"buffer": {"sampler": "filo"}}, "did you mean fifo?"),
        ({"model": {"aux": "mlp_sr"}}, "did you mean mlp-sr?"),
        ({"delays": {"profile": {"windows": 1}}}, "delays.profile.windows: unknown key; did you mean window?"),
        ({"delays": {"profile": {"stages": {2: {"slow": 2}}}}}, "did you mean slowdown?"),
        ({"delays": {"profile": {"links": {1: {"los": 0.1}}}}}, "did you mean loss?"),
        ({"delays": {"profile": {"every_link": {"latency": {"sigmas": 1}}}}}, "did you mean sigma?"),
        ({"delays": {"profile": {"every_link": {"latency": {"law": "normal"}}}}}, "did you mean lognormal?"),
    ],
)
def test_suggestions(tree, suggestion) -> None:
    (found,) = problems(tree)
    assert suggestion in found


@pytest.mark.parametrize(
    "tree",
    [
        {"epochs": "x" * 10**6},
        {"epochs": [[["x" * 10**6] * 1000] * 1000] * 1000},
        {"epochs": 10**5000},
        {"batch_size": int("7" * 60)},
        {"batch_size": "7" * 60},
        {"optim": {"lr": -(10**200)}},
        {"optim": {"lr": "7" * 5000}},
        {"x" * 10**6: 1},
        {"buffer": {"x" * 10**6: 1}},
        {"algorithm": "x" * 10**6},
        {"buffer": {"sampler": ["x" * 10**6] * 1000}},
        {"runtime": "x" * 10**6},
        {"name": "x" * 10**6},
        {"delays": {"profile": "x" * 10**6}},
        {"delays": {"profile": "slow_stage" + "9" * 5000}},
        {"delays": {"profile": {"name": "x" * 10**6}}},
        {"delays": {"profile": {"links": {10**60: {}}}}},
        {"data": {"dataset": "cifar10", "data_dir": "x" * 10**6}},
        {"model": {"cut": list(range(1, 64))}},
    ],
    ids=lambda tree: next(iter(tree))[:10],
)
def test_a_message_is_short_however_long_the_value(tree) -> None:
    began = time.process_time()
    (found,) = problems(tree)
    assert len(found) < 400
    assert time.process_time() - began < 1


def test_problems_are_counted_and_the_first_ten_shown() -> None:
    with pytest.raises(ConfigError) as error:
        parse_config({"model": {"downsample": [0] * 64}, "epochs": 0})
    assert len(error.value.problems) == 65
    assert len(error.value.lines) == 11
    assert error.value.lines[0] == "epochs must be at least 1, got 0"
    assert error.value.lines[-1] == "and 55 more"
    assert str(error.value).splitlines() == error.value.lines
    assert len(problems({f"k{i}": 1 for i in range(100_000)})) <= 100_000


def test_lists_have_an_end() -> None:
    for tree in ({"model": {"downsample": [2] * 10**6}}, {"optim": {"lr_milestones": list(range(1, 10**5))}}):
        (found,) = problems(tree)
        assert "at most" in found
        assert len(found) < 200


def test_no_text_holds_a_nul_character() -> None:
    for tree, key in (
        ({"delays": {"profile": "a\0b"}}, "delays.profile"),
        ({"data": {"dataset": "cifar10", "data_dir": "a\0b"}}, "data.data_dir"),
        ({"ray": {"address": "\0"}}, "ray.address"),
    ):
        (found,) = problems(tree)
        assert found.startswith(f"{key} must hold no NUL character")


def test_options_that_stand_for_millions_of_values() -> None:
    values: list[Any] = [0] * 10
    for _ in range(20):
        values = [values] * 10  # 10^21 numbers, as a few lines of YAML with aliases
    (found,) = problems({"model": {"name": "my.nets:net", "options": {"layers": values}}})
    assert "at most 1000 values" in found
    options = {"layers": [1, {"kernel": [3, 3]}], "bias": True}
    assert parse_config({"model": {"name": "my.nets:net", "options": options}}).model.options == options


# --- Settings without effect ------------------------------------------------------------------------------------------

SIM = {"runtime": "sim"}
SYNC_SIM = {"runtime": "sim", "algorithm": "sync-dgl"}
BACKPROP = {"algorithm": "backprop"}
ONE_STAGE = {"stages": 1}

WITHOUT_EFFECT = [
    pytest.param({**SIM, "pace": "free"}, "pace", "to --runtime ray", id="pace-sim"),
    pytest.param({**SYNC_SIM, "buffer": {"size": 3}}, "buffer.size", "at least two stages", id="size-sync-sim"),
    pytest.param({**BACKPROP, "buffer": {"size": 3}}, "buffer.size", "async-dgl or sync-dgl", id="size-backprop"),
    pytest.param({**ONE_STAGE, "buffer": {"size": 3}}, "buffer.size", "at least two stages", id="size-one-stage"),
    pytest.param({**BACKPROP, "buffer": {"codec": "bf16"}}, "buffer.codec", "not to backprop", id="codec-backprop"),
    pytest.param({**SIM, "buffer": {"prefetch": 3}}, "buffer.prefetch", "--runtime ray", id="prefetch-sim"),
    pytest.param({**ONE_STAGE, "buffer": {"prefetch": 3}}, "buffer.prefetch", "two stages", id="prefetch-one-stage"),
    *(
        pytest.param({"algorithm": "sync-dgl", "buffer": {key: value}}, f"buffer.{key}", "async-dgl", id=f"{key}-sync")
        for key, value in [
            *(("sampler", "lifo"), ("max_reuse", 3), ("on_full", "block")),
            *(("min_size", 2), ("max_age", 5)),
        ]
    ),
    pytest.param({**ONE_STAGE, "buffer": {"max_age": 5}}, "buffer.max_age", "async-dgl", id="max_age-one-stage"),
    pytest.param({**SYNC_SIM, "delays": {"profile": "wan"}}, "delays.profile", "async-dgl", id="profile-sync-sim"),
    pytest.param({**BACKPROP, "delays": {"profile": "wan"}}, "delays.profile", "async-dgl", id="profile-backprop"),
    pytest.param({"delays": {"slowdown": 2}}, "delays.slowdown", "slow_stage<N>", id="slowdown-none"),
    pytest.param(
        {"delays": {"profile": {}, "slowdown": 2}}, "delays.slowdown", "slow_stage<N>", id="slowdown-inline-profile"
    ),
    pytest.param({**SIM, "ray": {"address": "h:1"}}, "ray.address", "to --runtime ray", id="address-sim"),
    pytest.param({"data": {"data_dir": "/x"}}, "data.data_dir", "read from files", id="data_dir-digits"),
]


@pytest.mark.parametrize(("tree", "key", "where"), WITHOUT_EFFECT)
@pytest.mark.parametrize("typed", [True, False], ids=["typed", "in-a-file"])
def test_settings_without_effect_are_refused(tree, key, where, typed) -> None:
    if key == "buffer.on_full" and not typed:
        parse_config(tree)  # so a run of sync-dgl writes down what its buffers do
        return
    (found,) = problems(tree, (key,) if typed else ())
    assert found.startswith(f"{key} has no effect here: it applies ")
    assert where in found


@pytest.mark.parametrize(
    ("tree", "key"),
    [
        (SIM | {"pace": "profile"}, "pace"),
        (SYNC_SIM | {"buffer": {"size": 10}}, "buffer.size"),
        (SIM | {"buffer": {"prefetch": 0}}, "buffer.prefetch"),
        ({"algorithm": "sync-dgl", "buffer": {"sampler": "priority_lifo"}}, "buffer.sampler"),
        (BACKPROP | {"delays": {"profile": "none"}}, "delays.profile"),
        ({"data": {"dataset": "cifar10", "image_size": 32}}, "data.image_size"),
    ],
)
def test_a_default_in_a_file_is_accepted_but_not_typed(tree, key) -> None:
    parse_config(tree)
    (found,) = problems(tree, (key,))
    assert found.startswith(f"{key} has no effect here")


def test_all_settings_without_effect_are_told_together() -> None:
    found = problems({**BACKPROP, "pace": "free", "buffer": {"size": 3, "max_age": 4}, "ray": {"address": "h:1"}})
    assert sorted(line.split()[0] for line in found) == ["buffer.max_age", "buffer.size", "pace", "ray.address"]


@pytest.mark.parametrize(
    ("tree", "typed"),
    [
        ({}, ("pace", "buffer.size", "buffer.codec", "buffer.prefetch", "buffer.sampler", "delays.profile")),
        ({"algorithm": "sync-dgl"}, ("pace", "buffer.size", "buffer.codec", "delays.profile", "ray.address")),
        ({"algorithm": "sync-dgl", "runtime": "sim"}, ("buffer.codec",)),
        ({"runtime": "sim"}, ("buffer.size", "buffer.max_reuse", "delays.profile")),
        ({"delays": {"profile": "slow_stage2", "slowdown": 1.5}}, ("delays.slowdown", "delays.profile")),
        ({"stages": 1, "runtime": "sim"}, ("delays.profile",)),
        ({"data": {"dataset": "cifar10"}}, ("data.data_dir",)),
        ({"data": {"dataset": "synthetic"}}, ("data.image_size",)),
    ],
)
def test_settings_with_effect_may_be_typed(tree, typed) -> None:
    parse_config(tree, typed)


def test_a_configuration_is_parsed_without_torch_and_ray() -> None:
    """Most wrong inputs answer at once."""
    code = (
        "import sys; from asyncdgl.config.yaml import parse_config, dump_config; dump_config(parse_config({}));"
        "print([name for name in ('torch', 'ray', 'numpy', 'torchvision') if name in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


@pytest.mark.parametrize("dataset", ["digits", "fashion-mnist", "cifar10", "image-folder", "synthetic"])
@pytest.mark.parametrize("algorithm", ["async-dgl", "sync-dgl", "sequential-dgl", "backprop"])
@pytest.mark.parametrize("runtime", ["sim", "ray", "virtual"])
def test_what_a_run_wrote_down_can_be_run_again(tmp_path, dataset, algorithm, runtime) -> None:
    """The defaults of a data set (cifar10 has aux mlp-sr) are no settings without effect, whatever the algorithm."""
    tree = {"algorithm": algorithm, "runtime": runtime, "data": {"dataset": dataset}}
    if dataset == "image-folder":
        tree["data"]["data_dir"] = str(tmp_path)
    try:
        config = parse_config(tree)
    except ConfigError:
        assert runtime != "sim"  # what does not go together
        return
    path = tmp_path / "config.yaml"
    path.write_text(dump_config(config))
    assert parse_config(load_yaml(path)) == config


def test_what_is_lost_is_not_for_an_algorithm_that_needs_each_entry() -> None:
    parse_config({"delays": {"profile": "lossy"}})
    with pytest.raises(ConfigError, match=r"lossy: link 1 loses entries, but sync-dgl needs each of them: use async"):
        parse_config({"algorithm": "sync-dgl", "delays": {"profile": "lossy"}})
