"""Reads a run directory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel, TypeAdapter, ValidationError

from asyncdgl.config.resolved import ResolvedConfig
from asyncdgl.config.yaml import load_yaml
from asyncdgl.errors import ConfigError, DataError
from asyncdgl.rundir.records import (
    CHECKPOINTS,
    CONFIG,
    ENVIRONMENT,
    FIGURES,
    METRICS,
    SUMMARY,
    TRACE,
    Environment,
    EpochLine,
    EvaluationLine,
    MetricsLine,
    Summary,
)
from asyncdgl.rundir.trace import PassRecord, by_stage, read_trace

if TYPE_CHECKING:
    import pandas as pd
    from torch import nn

NAMES: dict[type[BaseModel], str] = {Summary: "a summary", Environment: "an environment"}

Record = TypeVar("Record", bound=BaseModel)
_METRICS_LINE: TypeAdapter[EpochLine | EvaluationLine] = TypeAdapter(MetricsLine)


class Run:
    """What a run left behind.

    Args:
        path: its directory.
        config: everything resolved.
        environment: None where the run was killed before it was written.
        summary: None where the run was killed.
        lines: of metrics.jsonl.
        records: of the trace; None to read them when they are asked for.
        given: parts of the run that were handed over as objects, by kind.
    """

    def __init__(
        self,
        path: Path,
        config: ResolvedConfig,
        environment: Environment | None,
        summary: Summary | None,
        lines: Sequence[EpochLine | EvaluationLine],
        records: Sequence[PassRecord] | None = None,
        given: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        self.path = path
        self.config = config
        self.environment = environment
        self.summary = summary
        self.lines = list(lines)
        self.given = given
        if records is not None:
            self.__dict__["records"] = list(records)  # where cached_property looks

    @property
    def epochs(self) -> list[EpochLine]:
        """Each stage's own epochs, in the order in which they were completed."""
        return [line for line in self.lines if isinstance(line, EpochLine)]

    @property
    def evaluations(self) -> list[EvaluationLine]:
        """Every use of the test set, in order."""
        return [line for line in self.lines if isinstance(line, EvaluationLine)]

    @cached_property
    def records(self) -> list[PassRecord]:
        """The lines of the trace, as they stand there.

        Raises:
            DataError: the trace is broken.
        """
        path = self.path / TRACE
        return list(read_trace(path)) if path.is_file() else []

    def let_go(self) -> None:
        """Of the trace, which takes much memory: who asks for it again reads it again."""
        for name in ("records", "passes"):
            self.__dict__.pop(name, None)

    @cached_property
    def passes(self) -> dict[int, list[PassRecord]]:
        """The passes of each stage, in the order in which it made them."""
        return by_stage(self.records)

    def trace(self) -> pd.DataFrame:
        """A row for each pass, with the fields of ``PassRecord``; waits as columns ``wait_<reason>`` (0 if none)."""
        import pandas as pd

        frame = pd.DataFrame(self.records, columns=PassRecord._fields)
        for name in ("source_incarnation", "source_step", "source_update", "times_sampled"):
            frame[name] = frame[name].astype("Int64")  # stage 1 has none
        for name in ("sampled_s", "loss"):
            frame[name] = frame[name].astype("float64")
        waits = frame.pop("waits")
        for reason in sorted({reason for of_pass in waits for reason in of_pass}):
            frame[f"wait_{reason}"] = [of_pass.get(reason, 0.0) for of_pass in waits]
        return frame

    def metrics(self) -> pd.DataFrame:
        """A row for each measure of each stage at each of its epochs, and of each head at each evaluation.

        Columns: ``kind`` (``epoch`` or ``evaluation``), ``epoch`` (the stage's own; of an evaluation the slowest
        stage's), ``stage``, ``end_s`` (in the run's unit of time), ``loss``, ``accuracy`` and ``lr`` of an epoch,
        and ``test_accuracy``, ``test_ensemble_accuracy`` (of heads 1 to this one), ``test_loss`` and the same of
        ``validation`` of an evaluation.
        """
        import pandas as pd

        rows = [line.model_dump() for line in self.epochs]
        for line in self.evaluations:
            values = {name: value for name, value in line if isinstance(value, tuple)}
            shared = {"kind": line.kind, "epoch": line.epoch, "end_s": line.end_s, "final": line.final}
            rows += [
                {**shared, "stage": head + 1, "weights_epoch": line.epochs[head]}
                | {name: of_heads[head] for name, of_heads in values.items() if name != "epochs"}
                for head in range(len(line.test_accuracy))
            ]
        return pd.DataFrame(rows)

    def figures(self) -> dict[str, Picture]:
        """The figures that lie in the run directory, by name."""
        return {path.stem: Picture(path) for path in sorted((self.path / FIGURES).glob("*.png"))}

    def model(self, head: int | None = None) -> nn.Sequential:
        """The trained network up to a head (from 1; by default the last), an ordinary module in evaluation mode.

        It maps inputs [B, …], normalised as the run's were, to class scores [B, classes].

        Raises:
            DataError: the run kept no model.
            ConfigError: its network was an object, which has to be handed to ``load_run`` again.
        """
        from asyncdgl.registry import handed_over
        from asyncdgl.rundir.model import load_model

        with handed_over(self.given):
            return load_model(self.path, self.config, head)


