"""A run on Ray in a world: the real actors, driver and run directory; processes, messages and time are not."""

from __future__ import annotations

import re
import shutil
import tempfile
import traceback
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from faults.checks import Broken, check_buffer, check_call, check_clock, check_end, check_pace, demand
from faults.hashing import HashHandling, HashLearner
from faults.installed import installed
from faults.schedule import CUT, DISK, DRIVER, ERR, FOR_GOOD_S, INTERRUPT, KILL, PACE, STOP, TEAR, Fault, Plan
from faults.sockets import System
from faults.virtual_ray import Actor, Call, VirtualRay
from faults.world import Process, Stuck, World

from asyncdgl.engine import restart as going_on
from asyncdgl.engine.passes import StagePasses
from asyncdgl.errors import Interrupted, StageFailed
from asyncdgl.observer import NullObserver, Several
from asyncdgl.on_ray.run import RayRun
from asyncdgl.plan.memory import checkpoints_kept
from asyncdgl.rundir import arrays
from asyncdgl.rundir.checkpoint import keeper
from asyncdgl.rundir.outcome import Outcome
from asyncdgl.rundir.reader import Run, read_metrics
from asyncdgl.rundir.records import CHECKPOINTS, CONFIG, METRICS, TRACE
from asyncdgl.rundir.trace import read_trace
from asyncdgl.rundir.writer import RunWriter

PATIENCE_S, MOST_STEPS = 150.0, 300_000
"""In which a run has to end after its last fault."""

LOST = re.compile(r"lost with the process of (\w+ \d+)")
NAMED = re.compile(
    r"its process died|times at the same pass|the process of .* died|"
    r"a process that it uses died|did not start within|no answer|died unexpectedly"
)
"""What a run may say that ends before it is complete; it is gone on with then."""


class Verdict(NamedTuple):
    """What became of a run.

    Attributes:
        problem: what was not as it has to be; empty where all was.
        steps: of the world.
        hit: faults that met somebody.
        resumed: how often the run was gone on with.
        log: what happened, if it was told.
    """

    problem: str
    steps: int
    hit: int
    resumed: int
    log: list[str]


class Notes(NullObserver):
    """Tells the log what people are told."""

    def __init__(self, world: World, recorded: set[tuple[int, int, int]]) -> None:
        self._world, self._recorded = world, recorded

    def noticed(self, message: str) -> None:
        self._world.tell(f"noticed: {message}")

    def passed(self, records: Sequence[Any]) -> None:
        for r in records:
            self._recorded.add(r[:3])
            self._world.tell(f"recorded: {r[:3]} {r.kind} of batch {r.batch}, read {r[5:9]}")
        self._world.breathe()


