"""Runtime ``sim``: the paper's loops in one process, deterministic. The algorithm says whose turn it is."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from asyncdgl import registry
from asyncdgl.algorithms.base import Algorithm
from asyncdgl.config.resolved import ResolvedConfig
from asyncdgl.engine import turn
from asyncdgl.engine.build import build, weights_of
from asyncdgl.engine.checkpoints import Checkpoints
from asyncdgl.engine.evaluations import Evaluating
from asyncdgl.engine.passes import Passed
from asyncdgl.engine.past import Past, Resumed
from asyncdgl.errors import SampleBlocked
from asyncdgl.observer import Observer
from asyncdgl.rundir.checkpoint import Keep
from asyncdgl.rundir.outcome import Outcome
from asyncdgl.rundir.records import BufferSummary

PROGRESS_EVERY_S = 0.2


class _Stage:
    """One stage of the loop: its turns, when it may start again, and the turns that it has lost."""

    def __init__(self, of: turn.Turn) -> None:
        self.turn = of
        self.asks = of.asks()
        self.paused_until = 0.0  # in steps
        self.lost_turns: Counter[str] = Counter()


class Simulation:
    """One run of Algorithm 1, Algorithm 2, sequential greedy training or backprop in this process.

    Args:
        config: the run.
        data: folder of the decoded data set; without one nothing is computed.
        observer: is told of every pass, epoch and evaluation.
        check: called between passes; raises where the run is to stop.
        keep: writes a checkpoint; None where none is kept.
        past: what the run has done already, where it is gone on with.
    """

    def __init__(
        self,
        config: ResolvedConfig,
        data: Path | None,
        observer: Observer,
        check: Callable[[], None] = lambda: None,
        keep: Keep | None = None,
        past: Past | None = None,
    ) -> None:
        self.config = config
        self._observer = observer = observer if past is None else Resumed(past, observer)
        self._check = check
        self._began = time.perf_counter()
        self._algorithm: Algorithm = registry.find("algorithm", config.algorithm)
        parts = build(config, data, self._seconds)
        self._passes, self._buffers, self._lengths = parts.passes, parts.buffers, parts.lengths
        self._training = turn.Training(len(self._passes))
        self._stages = {j: _Stage(self._turn_of(j)) for j in self._passes}
        one_by_one, evaluated = self._algorithm.one_by_one, () if past is None else past.evaluations
        self._evaluating = Evaluating(parts, config, one_by_one, observer, check, evaluated)
        self._checkpoints = Checkpoints(config.checkpoint.every, self._passes, self._evaluating, keep)
        self._past = past
        if past is not None:
            past.begin(self._passes)
        self._made = 0
        self._between_turns = True
        self._epoch_ended_s: float | None = None
        self._shown_at = 0.0
        self._now = 0.0  # in steps

    def _turn_of(self, j: int) -> turn.Turn:
        return turn.Turn(self.config, self._passes[j], self._lengths[j], lambda: self._training.later_than(j))

    def _seconds(self) -> float:
        if self._past is not None:
            return self._past.now(self._made)
        return time.perf_counter() - self._began

    # --- What an order of turns may ask (`algorithms.base.Stages`)

    @property
    def running(self) -> range:
        """The stages that have not stopped."""
        return range(1, self._training.last + 1)

    def is_training(self, stage: int) -> bool:
        """Whether a stage has not yet done its quota of updates."""
        return self._passes[stage].is_training

    # --- The loop

    def run(self) -> None:
        """Train to the end, then evaluate the final weights."""
        self._began = time.perf_counter()
        for j, now in self._algorithm.turns(self):
            self._between()
            self._now = 0.0 if now is None else now
            self._between_turns = False
            reason = self._give_turn(self._stages[j])
            self._between_turns = True
            if reason is not None and now is not None:
                self._stages[j].lost_turns[reason] += 1
        self._between()
        self._evaluating.end(self._seconds())

    def _between(self) -> None:
        """Between two turns: evaluate what is due, keep a checkpoint, and stop where that is asked."""
        if self._past is not None and self._past.passes == self._made:
            self._past.end(self._passes)
            self._began = time.perf_counter() - self._past.elapsed_s
            self._checkpoints.begin(self._made)
            self._past = None
        if self._epoch_ended_s is not None:
            began = time.perf_counter()
            try:
                self._evaluating.catch_up(self._epoch_ended_s)
            finally:  # evaluation is no training time; under ray it runs beside it
                self._began += time.perf_counter() - began
            self._epoch_ended_s = None
        if self._past is None and self._checkpoints.are_due(self._made):
            self.keep()
        self._check()

    def keep(self) -> None:
        """Keep what the run goes on from, if it stands between two turns."""
        if self._between_turns and self._past is None:
            readable = (entry for buffer in self._buffers.values() for entry in buffer.readable)
            self._checkpoints.take(self._made, self._seconds(), ((e.source.name, e.payload) for e in readable))

    def _give_turn(self, stage: _Stage) -> str | None:
        """Let a stage make one pass; returns why it could not, or None."""
        answer: Any = None
        while True:
            what, about = stage.asks.send(answer)
            answer = None
            if what == turn.RESERVE:
                answer = self._buffers[stage.turn.number].reserve(about)
            elif what == turn.START:
                answer = (self._now if self._now >= stage.paused_until else None), 0.0
            elif what == turn.TAKE:
                answer = self._take(stage.turn.number)
            elif what == turn.COMPUTE:
                stage.paused_until = self._now + stage.turn.last.pause
                answer = self._compute(stage.turn, about)
            elif what == turn.INSERT:
                self._buffers[stage.turn.number].insert(about, self._now)
            elif what == turn.DROP:
                self._buffers[stage.turn.number].drop(about.source.name)
            elif what == turn.TRAINED:
                self._training.done(stage.turn.number)
                self._show_progress()
            elif what == turn.WAIT:
                reason: str = about[0]
                return reason
            elif what in (turn.NEXT, turn.STOP):
                return None

    def _take(self, j: int) -> Any:
        try:
            return self._buffers[j - 1].sample(self._now), self._seconds()
        except SampleBlocked as blocked:
            return blocked

    def _compute(self, of: turn.Turn, made: turn.Pass) -> Passed:
        passed = of.passes.run(*made)
        self._made += 1
        self._observer.passed([passed.record])
        end_s = passed.record.end_s
        if end_s - self._shown_at > PROGRESS_EVERY_S or passed.epoch_end is not None:
            self._shown_at = end_s
            self._show_progress()
        if passed.epoch_end is not None:
            self._evaluating.completed(of.number, passed.epoch_end)
            self._epoch_ended_s = end_s
        return passed

    def _show_progress(self) -> None:
        for j, passes in self._passes.items():
            self._observer.progressed(j, passes.progress(stopped=j not in self.running))

    def outcome(self) -> Outcome:
        """What there is now: complete, or as far as the run came."""
        counts = self._algorithm.counts_lost_turns
        return Outcome(
            ends={
                j: passes.end(lost_turns=dict(self._stages[j].lost_turns) if counts else None)
                for j, passes in self._passes.items()
            },
            buffers=[
                BufferSummary.model_validate({"after_stage": j, **b.statistics(), "fetched_unused": 0})
                for j, b in self._buffers.items()
            ],
            evaluation=self._evaluating.last,
            weights=weights_of(self._passes),
        )
