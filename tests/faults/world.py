"""A world with one clock of its own: processes that take turns as a seed has it, die, stop, and wake.

Nothing here knows asyncdgl. A process is a strand (code that blocks: stages, the evaluator, the driver) or an event
loop (coroutines: buffers, the pace keeper). Only one thing runs at a time, until it waits; what runs next, and how long
everything takes, is drawn. So every run of a seed is the same run.
"""

from __future__ import annotations

import heapq
import itertools
import random
import traceback
from collections import deque
from collections.abc import Callable
from typing import Any

from greenlet import GreenletExit, getcurrent, greenlet


class Stuck(Exception):
    """The run does not come to an end."""


class Process:
    """One process of the world.

    Args:
        world: it lives there.
        name: for people.

    Attributes:
        pid: its number.
        alive: until it is killed.
        stopped: as by SIGSTOP: what happens to it waits.
        at_death: called when it dies.
    """

    def __init__(self, world: World, name: str) -> None:
        self.world, self.name = world, name
        self.pid = next(world.numbers)
        self.alive, self.stopped = True, False
        self.at_death: list[Callable[[], None]] = []
        self.deferred: deque[tuple[Callable[..., Any], tuple[Any, ...]]] = deque()
        self.strand: greenlet | None = None
        self.loop: Any = None
        self.waits = 0
        self.waits_for: Any = None
        world.processes[self.pid] = self

    def begin(self, work: Callable[[], None]) -> None:
        """Run blocking code as this process's strand."""
        self.strand = greenlet(work, self.world.main)
        self.world.post(self, 0.0, self.strand.switch)

    def where(self) -> str:
        """What its strand does now, for messages."""
        frame = self.strand.gr_frame if self.strand is not None else None
        if frame is None:
            return "its event loop" if self.strand is None else "ended"
        names = [f"{f.name}:{f.lineno}" for f in traceback.extract_stack(frame) if "/faults/" not in f.filename]
        return " > ".join(names[-5:])


class World:
    """Virtual time, and what is to happen in it.

    Args:
        seed: of all that is drawn.
        slow: share of the messages that take long.
        tells: whether a log of all that happens is kept.

    Attributes:
        now: seconds.
        steps: things that have happened.
        current: the process that runs.
        over: set where the run has ended.
        tells: whether it keeps a log.
        log: what happened, if it tells.
    """

    def __init__(self, seed: int, slow: float = 0.05, tells: bool = False) -> None:
        self.random = random.Random(seed)
        self.now, self.steps, self.over = 1000.0, 0, False
        self.numbers, self._count = itertools.count(100), itertools.count()
        self.current: Process | None = None
        self.processes: dict[int, Process] = {}
        self.main = getcurrent()
        self.at_step: dict[int, list[Callable[[], None]]] = {}
        self.log: list[str] = []
        self.tells, self._slow = tells, slow
        self._events: list[tuple[float, int, Process | None, Callable[..., Any], tuple[Any, ...]]] = []

    def tell(self, text: str) -> None:
        """A line of the log."""
        if self.tells:
            self.log.append(f"{self.steps:6d} {self.now - 1000:9.4f} {text}")

    # --- What happens when

    def post(self, process: Process | None, delay: float, what: Callable[..., Any], *args: Any) -> None:
        """Let something happen to a process, if it still lives then; to the world itself with None."""
        heapq.heappush(self._events, (self.now + delay, next(self._count), process, what, args))

    def latency(self) -> float:
        """How long a message takes."""
        draw = self.random.random()
        if draw < self._slow:
            return 0.002 + 0.3 * self.random.random() ** 3
        return 0.00002 + 0.0002 * draw

    def run(self, until_s: Callable[[], float], most_steps: int) -> None:
        """Let things happen until the run has ended.

        Args:
            until_s: when it has to have ended.
            most_steps: how much may happen.

        Raises:
            Stuck: it has not.
        """
        events, at_step = self._events, self.at_step
        while not self.over:
            if not events:
                raise Stuck("nothing is to happen any more: " + self._who_waits())
            when, number, process, what, args = heapq.heappop(events)
            if process is not None:
                if not process.alive:
                    continue
                if process.stopped:
                    process.deferred.append((what, args))
                    continue
            if when > self.now:
                self.now = when
            self.steps += 1
            if self.steps in at_step:
                heapq.heappush(events, (when, number, process, what, args))
                for fault in at_step.pop(self.steps):
                    fault()
                continue
            self.current = process
            what(*args)
            self.current = None
            if self.now > until_s() or self.steps > most_steps:
                raise Stuck(f"not over after {self.now - 1000:.1f} s, {self.steps} steps: " + self._who_waits())

    def _who_waits(self) -> str:
        return "; ".join(f"{p.name}: {p.where()}" for p in self.processes.values() if p.alive)

    # --- A strand waits

    def block(self, until: float | None = None, what: Any = None) -> None:
        """The current strand waits until it is woken for ``what``, or for that time."""
        process = self.current
        if process is None or process.strand is None:
            raise RuntimeError("only a strand can wait")
        if not process.alive:
            raise GreenletExit
        process.waits += 1
        process.waits_for = what
        if until is not None:
            self.post(process, max(0.0, until - self.now), self._resume, process, process.waits)
        self.main.switch()
        process.waits += 1
        process.waits_for = None
        if not process.alive:
            raise GreenletExit

    def _resume(self, process: Process, number: int) -> None:
        if process.waits == number and process.strand is not None:
            process.strand.switch()

    def wake(self, process: Process, what: Any) -> None:
        """Let a strand go on that waits for this."""
        if process.waits_for is what:
            self.post(process, 0.0, self._resume, process, process.waits)

    def sleep(self, seconds: float) -> None:
        """The current strand sleeps."""
        self.block(self.now + max(0.0, seconds), "sleep")

    def breathe(self) -> None:
        """A moment at which others may run, or a kill may come."""
        if self.current is not None and self.current.strand is not None and self.random.random() < 0.3:
            self.sleep(0.00005 * self.random.random())

    # --- Death

    def kill(self, process: Process) -> None:
        """As SIGKILL. Never called by a strand itself."""
        if not process.alive:
            return
        self.tell(f"{process.name} ({process.pid}) dies")
        process.alive = False
        process.deferred.clear()
        before = self.current
        if process.strand is not None and not process.strand.dead:
            self.current = process
            process.strand.throw(GreenletExit)
        self.current = before
        for told in process.at_death:
            told()
        del self.processes[process.pid]

    def stop(self, process: Process, seconds: float) -> None:
        """As SIGSTOP, and SIGCONT after so many seconds."""
        self.tell(f"{process.name} ({process.pid}) is stopped for {seconds:.2f} s")
        process.stopped = True
        self.post(None, seconds, self._go_on, process)

    def _go_on(self, process: Process) -> None:
        process.stopped = False
        for what, args in process.deferred:
            self.post(process, 0.0, what, *args)
        process.deferred.clear()

    def end(self) -> None:
        """Leave nothing behind."""
        for process in list(self.processes.values()):
            self.kill(process)
        self._events.clear()
