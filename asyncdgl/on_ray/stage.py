"""One stage in its process: answers what its turn asks, in real time, and never waits for a write."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from numpy.typing import NDArray

from asyncdgl.buffers.buffer import Sample
from asyncdgl.buffers.entry import Entry, PassName
from asyncdgl.config.resolved import ResolvedConfig
from asyncdgl.data.dataset import Dataset
from asyncdgl.engine import turn
from asyncdgl.engine.build import make_clock, make_passes, steps_clock
from asyncdgl.engine.checkpoints import Due, stage_parts
from asyncdgl.engine.passes import Passed
from asyncdgl.engine.past import go_on
from asyncdgl.engine.reports import Chunk
from asyncdgl.errors import SampleBlocked
from asyncdgl.learn.arithmetic import set_up_torch
from asyncdgl.learn.learner import as_arrays
from asyncdgl.on_ray.ends import Inbox, Outbox
from asyncdgl.on_ray.pace import Caller, PaceClient
from asyncdgl.rundir.checkpoint import Checkpoint, StagePosition
from asyncdgl.rundir.outcome import StageEnd

Arrays = Mapping[str, NDArray[Any]]

HANDED_ON_S = 2e-9
"""What a byte of a checkpoint costs elsewhere: it goes into Ray's store, and the main process copies it."""

SOONEST_S = 2.0
"""Between two checkpoints of a stage, where their number is not given: its buffer keeps what it reads meanwhile."""


@dataclass(frozen=True)
class Life:
    """One of the processes that a stage has had.

    Attributes:
        number: from 0.
        incarnation: of the passes that it makes.
        kept: what it goes on from; None for the stage's first pass.
        made: how many passes of the stage are known to have been made.
        every: passes between two checkpoints; None: as often as costs little.
        most: passes between two checkpoints, at most.
    """

    number: int
    incarnation: int
    kept: Checkpoint | None
    made: int
    every: int | None
    most: int | None


@dataclass(frozen=True)
class Doze:
    """A sleep under way.

    Attributes:
        began: when, on the monotonic clock.
        seconds: how long it is to be.
        with_excess: whether it is also to be told how much too long it was.
    """

    began: float
    seconds: float
    with_excess: bool


class Place(NamedTuple):
    """A stage's place in a run.

    Attributes:
        number: the stage, from 1.
        upstream, downstream: the buffers before and after it; None at the ends.
        pace: the pace actor.
        life: where the process that takes it begins.
    """

    number: int
    upstream: Any
    downstream: Any
    pace: Any
    life: Life


