"""Where the actors of a run find their place: a bundle for each stage with the buffer that it reads."""

from __future__ import annotations

import contextlib
import math
from typing import Any

import ray
from ray.util.placement_group import placement_group, placement_group_table, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from asyncdgl.config.resolved import ResolvedConfig
from asyncdgl.errors import ConfigError
from asyncdgl.observer import Observer
from asyncdgl.on_ray.buffer import BufferActor
from asyncdgl.on_ray.cluster import SMALL_CPUS, spare_cpus, wait_for_placement
from asyncdgl.on_ray.evaluator import EvaluationActor
from asyncdgl.on_ray.pace import PaceActor
from asyncdgl.on_ray.stage_actor import StageActor
from asyncdgl.plan.machine import wanted_address

EVALUATOR_GPU = 0.05
"""What the evaluator asks for of a GPU that stages use: Ray counts shares, it does not enforce them."""

_BESIDE_A_STAGE = 3 * SMALL_CPUS
"""What the buffers and the actors beside the stages take, so that J stages of one thread fit on J CPUs."""


class Placement:
    """The place of one run's actors. Bundle 0 is beside, bundle j holds stage j and the buffer that it reads.

    Spares have one more bundle for all of them. One that takes the place of a stage stays in it.

    Args:
        config: the run.
        observer: is told where it gets less than it asked for.

    Attributes:
        gpu: what of a GPU a stage gets.
        evaluator_gpu: what the evaluator gets.
    """

    def __init__(self, config: ResolvedConfig, observer: Observer) -> None:
        self._config, self._observer = config, observer
        self._numbers = range(1, config.stages + 1)
        self._group: Any = None
        self.gpu, self.evaluator_gpu = 0.0, 0.0

    def find(self) -> None:
        """Wait until there is a place for every actor.

        Raises:
            ConfigError: the cluster has none.
        """
        if self._config.device != "cuda":
            self._wait()
            return
        gpus = max(1, int(ray.cluster_resources().get("GPU", 0)))  # type: ignore[no-untyped-call]
        count = len(self._numbers)
        on_one = math.ceil(count / gpus)
        self.gpu, self.evaluator_gpu = gpu_share(on_one), EVALUATOR_GPU
        try:
            self._wait()
        except ConfigError:
            if on_one == count:
                raise
            self._observer.noticed("others use the GPUs: all stages on one")
            self.leave()
            self.gpu = gpu_share(count)
            self._wait()

    def _wait(self) -> None:
        bundles = [{"CPU": 2 * SMALL_CPUS, "GPU": self.evaluator_gpu}]
        bundles += [{"CPU": self.cpus(j) + SMALL_CPUS, "GPU": self.gpu} for j in self._numbers]
        spares = spare_cpus(self._config)
        bundles += [{"CPU": spares}] if spares else []
        threads = sum(round(self.cpus(j) + _BESIDE_A_STAGE) for j in self._numbers)
        needs = {"CPU": max(threads, math.ceil(round(sum(b["CPU"] for b in bundles), 4)))}
        if self.gpu:
            needs["GPU"] = math.ceil(sum(b["GPU"] for b in bundles))
        bundles = [{k: amount for k, amount in bundle.items() if amount} for bundle in bundles]
        self._group = placement_group(bundles, strategy=self._config.ray.placement.upper())
        wait_for_placement(self._group, needs, self._config.ray.wait_s, self._observer.noticed)

    def node_ids(self) -> set[str]:
        """Of the machines where it is, as Ray names them."""
        return set(placement_group_table(self._group)["bundles_to_node_id"].values())

    def cpus(self, stage: int) -> float:
        """What a stage asks for: on a cluster that it joins, its threads."""
        joined = wanted_address(self._config.ray.address) is not None
        return (self._config.threads_of(stage) if joined else 1) - _BESIDE_A_STAGE

    def new_stage(self, number: int, *args: Any) -> Any:
        """A process for a stage, see ``StageActor``."""
        return self.actor(StageActor, number, self.cpus(number), self.gpu).remote(*args)

    def new_spare(self, *args: Any) -> Any:
        """A process that may become any stage."""
        return self.actor(StageActor, self._config.stages + 1, SMALL_CPUS).remote(*args)

    def new_evaluator(self, *args: Any) -> Any:
        """See ``EvaluationActor``."""
        return self.actor(EvaluationActor, 0, SMALL_CPUS, self.evaluator_gpu).remote(*args)

    def actor(self, cls: type, bundle: int, cpus: float, gpus: float = 0.0, name: str | None = None) -> Any:
        """The class as an actor in a bundle; with a name, others find it by that."""
        strategy = PlacementGroupSchedulingStrategy(self._group, placement_group_bundle_index=bundle)
        options: dict[str, Any] = {"num_cpus": cpus, "scheduling_strategy": strategy}
        if gpus:
            options["num_gpus"] = gpus
        if name is not None:
            options["name"] = name
        if cls in (PaceActor, BufferActor):
            options["max_concurrency"] = 1000  # waiting calls are cheap: a stage has a few at a time
            # Each entry of sync-dgl is needed once: there an empty buffer can't take another one's place.
            if cls is PaceActor or self._config.algorithm != "sync-dgl":
                options["max_restarts"] = -1
        return ray.remote(cls).options(**options)

    def leave(self) -> None:
        """Others may have the place."""
        with contextlib.suppress(Exception):
            remove_placement_group(self._group)


def gpu_share(on_one: int) -> float:
    """What each of so many stages on one GPU asks for, so that the evaluator has a place beside them."""
    return math.floor(1000 * (1 - EVALUATOR_GPU) / on_one) / 1000  # rounded down, or the last would have no place
