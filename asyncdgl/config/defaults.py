"""Defaults that depend on the data set, the algorithm and the machine."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from asyncdgl.errors import ConfigError
from asyncdgl.registry import GIVEN, find

Tree = dict[str, Any]


def _source(dataset: Any) -> Any:
    """What a data set says of itself. A pair that was handed over says nothing: its runs can be read without it."""
    return None if dataset == GIVEN else find("data", dataset)


def fixed_image_size(dataset: str) -> int | None:
    """Pixels of a side of a data set's images, where they have one size."""
    size: int | None = getattr(_source(dataset), "image_size", None)
    return size


def reads_files(dataset: str) -> bool:
    """Whether a data set is read from files that lie somewhere."""
    return bool(getattr(_source(dataset), "reads_files", False))


def needed_in_folder(dataset: str) -> str | None:
    """What must be in the folder that a user has to name, where one has to be named."""
    needed: str | None = getattr(_source(dataset), "needs_folder", None)
    return needed


def _defaults_of(dataset: Any) -> Tree:
    """What a data set has other defaults for than the fields."""
    try:
        return dict(_source(dataset).defaults)
    except (ConfigError, AttributeError):  # told where the name itself is checked
        return {}


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
    base = _defaults_of(dataset)
    algorithm = tree.get("algorithm", "async-dgl")
    runtime = tree.get("runtime", _runtime_of(algorithm))
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


def _runtime_of(algorithm: Any) -> str:
    try:
        runtime: str = find("algorithm", algorithm).runtimes[0]
    except ConfigError:  # said where the field is checked
        return "ray"
    return runtime
