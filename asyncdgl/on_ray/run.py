"""Runtime ``ray``: real asynchrony. The driver places the actors, starts them, collects what they report, ends them."""

from __future__ import annotations

import contextlib
import math
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import ray
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from asyncdgl.config.resolved import ResolvedConfig
from asyncdgl.engine.evaluations import Evaluation, Evaluations, evaluation_line
from asyncdgl.errors import ConfigError, StageFailed
from asyncdgl.observer import Observer
from asyncdgl.on_ray.buffer import BufferActor
from asyncdgl.on_ray.cluster import SMALL_CPUS, wait_for_placement
from asyncdgl.on_ray.evaluator import EvaluationActor
from asyncdgl.on_ray.greeting import clock_ahead, hello
from asyncdgl.on_ray.pace import PaceActor
from asyncdgl.on_ray.parts import Parts
from asyncdgl.on_ray.stage import Chunk, StageActor
from asyncdgl.plan.machine import wanted_address
from asyncdgl.registry import objects_handed_over
from asyncdgl.rundir.outcome import Outcome, StageEnd
from asyncdgl.rundir.records import BufferSummary, Process

CHUNK_S = 0.5
CHUNKS_AHEAD = 2
"""Chunks that a stage has been asked for: it goes on with the next while the driver reads the last."""

EVALUATOR_GPU = 0.05
"""What the evaluator asks for of a GPU that stages use: Ray counts shares, it does not enforce them."""

_BESIDE_A_STAGE = 3 * SMALL_CPUS
"""What the buffers and the actors beside the stages take, so that J stages of one thread fit on J CPUs."""

POLL_S = 0.2
START_LIMIT_S = 180.0
PLACEMENT_LIMIT_S = 20.0
COUNT_LIMIT_S = 0.4
STOP_LIMIT_S = 1.2
"""How long an interrupted run waits for its stages' last words."""


