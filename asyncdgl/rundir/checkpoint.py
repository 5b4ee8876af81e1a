"""Checkpoints: what a stopped run, or a stage whose process died, goes on from; the last two of them are kept.

A run of `sim` or `virtual` is deterministic, so that a checkpoint need not say where every clock, link and sampler
stood: whoever goes on repeats the first passes without their arithmetic. What arithmetic made stands here: the stages'
states, the entries that may still be read, and the weights that an evaluation may still need. On Ray each stage has
checkpoints of its own, and its buffer still has what it read since.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Protocol

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from asyncdgl.errors import DataError
from asyncdgl.rundir.arrays import read_arrays, save_arrays
from asyncdgl.rundir.disk import to_disk
from asyncdgl.rundir.reader import Run
from asyncdgl.rundir.records import CHECKPOINTS, CONFIG, METRICS, TRACE
from asyncdgl.rundir.writer import RunWriter

if TYPE_CHECKING:
    from numpy.typing import NDArray

KEPT = 2
"""Checkpoints that stay: the older one is for the case that the newer one is damaged."""

POSITION = "position"
Count = Annotated[int, Field(ge=0)]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class StagePosition(_Record):
    """Where a stage stood, beside its state."""

    stage: int = Field(ge=1)
    incarnation: Count
    step: Count = Field(description="of its next pass")
    v: float = Field(ge=0, description="its profile clock, in steps")
    updates: Count
    optimizer: tuple[str, ...] = Field(description="kinds of its optimizer's state; one may hold nothing yet")
    entry_bytes: Count = Field(description="encoded size of what it hands on")
    epoch_updates: Count = Field(description="updates of its epoch under way")
    epoch_loss: float = Field(description="sum of their losses")
    epoch_correct: Count = Field(description="images of them that its head classified right")


class Position(_Record):
    """Where a run stood."""

    config_sha256: str = Field(description="of config.yaml, but for the epochs")
    passes: Count = Field(description="made by all stages together: lines of trace.jsonl")
    metrics_lines: Count = Field(description="lines of metrics.jsonl")
    elapsed_s: float = Field(ge=0, description="since training began, in the run's unit of time")
    wall_seconds: float = Field(ge=0, description="of the whole run until then")
    stages: tuple[StagePosition, ...] = Field(description="all of them, or on Ray the one whose checkpoint it is")


@dataclass(frozen=True)
class Checkpoint:
    """What a run goes on from.

    Attributes:
        position: where it stood.
        arrays: by name; see ``weights``, ``optimizer``, ``entries`` and ``published`` for what the names begin with.
    """

    position: Position
    arrays: Mapping[str, NDArray[Any]]

    def of(self, stage: int) -> StagePosition:
        """Where a stage stood."""
        return next(position for position in self.position.stages if position.stage == stage)

    def part(self, prefix: str) -> dict[str, NDArray[Any]]:
        """The arrays whose names begin with this, by the rest of their names."""
        found = self.arrays.items()
        return {name.removeprefix(prefix): value for name, value in found if name.startswith(prefix)}


def weights(stage: int) -> str:
    """What the names of a stage's weights and statistics begin with."""
    return f"weights/{stage}/"


def optimizer(stage: int) -> str:
    """What the names of its optimizer's state begin with; then the kind and the parameter."""
    return f"optimizer/{stage}/"


def entries(stage: int) -> str:
    """What the names of a stage's entries begin with that may still be read; then the step of the pass that made it."""
    return f"entry/{stage}/"


def entry(stage: int, step: int) -> str:
    """What the names of an entry's payload begin with."""
    return f"{entries(stage)}{step}/"


def published(stage: int, epoch: int) -> str:
    """What the names of weights begin with that an evaluation may still need, by the stage's own epoch."""
    return f"published/{stage}/{epoch}/"


def config_sha256(folder: Path) -> str:
    """Of the run's config.yaml, but for the epochs, which may be raised: a checkpoint belongs to one configuration."""
    lines = (folder / CONFIG).read_bytes().splitlines(keepends=True)
    return hashlib.sha256(b"".join(line for line in lines if not line.startswith(b"epochs:"))).hexdigest()


class Keep(Protocol):
    """Keeps a checkpoint."""

    def __call__(
        self,
        passes: int | None,
        elapsed_s: float,
        stages: tuple[StagePosition, ...],
        arrays: Mapping[str, NDArray[Any]],
        stage: int | None = None,
    ) -> Checkpoint:
        """Keep it.

        Args:
            passes: made by all stages together; None for all that were recorded.
            elapsed_s: since training began.
            stages: where they stand.
            arrays: by name.
            stage: whose checkpoint it is, where each stage has its own.

        Raises:
            OSError: there is no room.
        """


def unsaved(
    passes: int | None,
    elapsed_s: float,
    stages: tuple[StagePosition, ...],
    arrays: Mapping[str, NDArray[Any]],
    stage: int | None = None,
) -> Checkpoint:
    """A checkpoint in memory alone: good for a stage whose process dies, not for a run that is stopped."""
    position = Position(
        config_sha256="", passes=passes or 0, metrics_lines=0, elapsed_s=elapsed_s, wall_seconds=0, stages=stages
    )
    return Checkpoint(position, arrays)


