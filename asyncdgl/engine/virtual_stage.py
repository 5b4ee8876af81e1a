"""What a stage does or waits for in virtual time."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Any

from asyncdgl.buffers.buffer import ReplayBuffer, Sample
from asyncdgl.config.sections import PassTimes
from asyncdgl.engine import turn

BUSY, STOPPED = "", "stopped"
NO_INPUT = frozenset(("empty", "below_min_size", "not_arrived", "reused_up"))
PACED = frozenset((turn.PACED, turn.SLOWED, turn.PAUSED))


class VirtualStage:
    """One stage, and what it does or waits for. All times but those of its turn's clock are virtual."""

    __slots__ = (
        "answer",
        "asks",
        "blocks",
        "downstream",
        "fetched",
        "forward_s",
        "in_steps",
        "making",
        "number",
        "out_steps",
        "since",
        "train_s",
        "turn",
        "upstream",
        "waits_for",
    )  # fmt: skip

    def __init__(
        self, of: turn.Turn, times: PassTimes, upstream: ReplayBuffer[Any] | None, downstream: ReplayBuffer[Any] | None
    ) -> None:
        self.number = of.number
        self.turn = of
        self.asks = of.asks()
        self.train_s, self.forward_s = times.train, times.forward
        self.upstream, self.downstream = upstream, downstream
        self.in_steps = self.out_steps = False  # whether entries travel here on the profile clock
        self.waits_for = BUSY  # or stopped, or the reason for which it waits
        self.since = 0.0
        self.answer: Any = None  # what it will be told when it goes on
        self.making: turn.Pass | None = None
        self.fetched: deque[tuple[Sample[Any], float]] = deque()

    @property
    def given(self) -> Iterator[Sample[Any]]:
        """What a buffer gave it and it has not used up: fetched ahead, or read by the pass under way."""
        yield from (sample for sample, _ in self.fetched)
        if self.making is not None and self.making.sample is not None:
            yield self.making.sample
