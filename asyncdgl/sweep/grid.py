"""A sweep: a grid over any keys of the configuration, with seeds; which runs it needs and where each is kept."""

from __future__ import annotations

import copy
import hashlib
import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from asyncdgl import __version__
from asyncdgl.config.defaults import Tree, lookup, merged
from asyncdgl.config.messages import readable
from asyncdgl.config.model import RunConfig
from asyncdgl.config.setting import applies
from asyncdgl.config.yaml import load_yaml, parse_config, set_key
from asyncdgl.errors import ConfigError
from asyncdgl.plan.resolve import on_this_machine

Value = Any
DIGITS = 16
"""Of a run's hash in the name of its folder: too many for two runs to share one by chance."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class GridPart(_Part):
    """One grid: every combination of the values, each with every seed."""

    config: dict[str, Any] = Field(default={}, description="settings that all its runs share")
    grid: dict[str, list[Any]] = Field(default={}, description="dotted key to the values that it takes")
    seeds: int | list[int] | None = Field(default=None, description="how many (0, 1, ...) or which seeds")


class FigureConfig(_Part):
    """How the sweep's figure is drawn."""

    x: str = Field(description="dotted key along the horizontal axis")
    y: str = Field(default="test_accuracy", description="measure along the vertical axis")
    log_x: bool = Field(default=False, description="whether the horizontal axis is logarithmic")
    x_label: str | None = Field(default=None, description="of the horizontal axis")
    y_label: str | None = Field(default=None, description="of the vertical axis")


class SweepConfig(GridPart):
    """The file of a sweep."""

    name: str = Field(default="", max_length=80, pattern=r"^[A-Za-z0-9_][A-Za-z0-9._+-]*$", description="of the sweep")
    also: list[GridPart] = Field(default=[], description="more grids; each adds to the settings above")
    figure: FigureConfig | None = Field(default=None, description="the figure; by default the first numeric key")
    reference: dict[str, Any] = Field(
        default={}, description="keys and values of the point that each point is compared with, seed by seed"
    )


@dataclass(frozen=True)
class SweepRun:
    """One run that a sweep needs.

    Attributes:
        values: what sets its point of the grid apart, by dotted key; None where a key means nothing there.
        seed: of this run.
        config: the whole of it.
        key: the name under which it is kept.
    """

    values: dict[str, Value]
    seed: int
    config: RunConfig
    key: str


@dataclass(frozen=True)
class Sweep:
    """A checked sweep: its runs in the order of the file, each point and seed once."""

    name: str
    runs: list[SweepRun]
    figure: FigureConfig | None
    reference: dict[str, Value]

    @property
    def columns(self) -> list[str]:
        """The keys that tell the points apart."""
        return list(self.runs[0].values)

    @property
    def distinct(self) -> list[SweepRun]:
        """The runs to make: points that compute the same share one."""
        return list({run.key: run for run in self.runs}.values())


def load_sweep(path: Path, over: Mapping[str, Any] = MappingProxyType({})) -> Sweep:
    """Read the file of a sweep and check every run of it.

    Args:
        path: the file.
        over: settings that all runs share, over those of the file.

    Raises:
        ConfigError: with every problem found; those of a run name its point of the grid.
    """
    tree = load_yaml(path, "sweep file")
    try:
        sweep = SweepConfig.model_validate({"name": path.stem, **tree})
    except ValidationError as error:
        raise ConfigError([f"sweep file {path}: {line}" for line in readable(error, SweepConfig)]) from None
    own = {*sweep.grid, *(key for part in sweep.also for key in [*part.grid, *_flat(part.config)])}
    beaten = [key for key in _flat(over) if key in own]
    if beaten:
        raise ConfigError([f"sweep file {path}: --set {key}: a grid of the file sets it, too" for key in beaten])
    sweep = SweepConfig.model_validate({**dict(sweep), "config": merged(sweep.config, over)})
    points = [point for part in [sweep, *sweep.also] for point in _points(sweep, part, path)]
    if not points:
        raise ConfigError(f"sweep file {path}: no runs: give grid, seeds or also")
    configs = _check_all(points, path)
    keys = _columns([point.given for point in points], configs)
    runs: dict[tuple[str, int], SweepRun] = {}
    for point, config in zip(points, configs, strict=True):
        values = {key: _value(config, key) for key in keys}
        run = SweepRun(values, point.seed, config, run_key(config))
        if runs.setdefault((json.dumps(values), point.seed), run).key != run.key:
            raise ConfigError(
                f"sweep file {path}: two runs can't be told apart: {values}, seed {point.seed}; "
                "delay profiles in the file need a name of their own each"
            )
    for key, value in sweep.reference.items():
        if key not in keys or all(run.values[key] != value for run in runs.values()):
            raise ConfigError(f"sweep file {path}: reference: no run has {key} = {value!r}")
    return Sweep(sweep.name, list(runs.values()), sweep.figure, sweep.reference)


