"""Runtime ``virtual``: an event queue in virtual time, over the same stages, buffers and pace as ``ray``.

A pass takes the time that `virtual.step_times` says, whatever it takes here; messages take none. Events are the ends of
passes and sleeps and the arrivals that somebody waits for; between two of them nothing happens.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from heapq import heappop, heappush
from pathlib import Path
from typing import Any, cast

from asyncdgl.buffers.buffer import ReplayBuffer, Sample
from asyncdgl.buffers.size import entry_bytes
from asyncdgl.config.model import PassTimes, RunConfig
from asyncdgl.delays.clock import PassLength, ProfileClock
from asyncdgl.engine.build import make_buffer, make_clock, make_evaluator, make_stages, open_dataset, steps_clock
from asyncdgl.engine.evaluations import EvaluationSchedule, evaluation_line
from asyncdgl.engine.pace import Pace
from asyncdgl.engine.passes import Passed, StagePasses
from asyncdgl.engine.provenance import ProvenancePasses
from asyncdgl.errors import SampleBlocked
from asyncdgl.learn.arithmetic import set_up_torch
from asyncdgl.observer import Observer
from asyncdgl.plan.memory import asked_outputs
from asyncdgl.rundir.outcome import Outcome
from asyncdgl.rundir.trace import TRAIN, PassRecord

FIRST = PassLength(1.0, 0.0)
ONE_STEP = PassTimes(train=1.0, forward=1.0)
REPORT_EVERY = 1000
"""Passes between two reports to the observer."""

IDLE, COMPUTING, SLEEPING, STOPPED, FULL = "idle", "computing", "sleeping", "stopped", "full"
NO_INPUT = {"empty", "below_min_size", "not_arrived", "reused_up"}
PACED = {"pace", "slowdown", "pause"}


@dataclass(slots=True)
class _Stage:
    """One stage, what it does or waits for, and what its next pass has got so far.

    ``v`` is its profile clock, in steps; all other times are virtual.
    """

    number: int
    passes: StagePasses | ProvenancePasses
    clock: ProfileClock
    times: PassTimes
    upstream: ReplayBuffer[Any] | None
    downstream: ReplayBuffer[Any] | None
    state: str = IDLE  # or computing, sleeping, stopped, or the reason for which it waits
    since: float = 0.0
    v: float = 0.0
    next_v: float = 0.0
    kind: str = TRAIN
    has_place: bool = False  # on_full block: for the next pass
    sends: bool = True  # whether the present pass has a place for what it makes
    ready: tuple[Sample[Any], float] | None = None
    input: tuple[Sample[Any] | None, float | None] = (None, None)
    fetched: deque[tuple[Sample[Any], float]] = field(default_factory=deque)
    waits: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    pass_waits: dict[str, float] = field(default_factory=dict)
    last: PassLength = FIRST
    to_stretch: float | None = None  # pace free: computing of the last pass, not yet stretched
    may_start: bool = False  # pace profile: the next pass may
    owed: float = 0.0
    sleeps_for: str = ""


class VirtualRun:
    """One run in virtual time.

    Args:
        config: the run; ``virtual.step_times`` is resolved.
        data: folder of the decoded data set; not used where nothing is trained.
        observer: is told of every pass, epoch and evaluation.
        check: called between events; raises where the run is to stop.
    """

    def __init__(
        self, config: RunConfig, data: Path | None, observer: Observer, check: Callable[[], None] = lambda: None
    ) -> None:
        self._config = config
        self._observer = observer
        self._check = check
        self.now = 0.0
        self._numbers = range(1, config.stages + 1)
        buffers = {j: make_buffer(config, j) for j in self._numbers[:-1]}
        self._buffers = buffers
        passes, times = self._make_passes(data), config.virtual.step_times
        assert times != "measure"
        each = (ONE_STEP,) if times is None else times
        self._stages = {
            j: _Stage(
                j,
                passes[j - 1],
                make_clock(config, j),
                each[(j - 1) % len(each)],
                buffers.get(j - 1),
                buffers.get(j),
            )
            for j in self._numbers
        }
        self._profile_paced = config.pace == "profile"
        self._in_steps = config.profile.unit == "steps"
        self._blocks = config.replay.on_full == "block"
        self._prefetch = min(config.buffer.prefetch, 1) if self._blocks else config.buffer.prefetch
        self._steps_clock = {j: steps_clock(config, j) for j in buffers}
        slowdowns = {j: config.profile.stage(j).slowdown for j in self._numbers}
        unslowed = [self._stages[j].times.train for j, s in slowdowns.items() if s == min(slowdowns.values())]
        self._step_s = sum(unslowed) / len(unslowed)
        self._pace = Pace(config.profile.window)
        self._paced: list[tuple[float, int]] = []  # who waits for the others' clocks, by its own
        self._awaiting: list[tuple[float, int]] = []  # who waits for an entry that travels on the profile clock
        self._events: list[tuple[float, int, int, str]] = []
        self._event_count = 0
        self._to_move: deque[_Stage] = deque(self._stages.values())
        self._last_training = config.stages
        self._schedule = EvaluationSchedule(config.stages, config.epochs, config.evaluation.every)
        self._evaluation: dict[str, dict[str, Any]] | None = None
        self._records: list[PassRecord] = []

    def _make_passes(self, data: Path | None) -> list[Any]:
        config = self._config
        if not config.has_tensors:
            sizes = [*entry_bytes(config, config.precision == "bf16", asked_outputs(config)), 0]
            return [ProvenancePasses(config, j, sizes[j - 1], lambda: self.now) for j in self._numbers]
        assert data is not None
        set_up_torch(config)
        dataset = open_dataset(config, data)
        stages = make_stages(config, dataset)
        self._evaluator = make_evaluator(config, dataset)
        self._published = {j: stages[j - 1].published() for j in self._numbers}
        return [StagePasses(config, dataset, j, stages[j - 1], lambda: self.now) for j in self._numbers]

    def run(self) -> None:
        """Run until every stage has stopped, then evaluate the final weights."""
        try:
            while self._to_move or self._events:
                self._check()
                while self._to_move:
                    self._move(self._to_move.popleft())
                if self._events:
                    self.now = self._events[0][0]
                    # All that ends now has ended before anybody begins something: the order of names decides nothing.
                    while self._events and self._events[0][0] == self.now:
                        _, _, j, what = heappop(self._events)
                        self._happen(self._stages[j], what)
        finally:
            self._report()
        waiting = [f"stage {j}: {s.state}" for j, s in self._stages.items() if s.state != STOPPED]
        assert not waiting, f"no event is left, but there wait {', '.join(waiting[:8])}"
        if self._config.has_tensors:
            self._published = {j: cast(StagePasses, s.passes).stage.published() for j, s in self._stages.items()}
            self._evaluate(self._config.epochs, final=True)

    # --- Events

    def _schedule_event(self, stage: _Stage, after: float, what: str) -> None:
        self._event_count += 1  # events at the same time happen in the order in which they were foreseen
        heappush(self._events, (self.now + after, self._event_count, stage.number, what))

    def _happen(self, stage: _Stage, what: str) -> None:
        if what == COMPUTING:
            self._end_pass(stage)
        elif what == SLEEPING:
            stage.waits[stage.sleeps_for] += self.now - stage.since
            self._let_move(stage)
        elif stage.state in NO_INPUT:
            self._wake(stage)

    def _let_move(self, stage: _Stage) -> None:
        stage.state = IDLE
        self._to_move.append(stage)

    def _wake(self, stage: _Stage) -> None:
        """What a waiting stage waited for may be there: it tries again."""
        stage.waits[stage.state] += self.now - stage.since
        self._let_move(stage)

    def _wait(self, stage: _Stage, reason: str) -> None:
        stage.state, stage.since = reason, self.now

    def _sleep(self, stage: _Stage, seconds: float, reason: str) -> None:
        stage.state, stage.since, stage.sleeps_for = SLEEPING, self.now, reason
        self._schedule_event(stage, seconds, SLEEPING)

    def _follow_pace(self) -> None:
        """The pace has changed: wake whom it lets go on."""
        if not self._paced and not self._awaiting:
            return
        limit = self._pace.limit
        while self._paced and limit is not None and self._paced[0][0] <= limit:
            stage = self._stages[heappop(self._paced)[1]]
            if stage.state in PACED:
                self._wake(stage)
        while self._awaiting and self._awaiting[0][0] <= self._pace.now:
            stage = self._stages[heappop(self._awaiting)[1]]
            if stage.state in NO_INPUT:
                self._wake(stage)

    # --- One stage, in the order in which the Ray runtime's stage does it

    def _move(self, stage: _Stage) -> None:
        """Start the next pass, or wait for what it lacks, or stop."""
        j = stage.number
        kind = stage.passes.next_kind(self._last_training > j)
        if kind is None:
            stage.state = STOPPED
            self._release(stage)
        elif self._has_place(stage) and self._may_start(stage) and self._has_input(stage):
            self._start_pass(stage, kind)

    def _release(self, stage: _Stage) -> None:
        if self._profile_paced:
            stage.may_start = False
            self._pace.release(stage.number)
            self._follow_pace()

    def _has_place(self, stage: _Stage) -> bool:
        """``on_full: block``: a place is reserved before the input is taken."""
        if not self._blocks or stage.downstream is None or stage.has_place or self._last_training <= stage.number:
            return True
        stage.has_place = stage.downstream.reserve(stage.passes.next_name)
        if not stage.has_place:
            self._wait(stage, FULL)
            self._release(stage)
        return stage.has_place

    def _has_input(self, stage: _Stage) -> bool:
        buffer = stage.upstream
        if buffer is None or stage.ready is not None:
            return True
        if stage.fetched:
            stage.ready = stage.fetched.popleft()
            return True
        on_steps = self._steps_clock[stage.number - 1]
        try:
            sample = buffer.sample(max(stage.v, self._pace.now) if on_steps else self.now)
        except SampleBlocked as blocked:
            self._wait(stage, blocked.reason)
            if blocked.due is None or not on_steps:
                self._release(stage)
                if blocked.due is not None:
                    self._schedule_event(stage, blocked.due - self.now, "arrival")
            else:
                heappush(self._awaiting, (blocked.due, stage.number))
                stage.may_start = False
                self._pace.expect(stage.number, blocked.due)
                self._follow_pace()
            return False
        stage.ready = sample, self.now
        self._place_left(stage)
        return True

    def _place_left(self, reader: _Stage) -> None:
        """The reader has taken an entry: a producer that waits for a place may have one."""
        if self._blocks and self._stages[reader.number - 1].state == FULL:
            self._wake(self._stages[reader.number - 1])

    def _may_start(self, stage: _Stage) -> bool:
        if not self._profile_paced:
            return self._is_stretched(stage)
        if stage.may_start:
            return True
        v = self._pace.request(stage.number, stage.v)
        if v is None:
            heappush(self._paced, (stage.v, stage.number))
            self._wait(stage, self._why_paced(stage))
        else:
            stage.v, stage.may_start = v, True
        self._follow_pace()
        return stage.may_start

    def _why_paced(self, stage: _Stage) -> str:
        if stage.last.pause > 0 and self._in_steps:
            return "pause"
        return "slowdown" if stage.clock.delay.slowdown > 1 and stage.last.step > 1 else "pace"

    def _is_stretched(self, stage: _Stage) -> bool:
        """Pace ``free``: the last pass takes S_j times its computing, debts and credits carried over."""
        if stage.to_stretch is None:
            return True
        stage.owed += (stage.last.step - 1) * stage.to_stretch
        stage.to_stretch = None
        if stage.owed <= 0:
            return True
        self._sleep(stage, stage.owed, "slowdown")
        stage.owed = 0.0
        return False

    def _start_pass(self, stage: _Stage, kind: str) -> None:
        stage.input, stage.ready = stage.ready or (None, None), None
        stage.pass_waits = dict(stage.waits)
        stage.waits.clear()
        stage.may_start = False
        stage.sends, stage.has_place = stage.has_place or not self._blocks, False
        length = stage.clock.length(stage.passes.step)
        stage.next_v = stage.v + length.step + (length.pause if self._in_steps else 0.0)
        stage.last, stage.kind = length, kind
        if stage.upstream is not None and self._prefetch:
            self._fetch_ahead(stage, stage.upstream)
        stage.state, stage.since = COMPUTING, self.now
        self._schedule_event(stage, stage.times.train if kind == TRAIN else stage.times.forward, COMPUTING)

    def _fetch_ahead(self, stage: _Stage, buffer: ReplayBuffer[Any]) -> None:
        """Take the next entries while this pass is computed; what is not there now is not waited for."""
        if self._blocks and stage.downstream is not None:
            following = stage.passes.next_name._replace(step=stage.passes.step + 1)
            stage.has_place = self._last_training > stage.number and stage.downstream.reserve(following)
            if not stage.has_place:
                return
        while len(stage.fetched) < self._prefetch:
            try:
                sample = buffer.sample(stage.next_v if self._steps_clock[stage.number - 1] else self.now)
            except SampleBlocked:
                return
            stage.fetched.append((sample, self.now))
            self._place_left(stage)

    def _end_pass(self, stage: _Stage) -> None:
        sample, sampled_s = stage.input
        passed: Passed = stage.passes.run(stage.kind, sample, sampled_s, stage.pass_waits, start_s=stage.since)
        stage.v = stage.next_v
        stage.to_stretch = self.now - stage.since
        if self._profile_paced:
            # Its clock goes on, whether it can move again or not.
            stage.may_start = self._pace.request(stage.number, stage.v) is not None
            self._follow_pace()
        self._hand_on(stage, passed)
        self._records.append(passed.record)
        if len(self._records) == REPORT_EVERY or passed.epoch_end is not None:
            self._note(stage, passed)
        if stage.kind == TRAIN and not stage.passes.is_training:
            self._train_no_more()
        if stage.last.pause > 0 and not (self._profile_paced and self._in_steps):
            self._release(stage)
            self._sleep(stage, stage.last.pause * (self._step_s if self._in_steps else 1.0), "pause")
        else:
            self._let_move(stage)

    def _hand_on(self, stage: _Stage, passed: Passed) -> None:
        buffer, entry = stage.downstream, passed.entry
        if buffer is None or entry is None:
            return
        if not stage.sends:
            buffer.drop(entry.source.name)  # its reader has stopped
            return
        on_steps = self._steps_clock[stage.number]
        buffer.insert(entry, stage.v if on_steps else self.now, 1.0 if on_steps or not self._in_steps else self._step_s)
        reader = self._stages[stage.number + 1]
        if reader.state in NO_INPUT:
            self._wake(reader)

    def _train_no_more(self) -> None:
        """A stage has done its quota: those that nobody needs any more stop, whatever they wait for."""
        before = self._last_training
        while self._last_training and not self._stages[self._last_training].passes.is_training:
            self._last_training -= 1
        if self._last_training < before:
            for j in range(max(1, self._last_training), before + 1):
                if self._stages[j].state not in (IDLE, COMPUTING, SLEEPING, STOPPED):
                    self._wake(self._stages[j])

    # --- Reports

    def _report(self) -> None:
        records, self._records = self._records, []
        self._observer.passed(records)

    def _note(self, stage: _Stage, passed: Passed) -> None:
        self._report()
        self._observer.progressed(stage.number, stage.passes.progress(stopped=False))
        if passed.epoch_end is None:
            return
        self._observer.epoch_completed(passed.epoch_end.line)
        if passed.epoch_end.published is not None:
            self._published[stage.number] = passed.epoch_end.published
        for epoch in self._schedule.completed(stage.number, passed.epoch_end.line["epoch"]):
            if self._config.has_tensors:
                self._evaluate(epoch, final=False)

    def _evaluate(self, epoch: int, final: bool) -> None:
        self._evaluation = self._evaluator.evaluate([self._published[j] for j in self._numbers], self._check)
        self._observer.evaluated(evaluation_line(self._evaluation, epoch, self.now, final))

    def outcome(self) -> Outcome:
        """What there is now: complete, or as far as the run came."""
        unused = {j: len(s.fetched) + (s.ready is not None) for j, s in self._stages.items()}
        return Outcome(
            ends={j: s.passes.end(fetched_unused=unused[j]) for j, s in self._stages.items()},
            buffers=[
                {"after_stage": j, **b.statistics(), "fetched_unused": unused[j + 1]} for j, b in self._buffers.items()
            ],
            evaluation=self._evaluation,
        )