class RayRun:
    """One run on Ray. ``run()`` runs it; ``outcome()`` tells how far it came. Use within ``ray_cluster``.

    Args:
        config: the run.
        data: folder of the decoded data set, on every machine of the cluster.
        observer: is told of every pass, epoch and evaluation.
        check: called often; raises where the run is to stop, since nothing may raise inside Ray's own calls.
    """

    def __init__(
        self, config: ResolvedConfig, data: Path, observer: Observer, check: Callable[[], None] = lambda: None
    ) -> None:
        self._check = check
        self._config = config
        self._data = data
        self._observer = observer
        self._numbers = range(1, config.stages + 1)
        self._stages: dict[int, Any] = {}
        self._buffers: dict[int, Any] = {}
        self._group: Any = None
        # No evaluation uses initial weights: it is due when every stage has completed an epoch, and published it.
        self._evaluations: Evaluations[Any] = Evaluations(
            [None] * config.stages, config.epochs, config.evaluation.every
        )
        self._evaluating: deque[tuple[Evaluation[Any], Any]] = deque()
        self._origin = 0.0
        self._known_until_s = dict.fromkeys(self._numbers, 0.0)
        self._end_s = 0.0
        self._outstanding: dict[Any, int] = {}  # chunks asked for, and of which stage
        self._outcome = Outcome({}, [], None)

    # --- Start

    def start(self) -> None:
        """Place and start all actors, and wait until each is ready.

        Raises:
            ConfigError: the cluster has no place for them.
            StageFailed: one of them died, or runs another asyncdgl than this process.
        """
        config = self._config
        # The data lie decoded in their folder; the objects that read them stay here.
        given = Parts({kind: part for kind, part in objects_handed_over().items() if kind != "data"})
        gpu, evaluator_gpu = self._place()
        self._pace = self._actor(PaceActor, 0, SMALL_CPUS).remote(config)
        pending = {"the pace keeper": self._pace.hello.remote()}
        for j in self._numbers:  # in pipeline order, since a machine starts only a few processes at a time
            if j < len(self._numbers):
                self._buffers[j] = self._actor(BufferActor, j + 1, SMALL_CPUS).remote(config, j, self._pace, given)
                pending[f"buffer {j}"] = self._buffers[j].hello.remote()
            actor = self._actor(StageActor, j, self._cpus(j), gpu)
            upstream, downstream = self._buffers.get(j - 1), self._buffers.get(j)
            self._stages[j] = actor.remote(config, self._data, j, upstream, downstream, self._pace, given)
            pending[f"stage {j}"] = self._stages[j].hello.remote()
        self._evaluator = self._actor(EvaluationActor, 0, SMALL_CPUS, evaluator_gpu).remote(config, self._data, given)
        pending["the evaluator"] = self._evaluator.hello.remote()
        self._greet(pending)

    def _place(self) -> tuple[float, float]:
        """Returns what of a GPU a stage gets, and the evaluator."""
        if self._config.device != "cuda":
            self._wait_for_place(0.0, 0.0)
            return 0.0, 0.0
        gpus = max(1, int(ray.cluster_resources().get("GPU", 0)))  # type: ignore[no-untyped-call]
        count = len(self._numbers)
        on_one = math.ceil(count / gpus)
        try:
            self._wait_for_place(gpu_share(on_one), EVALUATOR_GPU)
        except ConfigError:
            if on_one == count:
                raise
            self._observer.noticed("others use the GPUs: all stages on one")
            remove_placement_group(self._group)
            on_one = count
            self._wait_for_place(gpu_share(on_one), EVALUATOR_GPU)
        return gpu_share(on_one), EVALUATOR_GPU

    def _wait_for_place(self, gpu: float, evaluator_gpu: float) -> None:
        bundles = [{"CPU": 2 * SMALL_CPUS, "GPU": evaluator_gpu}]
        bundles += [{"CPU": self._cpus(j) + SMALL_CPUS, "GPU": gpu} for j in self._numbers]
        needs = f"{sum(round(self._cpus(j) + _BESIDE_A_STAGE) for j in self._numbers)} CPU"
        needs += f" and {math.ceil(sum(b['GPU'] for b in bundles))} GPU" if gpu else ""
        bundles = [{k: amount for k, amount in bundle.items() if amount} for bundle in bundles]
        self._group = placement_group(bundles, strategy="PACK")
        wait_for_placement(self._group, needs, PLACEMENT_LIMIT_S)

    def _cpus(self, stage: int) -> float:
        """What a stage asks for: on a cluster that it joins, its threads."""
        joined = wanted_address(self._config.ray.address) is not None
        return (self._config.threads_of(stage) if joined else 1) - _BESIDE_A_STAGE

    def _actor(self, cls: type, bundle: int, cpus: float, gpus: float = 0.0) -> Any:
        """The class as an actor in a bundle: bundle 0 is beside, bundle j holds stage j and the buffer it reads."""
        strategy = PlacementGroupSchedulingStrategy(self._group, placement_group_bundle_index=bundle)
        options: dict[str, Any] = {"num_cpus": cpus, "scheduling_strategy": strategy}
        if gpus:
            options["num_gpus"] = gpus
        if cls in (PaceActor, BufferActor):
            options["max_concurrency"] = 1000  # waiting calls are cheap: a stage has a few at a time
        return ray.remote(cls).options(**options)

    def _greet(self, pending: dict[str, Any]) -> None:
        own = hello()
        deadline = time.monotonic() + START_LIMIT_S
        for name, ref in pending.items():
            self._observer.noticed(f"waiting for {name}")
            try:
                greeting = self._get(ref, name, "starting", max(1.0, deadline - time.monotonic()))
            except TimeoutError:
                raise StageFailed(f"{name} did not start within {START_LIMIT_S:.0f} s", name) from None
            for what in ("version", "path"):
                if greeting[what] != own[what] and (what == "version" or greeting["node"] == own["node"]):
                    raise StageFailed(
                        f"{name} runs asyncdgl {greeting['version']} from {greeting['path']}, but this process runs "
                        f"{own['version']} from {own['path']}: install the same package everywhere"
                    )
            self._outcome.processes.append(Process(name=name, **greeting))

    # --- Training

    def _ahead_s(self, j: int) -> float:
        """How far the monotonic clock of stage ``j``'s machine is ahead of this one's: each counts from its start."""
        nodes = {process.name: process.node for process in self._outcome.processes}
        if nodes.get(f"stage {j}") == hello()["node"]:
            return 0.0
        clock = self._stages[j].clock
        return clock_ahead(lambda: float(self._get(clock.remote(), f"stage {j}", "beginning")))

    def run(self) -> None:
        """Train until every stage has stopped, then evaluate the final weights."""
        ahead_s = {j: self._ahead_s(j) for j in self._numbers}
        self._origin = time.monotonic()
        for j, actor in self._stages.items():
            self._get(actor.begin.remote(self._origin + ahead_s[j]), f"stage {j}", "beginning")
        outstanding = self._outstanding
        for j, actor in self._stages.items():
            for _ in range(CHUNKS_AHEAD):
                outstanding[actor.run.remote(CHUNK_S)] = j
        while outstanding:
            self._check()
            done, _ = ray.wait(list(outstanding), timeout=POLL_S)
            for ref in done:
                j = outstanding.pop(ref)
                chunk = self._get(ref, f"stage {j}", "training")
                self._collect(j, chunk)
                if not (chunk.progress is not None and chunk.progress.stopped):
                    outstanding[self._stages[j].run.remote(CHUNK_S)] = j
            self._collect_evaluations(timeout=0)
        final = self._finish(None)
        self._collect_evaluations(timeout=None)
        if len(final) == len(self._numbers):
            epochs = [self._config.epochs] * len(final)
            self._evaluate(self._evaluations.final([final[j] for j in self._numbers], epochs, self._end_s))
            self._collect_evaluations(timeout=None, final=True)

    def _keep(self, j: int, chunk: Chunk) -> None:
        """What a chunk did goes to the run directory."""
        self._observer.passed(chunk.records)
        self._end_s = max([self._end_s, *(r.end_s for r in chunk.records[-1:])])
        if chunk.progress is not None:
            self._observer.progressed(j, chunk.progress)
        for line, _ in chunk.epochs:
            self._observer.epoch_completed(line)

    def _collect(self, j: int, chunk: Chunk) -> None:
        self._keep(j, chunk)
        for line, published in chunk.epochs:
            self._evaluations.completed(j, line.end_s, published[0] if published else None)
        stopped = chunk.progress is not None and chunk.progress.stopped
        self._known_until_s[j] = math.inf if stopped else chunk.until_s
        for evaluation in self._evaluations.due(min(self._known_until_s.values())):
            self._evaluate(evaluation)

    def _evaluate(self, evaluation: Evaluation[Any]) -> None:
        weights = [publication.weights for publication in evaluation.of]
        self._evaluating.append((evaluation, self._evaluator.evaluate.remote(weights)))

    def _collect_evaluations(self, timeout: float | None, final: bool = False) -> None:
        while self._evaluating:
            evaluation, ref = self._evaluating[0]
            if timeout is not None and not ray.wait([ref], timeout=timeout)[0]:
                return
            self._evaluating.popleft()
            results = self._get(ref, "the evaluator", "evaluating")
            self._outcome.evaluation = evaluation_line(evaluation, results, final)
            self._observer.evaluated(self._outcome.evaluation)

    # --- End

    def stop(self) -> None:
        """The run was interrupted: collect what the stages can say at once."""
        with contextlib.suppress(Exception):
            self._pace.stop.remote()  # so that a stage doesn't go on with the next chunk that it was asked for
            self._finish(STOP_LIMIT_S)
        # A stage ends its chunk before it says its last words: what it did until then belongs into the trace.
        for ref, j in self._outstanding.items():
            with contextlib.suppress(Exception):
                if ray.wait([ref], timeout=0)[0]:
                    self._keep(j, ray.get(ref))

    def _finish(self, limit_s: float | None) -> dict[int, Any]:
        """Each stage's end and final weights; then the buffers' counts, once everything sent has been taken."""
        calls = {j: actor.finish.remote() for j, actor in self._stages.items()}
        final: dict[int, Any] = {}
        deadline = None if limit_s is None else time.monotonic() + limit_s
        # A run that ends early tells what it can: one that does not answer must not silence the others.
        tolerated = (TimeoutError,) if limit_s is None else (TimeoutError, StageFailed)
        for j, ref in calls.items():
            with contextlib.suppress(*tolerated):
                end, published = self._get(ref, f"stage {j}", "ending", deadline and _left(deadline))
                self._outcome.ends.setdefault(j, end)  # asked again, a stage has forgotten what it had fetched ahead
                final[j] = published[0]
                self._outcome.weights[j] = self._get(final[j], f"stage {j}", "ending", deadline and _left(deadline))
        # Stopped in the last evaluation, they are counted a second time; what can't be said again stays.
        told = {buffer.after_stage: buffer for buffer in self._outcome.buffers}
        counts = {j: buffer.statistics.remote() for j, buffer in self._buffers.items()}
        deadline = None if limit_s is None else time.monotonic() + COUNT_LIMIT_S
        for j, ref in counts.items():
            with contextlib.suppress(*tolerated):
                statistics = self._get(ref, f"buffer {j}", "ending", deadline and _left(deadline))
                reader: StageEnd | None = self._outcome.ends.get(j + 1)
                unused = reader.fetched_unused if reader else 0
                counts_of = {"after_stage": j, **statistics, "fetched_unused": unused}
                told[j] = BufferSummary.model_validate(counts_of)
        self._outcome.buffers[:] = [told[j] for j in sorted(told)]
        return final

    def outcome(self) -> Outcome:
        """What there is now: complete, or as far as the run came."""
        return self._outcome

    def close(self) -> None:
        """Leave no actor behind."""
        for actor in (*self._stages.values(), *self._buffers.values()):
            with contextlib.suppress(Exception):
                ray.kill(actor)
        with contextlib.suppress(Exception):
            remove_placement_group(self._group)

    def _dead_process(self) -> str | None:
        """The first of this machine's processes of the run that lives no more."""
        here = hello()["node"]
        for process in self._outcome.processes:
            try:
                if process.node == here and psutil.Process(process.pid).status() == psutil.STATUS_ZOMBIE:
                    return process.name
            except psutil.NoSuchProcess:
                return process.name
        return None

    def _get(self, ref: Any, who: str, doing: str, timeout: float | None = None) -> Any:
        """A call's result; a process that died or raised becomes one clear error."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while not ray.wait([ref], timeout=POLL_S if deadline is None else min(POLL_S, _left(deadline)))[0]:
            self._check()
            if deadline is not None and time.monotonic() >= deadline:
                raise TimeoutError
        try:
            return ray.get(ref)
        except ray.exceptions.OutOfMemoryError:
            raise StageFailed(f"{who}, {doing}: out of memory; use a smaller --buffer-size", who) from None
        except ray.exceptions.RayActorError as error:
            if doing == "starting" and "creation task" in str(error):  # its own error stands below Ray's story of it
                reason = str(error).strip().splitlines()[-1]
                raise StageFailed(f"{who}, {doing}: {reason}", who) from None
            raise StageFailed(f"{who}, {doing}: its process died ({_first_line(error)})", who) from None
        except ray.exceptions.RayTaskError as error:
            cause = error.cause
            if isinstance(cause, MemoryError):
                raise StageFailed(f"{who}, {doing}: {_first_line(cause)}", who) from None
            if isinstance(cause, StageFailed):
                raise type(cause)(str(cause), who) from None
            if isinstance(cause, ray.exceptions.RayActorError):
                dead = self._dead_process()
                named = f"the process of {dead} died" if dead else "a process that it uses died"
                raise StageFailed(f"{who}, {doing}: {named} ({_first_line(cause)})", dead or who) from None
            raise StageFailed(f"{who}, {doing}: {type(cause).__name__}: {_first_line(cause)}", who) from error


def gpu_share(on_one: int) -> float:
    """What each of so many stages on one GPU asks for, so that the evaluator has a place beside them."""
    return math.floor(1000 * (1 - EVALUATOR_GPU) / on_one) / 1000  # rounded down, or the last would have no place


def _left(deadline: float) -> float:
    return max(0.0, deadline - time.monotonic())


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
