"""The actor of one stage: reads its buffer, computes, writes the next buffer, and never waits for the write."""

from __future__ import annotations

import resource
import time
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray

from asyncdgl.config.resolved import ResolvedConfig
from asyncdgl.delays.clock import PassLength
from asyncdgl.engine.build import make_clock, make_stages, open_dataset, steps_clock
from asyncdgl.engine.passes import EpochEnd, Passed, StagePasses
from asyncdgl.learn.arithmetic import set_up_torch
from asyncdgl.observer import Line, Progress
from asyncdgl.on_ray.buffer import Reply
from asyncdgl.on_ray.greeting import hello
from asyncdgl.on_ray.pace import Start
from asyncdgl.on_ray.transport.calls import Calls
from asyncdgl.on_ray.transport.ends import Inbox, Outbox
from asyncdgl.rundir.outcome import StageEnd
from asyncdgl.rundir.trace import PassRecord


@dataclass(frozen=True)
class Chunk:
    """What a stage did since the last one. ``published`` is a reference, in a list so that Ray doesn't fetch it."""

    records: list[PassRecord]
    epochs: list[Line]
    published: list[Any]
    progress: Progress


@dataclass
class _Ready:
    """What the next pass has got so far."""

    has_place: bool = False
    may_start: bool = False
    reply: Reply | None = None
    waits: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))


