"""What a runtime hands back when a run ends, complete or not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from asyncdgl.rundir.records import BufferSummary, EvaluationLine, Fault, Host, Process

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True)
class StageEnd:
    """What a stage reports when it ends.

    Attributes:
        updates, forward_passes, epochs: its own counts.
        state_sha256: hash of its final state.
        fetched_unused: entries fetched ahead and never used.
        lost_turns: ``sim`` only: turns lost, by reason.
    """

    updates: int
    forward_passes: int
    epochs: int
    state_sha256: str | None
    fetched_unused: int = 0
    lost_turns: Mapping[str, int] | None = None

    @property
    def passes(self) -> int:
        """Of both kinds."""
        return self.updates + self.forward_passes


@dataclass
class Outcome:
    """What a runtime hands back, complete or as far as it went.

    Attributes:
        ends: what each stage reported at its end.
        buffers: the books of each buffer.
        evaluation: the last one.
        processes: of the Ray runtime.
        hosts: other machines that they are on.
        faults: its processes that died.
        weights: of the stages that could say theirs at the end, by name.
    """

    ends: dict[int, StageEnd]
    buffers: list[BufferSummary]
    evaluation: EvaluationLine | None
    processes: list[Process] = field(default_factory=list)
    hosts: list[Host] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    weights: dict[int, Mapping[str, NDArray[Any]]] = field(default_factory=dict, compare=False)
