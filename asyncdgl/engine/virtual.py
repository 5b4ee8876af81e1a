"""Runtime ``virtual``: an event queue in virtual time, over the same turns, buffers and pace as ``ray``.

A pass takes the time that `virtual.step_times` says, whatever it takes here; messages take none. Events are the ends of
passes and sleeps and the arrivals that somebody waits for; between two of them nothing happens.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from heapq import heappop, heappush
from pathlib import Path
from typing import Any

from asyncdgl.buffers.buffer import Sample
from asyncdgl.buffers.entry import Entry, PassName
from asyncdgl.config.resolved import ResolvedConfig
from asyncdgl.config.sections import PassTimes
from asyncdgl.engine import turn
from asyncdgl.engine.build import build, steps_clock, weights_of
from asyncdgl.engine.checkpoints import Checkpoints
from asyncdgl.engine.evaluations import Evaluating
from asyncdgl.engine.pace import Pace
from asyncdgl.engine.passes import Passed
from asyncdgl.engine.past import Past, Resumed
from asyncdgl.engine.virtual_stage import BUSY, NO_INPUT, PACED, STOPPED, VirtualStage
from asyncdgl.errors import SampleBlocked
from asyncdgl.observer import Observer
from asyncdgl.rundir.checkpoint import Keep
from asyncdgl.rundir.outcome import Outcome
from asyncdgl.rundir.records import BufferSummary
from asyncdgl.rundir.trace import TRAIN, PassRecord

ONE_STEP = PassTimes(train=1.0, forward=1.0)
REPORT_EVERY = 1000
"""Passes between two reports to the observer."""

COMPUTING, SLEEPING, PAUSING, ARRIVAL = range(4)
"""What an event ends, or tells."""

LATER = object()
"""In place of an answer: the stage goes on when an event says so."""


class VirtualRun:
    """One run in virtual time.

    Args:
        config: the run; ``virtual.step_times`` is resolved.
        data: folder of the decoded data set; not used where nothing is trained.
        observer: is told of every pass, epoch and evaluation.
        check: called between events; raises where the run is to stop.
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
        self._config = config
        self._observer = observer = observer if past is None else Resumed(past, observer)
        self._check = check
        self.now = 0.0
        parts = build(config, data if config.has_tensors else None, lambda: self.now)
        self._passes, self._buffers = parts.passes, parts.buffers
        self._training = turn.Training(config.stages)
        times = config.virtual.step_times
        each = (ONE_STEP,) if times is None else times
        self._stages: dict[int, VirtualStage] = {}
        for j, passes in self._passes.items():
            turns = turn.Turn(config, passes, parts.lengths[j], partial(self._training.later_than, j))
            stage = VirtualStage(turns, each[(j - 1) % len(each)], self._buffers.get(j - 1), self._buffers.get(j))
            stage.in_steps = j - 1 in self._buffers and steps_clock(config, j - 1)
            stage.out_steps = j in self._buffers and steps_clock(config, j)
            self._stages[j] = stage
        self._paces = config.pace == "profile"
        self._in_steps = config.profile.unit == "steps"
        self._blocks = config.buffer.on_full == "block"
        slowdowns = {j: config.profile.stage(j).slowdown for j in self._stages}
        unslowed = [self._stages[j].train_s for j, s in slowdowns.items() if s == min(slowdowns.values())]
        self._step_s = sum(unslowed) / len(unslowed)
        self._pace = Pace(config.profile.window)
        self._paced: list[tuple[float, int]] = []  # who waits for the others' clocks, by its own
        self._awaiting: list[tuple[float, int]] = []  # who waits for an entry that travels on the profile clock
        self._events: list[tuple[float, int, int, int]] = []
        self._event_count = 0
        self._to_move: deque[VirtualStage] = deque(self._stages.values())
        evaluated = () if past is None else past.evaluations
        self._evaluating = Evaluating(parts, config, False, observer, check, evaluated)
        self._checkpoints = Checkpoints(config.checkpoint.every, self._passes, self._evaluating, keep)
        self._past = past
        if past is not None:
            past.begin(self._passes)
        self._made = 0
        self._between_events = True
        self._something_due = True
        self._records: list[PassRecord] = []
        every = None if keep is None else config.checkpoint.every
        self._report_every = REPORT_EVERY if every is None else min(REPORT_EVERY, every * config.stages)
        self._answers = turn.answers_of(self)

    def run(self) -> None:
        """Run until every stage has stopped, then evaluate the final weights."""
        try:
            while self._to_move or self._events:
                if self._something_due:
                    self._between()
                self._check()
                self._between_events = False
                while self._to_move:
                    stage = self._to_move.popleft()
                    answer, stage.answer = stage.answer, None
                    self._go_on(stage, answer)
                if self._events:
                    self.now = self._events[0][0]
                    # All that ends now has ended before anybody begins something: the order of names decides nothing.
                    while self._events and self._events[0][0] == self.now:
                        _, _, j, what = heappop(self._events)
                        self._happen(self._stages[j], what)
                self._between_events = True
            self._between()
        finally:
            self._report()
        waiting = [f"stage {j}: {s.waits_for}" for j, s in self._stages.items() if s.waits_for != STOPPED]
        if waiting:
            raise RuntimeError(f"no event is left, but there wait {', '.join(waiting[:8])}")
        self._evaluating.end(self.now)

    def _between(self) -> None:
        """Between two events: evaluate what is due, and keep a checkpoint."""
        self._something_due = self._past is not None
        if self._past is not None and self._past.passes == self._made:
            self._report()
            self._past.end(self._passes)
            self._checkpoints.begin(self._made)
            self._past = None
        self._evaluating.catch_up(self.now)
        if self._past is None and self._checkpoints.are_due(self._made):
            self.keep()

    def keep(self) -> None:
        """Keep what the run goes on from, if it stands between two events."""
        if self._between_events and self._past is None:
            self._report()
            self._checkpoints.take(self._made, self.now, self._readable())

    def _readable(self) -> Iterator[tuple[PassName, Any]]:
        """The entries that may still be read, and those that are being read."""
        for buffer in self._buffers.values():
            yield from ((entry.source.name, entry.payload) for entry in buffer.readable)
        for stage in self._stages.values():
            yield from ((sample.source.name, sample.payload) for sample in stage.given)

    def _go_on(self, stage: VirtualStage, answer: Any) -> None:
        """Answer what a stage asks, until it computes, sleeps, waits, or has ended its turn."""
        send, answers = stage.asks.send, self._answers
        while answer is not LATER:
            what, about = send(answer)
            answer = answers[what](stage, about)

    # --- Events

    def _schedule(self, stage: VirtualStage, after: float, what: int) -> None:
        self._event_count += 1  # events at the same time happen in the order in which they were foreseen
        heappush(self._events, (self.now + after, self._event_count, stage.number, what))

    def _happen(self, stage: VirtualStage, what: int) -> None:
        if what == COMPUTING:
            self._go_on(stage, self._computed(stage))
        elif what == SLEEPING:
            stage.answer = self.now - stage.since, 0.0
            self._to_move.append(stage)
        elif what == PAUSING:
            stage.answer = self.now - stage.since
            self._to_move.append(stage)
        elif stage.waits_for in NO_INPUT:
            self._wake(stage)

    def _wake(self, stage: VirtualStage) -> None:
        """What a waiting stage waited for may be there: it tries again."""
        stage.waits_for = BUSY
        stage.answer = self.now - stage.since
        self._to_move.append(stage)

    def _follow_pace(self) -> None:
        """The pace has changed: wake whom it lets go on."""
        if not self._paced and not self._awaiting:
            return
        limit = self._pace.limit
        while self._paced and limit is not None and self._paced[0][0] <= limit:
            stage = self._stages[heappop(self._paced)[1]]
            if stage.waits_for in PACED:
                self._wake(stage)
        while self._awaiting and self._awaiting[0][0] <= self._pace.now:
            stage = self._stages[heappop(self._awaiting)[1]]
            if stage.waits_for in NO_INPUT:
                self._wake(stage)

    def _release(self, stage: VirtualStage) -> None:
        if self._paces:
            self._pace.release(stage.number)
            self._follow_pace()

    # --- Answers to what a stage asks

    def _reserve(self, stage: VirtualStage, name: PassName) -> bool:
        return stage.downstream is not None and stage.downstream.reserve(name)

    def _start(self, stage: VirtualStage, v: float) -> tuple[float | None, float]:
        clock = self._pace.request(stage.number, v)
        if clock is None:
            heappush(self._paced, (v, stage.number))
        self._follow_pace()
        return clock, 0.0

    def _take(self, stage: VirtualStage, v: float) -> tuple[Sample[Any], float] | SampleBlocked:
        if stage.fetched:
            return stage.fetched.popleft()
        return self._sample(stage, max(v, self._pace.now) if stage.in_steps else v)

    def _fetch(self, stage: VirtualStage, about: tuple[float, int]) -> None:
        """Take the next entries while this pass is computed; what is not there now is not waited for."""
        v, limit = about
        while len(stage.fetched) < limit:
            taken = self._sample(stage, v)
            if isinstance(taken, SampleBlocked):
                return
            stage.fetched.append(taken)

    def _sample(self, stage: VirtualStage, v: float) -> tuple[Sample[Any], float] | SampleBlocked:
        try:
            sample = self._buffers[stage.number - 1].sample(v if stage.in_steps else self.now)
        except SampleBlocked as blocked:
            return blocked
        # The reader has taken an entry: a producer that waits for a place may have one.
        if self._blocks and self._stages[stage.number - 1].waits_for == turn.FULL:
            self._wake(self._stages[stage.number - 1])
        return sample, self.now

    def _compute(self, stage: VirtualStage, made: turn.Pass) -> object:
        stage.making, stage.since = made, self.now
        self._schedule(stage, stage.train_s if made.kind == TRAIN else stage.forward_s, COMPUTING)
        return LATER

    def _computed(self, stage: VirtualStage) -> Passed:
        kind, sample, sampled_s, waits = stage.making  # type: ignore[misc]
        stage.making = None
        passed = self._passes[stage.number].run(kind, sample, sampled_s, waits, stage.since)
        self._made += 1
        self._records.append(passed.record)
        if len(self._records) >= self._report_every or passed.epoch_end is not None:
            self._note(stage, passed)
        return passed

    def _advance(self, stage: VirtualStage, v: float) -> bool:
        may_start = self._pace.request(stage.number, v) is not None
        self._follow_pace()
        return may_start

    def _insert(self, stage: VirtualStage, entry: Entry[Any]) -> None:
        if stage.downstream is None:
            return
        on_steps = stage.out_steps
        unit = 1.0 if on_steps or not self._in_steps else self._step_s
        stage.downstream.insert(entry, stage.turn.v if on_steps else self.now, unit)
        reader = self._stages[stage.number + 1]
        if reader.waits_for in NO_INPUT:
            self._wake(reader)

    def _drop(self, stage: VirtualStage, entry: Entry[Any]) -> None:
        if stage.downstream is not None:
            stage.downstream.drop(entry.source.name)

    def _trained(self, stage: VirtualStage, _: None) -> None:
        """Those that nobody needs any more stop, whatever they wait for."""
        before = self._training.last
        if self._training.done(stage.number):
            for j in range(max(1, self._training.last), before + 1):
                if self._stages[j].waits_for not in (BUSY, STOPPED):
                    self._wake(self._stages[j])

    def _spent(self, stage: VirtualStage, _: None) -> float:
        return 0.0  # messages take no time here

    def _sleep(self, stage: VirtualStage, seconds: float, ends: int = SLEEPING) -> object:
        stage.since = self.now
        self._schedule(stage, seconds, ends)
        return LATER

    def _pause(self, stage: VirtualStage, length: float) -> object:
        self._release(stage)
        return self._sleep(stage, length * (self._step_s if self._in_steps else 1.0), PAUSING)

    def _wait(self, stage: VirtualStage, about: tuple[str, float | None]) -> object:
        reason, due = about
        stage.waits_for, stage.since = reason, self.now
        if reason in PACED:
            return LATER
        if due is not None and stage.in_steps:
            heappush(self._awaiting, (due, stage.number))
            self._pace.expect(stage.number, due)
            self._follow_pace()
        else:
            self._release(stage)
            if due is not None:
                self._schedule(stage, due - self.now, ARRIVAL)
        return LATER

    def _next(self, stage: VirtualStage, _: None) -> object:
        self._to_move.append(stage)
        return LATER

    def _stop(self, stage: VirtualStage, _: None) -> object:
        stage.waits_for = STOPPED
        self._release(stage)
        self._observer.progressed(stage.number, self._passes[stage.number].progress(stopped=True))
        return LATER

    # --- Reports

    def _report(self) -> None:
        records, self._records = self._records, []
        self._observer.passed(records)

    def _note(self, stage: VirtualStage, passed: Passed) -> None:
        self._report()
        self._something_due = True
        self._observer.progressed(stage.number, self._passes[stage.number].progress(stopped=False))
        if passed.epoch_end is not None:
            self._evaluating.completed(stage.number, passed.epoch_end)

    def outcome(self) -> Outcome:
        """What there is now: complete, or as far as the run came."""
        unused = {j: len(s.fetched) for j, s in self._stages.items()}
        return Outcome(
            ends={j: passes.end(fetched_unused=unused[j]) for j, passes in self._passes.items()},
            buffers=[
                BufferSummary.model_validate({"after_stage": j, **b.statistics(), "fetched_unused": unused[j + 1]})
                for j, b in self._buffers.items()
            ],
            evaluation=self._evaluating.last,
            weights=weights_of(self._passes),
        )
