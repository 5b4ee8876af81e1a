"""What an algorithm is: what stands between the stages, and whose turn it is in `sim`."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any, Protocol

from asyncdgl.errors import ConfigError, PartFailed, shown

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

RUNTIMES = ("ray", "sim", "virtual")
TRIED = 100
"""Turns of an order of one's own that are looked at before a run is made."""


class _Untrained:
    """Stages that never get to their end."""

    def __init__(self, config: ResolvedConfig) -> None:
        self.config = config
        self.running = range(1, config.trained_stages + 1)

    def is_training(self, stage: int) -> bool:
        return stage in self.running


@dataclass(frozen=True)
class Algorithm:
    """An algorithm.

    Attributes:
        order: of the turns in `sim`, until no stage is running.
        between: what the buffers do, over what the configuration says.
        runtimes: where it runs, of ``ray``, ``sim`` and ``virtual``; the first is the one by default.
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

    def __post_init__(self) -> None:
        if not callable(self.order):
            raise TypeError(f"order must be a function of the stages that gives turns, got {shown(self.order)}")
        if isinstance(self.runtimes, str) or not self.runtimes or not set(self.runtimes) <= set(RUNTIMES):
            raise TypeError(f"runtimes must be some of {', '.join(RUNTIMES)}, got {shown(self.runtimes)}")

    def turns(self, stages: Stages) -> Iterator[tuple[int, float | None]]:
        """The turns of its order, each of them checked.

        Raises:
            PartFailed: the order gives something else than turns of running stages, or ends before they do.
        """
        order = f"algorithm {stages.config.algorithm}: its order"
        for item in self.order(stages):
            if not isinstance(item, tuple) or len(item) != 2:
                raise PartFailed(f"{order} must give pairs (stage, time in steps, or None), got {shown(item)}")
            stage, now = item
            if stage not in stages.running:
                raise PartFailed(
                    f"{order} gave a turn to stage {shown(stage)}; the stages that have not stopped are 1 to "
                    f"{len(stages.running)}"
                )
            if now is not None and not (isinstance(now, int | float) and 0 <= now < math.inf):
                raise PartFailed(f"{order} gave the time {shown(now)}: it must be a number of steps from 0, or None")
            yield stage, now
        if stages.running:
            raise PartFailed(f"{order} ended while stages 1 to {len(stages.running)} had not stopped")

    def check(self, config: ResolvedConfig) -> None:
        """Whether an order of one's own begins with turns.

        Raises:
            ConfigError: it fails, or gives something else.
        """
        try:
            for _ in islice(self.turns(_Untrained(config)), TRIED):
                pass
        except PartFailed as error:
            raise ConfigError(str(error)) from None
        except Exception as error:  # a part of the user's may raise anything
            raise ConfigError(
                f"algorithm {config.algorithm}: its order fails: {type(error).__name__}: {error}"
            ) from error
