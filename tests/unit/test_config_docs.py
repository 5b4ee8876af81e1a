"""What is made from the fields: docs/configuration.md, the JSON schema, labels, and the defaults that are printed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from asyncdgl import registry
from asyncdgl.config.docs import json_schema, markdown_of_keys
from asyncdgl.config.model import RunConfig
from asyncdgl.config.setting import Named, Section, keys, value_of
from asyncdgl.config.yaml import load_yaml, parse_config
from asyncdgl.delays.profiles import DESCRIPTIONS, built_in_profile
from asyncdgl.report.labels import key_label, setting_label

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "configuration.md"
DATASETS = registry.choices("data")


def test_the_page_of_all_keys_is_up_to_date() -> None:
    assert PAGE.read_text(encoding="utf-8") == markdown_of_keys() + "\n", (
        "asyncdgl schema --markdown > docs/configuration.md"
    )


def row(key: str) -> list[str]:
    page = markdown_of_keys().partition("## A delay profile")[0]
    lines = [line for line in page.splitlines() if line.startswith(f"| `{key}` ")]
    assert len(lines) == 1, key
    return [cell.strip() for cell in lines[0].strip("|").split("|")]


@pytest.mark.parametrize("key", keys(RunConfig))
def test_every_key_is_explained(key: str) -> None:
    name, flag, what, kind, unit, default, where = row(key)
    known = keys(RunConfig)[key]
    assert name == f"`{key}`"
    assert flag == (f"`{known.setting.flag}`" if known.setting.flag else "")
    assert (unit, bool(known.setting.where)) == (known.setting.unit or "", where != "every run")
    assert all((what, kind, default, where))
    assert all(f"`{word}`" in kind or word in kind for word in known.choices)


def test_the_page_has_the_defaults_of_each_data_set() -> None:
    assert row("epochs")[5] == "`15`; fashion-mnist: `12`; cifar10, image-folder: `50`; synthetic: `2`"
    assert row("model.width")[5] == "`16`; fashion-mnist: `32`; cifar10, image-folder: `128`"
    assert row("buffer.max_reuse")[3] == "whole number from 1 to 10^9 or null"
    assert row("ray.threads")[3] == "`cost` or list of whole number from 1 to 1 024 or null"
    assert row("optim.momentum")[3] == "number from 0 below 1"


def test_the_defaults_that_are_printed_are_the_ones_that_are_used() -> None:
    """`RunConfig()` and its fields, and the sections by themselves: those of the digits."""
    config = RunConfig()
    assert config == parse_config({})
    for name, key in keys(RunConfig).items():
        if name != "name":  # made from the settings
            assert key.field.default == value_of(config, name), name
    for name, field in RunConfig.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            assert field.annotation() == getattr(config, name)


def test_what_is_said_of_a_key_is_said_once() -> None:
    flags = [key.setting.flag for key in keys(RunConfig).values() if key.setting.flag]
    symbols = [key.setting.symbol for key in keys(RunConfig).values() if key.setting.symbol]
    labels = [key.label for key in keys(RunConfig).values()]
    for names in (flags, symbols, labels):
        assert len(names) == len(set(names))


@pytest.mark.parametrize(
    ("key", "label", "line"),
    [
        ("buffer.size", "buffer size M (mini-batches)", "M = 3"),
        ("stages", "stages J", "J = 3"),
        ("model.width", "width F (features of the first block)", "F = 3"),
        ("delays.slowdown", "slowdown S", "S = 3"),
        ("batch_size", "mini-batch (images)", "mini-batch = 3"),
        ("optim.lr", "learning rate", "learning rate = 3"),
        ("buffer.max_age", "age limit (producer's steps)", "age limit = 3"),
        ("virtual.batches", "batches (mini-batches)", "batches = 3"),
        ("no.such_key", "such key", "such key = 3"),
    ],
)
def test_a_figure_takes_its_words_from_the_field(key: str, label: str, line: str) -> None:
    assert (key_label(key), setting_label(key, 3)) == (label, line)


# --- The JSON schema --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def validator() -> Any:
    jsonschema = pytest.importorskip("jsonschema")
    tree = json_schema()
    jsonschema.Draft202012Validator.check_schema(tree)
    return jsonschema.Draft202012Validator(tree)


def plain(tree: dict[str, Any]) -> Any:
    return RunConfig.model_validate(tree).model_dump(mode="json")


@pytest.mark.parametrize("dataset", DATASETS)
def test_every_data_set_s_configuration_is_valid(validator: Any, dataset: str) -> None:
    data = {"dataset": dataset, **({"data_dir": "/images"} if dataset == "image-folder" else {})}
    validator.validate(plain({"data": data}))


CONFIGS = [
    path
    for path in sorted((ROOT / "experiments").glob("*/*.yaml"))
    if not {"grid", "also", "seeds"} & set(load_yaml(path))
]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_every_experiment_s_configuration_is_valid(validator: Any, path: Path) -> None:
    tree = load_yaml(path)
    validator.validate(tree)
    if tree.get("data", {}).get("dataset") == "image-folder":
        tree["data"]["data_dir"] = "/images"
    validator.validate(parse_config(tree).model_dump(mode="json"))


@pytest.mark.parametrize("name", [name.replace("<N>", "3") for name in DESCRIPTIONS])
def test_every_profile_is_valid_by_name_and_written_out(validator: Any, name: str) -> None:
    validator.validate({"delays": {"profile": name}})
    validator.validate({"delays": {"profile": built_in_profile(name).model_dump(mode="json")}})


@pytest.mark.parametrize(
    "tree",
    [
        {},
        {"model": {"name": "my.nets:net", "options": {"depth": 3}}},
        {"optim": {"name": "my.own.optim:Lion.fast"}},
        {"ray": {"threads": "cost"}},
        {"virtual": {"step_times": [{"train": 0.1, "forward": 0.05}]}},
        {"threads": "auto"},
        {"threads": 3},
    ],
)
def test_right_ones_are_valid(validator: Any, tree: dict[str, Any]) -> None:
    validator.validate(tree)
    RunConfig.model_validate(tree)


@pytest.mark.parametrize(
    "tree",
    [
        {"epoch": 3},
        {"epochs": 0},
        {"epochs": 1.5},
        {"epochs": "many"},
        {"stages": 100_000_000},
        {"algorithm": "async"},
        {"runtime": "simulator"},
        {"threads": "all"},
        {"buffer": {"sise": 3}},
        {"buffer": {"sampler": "filo"}},
        {"buffer": {"sampler": "my.module"}},
        {"buffer": {"max_reuse": 0}},
        {"optim": {"lr": 0}},
        {"optim": {"betas": [0.9]}},
        {"optim": {"betas": [0.9, 1]}},
        {"data": {"mean": [2]}},
        {"data": 3},
        {"model": {"downsample": [0]}},
        {"ray": {"threads": "all"}},
        {"delays": {"profile": {"windows": 3}}},
        {"delays": {"profile": {"stages": {"2": {"slowdown": 0.5}}}}},
        {"virtual": {"step_times": [{"train": 0.1}]}},
        {"name": "a b"},
    ],
)
def test_wrong_ones_are_not(validator: Any, tree: dict[str, Any]) -> None:
    assert not validator.is_valid(tree)
    with pytest.raises(ValueError, match="validation error"):
        RunConfig.model_validate(tree)


def test_an_editor_is_told_what_each_key_is() -> None:
    tree = json_schema()
    for name, key in keys(RunConfig).items():
        node = tree
        for part in name.split("."):
            node = node["properties"][part]
            node = tree["$defs"][node["$ref"].rpartition("/")[2]] if "$ref" in node else node
        assert node["description"] == key.field.description
        named = next((item for item in key.field.metadata if isinstance(item, Named)), None)
        if named is not None:
            assert node["anyOf"][0]["enum"] == list(registry.choices(named.kind))
