"""Where every key has an effect, for every algorithm and runtime; and what decides the bits of a run."""

from __future__ import annotations

from typing import Any

import pytest

from asyncdgl.config.defaults import merged
from asyncdgl.config.model import RunConfig
from asyncdgl.config.setting import applies, keys
from asyncdgl.config.yaml import parse_config
from asyncdgl.errors import ConfigError


def problems(tree: dict[str, Any], given: tuple[str, ...] = ()) -> list[str]:
    with pytest.raises(ConfigError) as error:
        parse_config(tree, given)
    return error.value.problems


# --- Where every key applies ------------------------------------------------------------------------------------------

SITUATIONS: dict[str, dict[str, Any]] = {
    "A": {},
    "S": {"algorithm": "sync-dgl"},
    "a": {"runtime": "sim"},
    "s": {"runtime": "sim", "algorithm": "sync-dgl"},
    "q": {"algorithm": "sequential-dgl"},
    "b": {"algorithm": "backprop"},
    "v": {"runtime": "virtual"},
    "m": {"runtime": "virtual", "virtual": {"train": False}},
    "1": {"stages": 1},
}
"""Asynchronous and synchronous on Ray and in sim; sequential; backprop; virtual; virtual that only moves; one stage."""

EVERYWHERE, COMPUTING = "ASasqbvm1", "ASasqbv1"
APPLIES = {
    **dict.fromkeys(("name", "algorithm", "runtime", "stages", "epochs", "seed", "data.dataset"), EVERYWHERE),
    "pace": "ASvm1",
    **dict.fromkeys(("batch_size", "precision", "device", "threads"), COMPUTING),
    **dict.fromkeys(("data.augment", "data.validation", "data.mean", "data.std"), COMPUTING),
    **dict.fromkeys(("data.data_dir", "data.image_size"), ""),
    **dict.fromkeys(("model.name", "model.blocks", "model.width", "model.downsample"), COMPUTING),
    "model.options": "",
    **dict.fromkeys(("model.head", "model.loss"), COMPUTING),
    **dict.fromkeys(("model.aux", "model.balance", "buffer.codec"), "ASasqv"),
    "model.cut": "ASasqbv",
    "buffer.size": "ASavm",
    **dict.fromkeys((f"buffer.{k}" for k in ("sampler", "max_reuse", "on_full", "min_size", "max_age")), "Aavm"),
    "buffer.prefetch": "ASvm",
    **dict.fromkeys((f"optim.{k}" for k in ("name", "lr", "momentum", "weight_decay", "schedule")), COMPUTING),
    **dict.fromkeys((f"optim.{k}" for k in ("lr_decay_every", "lr_milestones", "lr_decay_factor")), COMPUTING),
    **dict.fromkeys(("optim.betas", "optim.eps"), ""),
    "delays.profile": "ASavm1",
    "delays.slowdown": "",
    **dict.fromkeys(("virtual.step_times", "virtual.train"), "vm"),
    "virtual.batches": "m",
    **dict.fromkeys((f"ray.{k}" for k in ("address", "placement", "wait_s", "threads", "deaf_s", "spares")), "AS1"),
    "evaluation.every": COMPUTING,
    "checkpoint.every": "".join(SITUATIONS),
}
"""In which situations on the digits each key has an effect. A new key needs a line here."""


def test_the_table_has_every_key() -> None:
    assert set(APPLIES) == set(keys(RunConfig))


@pytest.mark.parametrize("situation", SITUATIONS)
@pytest.mark.parametrize("key", APPLIES)
def test_every_key_is_refused_where_it_has_no_effect(key, situation) -> None:
    tree = SITUATIONS[situation]
    assert applies(parse_config(tree), key) == (situation in APPLIES[key])
    if situation in APPLIES[key]:
        parse_config(tree, (key,))
    else:
        (found,) = problems(tree, (key,))
        assert found.startswith(f"{key} has no effect here: it applies ")


