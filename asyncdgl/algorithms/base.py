"""What an algorithm is: what stands between the stages, and whose turn it is in `sim`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from asyncdgl.config.resolved import ResolvedConfig


class Stages(Protocol):
    """What an order of turns may ask of a run in `sim`."""

    @property
    def config(self) -> ResolvedConfig:
        """The run."""

    @property
    def running(self) -> range:
        """The stages that have not stopped: 1 to the last one that still trains; empty at the end."""

    def is_training(self, stage: int) -> bool:
        """Whether a stage has not yet done its quota of updates."""


Order = Callable[[Stages], Iterator[tuple[int, float | None]]]
"""Whose turn it is, and the time in steps; None for a time that does not count (a turn lost then is no lost turn)."""


@dataclass(frozen=True)
class Algorithm:
    """An algorithm.

    Attributes:
        order: of the turns in `sim`, until no stage is running.
        between: what the buffers do, over what the configuration says.
        runtimes: where it runs.
        in_one: the whole network is one learner, trained end to end.
        one_by_one: stages train one after the other, each from the first mini-batch of the data stream.
        counts_lost_turns: a stage that is drawn and can't move has lost its turn.
    """

    order: Order
    between: Mapping[str, Any] = field(default_factory=dict)
    runtimes: tuple[str, ...] = ("sim",)
    in_one: bool = False
    one_by_one: bool = False
    counts_lost_turns: bool = False