class StageActor:
    """Runs one stage in chunks: reads its buffer, computes, writes the next buffer, and never waits for the write.

    Args:
        config: the run.
        data: folder of the decoded data set.
        number: the stage, from 1.
        upstream, downstream: the buffers before and after it; None at the ends.
        pace: the pace actor.
    """

    def __init__(
        self, config: ResolvedConfig, data: Path, number: int, upstream: Any, downstream: Any, pace: Any
    ) -> None:
        set_up_torch(config, number)
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # each place of an entry that it maps keeps one open
        self._config, self._number = config, number
        self._pace = Calls(pace)
        self._in = Inbox(upstream) if upstream is not None else None
        self._out = Outbox(config, number, downstream) if downstream is not None else None
        dataset = open_dataset(config, data)
        stage = make_stages(config, dataset, only=number)[0]
        self._passes = StagePasses(config, dataset, number, stage, self._seconds)
        self._lengths = make_clock(config, number)
        self._origin = 0.0
        self._v = 0.0  # the profile clock, in steps
        self._owed_s = 0.0  # pace free: how much longer the passes so far should have taken
        self._pass_seconds = 0.0  # mean time of a pass without slowdown
        self._step_s = 0.0  # what one step of the profile is in seconds (pace free)
        self._later_train = True
        self._stopped = False
        self._ready = _Ready()
        self._last_length = PassLength(1.0, 0.0)
        self._last_compute_s: float | None = None
        self._stretched_at = 0.0

    def hello(self) -> Line:
        """See ``hello``; with what the bits of a run depend on."""
        import torch

        threads = torch.get_num_threads()
        local = self._pace.is_local
        return {
            **hello(),
            "stage": self._number,
            "threads": threads,
            "torch": torch.__version__,
            "calls_over_sockets": local,
        }

    def begin(self, origin: float) -> None:
        """Training begins: seconds count from ``origin`` on this machine's monotonic clock."""
        self._origin = origin

    def _seconds(self) -> float:
        return time.monotonic() - self._origin

    def run(self, seconds: float) -> Chunk:
        """Make passes for about so long; none once the run was interrupted."""
        # torch counts threads for each thread, and a call may run in another than the start.
        set_up_torch(self._config, self._number)
        deadline = time.monotonic() + (0.0 if self._pace.ask("is_stopping") else seconds)
        records: list[PassRecord] = []
        epochs: list[Line] = []
        published: list[Any] = []
        while not self._stopped and time.monotonic() < deadline:
            passed = self._try_pass()
            if passed is None:
                continue
            records.append(passed.record)
            if passed.epoch_end is not None:
                epochs.append(passed.epoch_end.line)
                published = self._publish(passed.epoch_end) or published
        return Chunk(records, epochs, published, self._passes.progress(self._stopped))

    def _try_pass(self) -> Passed | None:
        """Come one wait or one pass further."""
        if self._passes.next_kind(self._later_train) is None:
            self._stop()
            return None
        if not self._has_place() or not self._may_start() or not self._has_input():
            return None
        kind = self._passes.next_kind(self._later_train)  # a later stage may have ended in the meantime
        return None if kind is None else self._make_pass(kind)

    # Each of these waits a bounded time and keeps what it has got; True once the pass has what it needs.

    def _has_place(self) -> bool:
        """``on_full: block``: a place is reserved before the input is taken."""
        if self._out is None or not self._out.blocks or self._ready.has_place:
            return True
        began = time.monotonic()
        self._ready.has_place = self._out.reserve(self._passes.next_name, wait=False)
        if not self._ready.has_place:
            self._later_train = self._pace.ask("release", self._number)
            if not self._later_train:
                return True  # nobody reads any more: a place would never become free, and none is needed
            self._ready.has_place = self._out.reserve(self._passes.next_name, wait=True)
            self._ready.waits["full"] += time.monotonic() - began
        return self._ready.has_place

    def _has_input(self) -> bool:
        if self._in is None or self._ready.reply is not None:
            return True
        reply = self._in.take(self._v)
        if reply.sample is None:
            began = time.monotonic()
            self._later_train = self._pace.ask("release", self._number)
            self._ready.may_start = self._config.pace == "free"  # otherwise the others have gone on meanwhile
            reason = reply.waited_for
            reply = self._in.wait(self._v)
            waited_s = time.monotonic() - began
            self._ready.waits[reply.waited_for or reason or "empty"] += waited_s
            self._stretched_at += waited_s
        if reply.sample is None:
            return False
        self._ready.reply = reply
        return self._may_start()

    def _may_start(self) -> bool:
        """Before the input is taken, so that without prefetch an entry is as fresh as can be when its pass starts."""
        if self._ready.may_start:
            return True
        if self._config.pace == "free":
            self._stretch()
            self._ready.may_start = True
            return True
        start: Start = self._pace.ask("start", self._number, self._v)
        self._later_train = start.later_stages_train
        if start.waited_s > 0:
            self._ready.waits[self._why_paced()] += start.waited_s
        if start.clock is None:
            return False
        self._v, self._ready.may_start = start.clock, True
        return True

    def _why_paced(self) -> str:
        """A stage that its own profile slows waits for that; another one waits for slower stages."""
        if self._last_length.pause > 0 and self._config.profile.unit == "steps":
            return "pause"
        return "slowdown" if self._lengths.delay.slowdown > 1 and self._last_length.step > 1 else "pace"

    def _make_pass(self, kind: str) -> Passed:
        ready, self._ready = self._ready, _Ready()
        sample, sampled_s = None, None
        if ready.reply is not None and ready.reply.sample is not None:
            assert self._in is not None
            sample, sampled_s = self._in.read(ready.reply.sample), ready.reply.sampled_at - self._origin
        length = self._lengths.length(self._passes.step)
        pause_steps = length.pause if self._config.profile.unit == "steps" else 0.0
        next_v = self._v + length.step + pause_steps
        self._fetch_ahead(next_v)
        passed = self._passes.run(kind, sample, sampled_s, ready.waits)
        compute_s = passed.record.end_s - passed.record.start_s
        self._note_pass_time(compute_s)
        self._v, self._last_length = next_v, length
        if self._out is not None and passed.entry is not None:
            if self._out.blocks and not ready.has_place:
                self._out.drop(passed.entry.source.name)
            else:
                self._out.send(passed.entry, next_v, self._unit_s())
        if not self._passes.is_training:
            self._later_train = self._pace.ask("trained", self._number)
        self._last_compute_s = compute_s
        self._pause(length.pause)
        return passed

    # --- Delays in seconds

    def _note_pass_time(self, compute_s: float) -> None:
        """Keep the mean pass time, and under pace ``free`` what a step of the profile is in seconds."""
        count = min(self._passes.step, 100)
        self._pass_seconds += (compute_s - self._pass_seconds) / count
        if self._config.pace == "free" and self._config.profile.unit == "steps":
            if self._passes.step in (1, 5) or self._passes.step % 20 == 0:
                self._step_s = self._pace.ask("step_seconds", self._number, self._pass_seconds)

    def _unit_s(self) -> float:
        """One unit of the profile on the downstream link's clock."""
        if self._config.profile.unit == "seconds" or steps_clock(self._config, self._number):
            return 1.0
        return self._step_s

    def _stretch(self) -> None:
        """Pace ``free``: sleep until the last pass has taken S_j times its computing, from start to start.

        Waits for others don't count, but whatever else the stage did since does: messages take part of the stretch. A
        debt or credit carries over, so that the mean is right where a draw is below one or a sleep runs over.
        """
        step = self._last_length.step
        if self._last_compute_s is not None and (step != 1 or self._owed_s != 0):
            elapsed_s = time.monotonic() - self._stretched_at - sum(self._ready.waits.values())
            self._owed_s += step * self._last_compute_s - elapsed_s
            if self._lengths.delay.step_law == "constant":
                self._owed_s = max(self._owed_s, -self._last_compute_s)  # no credit for ever where messages take more
            self._owed_s -= self._sleep("slowdown", self._owed_s)
        self._last_compute_s = None
        self._stretched_at = time.monotonic()

    def _pause(self, pause: float) -> None:
        """Pause after a pass, where that passes in real time."""
        profile_paced = self._config.pace == "profile"
        if pause > 0 and not (profile_paced and self._config.profile.unit == "steps"):
            if profile_paced:
                self._pace.ask("release", self._number)
            self._sleep("pause", pause * (1.0 if self._config.profile.unit == "seconds" else self._step_s))

    def _sleep(self, reason: str, seconds: float) -> float:
        if seconds <= 0:
            return 0.0
        began = time.monotonic()
        time.sleep(seconds)
        slept = time.monotonic() - began
        self._ready.waits[reason] += slept
        return slept

    # --- Input and output

    def _fetch_ahead(self, v: float) -> None:
        """Ask for the next entries while this one is being computed."""
        if self._in is None:
            return
        if self._out is not None and self._out.blocks and not self._ready.has_place:
            # A stage takes an input only once it has a place for what it makes of it.
            following = self._passes.next_name._replace(step=self._passes.step + 1)
            self._ready.has_place = self._out.reserve(following, wait=False)
            if not self._ready.has_place:
                return
        limit = 1 if self._out is not None and self._out.blocks else self._config.buffer.prefetch
        self._in.fetch(v, min(limit, self._config.buffer.prefetch))

    def _publish(self, epoch_end: EpochEnd) -> list[Any]:
        if epoch_end.published is None:
            return []
        return [ray.put({name: value.numpy() for name, value in epoch_end.published.items()})]

    def _stop(self) -> None:
        self._stopped = True
        self._pace.ask("release", self._number)

    def finish(self) -> tuple[StageEnd, list[Any]]:
        """The stage's end and its final weights, after all that it sent was taken."""
        unused = int(self._ready.reply is not None)
        if self._in is not None:
            unused += self._in.give_up()
        self._ready = _Ready()
        if self._out is not None:
            self._out.flush()
        final = {name: value.numpy() for name, value in self._passes.stage.published().items()}
        return self._passes.end(fetched_unused=unused), [ray.put(final)]