CIFAR = {"data": {"dataset": "cifar10"}}
FOLDER = {"data": {"dataset": "image-folder", "data_dir": "/images"}}
OWN = {"model": {"name": "my.nets:net"}}
LIMITED = {"delays": {"profile": {"every_link": {"bandwidth": 1e6}}}}
MOVED = SITUATIONS["m"]


@pytest.mark.parametrize(
    ("tree", "key", "has_effect"),
    [
        (CIFAR, "data.data_dir", True),
        ({**CIFAR, **MOVED}, "data.data_dir", False),
        (CIFAR, "data.image_size", False),
        (FOLDER, "data.image_size", True),
        ({"data": {"dataset": "synthetic"}}, "data.data_dir", False),
        (OWN, "model.options", True),
        *((OWN, f"model.{key}", False) for key in ("blocks", "width", "downsample")),
        *(({**MOVED, **LIMITED}, key, True) for key in ("batch_size", "model.width", "buffer.codec", "model.cut")),
        ({**MOVED, **LIMITED}, "optim.lr", False),
        ({"model": {"cut": [1, 2, 3]}}, "model.balance", False),
        ({"stages": 1, "model": {"head": "aux"}}, "model.aux", True),
        ({"algorithm": "backprop", "model": {"head": "aux"}}, "model.aux", True),
        ({"optim": {"name": "adam"}}, "optim.betas", True),
        ({"optim": {"name": "adamw"}}, "optim.eps", True),
        ({"optim": {"name": "adam"}}, "optim.momentum", False),
        *(({"optim": {"name": "my.optim:Lion"}}, f"optim.{key}", True) for key in ("momentum", "betas", "eps")),
        ({"optim": {"schedule": "cosine"}}, "optim.lr_decay_every", False),
        ({"optim": {"schedule": "constant"}}, "optim.lr_milestones", False),
        ({"optim": {"schedule": "cosine"}}, "optim.lr_decay_factor", False),
        ({"optim": {"lr_decay_every": None}}, "optim.lr_decay_factor", False),
        ({"optim": {"lr_milestones": [3]}}, "optim.lr_decay_factor", True),
        ({"optim": {"schedule": "my.optim:warmup"}}, "optim.lr_decay_every", True),
        ({"delays": {"profile": "slow_stage2"}}, "delays.slowdown", True),
        ({"algorithm": "asyncdgl.algorithms.async_dgl:async_dgl"}, "buffer.sampler", True),
    ],
)
def test_keys_that_depend_on_others(tree, key, has_effect) -> None:
    if has_effect:
        parse_config(tree, (key,))
    else:
        (found,) = problems(tree, (key,))
        assert found.startswith(f"{key} has no effect here: it applies ")


@pytest.mark.parametrize(
    ("tree", "key"),
    [
        ({**MOVED, "optim": {"lr": 0.5}}, "optim.lr"),
        ({**MOVED, "optim": {"momentum": 0.5}}, "optim.momentum"),
        ({**MOVED, "evaluation": {"every": 2}}, "evaluation.every"),
        ({**MOVED, "model": {"width": 8}}, "model.width"),
        ({"optim": {"lr_decay_every": None, "lr_decay_factor": 2}}, "optim.lr_decay_factor"),
        ({"optim": {"betas": [0.5, 0.5]}}, "optim.betas"),
        ({"optim": {"name": "adam", "momentum": 0.5}}, "optim.momentum"),
        ({"runtime": "sim", "delays": {"profile": {"window": 1}}}, "delays.profile.window"),
        ({"pace": "free", "delays": {"profile": {"window": 1}}}, "delays.profile.window"),
        ({"delays": {"profile": {"every_link": {"max_in_flight": 3}}}}, "delays.profile.every_link.max_in_flight"),
        (
            {
                "buffer": {"on_full": "block", "max_reuse": 1},
                "delays": {"profile": {"links": {1: {"latency": {"mean": 1}, "max_in_flight": 3}}}},
            },
            "delays.profile.links.1.max_in_flight",
        ),
        (
            {
                "algorithm": "sync-dgl",
                "delays": {"profile": {"every_link": {"bandwidth": 1e6, "max_in_flight": 3}}},
            },
            "delays.profile.every_link.max_in_flight",
        ),
    ],
)
def test_what_stands_in_a_file_in_vain_is_refused(tree, key) -> None:
    (found,) = problems(tree)
    assert found.startswith(f"{key} has no effect here: it applies ")


