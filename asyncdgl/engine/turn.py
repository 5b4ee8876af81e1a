"""What a stage does next: its side of Algorithm 2, written once.

Stage j takes an entry of buffer j-1, learns from it, and leaves its output in buffer j; all else is about when.
`Turn.asks` is a generator that asks for one thing after the other and is told what came of it. Whoever answers is an
engine: `sim` (the paper's loop), `virtual` (an event queue), the Ray actor of a stage. An engine knows what time is and
where buffers are; a turn knows no clock, no process and no other stage, so that all engines follow the same rules.

    asks                what about                           is answered
    RESERVE             the coming entry's name              whether the buffer after the stage keeps a place for it
    START               the profile clock v, in steps        the clock at which the pass starts, or None; and how long
                                                             the answer was held back (seconds)
    TAKE                v                                    (sample, when it was given), or why there is none
    FETCH               (v of the next pass, how many)       nothing: so many entries are sampled ahead
    COMPUTE             the pass                             what it left (`Passed`), once its time has passed
    ADVANCE             v after the pass                     whether the next pass may start already
    INSERT, DROP        the entry made                       nothing: it is sent, or counted as dropped
    TRAINED             nothing                              nothing: the stage has done its quota of updates
    SPENT               nothing                              seconds since the last SPENT, neither computing nor waiting
    SLEEP               seconds                              how long it slept, and how much too long
    PAUSE               length, in the profile's unit        how long it slept
    WAIT                reason, and when it ends if known    how long it waited; None where that is not measured
    NEXT                nothing                              nothing: a turn has ended
    STOP                nothing                              never: the stage makes no more passes
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any, Final, NamedTuple

from asyncdgl.buffers.buffer import Sample
from asyncdgl.config.resolved import ResolvedConfig
from asyncdgl.delays.clock import PassLength, ProfileClock
from asyncdgl.engine.passes import Passed, StagePasses
from asyncdgl.errors import SampleBlocked
from asyncdgl.rundir.trace import FORWARD, TRAIN

RESERVE, START, TAKE, FETCH, COMPUTE, ADVANCE, INSERT, DROP, TRAINED, SPENT, SLEEP, PAUSE, WAIT, NEXT, STOP = ASKS = (
    *("reserve", "start", "take", "fetch", "compute", "advance", "insert", "drop", "trained", "spent", "sleep"),
    *("pause", "wait", "next", "stop"),
)

FULL, PACED, SLOWED, PAUSED = "full", "pace", "slowdown", "pause"
"""Reasons to wait beside those of an empty-handed buffer (`SampleBlocked`): see rule 27 and `WAIT_REASONS`."""

Ask = tuple[str, Any]

_AS_ALL: Final = PassLength(1.0, 0.0)


def answers_of(engine: object) -> dict[str, Callable[..., Any]]:
    """An engine's methods `_reserve`, `_start` and so on, by what they answer."""
    return {what: getattr(engine, f"_{what}") for what in ASKS}


class Pass(NamedTuple):
    """A pass that is to be made.

    Attributes:
        kind: ``train`` or ``forward``.
        sample: what it reads; None for stage 1, which reads the data stream.
        sampled_s: when that was given.
        waits: seconds waited since the last pass, by reason.
    """

    kind: str
    sample: Sample[Any] | None
    sampled_s: float | None
    waits: dict[str, float]


class Training:
    """Which stages still train. A stage that has done its quota is needed as long as a later one trains.

    Attributes:
        last: the last stage that still trains; 0 once none does.
    """

    def __init__(self, stages: int) -> None:
        self._training = set(range(1, stages + 1))
        self.last = stages

    def done(self, stage: int) -> bool:
        """Stage ``stage`` has done its quota of updates; returns whether that frees earlier ones."""
        self._training.discard(stage)
        before, self.last = self.last, max(self._training, default=0)
        return self.last < before

    def later_than(self, stage: int) -> bool:
        """Whether a later stage still trains."""
        return self.last > stage


def prefetch_limit(config: ResolvedConfig) -> int:
    """Entries that a reader samples ahead: of buffers that block at most one, since each needs a place further on."""
    prefetch: int = config.buffer.prefetch
    return min(prefetch, 1) if config.buffer.on_full == "block" else prefetch


