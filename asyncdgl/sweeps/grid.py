"""A sweep: a grid over any keys of the configuration, with seeds; which runs it needs and where each is kept."""

from __future__ import annotations

import copy
import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from asyncdgl.config.defaults import Tree, lookup, merged
from asyncdgl.config.messages import readable
from asyncdgl.config.model import RunConfig
from asyncdgl.config.setting import applies
from asyncdgl.config.yaml import load_yaml, parse_config, set_key
from asyncdgl.errors import ConfigError
from asyncdgl.plan.resolve import on_this_machine
from asyncdgl.sweeps.identity import DataHashes, Progress, run_key
from asyncdgl.sweeps.measures import MEASURES

Value = Any
Inches = Annotated[float, Field(gt=0, le=40, allow_inf_nan=False)]


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
    facets: str | None = Field(default=None, description="dotted key: a panel for each of its values")
    log_x: bool | None = Field(
        default=None, description="whether the horizontal axis is logarithmic; null: where its values span a decade"
    )
    x_label: str | None = Field(default=None, description="of the horizontal axis")
    y_label: str | None = Field(default=None, description="of the vertical axis")
    title: str | None = Field(default=None, description="above the figure; null for none")
    size: Annotated[tuple[Inches, Inches], Field(description="inches")] | Literal["column", "page"] | None = Field(
        default=None, description="width and height in inches, or column (3.5) or page (7.0); null: by what is in it"
    )


class Reference(_Part):
    """The point of the grid that each point is compared with, seed by seed, and in what."""

    measure: str = "test_accuracy"
    values: dict[str, Any] = {}


class SweepConfig(GridPart):
    """The file of a sweep."""

    name: str = Field(default="", max_length=80, pattern=r"^[A-Za-z0-9_][A-Za-z0-9._+-]*$", description="of the sweep")
    also: list[GridPart] = Field(default=[], description="more grids; each adds to the settings above")
    figure: FigureConfig | None = Field(default=None, description="the figure; by default the first numeric key")
    reference: dict[str, Any] = Field(
        default={},
        description="keys and values of the point that each point is compared with, seed by seed; measure: in what "
        "(default test_accuracy)",
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
    reference: Reference | None

    @property
    def columns(self) -> list[str]:
        """The keys that tell the points apart."""
        return list(self.runs[0].values)

    @property
    def distinct(self) -> list[SweepRun]:
        """The runs to make: points that compute the same share one."""
        return list({run.key: run for run in self.runs}.values())


def plan_sweep(
    source: Path | Mapping[str, Any],
    over: Mapping[str, Any] = MappingProxyType({}),
    on_progress: Progress | None = None,
) -> Sweep:
    """Read the file of a sweep and check every run of it.

    Args:
        source: the file, or its content.
        over: settings that all runs share, over those of the file.
        on_progress: is told how many images of how many are decoded, where data must be.

    Raises:
        ConfigError: with every problem found; those of a run name its point of the grid.
        DataError: the images of a run can't be read.
    """
    if isinstance(source, Mapping):
        path, tree = Path("(a mapping)"), {"name": "sweep", **copy.deepcopy(dict(source))}
    else:
        path, tree = source, {"name": source.stem, **load_yaml(source, "sweep file")}
    try:
        sweep = SweepConfig.model_validate(tree)
    except ValidationError as error:
        raise ConfigError([f"sweep file {path}: {line}" for line in readable(error, SweepConfig)]) from None
    own = {*sweep.grid, *(key for part in sweep.also for key in [*part.grid, *flat(part.config)])}
    beaten = [key for key in flat(over) if key in own]
    if beaten:
        raise ConfigError([f"sweep file {path}: --set {key}: a grid of the file sets it, too" for key in beaten])
    sweep = SweepConfig.model_validate({**dict(sweep), "config": merged(sweep.config, over)})
    points = [point for part in [sweep, *sweep.also] for point in _points(sweep, part, path)]
    if not points:
        raise ConfigError(f"sweep file {path}: no runs: give grid, seeds or also")
    configs = _check_all(points, path)
    keys = _columns([point.given for point in points], configs)
    reference = _reference(sweep.reference, keys, configs, path)
    data = DataHashes(on_progress)
    runs: dict[tuple[str, int], SweepRun] = {}
    for point, config in zip(points, configs, strict=True):
        values = {key: _value(config, key) for key in keys}
        run = SweepRun(values, point.seed, config, run_key(config, data.of(config)))
        if runs.setdefault((json.dumps(values), point.seed), run).key != run.key:
            raise ConfigError(
                f"sweep file {path}: two runs can't be told apart: {values}, seed {point.seed}; "
                "delay profiles in the file need a name of their own each"
            )
    return Sweep(sweep.name, list(runs.values()), sweep.figure, reference)


def _reference(
    given: Mapping[str, Any], keys: Sequence[str], configs: Sequence[RunConfig], path: Path
) -> Reference | None:
    if not given:
        return None
    reference = Reference(
        measure=given.get("measure", "test_accuracy"), values={k: v for k, v in given.items() if k != "measure"}
    )
    problems = [
        f"no run has {key} = {value!r}"
        for key, value in reference.values.items()
        if key not in keys or all(_value(config, key) != value for config in configs)
    ]
    if reference.measure not in MEASURES:
        problems.append(f"measure must be one of {', '.join(MEASURES)}; got {reference.measure}")
    if not reference.values:
        problems.append("it names no key of the point to compare with")
    if problems:
        raise ConfigError([f"sweep file {path}: reference: {problem}" for problem in problems])
    return reference


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
            points.append(_Point(tree, {**(flat(part.config) if own else {}), **chosen}, seed))
    return points


def flat(tree: Mapping[str, Any], before: str = "") -> dict[str, Value]:
    """Nested settings as dotted keys; a delay profile is one value."""
    found: dict[str, Value] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping) and f"{before}{key}" != "delays.profile":
            found.update(flat(value, f"{before}{key}."))
        else:
            found[before + key] = value
    return found


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
