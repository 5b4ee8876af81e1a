"""Runtime ``ray``: real asynchrony. The driver starts the actors, collects what they report, and replaces dead ones."""

from __future__ import annotations

import contextlib
import secrets
import time
from collections import deque
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import ray

from asyncdgl.config.resolved import ResolvedConfig
from asyncdgl.engine.evaluations import evaluation_line
from asyncdgl.engine.reports import Chunk, Reports
from asyncdgl.engine.restart import Restart
from asyncdgl.errors import NeedsRestart, StageFailed
from asyncdgl.observer import Observer
from asyncdgl.on_ray.buffer import BufferActor
from asyncdgl.on_ray.cluster import SMALL_CPUS
from asyncdgl.on_ray.counts import count_buffers
from asyncdgl.on_ray.data import share_data
from asyncdgl.on_ray.evaluator import NAME as EVALUATOR
from asyncdgl.on_ray.evaluator import EvaluatorClient
from asyncdgl.on_ray.greeting import check_same, dead_process
from asyncdgl.on_ray.hosts import Hosts
from asyncdgl.on_ray.pace import Caller, PaceActor
from asyncdgl.on_ray.parts import Parts
from asyncdgl.on_ray.placement import Placement
from asyncdgl.on_ray.results import POLL_S, ProcessDied, left, result
from asyncdgl.on_ray.room import Room
from asyncdgl.on_ray.silence import Silence
from asyncdgl.on_ray.spares import Spares
from asyncdgl.on_ray.stage import Arrays, Life, Place
from asyncdgl.on_ray.watch import Watch
from asyncdgl.plan.memory import checkpoint_every, kept_for_restart
from asyncdgl.registry import objects_handed_over
from asyncdgl.rundir.checkpoint import Keep, StagePosition, unsaved
from asyncdgl.rundir.outcome import Outcome, StageEnd
from asyncdgl.rundir.records import Process

CHUNK_S, CHUNKS_AHEAD = 0.5, 2
"""Chunks that a stage has been asked for: it goes on with the next while the driver reads the last."""

START_LIMIT_S, COUNT_LIMIT_S = 180.0, 0.4
STOP_LIMIT_S = 1.2
"""How long an interrupted run waits for its stages' last words."""
PACE, STARTING, BEGINNING, TRAINING, ENDING = "the pace keeper", "starting", "beginning", "training", "ending"