@dataclass(frozen=True)
class _Point:
    tree: Tree
    given: dict[str, Value]
    seed: int


def _points(sweep: SweepConfig, part: GridPart, path: Path) -> list[_Point]:
    """The runs of one grid; ``given`` are the keys in which it may differ from the sweep's other grids."""
    own = part is not sweep
    if not own and sweep.also and not sweep.grid and sweep.seeds is None:
        return []  # only what all the others share
    shared = merged(sweep.config, part.config) if own else part.config
    seeds = part.seeds if part.seeds is not None else sweep.seeds
    listed = [0] if seeds is None else list(range(seeds)) if isinstance(seeds, int) else seeds
    problems = [f"grid.{key}: no values" for key, values in part.grid.items() if not values]
    problems += ["seed belongs to seeds, not to the grid"] if "seed" in part.grid or "seed" in shared else []
    problems += [] if listed else ["seeds: none"]
    if problems:
        raise ConfigError([f"sweep file {path}: {problem}" for problem in problems])
    points = []
    for values in itertools.product(*part.grid.values()):
        chosen = dict(zip(part.grid, values, strict=True))
        for seed in listed:
            tree = {**copy.deepcopy(shared), "seed": seed}  # set_key writes into the sections: each run has its own
            for key, value in chosen.items():
                try:
                    set_key(tree, key, copy.deepcopy(value))
                except ConfigError as error:
                    raise ConfigError(f"sweep file {path}: {key}={value}: {error}") from None
            points.append(_Point(tree, {**(_flat(part.config) if own else {}), **chosen}, seed))
    return points


def _flat(tree: Mapping[str, Any], before: str = "") -> dict[str, Value]:
    """Nested settings as dotted keys; a delay profile is one value."""
    flat: dict[str, Value] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping) and f"{before}{key}" != "delays.profile":
            flat.update(_flat(value, f"{before}{key}."))
        else:
            flat[before + key] = value
    return flat


def _check_all(points: Sequence[_Point], path: Path) -> list[RunConfig]:
    configs: list[RunConfig] = []
    problems: dict[str, None] = {}
    for point in points:
        try:
            configs.append(on_this_machine(parse_config(point.tree)))
        except ConfigError as error:
            where = ", ".join(f"{key}={value}" for key, value in point.given.items())
            problems.update(dict.fromkeys(f"sweep file {path}: {where}: {line}" for line in error.problems))
    if problems:
        raise ConfigError(list(problems))
    return configs


def _columns(given: Sequence[Mapping[str, Value]], configs: Sequence[RunConfig]) -> list[str]:
    """Keys that some grid sets and that differ between runs."""
    keys = dict.fromkeys(key for values in given for key in values)
    return [key for key in keys if len({json.dumps(_value(config, key)) for config in configs}) > 1]


def _value(config: RunConfig, key: str) -> Value:
    """A run's value of a key, as plain data; None where the key has no effect on the run."""
    if not applies(config, key):
        return None
    if key == "delays.profile":
        return config.profile.name
    return lookup(config.model_dump(mode="json"), key, None)


def run_key(config: RunConfig) -> str:
    """The name under which a run is kept: a hash of all that decides what it computes, and of the package's version.

    Names decide nothing, and a delay profile is taken for what it does: `slow_stage2` with S = 1 is `none`.
    """
    tree: dict[str, Any] = config.model_dump(mode="json", exclude={"name", "delays", "ray", "virtual", "pace"})
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
    text = json.dumps({"asyncdgl": __version__, "config": tree}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:DIGITS]
