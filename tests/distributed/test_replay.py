"""Identity f: a replayed Ray run equals its original bit for bit, whatever it was delayed, lost and read by."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import astuple
from typing import Any

import pytest

from asyncdgl.config.defaults import merged
from asyncdgl.config.yaml import parse_config
from asyncdgl.engine.replayer import Replay
from asyncdgl.plan.resolve import planned
from asyncdgl.rundir.reader import Run, read_run
from asyncdgl.rundir.summary import make_summary
from asyncdgl.rundir.trace import FORWARD, TRAIN, by_stage
from asyncdgl.rundir.writer import RunWriter

SMALL: dict[str, Any] = {
    **{"runtime": "ray", "stages": 3, "epochs": 1, "threads": 1, "device": "cpu", "precision": "float32"},
    "model": {"width": 4},
}
UPDATES = 1437 // 32
PAUSES = {"name": "pauses", "stages": {2: {"pause": {"probability": 0.1, "length": 10}}}}
LOSSES = {"name": "losses", "every_link": {"loss": 0.2}}

RUNS: dict[str, dict[str, Any]] = {
    "slow stage 2, no prefetch": {"delays": {"profile": "slow_stage2"}, "buffer": {"prefetch": 0}},
    "slow stage 2, free, lifo, prefetch 3": {
        "pace": "free",
        "delays": {"profile": "slow_stage2", "slowdown": 3},
        "buffer": {"sampler": "lifo", "prefetch": 3},
    },
    "slow stage 3, uniform, codec bf16": {
        "delays": {"profile": "slow_stage3", "slowdown": 2},
        "buffer": {"sampler": "uniform", "size": 4, "codec": "bf16"},
    },
    "wan, free, codec int8": {
        "stages": 2,
        "pace": "free",
        "delays": {"profile": "wan"},
        "buffer": {"sampler": "uniform", "codec": "int8"},
    },
    "lossy, max_reuse": {
        "stages": 4,
        "delays": {"profile": LOSSES},
        "buffer": {"max_reuse": 3, "size": 5, "codec": "bf16"},
    },
    "random, fifo, max_age": {
        "delays": {"profile": "random"},
        "buffer": {"sampler": "fifo", "max_reuse": 2, "max_age": 8, "min_size": 2},
    },
    "straggler, blocking, bf16": {
        "precision": "bf16",
        "stages": 2,
        "delays": {"profile": PAUSES},
        "buffer": {"on_full": "block", "max_reuse": 1, "size": 3},
    },
    "five stages, wan, prefetch 3": {
        "stages": 5,
        "model": {"blocks": 5},
        "delays": {"profile": "wan"},
        "buffer": {"prefetch": 3},
    },
    "threads by stage": {"ray": {"threads": [2, 1, 2]}, "model": {"width": 16}},
    "sync-dgl, codec int8": {"algorithm": "sync-dgl", "buffer": {"size": 4, "codec": "int8"}},
}


class Stop(BaseException):
    """As a signal stops a run."""


@pytest.fixture
def record(cluster, digits_folder, make_recorder, tmp_path) -> Callable[..., Run]:
    """``record(tree, stop_when)``: what a run on Ray leaves; ``stop_when(recorder, outcome)`` stops it, once."""

    def run(tree: dict[str, Any], stop_when: Callable[[Any, Any], bool] | None = None) -> Run:
        from asyncdgl.on_ray.run import RayRun

        config, recorder = planned(parse_config(merged(SMALL, tree))), make_recorder()
        status = "completed"

        def check() -> None:
            nonlocal status
            if status == "completed" and stop_when is not None and stop_when(recorder, ray_run.outcome()):
                status = "interrupted"
                raise Stop

        ray_run = RayRun(config, digits_folder, recorder, check)
        try:
            ray_run.start()
            ray_run.run()
        except Stop:
            ray_run.stop()
        finally:
            ray_run.close()
        writer = RunWriter(tmp_path)
        writer.write_config(config)
        writer.passed(recorder.trace)
        writer.write_summary(make_summary(config, writer, ray_run.outcome(), status, None, 1.0))
        writer.close()
        assert (status == "interrupted") == (stop_when is not None)
        return read_run(tmp_path)

    return run


def repeated_whole(run: Run, data: Any) -> None:
    """Every pass was repeated with its loss, and every stage ended with the same bits."""
    counts = [len(passes) for passes in by_stage(run.records).values()]
    results = [astuple(result) for result in Replay(run, data).run()]
    assert results == [(j, count, count, True) for j, count in enumerate(counts, 1)]
    assert len(results) == run.config.stages


@pytest.mark.ray
@pytest.mark.parametrize("name", RUNS)
def test_a_run_is_repeated_bit_for_bit(name, record, digits_folder) -> None:
    run = record(RUNS[name])
    assert run.summary is not None
    assert [stage.updates for stage in run.summary.stages] == [UPDATES] * run.config.stages
    repeated_whole(run, digits_folder)
    if name.startswith("slow stage 3"):
        assert FORWARD in {r.kind for r in run.records if r.stage == 2}
    if run.config.algorithm == "async-dgl" and run.config.buffer.max_reuse is None:
        assert max(r.times_sampled or 0 for r in run.records) > 1  # or nothing would be asynchronous about it


@pytest.mark.ray
def test_a_run_that_was_stopped_is_repeated_to_its_last_passes(record, digits_folder, monkeypatch) -> None:
    """Chunks that were still under way belong to it: the last states are those after the last lines of the trace."""
    from asyncdgl.on_ray import run as ray_runtime

    monkeypatch.setattr(ray_runtime, "STOP_LIMIT_S", 60.0)  # others may use the machine
    monkeypatch.setattr(ray_runtime, "COUNT_LIMIT_S", 60.0)
    tree = {"epochs": 1000, "delays": {"profile": "slow_stage2"}, "buffer": {"sampler": "uniform"}}
    run = record(tree, lambda recorder, outcome: len(recorder.trace) > 200)
    assert run.summary is not None
    for stage in run.summary.stages:
        passes = [r for r in run.records if r.stage == stage.stage]
        assert stage.updates == sum(r.kind == TRAIN for r in passes) > 5
    repeated_whole(run, digits_folder)


@pytest.mark.ray
def test_a_run_that_is_stopped_in_its_last_evaluation_counts_each_buffer_once(
    record, digits_folder, monkeypatch
) -> None:
    from asyncdgl.on_ray import run as ray_runtime

    monkeypatch.setattr(ray_runtime, "STOP_LIMIT_S", 60.0)
    monkeypatch.setattr(ray_runtime, "COUNT_LIMIT_S", 60.0)
    # So that the evaluation is not over before anybody looks.
    monkeypatch.setattr("asyncdgl.on_ray.results.POLL_S", 0.001)
    run = record({"stages": 2, "buffer": {"prefetch": 1}}, lambda recorder, outcome: len(outcome.buffers) == 1)
    assert run.summary is not None
    assert run.summary.test_accuracy is None  # it was stopped where it should be
    repeated_whole(run, digits_folder)
    [buffer] = run.summary.buffers
    assert buffer.sampled == sum(r.stage == 2 for r in run.records) + buffer.fetched_unused