class Turn:
    """The turns of one stage.

    Args:
        config: the run.
        passes: makes its passes.
        lengths: how long they are on the profile clock.
        later_trains: whether a later stage still trains.

    Attributes:
        v: the stage's profile clock, in steps.
        last: the length of the pass made last, or being made.
        made: passes that an earlier process of the stage has made: these are made again, whoever still trains.
    """

    def __init__(
        self, config: ResolvedConfig, passes: StagePasses, lengths: ProfileClock, later_trains: Callable[[], bool]
    ) -> None:
        number = passes.number
        self.number = number
        self.passes = passes
        self.v = 0.0
        self.last = _AS_ALL
        self.made = 0
        self._lengths = lengths
        self._later_trains = later_trains
        self._reads = number > 1
        self._needs_places = number < config.trained_stages and config.buffer.on_full == "block"
        self._prefetch = prefetch_limit(config) if self._reads else 0
        self._is_free = config.pace == "free"
        self._in_steps = config.profile.unit == "steps"
        self._has_place = False
        self._may_start = False
        self._waits: dict[str, float] = {}
        self._to_stretch_s: float | None = None  # pace free: computing of the last pass, not yet stretched
        self._owed_s = 0.0  # pace free: how much longer the passes so far should have taken

    def asks(self) -> Generator[Ask, Any, None]:  # noqa: PLR0915  # the one place where a turn stands, from top to bottom
        """One turn after the other, until the stage stops (rules 3, 10, 20 and 23)."""
        passes = self.passes
        while (kind := self._next_kind()) is not None:
            # A place for what the pass will make comes first: nobody takes an entry that can't be passed on.
            if self._needs_places and not self._has_place and self._later_trains():
                self._has_place = yield RESERVE, passes.next_name
                if not self._has_place:
                    self._may_start = False
                    self._waited(FULL, (yield WAIT, (FULL, None)))
                    continue
            if not self._may_start:
                # What was true before a wait is asked again after it, hence every `continue`.
                if self._is_free:
                    self._may_start = True
                    if (yield from self._stretch()):
                        continue
                else:
                    clock, waited_s = yield START, self.v
                    if clock is None and not waited_s:
                        why = self._why_paced()
                        self._waited(why, (yield WAIT, (why, None)))
                        continue
                    if clock is not None:
                        self.v, self._may_start = clock, True
                    if waited_s:
                        self._waited(self._why_paced(), waited_s)
                        continue
            sample, sampled_s = None, None
            if self._reads:
                # Last of all: without prefetch an entry is as fresh as can be when its pass starts.
                taken = yield TAKE, self.v
                if isinstance(taken, SampleBlocked):
                    self._may_start = self._is_free  # under pace profile the others go on meanwhile
                    self._waited(taken.reason, (yield WAIT, (taken.reason, taken.due)))
                    continue
                sample, sampled_s = taken
            length = self._lengths.length(passes.step)
            pause_steps = length.pause if self._in_steps else 0.0
            next_v = self.v + length.step + pause_steps
            sends, self._has_place = self._has_place or not self._needs_places, False
            waits, self._waits = self._waits, {}
            self.last, self._may_start = length, False
            if self._prefetch:
                yield from self._fetch_ahead(next_v)
            passed: Passed = yield COMPUTE, Pass(kind, sample, sampled_s, waits)
            self.v = next_v
            if self._is_free:
                self._to_stretch_s = passed.compute_s
            else:  # its clock goes on, whether it can move again or not
                self._may_start = yield ADVANCE, next_v
            if passed.entry is not None:
                yield INSERT if sends else DROP, passed.entry  # without a place there is no reader either
            if kind == TRAIN and not passes.is_training:
                yield TRAINED, None
            if length.pause > 0 and (self._is_free or not self._in_steps):
                self._may_start = False
                self._waited(PAUSED, (yield PAUSE, length.pause))
            else:
                yield NEXT, None
        yield STOP, None

    def _next_kind(self) -> str | None:
        """An update; after the quota a forward-only pass as long as a later stage trains; then none (rule 3)."""
        passes = self.passes
        if passes.learner.updates < passes.quota:  # asked before every pass: `is_training` without a call
            return TRAIN
        return FORWARD if self._later_trains() or passes.step < self.made else None

    def _fetch_ahead(self, next_v: float) -> Generator[Ask, Any, None]:
        """Sample the next entries while this pass is computed, if there is a place for what comes of them."""
        if self._needs_places:
            following = self.passes.next_name._replace(step=self.passes.step + 1)
            self._has_place = self._later_trains() and (yield RESERVE, following)
            if not self._has_place:
                return
        yield FETCH, (next_v, self._prefetch)

    def _stretch(self) -> Generator[Ask, Any, bool]:
        """Pace ``free``: the last pass takes S_j times its computing; returns whether that made the stage sleep.

        A debt or credit carries over, so that the mean is right where a draw is below one or a sleep runs over.
        Whatever else the stage did meanwhile takes part of the stretch; waits for others don't.
        """
        compute_s, self._to_stretch_s = self._to_stretch_s, None
        if compute_s is None:
            return False
        spent_s: float = yield SPENT, None
        step = self.last.step
        if step == 1 and self._owed_s == 0:
            return False
        self._owed_s += (step - 1) * compute_s - spent_s
        if self._lengths.delay.step_law == "constant":
            self._owed_s = max(self._owed_s, -compute_s)  # no credit for ever where messages take more
        if self._owed_s <= 0:
            return False
        slept_s, too_long_s = yield SLEEP, self._owed_s
        self._owed_s = -too_long_s
        self._waited(SLOWED, slept_s)
        return True

    def _why_paced(self) -> str:
        """A stage that its own profile slows waits for that; another one waits for slower stages."""
        if self.last.pause > 0 and self._in_steps:
            return PAUSED
        return SLOWED if self._lengths.delay.slowdown > 1 and self.last.step > 1 else PACED

    def _waited(self, reason: str, seconds: float | None) -> None:
        if seconds is not None:
            self._waits[reason] = self._waits.get(reason, 0.0) + seconds