class RayRun:
    """One run on Ray. ``run()`` runs it; ``outcome()`` tells how far it came. Use within ``ray_cluster``.

    Args:
        config: the run.
        data: folder of the decoded data set, on this machine.
        observer: is told of every pass, epoch and evaluation.
        check: called often; raises where the run is to stop, since nothing may raise inside Ray's own calls.
        keep: writes a stage's checkpoint.
        restart: where the run goes on; None where it begins.

    Attributes:
        origin: when training began, on this machine's monotonic clock; None before.
    """

    def __init__(
        self,
        config: ResolvedConfig,
        data: Path,
        observer: Observer,
        check: Callable[[], None] = lambda: None,
        keep: Keep = unsaved,
        restart: Restart | None = None,
    ) -> None:
        self._check = Room(check).check
        self._config = config
        self._observer = observer
        self._numbers = range(1, config.stages + 1)
        # The data lie decoded in their folder; the objects that read them stay here.
        self._given = Parts({kind: part for kind, part in objects_handed_over().items() if kind != "data"})
        self._common = config, share_data(config, data), self._given
        self._place = Placement(config, observer)
        self._stages: dict[int, Any] = {}
        self._buffers: dict[int, Any] = {}
        self._pace: Any = None
        self._reports = Reports(config, observer, keep, restart, self._counts)
        self._began_s = self._reports.end_s  # since training began, where the run goes on
        self.origin = restart.origin if restart is not None else None
        self._hosts = Hosts(observer.noticed)
        self._asked: dict[int, deque[tuple[str, Any]]] = {j: deque() for j in self._numbers}  # for what, in order
        self._outcome = Outcome({}, [], None, hosts=self._hosts.records, faults=self._reports.faults.all)
        self._who_died = lambda: dead_process(self._outcome.processes) or self._reports.faults.missing
        new_spare, told = partial(self._place.new_spare, *self._common), (self._greeted, self._forget, observer.noticed)
        self._spares = Spares(config.ray, new_spare, self._reports.faults, self.now, *told)

    # --- Start

    def start(self) -> None:
        """Place and start all actors, and wait until each is ready.

        Raises:
            ConfigError: the cluster has no place for them.
            StageFailed: one of them died, or runs another asyncdgl than this process.
        """
        config = self._config
        self._place.find()
        self._hosts.visit(self._place.node_ids())
        pace = f"pace-{secrets.token_hex(8)}"  # other runs may use the cluster
        self._pace = self._place.actor(PaceActor, 0, SMALL_CPUS, name=pace).remote(config)
        pending = {PACE: self._pace.hello.remote()}
        self._most: list[int | None] = [None, *kept_for_restart(config)]
        for j in self._numbers:  # in pipeline order, since a machine starts only a few processes at a time
            if j < len(self._numbers):
                actor = self._place.actor(BufferActor, j + 1, SMALL_CPUS)
                # Twice what is between its reader's checkpoints: the reader goes on while one is on its way here.
                self._buffers[j] = actor.remote(config, j, pace, self._given, 2 * (self._most[j] or 0))
                pending[f"buffer {j}"] = self._buffers[j].hello.remote()
            self._stages[j] = self._place.new_stage(j, *self._common)
            pending[f"stage {j}"] = self._take_place(j)
        new, told = partial(self._place.new_evaluator, *self._common), (self._evaluator_gone, self._evaluator_there)
        self._evaluator = EvaluatorClient(new, self._get, config.ray.deaf_s, *told)
        pending[EVALUATOR] = self._evaluator.hello()
        self._greet(pending)

    def _take_place(self, j: int) -> Any:
        """A stage's process goes on from the stage's newest checkpoint; it will greet."""
        history = self._reports.histories[j]
        every, most = checkpoint_every(self._config), self._most[j - 1]
        life = Life(history.life, history.incarnation, history.kept, self._reports.made(j), every, most)
        place = Place(j, self._buffers.get(j - 1), self._buffers.get(j), self._pace, life)
        return self._stages[j].take_place.remote(place)

    def _evaluator_gone(self) -> None:
        self._reports.faults.died(EVALUATOR, self.now())
        self._forget(EVALUATOR)

    def _evaluator_there(self, greeting: Mapping[str, Any]) -> None:
        self._reports.faults.works_again(EVALUATOR, self.now())
        self._is_there_again(EVALUATOR, greeting)

    def _greet(self, pending: dict[str, Any]) -> None:
        deadline = time.monotonic() + START_LIMIT_S
        for name, ref in pending.items():
            if self.origin is None:
                self._observer.noticed(f"waiting for {name}")
            try:
                self._greeted(name, self._get(ref, name, STARTING, max(1.0, deadline - time.monotonic())))
            except TimeoutError:
                raise StageFailed(f"{name} did not start within {START_LIMIT_S:.0f} s", name) from None
            except ProcessDied as error:
                raise NeedsRestart(str(error), name) from None

    def _greeted(self, name: str, greeting: Mapping[str, Any]) -> None:
        check_same(name, greeting)
        self._forget(name)
        self._outcome.processes.append(Process(name=name, **greeting))

    def _forget(self, name: str) -> None:
        """A process is no more: its number may soon be another one's."""
        self._outcome.processes[:] = [process for process in self._outcome.processes if process.name != name]

    # --- Training

    def run(self) -> None:
        """Train until every stage has stopped, then evaluate the final weights."""
        self._nodes = {process.name: process.node for process in self._outcome.processes}
        if self.origin is None:
            self.origin = time.monotonic() - self._began_s
        self._reports.faults.all_work_again(self.now())
        beside = {PACE: self._pace, **{f"buffer {j}": actor for j, actor in self._buffers.items()}}
        watch = Watch(beside, self._reports.faults, self.now, self._forget, self._is_there_again)
        silence = Silence(self._config.ray.deaf_s, beside, self._outcome.processes, self._observer.noticed)
        # Once more: one may have been replaced before it was watched.
        self._greet({name: actor.hello.remote() for name, actor in beside.items()})
        self._tell_who_has_trained()
        for j in self._numbers:
            self._begin(j)
            silence.expect(f"stage {j}", START_LIMIT_S)
        takes: dict[str, Callable[[int, Any], None]] = {
            **{STARTING: self._started, BEGINNING: self._began, TRAINING: self._collect, ENDING: self._ended},
        }
        while waiting := {asked[0][1]: j for j, asked in self._asked.items() if asked}:
            self._check()
            ray.wait(list(waiting), timeout=POLL_S)
            # All that are there: with one at a time the first stage would always come first.
            done, _ = ray.wait(list(waiting), num_returns=len(waiting), timeout=0)
            for j in map(waiting.__getitem__, done):
                doing, ref = self._asked[j].popleft()
                try:
                    answer = self._get(ref, f"stage {j}", doing)
                except ProcessDied:
                    self._replace(j)
                    silence.expect(f"stage {j}", START_LIMIT_S)
                    continue
                takes[doing](j, answer)
                if doing == ENDING:
                    silence.forget(f"stage {j}")
                elif doing == TRAINING:
                    silence.heard(f"stage {j}", answer.longest_pass_s)
            self._collect_evaluations(timeout=0)
            watch.look()
            self._spares.look()
            self._hosts.look()
            silence.look({f"stage {j}": actor for j, actor in self._stages.items()})
        self._reports.check_whole()
        self._count_buffers(self._config.ray.deaf_s)
        self._collect_evaluations(timeout=None)
        weights, epochs = [self._outcome.weights[j] for j in self._numbers], [self._config.epochs] * len(self._numbers)
        self._evaluator.evaluate(self._reports.evaluations.final(weights, epochs, self._reports.end_s))
        self._collect_evaluations(timeout=None, final=True)

    def now(self) -> float:
        """Seconds since training began."""
        return 0.0 if self.origin is None else time.monotonic() - self.origin

    def _begin(self, j: int) -> None:
        """A stage's process begins."""
        self._asked[j].append((BEGINNING, self._stages[j].begin.remote(self._origin_of(j))))
        for _ in range(CHUNKS_AHEAD):
            self._ask_on(j)

    def _ask_on(self, j: int) -> None:
        """Ask a stage for one more chunk."""
        self._asked[j].append((TRAINING, self._stages[j].run.remote(CHUNK_S, self._origin_of(j))))

    def _origin_of(self, j: int) -> float:
        """When training began, on the clock of a stage's machine."""
        return self._hosts.origin(self._nodes[f"stage {j}"], self.origin or 0.0)

    def _replace(self, j: int) -> None:
        """A stage's process has died: another takes its place, and makes again what was since its last checkpoint."""
        history = self._reports.histories[j]
        history.died(self.now())
        self._asked[j].clear()
        self._forget(f"stage {j}")
        with contextlib.suppress(Exception):  # one that is only cut off must not keep its place
            ray.kill(self._stages[j])
        self._pace.gone.remote(Caller(j, history.life))
        step = history.kept.of(j).step if history.kept is not None else 0
        self._observer.noticed(f"stage {j}: its process died; another one goes on from step {step}")
        self._stages[j] = self._spares.take(self._nodes[f"stage {j}"]) or self._place.new_stage(j, *self._common)
        self._asked[j].append((STARTING, self._take_place(j)))

    def _started(self, j: int, greeting: Mapping[str, Any]) -> None:
        name = f"stage {j}"
        self._greeted(name, greeting)
        if self._nodes[name] != greeting["node"]:
            self._nodes[name] = greeting["node"]
            self._hosts.visit(self._place.node_ids())
        self._begin(j)

    def _is_there_again(self, name: str, greeting: Mapping[str, Any]) -> None:
        self._greeted(name, greeting)
        self._observer.noticed(f"{name}: its process died; another one has taken its place")
        if name == PACE:
            self._tell_who_has_trained()

    def _tell_who_has_trained(self) -> None:
        self._told = self._reports.trained
        self._pace.have_trained.remote(self._told)

    def _began(self, j: int, passes_again: int) -> None:
        self._reports.histories[j].works_again(self.now(), passes_again)
        self._spares.fill()  # now, since a process that starts takes a core for seconds

    def _collect(self, j: int, chunk: Chunk) -> None:
        for evaluation in self._reports.take(j, chunk):
            self._evaluator.evaluate(evaluation)
        if self._reports.trained != self._told:
            self._tell_who_has_trained()
        if not (chunk.progress is not None and chunk.progress.stopped):
            self._ask_on(j)
        elif not self._asked[j]:
            self._asked[j].append((ENDING, self._stages[j].finish.remote(False)))

    def _counts(self, j: int, step: int) -> None:
        """A stage's checkpoint counts: its buffer need not keep what it has read before."""
        if j > 1:
            self._buffers[j - 1].count.remote(step)

    def _ended(self, j: int, end: tuple[StageEnd, Arrays, tuple[StagePosition, Arrays] | None]) -> None:
        self._outcome.ends[j], self._outcome.weights[j], _ = end

    def _collect_evaluations(self, timeout: float | None, final: bool = False) -> None:
        for evaluation, results in self._evaluator.collect(timeout):
            self._outcome.evaluation = evaluation_line(evaluation, results, final)
            self._observer.evaluated(self._outcome.evaluation)

    # --- End

    def stop(self, limit_s: float = STOP_LIMIT_S) -> None:
        """The run ends here: collect what the stages can say within so many seconds."""
        with contextlib.suppress(Exception):
            self._check()  # what the stages say needs room
            self._pace.stop.remote()  # so that a stage doesn't go on with the next chunk that it was asked for
            kept = self._finish(limit_s)
            # A stage ends its chunk before it says its last words: what it did until then belongs into the trace.
            for j, asked in self._asked.items():
                with contextlib.suppress(Exception):
                    for doing, ref in asked:
                        if doing == TRAINING and ray.wait([ref], timeout=0)[0]:
                            self._reports.write(j, ray.get(ref))
            for j, checkpoint in kept.items():
                self._reports.write(j, Chunk(checkpoint=checkpoint), is_last=True)
            self._reports.save_newest()

    def _finish(self, limit_s: float) -> dict[int, tuple[StagePosition, Arrays]]:
        """The end and the weights of each stage that can still say them; then the buffers' counts.

        One that does not answer must not silence the others.

        Returns:
            What the stages can go on from.
        """
        kept = {}
        calls = {j: self._stages[j].finish.remote(True) for j in self._numbers if j not in self._outcome.ends}
        deadline = time.monotonic() + limit_s
        for j, ref in calls.items():
            with contextlib.suppress(TimeoutError, StageFailed):
                end = self._get(ref, f"stage {j}", ENDING, left(deadline))
                self._ended(j, end)
                if end[2] is not None:
                    kept[j] = end[2]
        self._count_buffers(COUNT_LIMIT_S)
        return kept

    def _count_buffers(self, limit_s: float) -> None:
        def read_by(j: int) -> Any:
            return self._reports.histories[j].read

        count_buffers(self._buffers, self._outcome, read_by, self._get, ENDING, limit_s)

    def outcome(self) -> Outcome:
        """What there is now: complete, or as far as the run came."""
        return self._outcome

    def close(self) -> None:
        """Leave no actor behind."""
        for actor in (*self._stages.values(), *self._buffers.values(), self._pace, *self._spares.actors):
            with contextlib.suppress(Exception):
                ray.kill(actor)
        self._place.leave()

    def _get(self, ref: Any, who: str, doing: str, timeout: float | None = None) -> Any:
        """See ``result``."""
        return result(ref, who, doing, self._check, self._who_died, timeout)