@dataclass(frozen=True)
class Picture:
    """A figure of a run; a notebook shows it."""

    path: Path

    def _repr_png_(self) -> bytes:
        return self.path.read_bytes()


def read_run(path: Path, given: Mapping[str, Any] = MappingProxyType({}), to_go_on: bool = False) -> Run:
    """Read a run directory; its trace is read when it is asked for.

    Args:
        path: the directory.
        given: parts of the run that were handed over as objects, by kind.
        to_go_on: where there are checkpoints, a broken summary or environment is taken for none.

    Raises:
        DataError: the folder is no run directory, or a file in it is broken.
    """
    if not (path / CONFIG).is_file():
        raise DataError(f"{path} is no run directory: it has no {CONFIG}")
    try:
        config = ResolvedConfig.checked(load_yaml(path / CONFIG))
    except ConfigError as error:
        place = f"{path / CONFIG}: "
        raise DataError(place + "; ".join(error.problems).replace(f"config file {place}", "")) from None
    to_go_on = to_go_on and (path / CHECKPOINTS).is_dir()  # a complete run must not begin anew
    run = Run(
        path=path,
        config=config,
        environment=_read_if_there(Environment, path / ENVIRONMENT, to_go_on),
        summary=_read_if_there(Summary, path / SUMMARY, to_go_on),
        lines=read_metrics(path / METRICS) if (path / METRICS).is_file() else [],
        given=given,
    )
    heads = config.trained_stages
    if any(len(line.test_accuracy) != heads for line in run.evaluations):
        raise DataError(f"{path / METRICS}: an evaluation has not the accuracies of {heads} heads")
    return run


def _read_if_there(record: type[Record], path: Path, may_be_broken: bool) -> Record | None:
    try:
        return read_record(record, path) if path.is_file() else None
    except DataError:
        if may_be_broken:
            return None
        raise


def read_record(record: type[Record], path: Path) -> Record:
    """What a file of a run directory holds.

    Raises:
        DataError: something else; the message names the first key that is wrong.
    """
    try:
        return record.model_validate_json(path.read_bytes(), strict=True)
    except ValidationError as error:
        raise DataError(f"{path}: not {NAMES[record]} of a run: {first_problem(error)}") from None
    except OSError as error:
        raise DataError(f"{path}: not readable: {error.strerror or error}") from None


def first_problem(error: ValidationError) -> str:
    """The first key that is wrong, and how many more are."""
    problems = error.errors()
    place = ".".join(map(str, problems[0]["loc"]))
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    return f"{place + ': ' if place else ''}{problems[0]['msg']}{more}"


def read_metrics(path: Path) -> list[EpochLine | EvaluationLine]:
    """The lines of metrics.jsonl, without one that a kill cut short."""
    lines = []
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if line.endswith(b"\n"):
                try:
                    lines.append(_METRICS_LINE.validate_json(line, strict=True))
                except ValidationError as error:
                    raise DataError(f"{path}, line {number}: not a line of metrics: {first_problem(error)}") from None
    return lines