def keeper(writer: RunWriter, wall_seconds: Callable[[], float], most: int = KEPT) -> Keep:
    """What writes the checkpoints of a run.

    Args:
        writer: of its directory.
        wall_seconds: of the whole run until now.
        most: how many stay, of each stage where each has its own.
    """

    def keep(
        passes: int | None,
        elapsed_s: float,
        stages: tuple[StagePosition, ...],
        arrays: Mapping[str, NDArray[Any]],
        stage: int | None = None,
    ) -> Checkpoint:
        position = Position(
            config_sha256=config_sha256(writer.path),
            passes=writer.passes if passes is None else passes,
            metrics_lines=writer.metrics_lines,
            elapsed_s=elapsed_s,
            wall_seconds=wall_seconds(),
            stages=stages,
        )
        checkpoint = Checkpoint(position, arrays)
        save_checkpoint(writer.path, checkpoint, stage, most)
        return checkpoint

    return keep


def save_checkpoint(folder: Path, checkpoint: Checkpoint, stage: int | None = None, most: int = KEPT) -> None:
    """Keep a checkpoint, and let go of all but the last ones.

    It counts once it is on the disk, after the lines of the trace and the metrics that it rests on.

    Args:
        folder: the run directory.
        checkpoint: what to keep.
        stage: whose it is, where each stage has its own.
        most: how many stay.

    Raises:
        OSError: there is no room; the checkpoints that were there are left.
    """
    place = _place(folder, stage)
    for own in (folder / CHECKPOINTS, place):  # one by one: the run directory itself may be gone
        own.mkdir(exist_ok=True)
    for lines in (TRACE, METRICS):
        to_disk(folder / lines)
    position = checkpoint.position
    number = position.passes if stage is None else checkpoint.of(stage).step
    save_arrays(place / f"{number:010d}.safetensors", checkpoint.arrays, {POSITION: position.model_dump_json()})
    for older in _newest_first(place)[most:]:
        older.unlink(missing_ok=True)


def remove_checkpoints_after(folder: Path, step: int, stage: int | None = None) -> None:
    """The run goes on from an earlier checkpoint, where each stage has its own of the stage's, or from the first pass.

    Args:
        folder: the run directory.
        step: number of the checkpoint.
        stage: whose they are.
    """
    for path in _newest_first(_place(folder, stage)):
        if not path.stem.isdecimal() or int(path.stem) > step:
            path.unlink(missing_ok=True)


def remove_checkpoints(folder: Path) -> None:
    """A run that is complete needs none."""
    shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)


def _place(folder: Path, stage: int | None) -> Path:
    return folder / CHECKPOINTS / ("" if stage is None else f"stage-{stage}")


def _newest_first(place: Path) -> list[Path]:
    return sorted(place.glob("*.safetensors"), reverse=True)


def newest_checkpoint(
    run: Run, fits: Callable[[Checkpoint], bool] = lambda kept: True
) -> tuple[Checkpoint | None, list[str]]:
    """The newest checkpoint of a run in one process that can be used.

    Args:
        run: what it has left.
        fits: whether one that is whole is wanted.

    Returns:
        The checkpoint, or None where there is none; and what is wrong with each newer one, a sentence each.
    """
    problems = []
    for path in _newest_first(_place(run.path, None)):
        try:
            kept = read_checkpoint(path, run.path)
            if kept.position.passes > len(run.records) or kept.position.metrics_lines > len(run.lines):
                raise DataError(f"{path} rests on lines of {TRACE} or {METRICS} that are not there")
        except DataError as error:
            problems.append(str(error))
        else:
            if fits(kept):
                return kept, problems
    return None, problems


def stage_checkpoints(run: Run, stage: int) -> tuple[list[Checkpoint], list[str]]:
    """The checkpoints of a stage of a run on Ray, the newest first; and what is wrong with others, a sentence each."""
    found, problems = [], []
    for path in _newest_first(_place(run.path, stage)):
        try:
            found.append(read_checkpoint(path, run.path))
        except DataError as error:
            problems.append(str(error))
    return found, problems


def read_checkpoint(path: Path, folder: Path) -> Checkpoint:
    """What a checkpoint says.

    Args:
        path: of its file.
        folder: the run directory.

    Raises:
        DataError: it is damaged, cut short, of another configuration, or no checkpoint.
    """
    arrays, about = read_arrays(path)
    try:
        position = Position.model_validate_json(about.get(POSITION, ""), strict=True)
    except ValidationError as error:
        raise DataError(f"{path} is no checkpoint of this version: {error.errors()[0]['msg']}") from None
    if position.config_sha256 != config_sha256(folder):
        raise DataError(f"{path} belongs to another configuration than the {CONFIG} beside it")
    return Checkpoint(position, arrays)
