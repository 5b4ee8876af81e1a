"""Stages run at their own speeds in fact: what the trace of real processes says."""

from __future__ import annotations

import os
import signal
import statistics
import threading
import time

import pytest

from asyncdgl.rundir.trace import overlap

SMALL = {"data": {"dataset": "synthetic"}, "model": {"width": 8}}
# Passes of 30 ms and more, so that messages between processes (1 to 3 ms) hardly count.
LARGE = {
    "data": {"dataset": "synthetic", "image_size": 32},
    "model": {"blocks": 6, "width": 16},
    "batch_size": 64,
}


def passes_between(recorder, stage: int, start: float, end: float) -> list:
    return [r for r in recorder.passes(stage) if start <= r.end_s < end]


@pytest.mark.ray
def test_a_stopped_stage_holds_nobody(run_ray) -> None:
    stop_s, state = 5.0, {}

    def stop_stage_2(recorder) -> None:
        if "thread" in state or min(len(recorder.passes(j)) for j in (1, 2, 3)) < 200:
            return

        def stop_and_go() -> None:
            state["stopped"] = time.monotonic() - state["origin"]()
            os.kill(state["pid"], signal.SIGSTOP)
            time.sleep(stop_s)
            os.kill(state["pid"], signal.SIGCONT)

        state["thread"] = threading.Thread(target=stop_and_go)
        state["thread"].start()

    def on_start(ray_run) -> None:
        state["pid"] = next(p.pid for p in ray_run.outcome().processes if p.name == "stage 2")
        state["origin"] = lambda: ray_run.origin

    tree = {**SMALL, "model": {"width": 32}, "stages": 3, "pace": "free", "epochs": 14}
    recorder = run_ray(tree, on_start=on_start, on_passes=stop_stage_2)
    state["thread"].join()
    stopped = state["stopped"]
    assert not passes_between(recorder, 2, stopped + 0.5, stopped + stop_s)
    for stage in (1, 3):
        before = len(passes_between(recorder, stage, stopped - 1.5, stopped)) / 1.5
        during = len(passes_between(recorder, stage, stopped + 0.5, stopped + stop_s)) / (stop_s - 0.5)
        assert during >= 0.8 * before, f"stage {stage}: {during:.0f} passes/s, {before:.0f} before"
    reuse = [r.times_sampled for r in passes_between(recorder, 3, stopped + 0.5, stopped + stop_s)]
    assert statistics.mean(reuse[-20:]) > statistics.mean(reuse[:20]) > 1
    quota = 14 * 2048 // 32
    assert [len(recorder.passes(j, "train")) for j in (1, 2, 3)] == [quota] * 3
    assert recorder.outcome.evaluation.test_accuracy[-1] > 0.5


def steady_counts(recorder, stages: int) -> list[int]:
    """Passes of each stage in the middle of the time in which all stages train."""
    trained = [recorder.passes(j, "train") for j in range(1, stages + 1)]
    begin, end = max(p[0].start_s for p in trained), min(p[-1].end_s for p in trained)
    start, stop = begin + 0.1 * (end - begin), end - 0.05 * (end - begin)
    return [len(passes_between(recorder, j, start, stop)) for j in range(1, stages + 1)]


@pytest.mark.ray
def test_pace_profile_keeps_relative_speeds(run_ray) -> None:
    tree = {**SMALL, "stages": 4, "epochs": 5, "delays": {"profile": "slow_stage2"}}
    counts = steady_counts(run_ray(tree), 4)
    assert counts[0] >= 200
    others = statistics.mean([counts[0], counts[2], counts[3]])
    assert counts[1] / others == pytest.approx(0.5, rel=0.05)
    assert [c / others for c in (counts[0], counts[2], counts[3])] == pytest.approx([1, 1, 1], rel=0.05)


@pytest.mark.ray
def test_two_stages_compute_at_the_same_time(run_ray) -> None:
    recorder = run_ray({**LARGE, "stages": 2, "epochs": 4, "pace": "free"})
    one, two = recorder.passes(1, "train"), recorder.passes(2, "train")
    begin, end = max(one[0].start_s, two[0].start_s), min(one[-1].end_s, two[-1].end_s)
    assert overlap(one, two) / (end - begin) >= 0.7


@pytest.mark.ray
def test_pace_free_stretches_each_pass_by_its_slowdown(run_ray) -> None:
    delays = {"profile": "slow_stage2", "slowdown": 2}
    tree = {**LARGE, "stages": 2, "epochs": 2, "pace": "free", "delays": delays}
    passes = run_ray(tree).passes(2, "train")[5:]
    other_waits = sum(s for r in passes[1:] for reason, s in r.waits.items() if reason != "slowdown")
    periods = passes[-1].start_s - passes[0].start_s - other_waits
    computing = sum(r.end_s - r.start_s for r in passes[:-1])
    assert periods / computing == pytest.approx(2, rel=0.05)


@pytest.mark.ray
def test_a_slow_link_never_slows_its_producer(run_ray, check_conservation) -> None:
    link = {"latency": {"law": "exponential", "mean": 200}, "max_in_flight": 4}
    tree = {**SMALL, "stages": 2, "epochs": 4, "pace": "free", "delays": {"profile": {"every_link": link}}}
    recorder = run_ray(tree)
    check_conservation(recorder)
    first = recorder.passes(1)
    assert sum(sum(r.waits.values()) for r in first) == 0
    assert recorder.outcome.buffers[0].dropped > len(first) / 2
    assert {r.kind for r in recorder.passes(2)} == {"train"}
    assert len(recorder.passes(2)) == 4 * 2048 // 32