@pytest.mark.parametrize(
    "tree",
    [
        {"delays": {"profile": {"window": 1}}},
        {"runtime": "virtual", "delays": {"profile": {"window": 0}}},
        {"runtime": "sim", "delays": {"profile": {"window": 2.0}}},
        {"delays": {"profile": {"every_link": {"bandwidth": 1e6, "max_in_flight": 3}}}},
        {"delays": {"profile": {"every_link": {"latency": {"mean": 1}, "max_in_flight": 3}}}},
    ],
)
def test_what_a_profile_says_with_effect(tree) -> None:
    parse_config(tree)


@pytest.mark.parametrize(
    "tree",
    [
        {"buffer": {"on_full": "block", "max_reuse": 1, "prefetch": 2}},
        {"algorithm": "sync-dgl", "buffer": {"prefetch": 2}},
        {"runtime": "virtual", "buffer": {"on_full": "block", "max_reuse": 1, "prefetch": 3}},
    ],
)
def test_a_reader_of_a_blocking_buffer_fetches_at_most_one_ahead(tree) -> None:
    """What it has fetched keeps its place: with more the producer would wait for a reader that waits for it."""
    (found,) = problems(tree)
    assert found.startswith("buffer.prefetch must be at most 1 where buffers block, got ")
    parse_config(merged(tree, {"buffer": {"prefetch": 1}}))


# --- What decides the bits --------------------------------------------------------------------------------------------


def test_names_and_places_decide_nothing() -> None:
    config = parse_config({**CIFAR, "threads": 1})
    for change in ({"name": "other"}, {"data": {"data_dir": "/elsewhere"}}, {"ray": {"address": "host:1"}}):
        assert config.replace(**change).deciding() == config.deciding()


@pytest.mark.parametrize(
    "change",
    [
        *({"seed": 1}, {"threads": 2}, {"precision": "bf16"}, {"device": "cpu"}, {"epochs": 3}, {"pace": "free"}),
        *({"model": {"loss": "my.own:loss"}}, {"optim": {"lr": 0.3}}, {"buffer": {"size": 3}}),
        *({"ray": {"threads": (1, 1, 1, 2)}}, {"delays": {"profile": "lossy"}}, {"evaluation": {"every": 2}}),
        *({"delays": {"profile": {"window": 3}}}, {"data": {"validation": 0.1}}, {"model": {"cut": (1, 2, 3)}}),
    ],
)
def test_everything_else_does(change) -> None:
    config = parse_config({})
    assert config.replace(**change).deciding() != config.deciding()


def test_what_has_no_effect_decides_nothing() -> None:
    config = parse_config({"runtime": "sim"})
    assert config.replace(pace="free").deciding() == config.deciding()
    slow = config.replace(delays={"profile": "slow_stage2", "slowdown": 1})
    assert slow.deciding() == config.deciding(), "a delay profile is taken for what it does"
    assert slow.replace(delays={"slowdown": 2}).deciding() != config.deciding()
    backprop = parse_config({"algorithm": "backprop"})
    assert backprop.replace(buffer={"size": 3}).deciding() == backprop.deciding()


def test_keys_that_a_run_decides_for_itself() -> None:
    assert parse_config({}).open_keys == []
    tree: dict[str, Any] = {"model": {"balance": "cost"}, "ray": {"threads": "cost"}}
    assert parse_config(tree).open_keys == ["model.cut", "ray.threads"]
    assert parse_config({"runtime": "virtual", "virtual": {"step_times": "measure"}}).open_keys == [
        "virtual.step_times"
    ]
    assert parse_config(merged(tree, {"model": {"cut": [1, 2, 3]}})).open_keys == ["ray.threads"]
