"""One local Ray cluster for all tests in this folder, and a way to run a configuration on it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from asyncdgl.config.resolved import ResolvedConfig
from asyncdgl.config.yaml import parse_config
from asyncdgl.data.cache import prepare
from asyncdgl.engine.sim import Simulation
from asyncdgl.observer import Recorder
from asyncdgl.on_ray.cluster import local_cluster
from asyncdgl.plan.resolve import planned
from asyncdgl.rundir.outcome import Outcome
from asyncdgl.rundir.trace import PassRecord

LOGICAL_CPUS = 16  # what the actors ask for, not what the machine has
LOGICAL_GPUS = 3  # what is asked for, too: no test computes on one
STORE_BYTES = 500_000_000


class RanRecorder(Recorder):
    """With what the run came to."""

    outcome: Outcome | None = None
    config: ResolvedConfig

    @property
    def hashes(self) -> list[str | None]:
        assert self.outcome is not None
        return [end.state_sha256 for _, end in sorted(self.outcome.ends.items())]

    def passes(self, stage: int, kind: str | None = None) -> list[PassRecord]:
        own = [r for r in self.trace if r.stage == stage and kind in (None, r.kind)]
        return sorted(own, key=lambda r: r.step)


def make_config(tree: dict[str, Any]) -> ResolvedConfig:
    return planned(parse_config({"threads": 1, "device": "cpu", "precision": "float32", **tree}))


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with local_cluster(LOGICAL_CPUS, LOGICAL_GPUS, STORE_BYTES, tmp_path_factory.mktemp("empty")):
        yield


Run = Callable[..., RanRecorder]


@pytest.fixture
def run_ray(cluster: None) -> Run:
    """Run a configuration on Ray; the recorder has its passes and its outcome, complete or not."""

    def run(tree: dict[str, Any], on_start: Callable[[Any], None] = lambda ray_run: None, **hooks: Any) -> RanRecorder:
        from asyncdgl.on_ray.run import RayRun

        config, recorder = make_config({"runtime": "ray", **tree}), RanRecorder(**hooks)
        recorder.config = config
        ray_run = RayRun(config, prepare(config.data), recorder)
        try:
            ray_run.start()
            on_start(ray_run)
            ray_run.run()
        finally:
            recorder.outcome = ray_run.outcome()
            ray_run.close()
        return recorder

    return run


@pytest.fixture
def run_sim() -> Run:
    """Run a configuration in this process."""

    def run(tree: dict[str, Any]) -> RanRecorder:
        config, recorder = make_config({"runtime": "sim", **tree}), RanRecorder()
        simulation = Simulation(config, prepare(config.data), recorder)
        simulation.run()
        recorder.outcome = simulation.outcome()
        return recorder

    return run


@pytest.fixture
def check_conservation() -> Callable[[RanRecorder], None]:
    """Rule 15: no entry is lost from the books of any buffer."""

    def check(recorder: RanRecorder) -> None:
        assert recorder.outcome is not None
        for b in recorder.outcome.buffers:
            assert b.inserted == b.left + b.retired + b.overwritten_unused, b
            assert b.sent == b.inserted + b.on_the_way + b.lost + b.dropped + b.lost_in_fault, b
            assert b.sent == len(recorder.passes(b.after_stage)), b
            reader = b.after_stage + 1
            assert b.sampled == len(recorder.passes(reader)) + b.fetched_unused, b

    return check
