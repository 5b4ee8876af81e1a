"""When a run is measured, and when it is kept."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from asyncdgl.config import where
from asyncdgl.config.setting import Section, setting


class CheckpointConfig(Section):
    """What a stopped run goes on from."""

    title: ClassVar[str] = "Checkpoints"

    every: Annotated[int, Field(ge=1, le=10**9)] | None = setting(
        None,
        "own passes of a stage between two checkpoints; null: as often as costs at most a hundredth of the time. A run "
        "that is stopped keeps one, too",
        unit="passes",
        bits=False,
    )


class EvaluationConfig(Section):
    """When the test set is used."""

    title: ClassVar[str] = "Evaluation"

    every: int = setting(1, "epochs between two evaluations", unit="epochs", where=where.COMPUTING, ge=1, le=10**6)
