"""A sweep's folder, read: the runs that are finished, and each point of the grid as an estimate over its seeds."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, ValidationError

from asyncdgl.errors import DataError
from asyncdgl.rundir.reader import first_problem
from asyncdgl.rundir.records import Summary
from asyncdgl.sweeps.execution import RunStore
from asyncdgl.sweeps.grid import FigureConfig, Reference, Sweep
from asyncdgl.sweeps.identity import differing
from asyncdgl.sweeps.measures import MEASURES, Estimate, estimate, measured

if TYPE_CHECKING:
    import pandas as pd

INDEX = "sweep.json"
DIFFERENCE = "less_reference"
PARTS = ("mean", "sd", "low", "high")
"""Of an estimate, in the columns of a table."""


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class IndexedRun(_Record):
    """One run in sweep.json."""

    values: dict[str, Any]
    seed: int
    key: str


class SweepIndex(_Record):
    """sweep.json: which runs make up the sweep, and where they are kept; ``set`` holds what ``--set`` said."""

    name: str
    runs_in: str
    set: list[str]
    columns: list[str]
    reference: Reference | None
    figure: FigureConfig | None
    runs: list[IndexedRun]


@dataclass(frozen=True)
class RunResult:
    """One run of a sweep: its point, its seed, where it is kept.

    ``summary`` is None where it is missing; ``broken`` says what is wrong with what lies in its place.
    """

    values: dict[str, Any]
    seed: int
    key: str
    path: Path
    summary: Summary | None
    broken: str | None = None

    @property
    def point(self) -> str:
        """Names its point of the grid."""
        return json.dumps(self.values)

    @property
    def diverged(self) -> bool:
        """Whether it ended with a loss that is not finite."""
        return self.summary is not None and self.summary.status == "diverged"


@dataclass(frozen=True)
class PointResult:
    """One point of the grid.

    Attributes:
        values: its settings, by dotted key; None where a key means nothing there.
        seeds: of its runs that are there and did not diverge, which the estimates are of.
        planned: how many runs it has.
        diverged: how many of them diverged.
        measured: each measure of the seeds, in their order.
        estimates: of each measure, over the seeds.
        difference: the reference's measure less that of the reference point, seed by seed: what the seeds have in
            common (weights, order of the data) does not blur it.
        differs_in: what its runs decided for themselves or met, and not alike.
    """

    values: dict[str, Any]
    seeds: list[int]
    planned: int
    diverged: int
    measured: dict[str, list[float]]
    estimates: dict[str, Estimate]
    difference: Estimate | None
    differs_in: list[str]

    def estimate(self, name: str) -> Estimate | None:
        """Of a measure, or of ``less_reference``; None where no run has it."""
        return self.difference if name == DIFFERENCE else self.estimates.get(name)

    @property
    def seeds_in_words(self) -> str:
        """How many seeds the estimates are of, and why not of all."""
        text = str(len(self.seeds)) if len(self.seeds) == self.planned else f"{len(self.seeds)} of {self.planned}"
        return f"{text} ({self.diverged} diverged)" if self.diverged else text


@dataclass(frozen=True)
class SweepResults:
    """A sweep as far as its runs are finished; ``assignments`` are those of ``--set``."""

    name: str
    path: Path
    columns: list[str]
    figure: FigureConfig | None
    runs: list[RunResult]
    assignments: list[str]
    reference: Reference | None = None

    @cached_property
    def points(self) -> list[PointResult]:
        """The points of the grid with at least one finished run, in the order of the sweep."""
        grouped: dict[str, list[RunResult]] = {}
        for run in self.runs:
            grouped.setdefault(run.point, []).append(run)
        return [self._point(runs, grouped) for runs in grouped.values() if any(run.summary for run in runs)]

    def _point(self, runs: list[RunResult], grouped: Mapping[str, list[RunResult]]) -> PointResult:
        found = {run.seed: measured(run.summary) for run in runs if run.summary is not None and not run.diverged}
        numbers: dict[str, list[float]] = {}
        for seed in sorted(found):
            for name, value in found[seed].items():
                numbers.setdefault(name, []).append(value)
        return PointResult(
            values=runs[0].values,
            seeds=sorted(found),
            planned=len(runs),
            diverged=sum(run.diverged for run in runs),
            measured=numbers,
            estimates={name: estimate(values) for name, values in numbers.items()},
            difference=self._difference(grouped, runs),
            differs_in=differing(list(dict.fromkeys(run.path for run in runs if run.summary is not None))),
        )

    def _difference(self, grouped: Mapping[str, list[RunResult]], runs: list[RunResult]) -> Estimate | None:
        """Paired difference to the reference: the point with the reference's values, and else this one's or none."""
        if self.reference is None:
            return None
        nothing = dict.fromkeys(self.columns)
        for rest in (runs[0].values, nothing):
            wanted = {**rest, **self.reference.values}
            other = next((there for there in grouped.values() if there[0].values == wanted), [])
            if other and other is not runs:
                ours, theirs = (self._compared(of, self.reference.measure) for of in (runs, other))
                pairs = [value - theirs[seed] for seed, value in ours.items() if seed in theirs]
                return estimate(pairs) if pairs else None
        return None

    @staticmethod
    def _compared(runs: Sequence[RunResult], measure: str) -> dict[int, float]:
        found = {run.seed: measured(run.summary).get(measure) for run in runs if run.summary is not None}
        return {seed: value for seed, value in found.items() if value is not None}

    def table(self) -> pd.DataFrame:
        """A row for each point of the grid that has a finished run.

        Columns: the point's settings (lists as JSON), ``seeds`` that the estimates are of, ``planned``, ``diverged``,
        ``differs_in``; then ``<measure>_mean``, ``_sd``, ``_low`` and ``_high`` (95 % interval, Student's t over the
        seeds) of each measure, and of ``less_reference`` where the sweep has a reference. Units: see ``MEASURES``.
        """
        import pandas as pd

        names = [*MEASURES, *([DIFFERENCE] if self.reference else [])]
        counts = ["seeds", "planned", "diverged", "differs_in"]
        rows = []
        for point in self.points:
            row = {key: cell(value) for key, value in point.values.items()}
            row |= {"seeds": len(point.seeds), "planned": point.planned, "diverged": point.diverged}
            row["differs_in"] = "; ".join(point.differs_in) or None
            for name in names:
                found = point.estimate(name)
                row |= {f"{name}_{part}": getattr(found, part) if found else None for part in PARTS}
            rows.append(row)
        return pd.DataFrame(
            rows, columns=[*self.columns, *counts, *(f"{name}_{part}" for name in names for part in PARTS)]
        )

    def runs_table(self) -> pd.DataFrame:
        """A row for each finished run: its settings, ``seed``, ``run`` (its folder), ``status``, every measure."""
        import pandas as pd

        rows = [
            {key: cell(value) for key, value in run.values.items()}
            | {"seed": run.seed, "run": run.key, "status": run.summary.status, **measured(run.summary)}
            for run in self.runs
            if run.summary is not None
        ]
        return pd.DataFrame(rows, columns=[*self.columns, "seed", "run", "status", *MEASURES])


def cell(value: Any) -> Any:
    """A setting as one value of a table."""
    return json.dumps(value) if isinstance(value, dict | list | tuple) else value


def write_index(sweep: Sweep, folder: Path, store: RunStore, assignments: Sequence[str] = ()) -> None:
    """sweep.json: which runs make up the sweep, and where they are kept."""
    try:
        kept = store.path.resolve().relative_to(folder.resolve()).as_posix()  # the folder can be moved as a whole
    except ValueError:
        kept = str(store.path.resolve())
    index = SweepIndex(
        name=sweep.name,
        runs_in=kept,
        set=list(assignments),
        columns=sweep.columns,
        reference=sweep.reference,
        figure=sweep.figure,
        runs=[IndexedRun(values=run.values, seed=run.seed, key=run.key) for run in sweep.runs],
    )
    part = folder / f".{INDEX}.part"
    part.write_text(index.model_dump_json(indent=1) + "\n", encoding="utf-8")
    part.replace(folder / INDEX)


def load_sweep(folder: str | os.PathLike[str]) -> SweepResults:
    """A sweep's folder with whatever runs are finished.

    Raises:
        DataError: the folder holds no sweep, or its index is broken.
    """
    folder = Path(folder)
    path = folder / INDEX
    if not path.is_file():
        raise DataError(f"{folder} holds no sweep: it has no {INDEX}")
    try:
        index = SweepIndex.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise DataError(f"{path}: not the index of a sweep: {first_problem(error)}") from None
    except OSError as error:
        raise DataError(f"{path}: not readable: {error.strerror or error}") from None
    if any(list(run.values) != index.columns for run in index.runs):
        raise DataError(f"{path}: not the index of a sweep: a run has other keys than columns says")
    store = RunStore(folder / index.runs_in)
    runs = [
        RunResult(run.values, run.seed, run.key, store.run_dir(run.key), store.summary(run.key), store.broken(run.key))
        for run in index.runs
    ]
    return SweepResults(index.name, folder, index.columns, index.figure, runs, index.set, index.reference)
