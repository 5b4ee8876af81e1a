"""Runtime ``sim``: the paper's loops in one process, deterministic."""

from __future__ import annotations

import time
from bisect import bisect
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from itertools import accumulate
from pathlib import Path
from types import MappingProxyType
from typing import Any

from asyncdgl.buffers.buffer import Sample
from asyncdgl.config.model import RunConfig
from asyncdgl.engine.build import make_buffer, make_clock, make_evaluator, make_stages, open_dataset
from asyncdgl.engine.evaluations import EvaluationSchedule, evaluation_line
from asyncdgl.engine.passes import Passed, StagePasses
from asyncdgl.errors import SampleBlocked
from asyncdgl.learn.arithmetic import set_up_torch
from asyncdgl.observer import Observer
from asyncdgl.rundir.outcome import Outcome
from asyncdgl.rundir.trace import FORWARD, TRAIN
from asyncdgl.seeding import Draws

PROGRESS_EVERY_S = 0.2


class Simulation:
    """One run of Algorithm 1, Algorithm 2, sequential greedy training or backprop in this process.

    Args:
        config: the run.
        data: folder of the decoded data set.
        observer: is told of every pass, epoch and evaluation.
        check: called between passes; raises where the run is to stop.
    """

    def __init__(
        self,
        config: RunConfig,
        data: Path,
        observer: Observer,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        set_up_torch(config)
        self._config = config
        self._observer = observer
        self._check = check
        dataset = open_dataset(config, data)
        stages = make_stages(config, dataset)
        self._numbers = range(1, len(stages) + 1)
        self._began = time.perf_counter()
        self._passes = {j: StagePasses(config, dataset, j, stages[j - 1], self._seconds) for j in self._numbers}
        linked = self._numbers[:-1] if config.algorithm != "sequential-dgl" else ()
        self._buffers = {j: make_buffer(config, j) for j in linked}
        self._clocks = {j: make_clock(config, j) for j in self._numbers}
        self._paused_until = dict.fromkeys(self._numbers, 0.0)
        self._lost_turns: dict[int, Counter[str]] = {j: Counter() for j in self._numbers}
        self._schedule = EvaluationSchedule(len(stages), config.epochs, config.evaluation.every)
        self._evaluator = make_evaluator(config, dataset)
        self._published = {j: stages[j - 1].published() for j in self._numbers}
        self._evaluation: dict[str, dict[str, Any]] | None = None
        self._shown_at = 0.0

    def _seconds(self) -> float:
        return time.perf_counter() - self._began

    def run(self) -> None:
        """Train to the end, then evaluate the final weights."""
        self._began = time.perf_counter()
        if self._config.algorithm == "async-dgl":
            for j in (j for j in self._numbers for _ in range(2)):  # warm-up; who can't move is passed over
                if j in self._running():
                    self._turn(j, 0.0)
            for j, now in drawn_turns(self._config, self._running):
                reason = self._turn(j, now)
                if reason is not None:
                    self._lost_turns[j][reason] += 1
        elif self._config.algorithm == "sequential-dgl":
            for j in self._numbers:
                for number in range(self._passes[j].quota):
                    self._train_alone(j, number)
        else:
            while self._running():
                for j in self._numbers:  # Algorithm 1: stage 1 … J on each batch
                    self._turn(j, 0.0)
        self._published = {j: passes.stage.published() for j, passes in self._passes.items()}
        last = {"stage": self._numbers[-1]} if self._config.algorithm == "sequential-dgl" else {}
        self._evaluate(self._config.epochs, final=True, of=last)

    def _running(self) -> list[int]:
        """Stages that have not stopped: those up to the last one that still trains."""
        training = [j for j, passes in self._passes.items() if passes.is_training]
        return list(range(1, max(training) + 1)) if training else []

    def _turn(self, j: int, now: float) -> str | None:
        """Let stage j make one pass at time ``now`` (steps); returns why it could not, or None."""
        self._check()
        passes = self._passes[j]
        kind = passes.next_kind(any(self._passes[i].is_training for i in self._numbers[j:]))
        assert kind is not None
        if now < self._paused_until[j]:
            return "pause"
        out, has_reader = self._buffers.get(j), j < self._running()[-1]
        blocks = out is not None and has_reader and self._config.replay.on_full == "block"
        if out is not None and blocks and not out.reserve(passes.next_name):
            return "full"
        try:
            sample = self._buffers[j - 1].sample(now) if j > 1 else None
        except SampleBlocked as blocked:
            return blocked.reason
        sampled_s = self._seconds()
        self._paused_until[j] = now + self._clocks[j].length(passes.step).pause
        passed = passes.run(kind, sample, sampled_s, {})
        if out is not None and passed.entry is not None:
            if blocks or self._config.replay.on_full == "overwrite":
                out.insert(passed.entry, now)
            else:
                out.drop(passed.entry.source.name)  # a place for it would never become free
        self._report(j, passed)
        return None

    def _train_alone(self, j: int, number: int) -> None:
        """Sequential greedy training: batch ``number`` goes through the trained stages, then stage j learns from it."""
        self._check()
        sample: Sample[Any] | None = None
        for i in range(1, j + 1):
            sampled_s = self._seconds()
            passed = self._passes[i].run(
                TRAIN if i == j else FORWARD, sample, sampled_s, {}, number if i == 1 else None
            )
            if passed.entry is not None:
                sample = Sample(passed.entry.source, passed.entry.payload, 1)
            self._report(i, passed)

    def _report(self, j: int, passed: Passed) -> None:
        self._observer.passed([passed.record])
        if passed.record.end_s - self._shown_at > PROGRESS_EVERY_S or passed.epoch_end is not None:
            self._shown_at = passed.record.end_s
            for i, passes in self._passes.items():
                self._observer.progressed(i, passes.progress(stopped=i not in self._running()))
        if passed.epoch_end is None:
            return
        self._observer.epoch_completed(passed.epoch_end.line)
        if passed.epoch_end.published is not None:
            self._published[j] = passed.epoch_end.published
        if self._config.algorithm == "sequential-dgl":  # the one stage that trains is the slowest that does
            if passed.epoch_end.published is not None:
                self._evaluate(passed.epoch_end.line["epoch"], final=False, of={"stage": j})
            return
        for epoch in self._schedule.completed(j, passed.epoch_end.line["epoch"]):
            self._evaluate(epoch, final=False)

    def _evaluate(self, epoch: int, final: bool, of: Mapping[str, int] = MappingProxyType({})) -> None:
        began = time.perf_counter()
        self._evaluation = self._evaluator.evaluate([self._published[j] for j in self._numbers], self._check)
        self._began += time.perf_counter() - began  # evaluation is no training time; under ray it runs beside it
        self._observer.evaluated({**evaluation_line(self._evaluation, epoch, self._seconds(), final), **of})

    def outcome(self) -> Outcome:
        """What there is now: complete, or as far as the run came."""
        lost = self._lost_turns if self._config.algorithm == "async-dgl" else None
        return Outcome(
            ends={j: passes.end(lost_turns=lost[j] if lost else None) for j, passes in self._passes.items()},
            buffers=[{"after_stage": j, **b.statistics(), "fetched_unused": 0} for j, b in self._buffers.items()],
            evaluation=self._evaluation,
        )


def drawn_turns(config: RunConfig, running: Callable[[], list[int]]) -> Iterator[tuple[int, float]]:
    """Algorithm 2's schedule: whose turn it is, and when.

    A stage is drawn with probability proportional to 1/S_j among those that have not stopped; each draw advances the
    time by 1/sum(1/S_i) steps, so that an unslowed stage has one turn a step on average.

    Args:
        config: the run.
        running: the stages that have not stopped, asked before each draw; none ends the schedule.

    Yields:
        The stage, and the time in steps.
    """
    draws, profile = Draws(config.seed, "turns"), config.profile
    now, number = 0.0, 0
    while stages := running():
        speeds = [1 / profile.stage(j).slowdown for j in stages]
        now += 1 / sum(speeds)
        mark = draws.uniform(number) * sum(speeds)
        number += 1
        yield stages[bisect(list(accumulate(speeds[:-1])), mark)], now