class Universe:
    """One run, with these faults.

    Args:
        plan: all but the faults.
        faults: that come.
        folder: the run directory; empty.
        tells: whether a log is kept.
    """

    def __init__(self, plan: Plan, faults: Sequence[Fault], folder: Path, tells: bool = False) -> None:
        self._plan, self._folder = plan, folder
        self.world = World(plan.seed, plan.slow, tells)
        self._ray = VirtualRay(self.world, self._look, self._served)
        self._system = System(self.world, plan.through_ray)
        self._driver: Process | None = None
        self._writer: RunWriter | None = None
        self._interrupts = self._disk_is_full = self._stopped = self._erred = False
        self._hit = self._resumed = self._failed = 0
        self._died: list[str] = []
        self._recorded: set[tuple[int, int, int]] = set()
        self._errs: set[int] = set()
        self._last_fault_s = self.world.now
        self._problem = ""
        for fault in faults:
            self._last_fault_s = max(self._last_fault_s, 1000 + fault.at_s if fault.step is None else 0.0)
            if fault.step is None:
                self.world.post(None, fault.at_s, self._strike, fault)
            else:
                self.world.at_step.setdefault(fault.step, []).append(partial(self._strike, fault))

    def run(self) -> Verdict:
        (self._folder / CONFIG).write_text("a run of the tests\n")
        with installed(self.world, self._ray, self._system, self):
            try:
                self._begin_driver()
                self.world.run(lambda: self._last_fault_s + PATIENCE_S, MOST_STEPS)
            except (Stuck, Broken) as error:
                self._problem = self._problem or f"{type(error).__name__}: {error}"
            finally:
                self.world.end()
                self._drop_writer()
        if self._problem:
            self.world.tell(self._problem)
        return Verdict(self._problem, self.world.steps, self._hit, self._resumed, self.world.log)

    # --- The driver

    def _begin_driver(self) -> None:
        self._driver = driver = Process(self.world, DRIVER)
        driver.begin(self._drive)

    def _drive(self) -> None:
        try:
            goes_on = (self._folder / TRACE).exists()
            self._resumed += goes_on
            self._writer = writer = RunWriter(self._folder, goes_on, remembers=False)
            restart = self._find_restart(writer) if goes_on else None
            keep = keeper(writer, lambda: 0.0, checkpoints_kept(self._plan.config))
            observer = Several(writer, Notes(self.world, self._recorded))
            run = RayRun(self._plan.config, self._folder, observer, self._check, keep, restart)
            try:
                run.start()
                run.run()
                self._check_sent(run.outcome(), restart)
            except BaseException:
                run.stop()
                raise
            finally:
                run.close()
                writer.close()
            records, lines = list(read_trace(self._folder / TRACE)), read_metrics(self._folder / METRICS)
            check_end(self._plan, records, lines, run.outcome(), self._died, self._resumed, self._stopped)
            self.world.over = True
        except (StageFailed, Interrupted) as error:
            self.world.tell(f"the run ends: {type(error).__name__}: {error}")
            self._failed += 1
            if not (isinstance(error, Interrupted) or (self._is_named(str(error)) and self._failed <= self._hit)):
                self._end(f"{type(error).__name__}: {error}")
            else:
                self.world.post(self._driver, 0.1, self._resume)
        except Exception as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            self._end(f"{type(error).__name__}: {error} ({Path(where.filename).name}:{where.lineno})")

    def _is_named(self, said: str) -> bool:
        """Whether a run may end with this after the faults so far."""
        lost = LOST.search(said)
        if lost is not None:
            return lost[1] in self._died
        return NAMED.search(said) is not None or (self._erred and "repeat its own bits" in said)

    def _end(self, problem: str) -> None:
        self._problem, self.world.over = problem, True

    def _check_sent(self, outcome: Outcome, restart: going_on.Restart | None) -> None:
        """A buffer that lived through the run knows of every pass that its producer made meanwhile."""
        for actor in self._ray.actors:
            if actor.name.startswith("buffer") and actor.processes == 1 and actor.instance is not None:
                j = int(actor.name.split()[1])
                kept = restart.stages[j].kept if restart is not None else None
                made = outcome.ends[j].passes - (kept.of(j).step if kept is not None else 0)
                sent = actor.instance._buffer._link.sent
                demand(sent == made, f"{actor.name}: {sent} entries were sent, but {made} passes made")

    def _find_restart(self, writer: RunWriter) -> going_on.Restart:
        """As ``ResumeSession`` does."""
        folder, config = self._folder, self._plan.config
        left = Run(folder, config, None, None, read_metrics(folder / METRICS))
        restart, _, refused = going_on.find_restart(left)
        demand(not refused, f"can't be gone on with: {refused}")
        going_on.go_back(writer, restart)
        for j, stage in restart.stages.items():
            self.world.tell(f"stage {j} goes on as {stage.incarnation}, {len(stage.live)} passes live")
        return restart

    def _check(self) -> None:
        if self._interrupts:
            self._interrupts = False
            raise Interrupted("interrupted")

    # --- Faults

    def _strike(self, fault: Fault) -> None:
        world = self.world
        victim = next((p for p in world.processes.values() if p.name == fault.victim), None)
        if (victim is None and fault.kind in (KILL, STOP, CUT, ERR)) or self._driver is None or not self._driver.alive:
            return
        world.tell(f"--- {fault}")
        self._hit += 1
        self._last_fault_s = max(self._last_fault_s, world.now + fault.length_s % FOR_GOOD_S)
        if fault.kind == TEAR or (fault.kind == KILL and victim is self._driver):
            self._resume(fault.victim if fault.kind == TEAR else None)
        elif fault.kind in (KILL, ERR):
            if fault.kind == ERR:
                self._errs.add(int(fault.victim.split()[1]))
            self._died.append(fault.victim)
            world.kill(victim)  # type: ignore[arg-type]
        elif fault.kind == STOP:
            self._died.append(fault.victim)  # it may be ended as deaf
            self._stopped = True
            world.stop(victim, fault.length_s)  # type: ignore[arg-type]
        elif fault.kind == CUT:
            self._died.append(fault.victim)
            next(actor for actor in self._ray.actors if actor.process is victim).cut_off(fault.length_s)
        elif fault.kind == DISK:
            self._disk_is_full = True
            world.post(None, fault.length_s, self._empty_disk)
        elif fault.kind == INTERRUPT:
            self._interrupts = True

    def _empty_disk(self) -> None:
        self._disk_is_full = False

    def _resume(self, torn: str | None = None) -> None:
        """The driver ends or has ended, its cluster with it; soon another one goes on."""
        for actor in self._ray.actors:
            actor.state = "dead"
        for process in list(self.world.processes.values()):
            self.world.kill(process)
        self._ray.actors.clear()
        self._recorded.clear()
        self._drop_writer()
        self._interrupts = False
        if torn is not None:
            self._tear(torn)
        self.world.post(None, 1.0, self._begin_driver)

    def _drop_writer(self) -> None:
        if self._writer is not None:
            self._writer._trace.close()
            self._writer._metrics.close()

    def _tear(self, stage: str) -> None:
        """What was being written when the machine went down."""
        draw = self.world.random
        kept = sorted((self._folder / CHECKPOINTS / stage.replace(" ", "-")).glob("*.safetensors"))
        if len(kept) > 1:  # one is left that can be read
            content = bytearray(kept[-1].read_bytes())
            place = draw.randrange(len(content))
            if draw.random() < 0.5:
                del content[place:]
            else:
                content[place] ^= 1 << draw.randrange(8)
            kept[-1].write_bytes(content)
        with (self._folder / TRACE).open("a") as file:
            file.write('{"stage":1,"inc')

    # --- What the real parts meet instead of the real world

    def _look(self, actor: Actor) -> None:
        if actor.loop is not None and actor.loop.failures:
            raise Broken(actor.loop.failures[0])
        if actor.instance is not None:
            if actor.name == PACE:
                check_pace(actor.instance)
            else:
                check_buffer(actor.name, actor.instance)

    def _served(self, actor: Actor, call: Call) -> None:
        names = {process.name for process in self.world.processes.values()}
        is_late = call.method == "gone" and f"stage {call.args[0].stage}" in names  # the next process is there already
        if actor.instance is not None and not is_late:
            try:
                check_call(actor.instance, call.method, call.args, call.producer)
            except Broken as error:
                self._end(f"Broken: {error}")

    def make_passes(self, config: Any, dataset: Any, number: int, clock: Any) -> StagePasses:
        def compute() -> bool:
            self.world.sleep(self._plan.pass_s * (0.5 + self.world.random.random()))
            # A buffer that died takes what its producer makes again for what was made first: that is not recoverable.
            buffers_live = not any(name.startswith("buffer") for name in self._died)
            errs = number in self._errs and buffers_live and passes.next_name in self._recorded
            if errs:
                self._errs.discard(number)
                self._erred = True
                self.world.tell(f"stage {number} errs in step {passes.step}")
            return errs

        def position(optimizer: Any, v: float = 0.0) -> Any:
            check_clock(config, number, passes.step, v)
            return StagePasses.position(passes, optimizer, v)

        learner = HashLearner(config.seed, number, self._plan.per_epoch, compute)
        handling: Any = HashHandling(config.seed)
        passes = StagePasses(number, learner, handling, self._plan.per_epoch, config, clock)
        passes.position = position  # type: ignore[method-assign]
        return passes

    def evaluate(self) -> None:
        self.world.sleep(0.3 * self.world.random.random())

    def save_arrays(self, path: Path, content: Any, about: Any) -> None:
        if self._disk_is_full:
            raise OSError("no space left on device")
        arrays.save_arrays(path, content, about)

    def to_disk(self, path: Path) -> None:
        self.world.breathe()


def simulate(plan: Plan, faults: Sequence[Fault] | None = None, tells: bool = False) -> Verdict:
    """Run a plan, with its own faults or with these."""
    shared = Path("/dev/shm")
    folder = Path(tempfile.mkdtemp(prefix="asyncdgl-", dir=shared if shared.is_dir() else None))
    try:
        return Universe(plan, plan.faults if faults is None else faults, folder, tells).run()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
