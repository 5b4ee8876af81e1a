"""What makes two runs of a sweep the same: the hash under which a run is kept.

It covers all that decides what a run computes and that is known before it runs. What a run decides for itself (its cut,
its step times) or meets (its processor) is compared afterwards, and named in the table where it differs.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from asyncdgl import __version__
from asyncdgl.config.defaults import lookup
from asyncdgl.config.model import RunConfig
from asyncdgl.config.sections import DataConfig
from asyncdgl.config.yaml import load_yaml
from asyncdgl.errors import AsyncDGLError, ConfigError
from asyncdgl.rundir.reader import read_record
from asyncdgl.rundir.records import CONFIG, ENVIRONMENT, Environment

DIGITS = 16
"""Of a run's hash in the name of its folder: too many for two runs to share one by chance."""

DECIDED = ("model.cut", "ray.threads", "virtual.step_times", "device", "precision")
"""Keys that a run may decide by measuring where it is."""

Progress = Callable[[int, int], None]


def run_key(config: RunConfig, data_sha256: str | None) -> str:
    """The name under which a run is kept.

    Covers the settings (names and places decide nothing, and a delay profile is taken for what it does: `slow_stage2`
    with S = 1 is `none`), the content of the data, the source of the user's own parts, and the versions of this package
    and of torch.
    """
    tree: dict[str, Any] = config.model_dump(mode="json", exclude={"name", "delays", "ray", "virtual", "pace"})
    del tree["data"]["data_dir"]
    profile = config.profile
    if config.runtime != "sim":
        tree["pace"] = config.pace
    if config.runtime == "ray" and config.ray.threads is not None:
        tree["ray_threads"] = config.ray.threads
    if config.runtime == "virtual":
        tree["virtual"] = config.virtual.model_dump(mode="json")
    stages = range(1, config.trained_stages + 1)
    tree["delays"] = {
        "stages": [profile.stage(j).model_dump(mode="json") for j in stages],
        "links": [profile.link(j).model_dump(mode="json") for j in stages[:-1]],
        "unit": profile.unit if profile.lengths_in_use(config.stages) else None,
        "window": profile.window if config.runtime != "sim" else None,
    }
    versions = {"asyncdgl": __version__, "torch": metadata.version("torch")}
    text = json.dumps({**versions, "data": data_sha256, "code": own_code(tree), "config": tree}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:DIGITS]


class DataHashes:
    """The content of data sets: each is decoded once, and looked at again for every sweep.

    Args:
        on_progress: is told how many images of how many are decoded.
    """

    def __init__(self, on_progress: Progress | None = None) -> None:
        self._on_progress = on_progress
        self._known: dict[DataConfig, str] = {}

    def of(self, config: RunConfig) -> str | None:
        """SHA-256 of the images and labels that the run reads; None where it computes nothing.

        Raises:
            DataError: they can't be read.
        """
        if not config.has_tensors:
            return None
        from asyncdgl.data.cache import prepare
        from asyncdgl.data.store import open_cached

        if config.data not in self._known:
            self._known[config.data] = open_cached(prepare(config.data, self._on_progress)).sha256
        return self._known[config.data]


_OWN_PART = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")


def own_code(tree: Mapping[str, Any]) -> dict[str, str]:
    """SHA-256 of the source of each module that a setting names as ``package.module:attribute``.

    Raises:
        ConfigError: there is no such module.
    """
    modules = {name.partition(":")[0] for name in _strings(tree) if _OWN_PART.fullmatch(name)}
    return {module: _source_sha256(module) for module in sorted(modules)}


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for below in value.values():
            yield from _strings(below)
    elif isinstance(value, Sequence):
        for below in value:
            yield from _strings(below)


def _source_sha256(module: str) -> str:
    try:
        found = importlib.util.find_spec(module)
        source = b"" if found is None or found.origin is None else Path(found.origin).read_bytes()
    except (ImportError, OSError, ValueError) as error:
        raise ConfigError(f"the module {module} can't be found: {error}") from None
    if found is None:
        raise ConfigError(f"the module {module} can't be found: is its folder in PYTHONPATH?")
    return hashlib.sha256(source).hexdigest()


def circumstances(run_dir: Path) -> dict[str, str]:
    """What a finished run decided for itself or met, and that its key does not hold; empty where that is unknown."""
    try:
        tree = load_yaml(run_dir / CONFIG)
        environment = read_record(Environment, run_dir / ENVIRONMENT)
    except AsyncDGLError:
        return {}
    found = {key: json.dumps(lookup(tree, key, None)) for key in DECIDED}
    found |= {name: str(version) for name, version in environment.packages.items()}
    features = " ".join(environment.cpu.features or ())
    return {**found, "python": environment.python, "processor": f"{environment.cpu.name} {features}"}


def differing(run_dirs: Sequence[Path]) -> list[str]:
    """The circumstances in which these runs differ."""
    known = [found for found in map(circumstances, run_dirs) if found]
    return [name for name in (known[0] if known else ()) if len({found.get(name) for found in known}) > 1]
