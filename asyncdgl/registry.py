"""Names of parts: a registered word, `package.module:attribute`, or `given`, to the part itself.

Every list of choices comes from here. Nothing is imported before it is asked for, so that help and most wrong inputs
need neither torch nor ray.
"""

from __future__ import annotations

import contextlib
import difflib
import importlib
import json
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextvars import ContextVar
from typing import Any

from asyncdgl.errors import ConfigError, shown

BUILT_IN: dict[str, dict[str, str]] = {
    "algorithm": {
        "async-dgl": "asyncdgl.algorithms.async_dgl:async_dgl",
        "sync-dgl": "asyncdgl.algorithms.sync_dgl:sync_dgl",
        "sequential-dgl": "asyncdgl.algorithms.sequential_dgl:sequential_dgl",
        "backprop": "asyncdgl.algorithms.backprop:backprop",
    },
    "network": {"conv": "asyncdgl.nets.conv:blocks"},
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
    "data": {
        "digits": "asyncdgl.data.digits:SOURCE",
        "fashion-mnist": "asyncdgl.data.fashion_mnist:SOURCE",
        "cifar10": "asyncdgl.data.cifar10:SOURCE",
        "image-folder": "asyncdgl.data.image_folder:SOURCE",
        "synthetic": "asyncdgl.data.synthetic:SOURCE",
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


TYPES = {"algorithm": "asyncdgl.algorithms.base:Algorithm"}
"""What a part of this kind must be an object of; the other kinds are tried before a run, each by its own check."""

PATH = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*")
"""A part of the user's: `package.module:attribute`."""


GIVEN = "given"
"""A part that was handed over as an object: a configuration knows nothing else of it."""

_handed_over: ContextVar[Mapping[str, Any]] = ContextVar("parts handed over as objects")


@contextlib.contextmanager
def handed_over(parts: Mapping[str, Any]) -> Iterator[None]:
    """Within, ``given`` is the name of these objects, by kind."""
    token = _handed_over.set(parts)
    try:
        yield
    finally:
        _handed_over.reset(token)


def objects_handed_over() -> Mapping[str, Any]:
    """The objects that ``given`` names here, by kind."""
    return _handed_over.get({})


def choices(kind: str) -> tuple[str, ...]:
    """The words that choose a part of this kind."""
    return tuple(BUILT_IN[kind])


def check(kind: str, name: Any) -> None:
    """Whether a name could be a part's, without importing anything.

    Raises:
        ConfigError: it is neither a registered word nor of the form `package.module:attribute`.
    """
    if isinstance(name, str) and (name in BUILT_IN[kind] or name == GIVEN or PATH.fullmatch(name)):
        return
    near = difflib.get_close_matches(name[:80], BUILT_IN[kind], n=1) if isinstance(name, str) else []
    hint = f"; did you mean {near[0]}?" if near else ""
    words = ", ".join(BUILT_IN[kind])
    raise ConfigError(f"must be one of {words}, or package.module:attribute; got {shown(name)}{hint}")


def find(kind: str, name: str) -> Any:
    """The part itself.

    Raises:
        ConfigError: there is none of this name, or its module can't be imported; the message says why.
    """
    check(kind, name)
    if name == GIVEN:
        if kind not in objects_handed_over():
            raise ConfigError(
                f"{kind} given: it was an object handed to run() from Python; hand it over again, or name one that can "
                "be imported (package.module:attribute)"
            )
        return objects_handed_over()[kind]
    try:
        part = _imported(BUILT_IN[kind].get(name, name))
    except Exception as error:  # a module of the user's may raise anything while it is imported
        raise ConfigError(f"{kind} {name}: can't be imported: {type(error).__name__}: {error}") from error
    if kind in TYPES and not isinstance(part, _imported(TYPES[kind])):
        expected = TYPES[kind].replace(":", ".")
        raise ConfigError(f"{kind} {name} is a {type(part).__name__}: it must be an {expected}")
    return part


def _imported(path: str) -> Any:
    module, _, attribute = path.partition(":")
    part: Any = importlib.import_module(module)
    for step in attribute.split("."):
        part = getattr(part, step)
    return part


def module_path() -> list[str]:
    """Where this process finds modules, from the root: another process that has it finds the same parts."""
    try:
        here = os.getcwd()
    except OSError:  # it was deleted: nothing can be found there
        here = ""
    return [os.path.join(here, place) for place in sys.path]


_START = (
    "import json, sys; sys.path[:] = json.loads(sys.argv.pop(1)); sys.argv[0] = 'asyncdgl'; "
    "from asyncdgl.cli.main import main; main()"
)


def command(places: Sequence[str]) -> list[str]:
    """`asyncdgl`, to which arguments can be added, as a process that finds modules in these places."""
    return [sys.executable, "-c", _START, json.dumps(list(places))]
