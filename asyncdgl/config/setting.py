"""Where each key applies: a setting that would have no effect is an error."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

from pydantic import BaseModel

from asyncdgl.config.defaults import PIXELS, lookup
from asyncdgl.config.model import RunConfig
from asyncdgl.delays.profiles import is_slow_stage


def _asynchronous(config: RunConfig) -> bool:
    return config.algorithm == "async-dgl" and config.stages > 1


_APPLIES: dict[str, tuple[Callable[[RunConfig], bool], str]] = {
    "pace": (lambda c: c.runtime != "sim", "to --runtime ray or virtual"),
    "buffer.size": (
        lambda c: _asynchronous(c) or (c.algorithm == "sync-dgl" and c.runtime == "ray" and c.stages > 1),
        "to runs with replay buffers: at least two stages, --algorithm async-dgl or sync-dgl with --runtime ray",
    ),
    "buffer.codec": (lambda c: c.algorithm != "backprop" and c.stages > 1, "to at least two stages, not to backprop"),
    "buffer.prefetch": (
        lambda c: c.runtime != "sim" and c.stages > 1,
        "to --runtime ray or virtual with at least two stages",
    ),
    **{
        f"buffer.{key}": (_asynchronous, "to --algorithm async-dgl with at least two stages")
        for key in ("sampler", "max_reuse", "on_full", "min_size", "max_age")
    },
    "delays.profile": (
        lambda c: c.algorithm == "async-dgl" or c.runtime == "ray",
        "to --algorithm async-dgl or --runtime ray",
    ),
    "delays.slowdown": (
        lambda c: isinstance(c.delays.profile, str) and is_slow_stage(c.delays.profile),
        "to the delay profiles slow_stage<N>",
    ),
    "model.aux": (
        lambda c: (c.algorithm != "backprop" and c.stages > 1) or c.model.head == "aux",
        "to at least two stages, not to backprop; or with model.head aux",
    ),
    "model.balance": (lambda c: c.stages > 1 and c.has_tensors, "to at least two stages that compute"),
    "virtual.step_times": (lambda c: c.runtime == "virtual", "to --runtime virtual"),
    "virtual.train": (lambda c: c.runtime == "virtual", "to --runtime virtual"),
    "virtual.batches": (lambda c: not c.has_tensors, "to --runtime virtual with virtual.train false"),
    **{f"ray.{key}": (lambda c: c.runtime == "ray", "to --runtime ray") for key in ("address", "threads")},
    "data.data_dir": (lambda c: c.data.dataset not in ("digits", "synthetic"), "to data sets that are read from files"),
    "data.image_size": (lambda c: c.data.dataset not in PIXELS, "to the data sets image-folder and synthetic"),
}


def applies(config: RunConfig, key: str) -> bool:
    """Whether a key has an effect on this run."""
    return key not in _APPLIES or _APPLIES[key][0](config)


def without_effect(config: RunConfig, tree: Mapping[str, Any], given: Collection[str]) -> list[str]:
    """Settings that this run would silently ignore: typed ones always, those of a file where they differ."""
    dataset = config.data.dataset
    data = {"dataset": dataset, "data_dir": config.data.data_dir or "." if dataset == "image-folder" else None}
    neutral = RunConfig.model_validate({"data": data, "runtime": config.runtime})
    real = {f"buffer.{key}": value for key, value in config.between.items()}  # as a run writes it down
    found = []
    for key, (_, where) in _APPLIES.items():
        if applies(config, key):
            continue
        value = _get(config, key)
        in_file = lookup(tree, key, None) is not None and value != _get(neutral, key) and value != real.get(key)
        # The image size of a data set that has only one is checked against that one, not against the default.
        if key in given or (in_file and key != "data.image_size"):
            found.append(f"{key} has no effect here: it applies {where}")
    return found


def _get(config: BaseModel, dotted: str) -> Any:
    value: Any = config
    for part in dotted.split("."):
        value = getattr(value, part)
    return value
