"""Identity h: a run whose processes are killed ends with the bits that it would have had."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest

from asyncdgl.data.cache import prepare
from asyncdgl.engine.replayer import Replay
from asyncdgl.errors import StageFailed
from asyncdgl.rundir.reader import Run, read_run
from asyncdgl.rundir.summary import make_summary
from asyncdgl.rundir.writer import RunWriter

SMALL: dict[str, Any] = {
    **{"stages": 3, "epochs": 2, "checkpoint": {"every": 10}},
    **{"data": {"dataset": "synthetic"}, "model": {"width": 8}},
}
KILLS = 3

RUNS: dict[str, dict[str, Any]] = {
    "as by default": {},
    "no checkpoint yet": {"checkpoint": {"every": 10**6}},
    "a checkpoint after each pass": {"checkpoint": {"every": 1}},
    "slow stage 3, uniform, prefetch 3": {
        "delays": {"profile": "slow_stage3"},
        "buffer": {"sampler": "uniform", "prefetch": 3},
    },
    "blocking, max_reuse, int8": {
        "buffer": {"on_full": "block", "max_reuse": 2, "size": 3, "sampler": "fifo", "codec": "int8"}
    },
    "wan": {"delays": {"profile": "wan"}},
    "random, lossy, free": {
        "pace": "free",
        "delays": {"profile": {"every_stage": {"step_law": "exponential"}, "every_link": {"loss": 0.2}}},
        "buffer": {"max_age": 6},
    },
}


class Killer:
    """Kills processes of a run with SIGKILL, or sends another signal, each after so many passes of all stages.

    Args:
        moments: passes, and the name of the process that dies then, or once it has done something since it was killed.
    """

    def __init__(self, moments: Sequence[tuple[int, str]], number: signal.Signals = signal.SIGKILL) -> None:
        self._moments, self._number = list(moments), number
        self._ray_run: Any = None
        self.killed: list[int] = []
        self._made: dict[str, int] = {}

    def began(self, ray_run: Any) -> None:
        self._ray_run = ray_run

    def __call__(self, recorder: Any) -> None:
        while self._ray_run is not None and self._moments and len(recorder.trace) >= self._moments[0][0]:
            if not self._kill(recorder):
                return

    def _kill(self, recorder: Any) -> bool:
        name = self._moments[0][1]
        pid = next((p.pid for p in self._ray_run.outcome().processes if p.name == name), None)
        if pid is None:  # it is dead, and another one on its way
            return False
        own = [r for r in recorder.trace if not name.startswith("stage") or name == f"stage {r.stage}"]
        if pid not in self.killed and len(own) > self._made.get(name, 0):
            os.kill(pid, self._number)
            self.killed.append(pid)
            self._made[name] = len(own)
            self._moments.pop(0)
            return True
        return False


def at_random(seed: int, stages: int, passes: int) -> Killer:
    draws = random.Random(seed)
    moments = sorted(draws.randrange(5, passes) for _ in range(KILLS))
    return Killer([(moment, f"stage {draws.randint(1, stages)}") for moment in moments])


@pytest.fixture
def killed(run_ray, tmp_path) -> Callable[..., tuple[Any, Run]]:
    """``killed(tree, killer)``: a run whose processes were killed, as its recorder and its directory have it."""

    def run(tree: dict[str, Any], killer: Killer) -> tuple[Any, Run]:
        recorder = run_ray({**SMALL, **tree}, on_start=killer.began, on_passes=killer)
        return recorder, left_by(recorder, tmp_path)

    return run


def left_by(recorder: Any, folder: Path) -> Run:
    writer = RunWriter(folder)
    writer.write_config(recorder.config)
    writer.passed(recorder.trace)
    writer.write_summary(make_summary(recorder.config, writer, recorder.outcome, "completed", None, 1.0))
    writer.close()
    return read_run(folder)


def check_whole(recorder: Any, run: Run) -> None:
    """No pass is missing or twice, and a repetition in one process comes to the same bits."""
    for j in range(1, recorder.config.stages + 1):
        own = [r.step for r in recorder.trace if r.stage == j]
        assert own == list(range(len(own))), f"stage {j}"
    for result in Replay(run, prepare(recorder.config.data)).run():
        assert result.passes == result.recorded
        assert result.state_equal


@pytest.mark.ray
@pytest.mark.parametrize("seed_and_name", list(enumerate(RUNS)), ids=list(RUNS))
def test_stages_that_are_killed_end_with_the_bits_of_their_replay(killed, check_conservation, seed_and_name) -> None:
    seed, name = seed_and_name
    killer = at_random(seed, 3, 100)
    recorder, run = killed(RUNS[name], killer)
    assert len(killer.killed) == KILLS
    check_whole(recorder, run)
    check_conservation(recorder)
    faults = run.summary.faults
    assert len(faults) == KILLS
    assert all(fault.again_s > fault.at_s for fault in faults)
    if name == "no checkpoint yet":
        assert max(fault.passes_again for fault in faults) > 10
    elif name == "as by default":
        assert all(fault.passes_again < 150 for fault in faults)


@pytest.mark.ray
def test_sync_dgl_with_killed_stages_equals_sim(killed, run_sim, check_conservation) -> None:
    tree = {"algorithm": "sync-dgl"}
    recorder, run = killed(tree, at_random(7, 3, 100))
    check_whole(recorder, run)
    check_conservation(recorder)
    assert recorder.hashes == run_sim({**SMALL, **tree}).hashes


@pytest.mark.ray
def test_the_evaluator_that_is_killed_is_asked_again(killed) -> None:
    tree = {"epochs": 4, "stages": 2}
    killer = Killer([(20, "the evaluator"), (60, "the evaluator")])
    recorder, run = killed(tree, killer)
    assert killer.killed
    check_whole(recorder, run)
    assert {fault.process for fault in run.summary.faults} == {"the evaluator"}
    assert [line.epoch for line in recorder.evaluations] == [1, 2, 3, 4]


@pytest.mark.ray
def test_a_producer_of_a_reader_that_has_stopped_drops_again_what_it_dropped(killed, check_conservation) -> None:
    """The buffer is full for good, and there is no place for what is made again; nobody waits for one."""
    tree = {
        "stages": 2,
        "epochs": 4,
        "delays": {"profile": "slow_stage1", "slowdown": 3},
        "buffer": {"on_full": "block", "max_reuse": 50, "size": 3},
        "checkpoint": {"every": 10**6},
    }
    recorder, run = killed(tree, Killer([(170, "stage 1")]))
    check_whole(recorder, run)
    check_conservation(recorder)
    assert [fault.process for fault in run.summary.faults] == ["stage 1"]


@pytest.mark.ray
def test_who_sleeps_for_long_is_not_deaf(killed) -> None:
    pause = {"name": "long", "unit": "seconds", "stages": {2: {"pause": {"probability": 0.02, "length": 4.0}}}}
    tree = {"epochs": 1, "stages": 2, "delays": {"profile": pause}, "ray": {"deaf_s": 1.0}}
    recorder, run = killed(tree, Killer([]))
    assert max(r.waits.get("pause", 0.0) for r in recorder.trace) >= 4
    assert run.summary.faults == ()


@pytest.fixture
def killed_with_spares(run_ray, tmp_path) -> Callable[..., tuple[Any, Run, list[int]]]:
    """``killed_with_spares(count, tree, killer)``: as ``killed``; the spares wait before the run begins.

    Returns their numbers, too.
    """

    def run(count: int, tree: dict[str, Any], killer: Killer) -> tuple[Any, Run, list[int]]:
        pids = []

        def began(ray_run: Any) -> None:
            import ray

            ray_run._spares.fill()
            greetings = ray.get([actor.hello.remote() for actor in ray_run._spares.actors])
            pids.extend(greeting["pid"] for greeting in greetings)
            killer.began(ray_run)

        recorder = run_ray({**SMALL, **tree, "ray": {"spares": count}}, on_start=began, on_passes=killer)
        return recorder, left_by(recorder, tmp_path), pids

    return run


@pytest.mark.ray
@pytest.mark.parametrize("name", ["as by default", "blocking, max_reuse, int8"])
def test_a_spare_takes_the_place_of_a_stage_and_makes_the_same_bits(
    killed_with_spares, check_conservation, name
) -> None:
    killer = Killer([(40, "stage 2"), (80, "stage 1"), (100, "stage 3")])
    recorder, run, pids = killed_with_spares(2, RUNS[name], killer)
    check_whole(recorder, run)
    check_conservation(recorder)
    assert [fault.process for fault in run.summary.faults] == ["stage 2", "stage 1", "stage 3"]
    now = {process.name: process.pid for process in recorder.outcome.processes}
    assert {now["stage 1"], now["stage 2"]} == {*pids}


@pytest.mark.ray
def test_sync_dgl_with_spares_equals_sim(killed_with_spares, run_sim, check_conservation) -> None:
    tree = {"algorithm": "sync-dgl"}
    recorder, run, _ = killed_with_spares(1, tree, at_random(8, 3, 100))
    check_whole(recorder, run)
    check_conservation(recorder)
    assert recorder.hashes == run_sim({**SMALL, **tree}).hashes


@pytest.mark.ray
def test_a_spare_that_is_dead_when_it_is_needed_is_no_death_of_the_stage(
    killed_with_spares, check_conservation
) -> None:
    """Twice, it would be one too many."""
    killer = Killer([(40, "spare 1"), (40, "spare 2"), (40, "stage 2")])
    recorder, run, pids = killed_with_spares(2, {}, killer)
    assert killer.killed[:2] == pids
    check_whole(recorder, run)
    check_conservation(recorder)
    assert sorted(fault.process for fault in run.summary.faults) == ["spare 1", "spare 2", "stage 2"]


@pytest.mark.ray
def test_a_stage_that_dies_again_and_again_at_one_pass_ends_the_run(run_ray) -> None:
    """Here it dies as soon as it is there."""
    state: dict[str, Any] = {}

    def kill(recorder: Any) -> None:
        if state.setdefault("killed", 0) == 0 and len(recorder.trace) > 20:
            state["killed"] = 1
            os.kill(next(p.pid for p in state["run"].outcome().processes if p.name == "stage 2"), signal.SIGKILL)

    def began(ray_run: Any) -> None:
        state["run"], greeted = ray_run, ray_run._greeted

        def die(name: str, greeting: Any) -> None:
            greeted(name, greeting)
            if name == "stage 2":
                os.kill(greeting["pid"], signal.SIGKILL)

        ray_run._greeted = die

    with pytest.raises(StageFailed, match=r"stage 2: its process died 3 times at the same pass, step \d+") as failure:
        run_ray({**SMALL, "epochs": 50}, on_start=began, on_passes=kill)
    assert failure.value.process == "stage 2"


@pytest.mark.ray
@pytest.mark.parametrize("name", ["as by default", "blocking, max_reuse, int8", "wan", "random, lossy, free"])
def test_buffers_that_are_killed_lose_what_they_held_and_nothing_else(killed, check_conservation, name) -> None:
    tree = {"epochs": 6, **RUNS[name]}
    killer = Killer([(40, "buffer 1"), (80, "buffer 2"), (100, "stage 1"), (130, "buffer 1")])
    recorder, run = killed(tree, killer)
    assert len(killer.killed) == 4
    check_whole(recorder, run)
    check_conservation(recorder)
    assert sum(buffer.lost_in_fault for buffer in run.summary.buffers) > 0
    assert sorted(fault.process for fault in run.summary.faults) == ["buffer 1", "buffer 1", "buffer 2", "stage 1"]


@pytest.mark.ray
def test_a_stage_that_dies_with_what_it_had_read_never_makes_other_passes_of_the_same_names(run_ray) -> None:
    killer = Killer([(60, "buffer 1"), (60, "stage 2")])
    lost = r"stage 2 made \d+ passes since its last checkpoint, and what they read was lost with .* buffer 1"
    with pytest.raises(StageFailed, match=lost):
        run_ray({**SMALL, **RUNS["no checkpoint yet"]}, on_start=killer.began, on_passes=killer)


@pytest.mark.ray
@pytest.mark.parametrize("name", ["as by default", "wan", "slow stage 3, uniform, prefetch 3"])
def test_a_pace_keeper_that_is_killed_is_told_again(killed, check_conservation, name) -> None:
    """The last stages may have ended by then: nobody trains for ever for their sake."""
    killer = Killer([(40, "the pace keeper"), (150, "the pace keeper")])
    recorder, run = killed({"epochs": 4, **RUNS[name]}, killer)
    assert len(killer.killed) == 2
    check_whole(recorder, run)
    check_conservation(recorder)
    assert [fault.process for fault in run.summary.faults] == ["the pace keeper"] * 2


@pytest.mark.ray
@pytest.mark.parametrize("name", ["stage 2", "buffer 1", "the pace keeper"])
def test_a_process_that_is_stopped_is_replaced(killed, check_conservation, name) -> None:
    """It lives, and does not answer: neither to the driver nor to those that wait for it, who are not to blame."""
    killer = Killer([(60, name)], signal.SIGSTOP)
    recorder, run = killed({"epochs": 4, "ray": {"deaf_s": 3.0}}, killer)
    check_whole(recorder, run)
    check_conservation(recorder)
    assert [fault.process for fault in run.summary.faults] == [name]
    assert sum(f"{name}: no answer for " in notice for notice in recorder.notices) == 1
    assert not psutil.pid_exists(killer.killed[0])


@pytest.mark.ray
def test_a_killed_buffer_of_sync_dgl_is_named(run_ray) -> None:
    """Each of its entries is needed."""
    killer = Killer([(50, "buffer 1")])
    with pytest.raises(StageFailed, match=r"stage [12], \w+: the process of buffer 1 died") as failure:
        run_ray({**SMALL, "algorithm": "sync-dgl", "epochs": 50}, on_start=killer.began, on_passes=killer)
    assert failure.value.process == "buffer 1"
