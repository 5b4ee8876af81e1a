"""Defaults that depend on the data set, the algorithm and the machine."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

Tree = dict[str, Any]

PIXELS = {"digits": 8, "fashion-mnist": 28, "cifar10": 32}
"""Data sets whose images have one size."""

WITHOUT_FILES = ("digits", "synthetic")
"""Data sets that are read from no file of the user's."""

_CIFAR_NETWORK = {"blocks": 6, "width": 128, "downsample": (2, 4), "aux": "mlp-sr"}

DATASET_DEFAULTS: dict[str, Tree] = {
    "digits": {},  # those of the fields
    "fashion-mnist": {
        "stages": 4,
        "epochs": 12,
        "batch_size": 128,
        "threads": "auto",
        "data": {"image_size": 28, "augment": True},
        "model": {"blocks": 4, "width": 32, "downsample": (2, 4), "aux": "mlp-sr"},
        "optim": {"lr": 0.1, "lr_decay_every": 5},
    },
    "cifar10": {
        "stages": 6,
        "epochs": 50,
        "batch_size": 128,
        "threads": "auto",
        "data": {
            "image_size": 32,
            "augment": True,
            "mean": (0.4914, 0.4822, 0.4465),
            "std": (0.2023, 0.1994, 0.2010),
        },
        "model": _CIFAR_NETWORK,
        "optim": {"lr": 0.1, "lr_decay_every": 15},
    },
    "image-folder": {
        "stages": 6,
        "epochs": 50,
        "batch_size": 128,
        "threads": "auto",
        "data": {"image_size": 32, "augment": True},
        "model": _CIFAR_NETWORK,
        "optim": {"lr": 0.1, "lr_decay_every": 15},
    },
    "synthetic": {
        "stages": 4,
        "epochs": 2,
        "batch_size": 32,
        "threads": 1,
        "data": {"image_size": 16, "augment": False},
        "model": {"blocks": 4, "width": 16, "downsample": (2, 4), "aux": "mlp"},
        "optim": {"lr": 0.05, "lr_decay_every": 15},
    },
}


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> Tree:
    """``base`` with the values of ``over``; sections are merged, everything else is replaced."""
    result = dict(base)
    for key, value in over.items():
        below = result.get(key)
        if isinstance(below, Mapping) and isinstance(value, Mapping):
            result[key] = merged(below, value)
        else:
            result[key] = value
    return result


def lookup(tree: Any, dotted: str, default: Any) -> Any:
    """The value at ``a.b`` of nested mappings."""
    for part in dotted.split("."):
        if not isinstance(tree, Mapping) or part not in tree:
            return default
        tree = tree[part]
    return tree


def defaults_for(tree: Mapping[str, Any]) -> Tree:
    """The defaults of everything that depends on what ``tree`` asks for."""

    def asked(section: str, key: str, default: Any) -> Any:
        part = tree.get(section)
        return part.get(key, default) if isinstance(part, Mapping) else default

    dataset = asked("data", "dataset", "digits")
    base: Tree = DATASET_DEFAULTS[dataset if isinstance(dataset, str) and dataset in DATASET_DEFAULTS else "digits"]
    algorithm = tree.get("algorithm", "async-dgl")
    one_process = algorithm in ("backprop", "sequential-dgl")
    runtime = tree.get("runtime", "sim" if one_process else "ray")
    profile: Any = asked("delays", "profile", "none")
    if isinstance(profile, Mapping):
        profile = profile.get("name", "custom")
    name = f"{dataset}-{profile if algorithm == 'async-dgl' else algorithm}"
    computed: Tree = {
        # Made from names that may hold anything; it becomes the name of a folder.
        "name": re.sub(r"[^A-Za-z0-9._+-]+", "-", name).lstrip(".-+")[:80] or "run",
        "runtime": runtime,
        "buffer": {"prefetch": 1 if runtime == "ray" else 0},
    }
    if asked("optim", "lr_milestones", None) is not None:
        computed["optim"] = {"lr_decay_every": None}
    return merged(base, computed)