class StageInPlace:
    """Runs one stage in chunks, so that it stays reachable.

    Args:
        config: the run.
        dataset: of the run.
        place: which stage it is, and whom it knows.
    """

    def __init__(self, config: ResolvedConfig, dataset: Dataset, place: Place) -> None:
        number, upstream, downstream, pace, life = place
        set_up_torch(config, number)
        self._config, self._number = config, number
        self._pace = PaceClient(pace, Caller(number, life.number))
        self._passes = make_passes(config, dataset, number, self._seconds)
        self._later_trains = True
        self._turn = turn.Turn(config, self._passes, make_clock(config, number), lambda: self._later_trains)
        if life.kept is not None:
            go_on(self._passes, life.kept)
            self._turn.v = life.kept.of(number).v
        self._passes.incarnation = life.incarnation
        self._out = Outbox(config, downstream, self._passes.next_name, life.number) if downstream is not None else None
        # Passes that an earlier process made are made again: to the same bits, and at once, since they had their turn.
        made = life.made if self._out is None else max(life.made, self._out.sent_until(life.incarnation))
        self._turn.made = made
        self._in = Inbox(upstream, number, self._passes.step, made) if upstream is not None else None
        self._due = Due(life.every, SOONEST_S, life.most)
        self._due.begin(self._passes.step)
        self._kept_after = 0  # this many deaths of the buffer before
        self._asks = self._turn.asks()
        self._answer: Any = None
        self._origin = self._now_s = 0.0
        self._pass_s = 0.0  # mean time of a pass without slowdown
        self._step_s = 0.0  # what one step of the profile is in seconds (pace free)
        self._accounted_s = 0.0  # computing and waiting since `_spent_at`
        self._spent_at = 0.0
        self._stopped = self._failed = False
        self._has_news = False  # the quota is done
        self._dozing: Doze | None = None
        self._timed = 0  # passes that this process has made
        self._chunk = Chunk()
        self._answers = turn.answers_of(self)
        if not self._passes.is_training:  # an earlier process has done the quota
            self._later_trains = self._pace.later_trains()

    @property
    def calls_over_sockets(self) -> bool:
        """Whether it and the pace keeper share a machine."""
        return self._pace.is_local

    def begin(self, origin: float) -> int:
        """Training begins: seconds count from ``origin`` on this machine's monotonic clock.

        Returns:
            How many passes are to be made again.
        """
        self._origin = origin
        if self._in is not None:
            self._in.begin()
        return max(0, self._turn.made - self._passes.step)

    @property
    def _repeats(self) -> bool:
        """Whether the next pass was made before."""
        return self._passes.step < self._turn.made

    def _seconds(self) -> float:
        self._now_s = max(self._now_s, time.monotonic() - self._origin)  # the origin may have moved a little
        return self._now_s

    def run(self, seconds: float, origin: float) -> Chunk:
        """Make passes for about so long; none once the run was interrupted.

        Args:
            seconds: how long.
            origin: see ``begin``: this machine's clock drifts, and the driver has looked at it again.
        """
        self._origin = origin
        # torch counts threads for each thread, and a call may run in another than the start.
        set_up_torch(self._config, self._number)
        deadline = time.monotonic() + (0.0 if self._pace.is_stopping() else seconds)
        self._spent_at = self._spent_at or time.monotonic()  # what comes before the first chunk stretches no pass
        between_turns = True
        if self._has_news:
            self._has_news, self._later_trains = False, self._pace.later_trains()
        while not (self._stopped or self._has_news or self._chunk.checkpoint) and not (
            between_turns and time.monotonic() >= deadline
        ):
            if self._dozing is not None and not self._doze(self._dozing, deadline):
                break
            try:
                what, about = self._asks.send(self._answer)
                self._answer = self._answers[what](about)
            except BaseException:
                # The next call, which may have been sent already, brings what was done so far.
                self._stopped = self._failed = True
                raise
            # Never between a pass and what becomes of its output: the books would not balance.
            between_turns = what in (turn.NEXT, turn.WAIT, turn.START, turn.SLEEP, turn.PAUSE)
            if what in (turn.NEXT, turn.PAUSE) and (self._due.is_due(self._passes.step) or self._has_lost_memory()):
                self._keep()
        chunk, self._chunk = self._chunk, Chunk()
        chunk.progress, chunk.until_s = self._passes.progress(self._stopped), self._seconds()
        return chunk

    def _has_lost_memory(self) -> bool:
        """Whether the buffer that could give again what this stage has read died since the last checkpoint."""
        return self._in is not None and self._in.buffers_died > self._kept_after

    def _keep(self) -> None:
        """A checkpoint: after all that the stage sent was taken, since nobody would send it again."""
        if self._repeats:
            self._due.begin(self._passes.step)  # or the next one would not be after a multiple
            return
        began = time.perf_counter()
        self._kept_after = self._in.buffers_died if self._in is not None else 0
        if self._out is not None:
            self._out.flush()
        self._chunk.checkpoint = stage_parts(self._passes, self._turn.v)
        handed_on = sum(array.nbytes for array in self._chunk.checkpoint[1].values())
        self._due.taken(self._passes.step, time.perf_counter() - began + handed_on * HANDED_ON_S)

    # --- Answers to what the turn asks. Each waits a bounded time.

    def _reserve(self, name: PassName) -> bool:
        return self._out is not None and self._out.reserve(name, wait=False)

    def _start(self, v: float) -> tuple[float | None, float]:
        if self._repeats:
            return v, 0.0
        start = self._pace.start(v)
        self._later_trains = start.later_trains
        self._accounted_s += start.waited_s
        return start.clock, start.waited_s

    def _take(self, v: float) -> tuple[Sample[Any], float] | SampleBlocked:
        if self._in is None:
            raise TypeError("stage 1 reads the data stream")
        reply = self._in.take(v)
        if reply.sample is None:
            return SampleBlocked(reply.blocked)
        return self._in.read(reply.sample), reply.sampled_at - self._origin

    def _fetch(self, about: tuple[float, int]) -> None:
        if self._in is not None:
            self._in.fetch(*about)

    def _compute(self, made: turn.Pass) -> Passed:
        passed = self._passes.run(*made)
        self._chunk.records.append(passed.record)
        if passed.epoch_end is not None:
            weights = passed.epoch_end.published
            self._chunk.epochs.append((passed.epoch_end.line, None if weights is None else as_arrays(weights)))
        self._accounted_s += passed.compute_s
        self._note_pass_time(passed.compute_s)
        return passed

    def _advance(self, v: float) -> bool:
        return False  # the pace keeper hears of it when the next pass asks to start: a message less

    def _insert(self, entry: Entry[Any]) -> None:
        if self._out is not None:
            self._out.send(entry, self._turn.v, self._unit_s())

    def _drop(self, entry: Entry[Any]) -> None:
        if self._out is not None:
            self._out.drop(entry.source.name)

    def _trained(self, _: None) -> None:
        """Earlier stages stop on that word, which the driver gives: the chunk ends."""
        self._has_news = True

    def _spent(self, _: None) -> float:
        now = time.monotonic()
        spent_s = now - self._spent_at - self._accounted_s
        self._spent_at, self._accounted_s = now, 0.0
        return spent_s

    def _sleep(self, seconds: float) -> tuple[float, float]:
        if not self._repeats:
            self._dozing = Doze(time.monotonic(), seconds, with_excess=True)
        return 0.0, 0.0

    def _pause(self, length: float) -> float:
        if not self._repeats:
            self._later_trains = self._pace.release()
            seconds = length * (1.0 if self._config.profile.unit == "seconds" else self._step_s)
            self._dozing = Doze(time.monotonic(), seconds, with_excess=False)
        return 0.0

    def _doze(self, doze: Doze, deadline: float) -> bool:
        """Sleep on, but not beyond the chunk: who sleeps for long must not seem deaf. Returns whether it is over."""
        now = time.monotonic()
        time.sleep(max(0.0, min(doze.began + doze.seconds, max(deadline, now)) - now))
        slept_s = time.monotonic() - doze.began
        if slept_s < doze.seconds:
            return False
        self._accounted_s += slept_s
        self._answer = (slept_s, slept_s - doze.seconds) if doze.with_excess else slept_s
        self._dozing = None
        return True

    def _wait(self, about: tuple[str, float | None]) -> float:
        reason, _ = about
        began = time.monotonic()
        self._later_trains = self._pace.release()
        if self._out is not None:
            self._out.send_on()
        if reason == turn.FULL:
            if self._out is not None and self._later_trains:  # otherwise nobody reads any more, and no place is needed
                self._out.reserve(self._passes.next_name, wait=True)
        elif self._in is not None:
            self._in.wait(self._turn.v, self._pace.starts)
        waited_s = time.monotonic() - began
        self._accounted_s += waited_s
        return waited_s

    def _next(self, _: None) -> None:
        if not self._passes.is_training:
            self._later_trains = self._pace.later_trains()

    def _stop(self, _: None) -> None:
        self._stopped = True
        self._pace.release()

    # --- Time

    def _note_pass_time(self, compute_s: float) -> None:
        """Keep the mean pass time, and under pace ``free`` what a step of the profile is in seconds."""
        self._timed += 1
        step = self._timed
        self._pass_s += (compute_s - self._pass_s) / min(step, 100)
        if self._config.pace == "free" and self._config.profile.unit == "steps":
            if step in (1, 5) or step % 20 == 0:
                self._step_s = self._pace.step_seconds(self._pass_s)

    def _unit_s(self) -> float:
        """One unit of the profile on the downstream link's clock."""
        if self._config.profile.unit == "seconds" or steps_clock(self._config, self._number):
            return 1.0
        return self._step_s

    # --- The end

    def finish(self, keeps: bool) -> tuple[StageEnd, Arrays, tuple[StagePosition, Arrays] | None]:
        """The stage's end and its final weights, after all that it sent was taken.

        Args:
            keeps: whether the run is to be gone on with: then also where the stage stands, and its state.
        """
        if self._in is not None:
            self._in.give_up()
        if self._out is not None:
            self._out.flush()
        whole = not (self._failed or self._repeats)  # what fails may have changed the state already
        kept = stage_parts(self._passes, self._turn.v) if keeps and whole else None
        return self._passes.end(), as_arrays(self._passes.learner.published() or {}), kept
