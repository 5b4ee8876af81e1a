"""Names of parts: a registered word, or `package.module:attribute`, to the part itself.

Every list of choices comes from here. Nothing is imported before it is asked for, so that help and most wrong inputs
need neither torch nor ray.
"""

from __future__ import annotations

import difflib
import importlib
from typing import Any

from asyncdgl.errors import ConfigError

BUILT_IN: dict[str, dict[str, str]] = {
    "network": {"conv": "asyncdgl.nets.conv:blocks", "given": "asyncdgl.nets.base:given"},
    "auxiliary": {
        "mlp": "asyncdgl.nets.auxiliary:mlp",
        "mlp-sr": "asyncdgl.nets.auxiliary:mlp_sr",
        "cnn": "asyncdgl.nets.auxiliary:cnn",
    },
    "loss": {
        "cross-entropy": "asyncdgl.learn.losses:cross_entropy",
        "label-smoothing": "asyncdgl.learn.losses:label_smoothing",
    },
    "optimizer": {
        "sgd": "asyncdgl.learn.optimizers:SGD",
        "adam": "asyncdgl.learn.optimizers:Adam",
        "adamw": "asyncdgl.learn.optimizers:AdamW",
    },
    "schedule": {
        "step": "asyncdgl.learn.schedules:step",
        "constant": "asyncdgl.learn.schedules:constant",
        "cosine": "asyncdgl.learn.schedules:cosine",
    },
    "codec": {
        "none": "asyncdgl.buffers.codecs:Plain",
        "bf16": "asyncdgl.buffers.codecs:BFloat16",
        "int8": "asyncdgl.buffers.codecs:Int8",
    },
    "law": {
        "constant": "asyncdgl.delays.laws:constant",
        "uniform": "asyncdgl.delays.laws:uniform",
        "exponential": "asyncdgl.delays.laws:exponential",
        "lognormal": "asyncdgl.delays.laws:lognormal",
        "empirical": "asyncdgl.delays.laws:empirical",
    },
    "sampler": {
        "priority_lifo": "asyncdgl.buffers.samplers:priority_lifo",
        "lifo": "asyncdgl.buffers.samplers:lifo",
        "fifo": "asyncdgl.buffers.samplers:fifo",
        "uniform": "asyncdgl.buffers.samplers:uniform",
    },
}
"""Of each kind of part, the words that choose one, and where it is."""


def choices(kind: str) -> tuple[str, ...]:
    """The words that choose a part of this kind."""
    return tuple(BUILT_IN[kind])


def check(kind: str, name: str) -> None:
    """Whether a name could be a part's, without importing anything.

    Raises:
        ConfigError: it is neither a registered word nor of the form `package.module:attribute`.
    """
    if name in BUILT_IN[kind] or _is_path(name):
        return
    near = difflib.get_close_matches(name, BUILT_IN[kind], n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    raise ConfigError(f"must be one of {', '.join(BUILT_IN[kind])}, or package.module:attribute; got {name!r}{hint}")


def find(kind: str, name: str) -> Any:
    """The part itself.

    Raises:
        ConfigError: there is none of this name, or its module can't be imported; the message says why.
    """
    check(kind, name)
    module, _, attribute = BUILT_IN[kind].get(name, name).partition(":")
    try:
        part: Any = importlib.import_module(module)
        for step in attribute.split("."):
            part = getattr(part, step)
    except Exception as error:  # a module of the user's may raise anything while it is imported
        raise ConfigError(f"{kind} {name}: can't be imported: {type(error).__name__}: {error}") from error
    return part


def _is_path(name: str) -> bool:
    module, colon, attribute = name.partition(":")
    return bool(colon) and all(part.isidentifier() for part in [*module.split("."), *attribute.split(".")])
