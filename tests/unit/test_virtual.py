"""Runtime `virtual`: schedules computed by hand, the identities, and any small configuration to its end.

Most runs here move provenance alone (``virtual.train: false``); a test holds them against runs that train.
"""

from __future__ import annotations

import functools
import itertools
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from asyncdgl.config.model import RunConfig
from asyncdgl.delays.laws import Law
from asyncdgl.engine.build import make_clock
from asyncdgl.engine.virtual import VirtualRun
from asyncdgl.errors import ConfigError
from asyncdgl.plan.resolve import planned
from asyncdgl.rundir.trace import FORWARD, TRAIN, by_stage, staleness
from asyncdgl.seeding import Draws

pytestmark = pytest.mark.usefixtures("one_thread")

TINY: dict[str, Any] = {"epochs": 2, "batch_size": 32, "data": {"validation": 0.75}, "model": {"width": 2}}
"""11 updates an epoch, as with the larger batches of all the training images."""

UPDATES = 22

MOST_EVENTS = 50_000
"""After which a small run is taken to never end; it needs some hundreds."""

STOPS = {"name": "stops", "stages": {2: {"pause": {"probability": 0.2, "length": 8}}}}
LOSSY = {"name": "lossy", "every_link": {"loss": 0.3}}
NARROW = {"name": "narrow", "every_link": {"latency": {"law": "exponential", "mean": 6}, "max_in_flight": 2}}
TIMES = [{"train": 0.3, "forward": 0.1}, {"train": 0.5, "forward": 0.2}, {"train": 0.2, "forward": 0.1}]
SECONDS = {
    "name": "seconds",
    "unit": "seconds",
    "every_stage": {"slowdown": 1.5, "step_law": "exponential", "pause": {"probability": 0.1, "length": 2}},
    "every_link": {"latency": {"law": "uniform", "mean": 1}, "bandwidth": 50_000, "loss": 0.1},
}

RUNS: dict[str, dict[str, Any]] = {
    "default": {},
    "slow_stage3-uniform": {"delays": {"profile": "slow_stage3", "slowdown": 3}, "buffer": {"sampler": "uniform"}},
    "slow_stage2-free": {"delays": {"profile": "slow_stage2"}, "pace": "free", "virtual": {"step_times": TIMES}},
    "random-lifo": {"delays": {"profile": "random"}, "buffer": {"sampler": "lifo", "size": 2, "prefetch": 1}},
    "random-free-one-place": {"delays": {"profile": "random"}, "pace": "free", "buffer": {"size": 1}},
    "wan-fifo": {"delays": {"profile": "wan"}, "buffer": {"sampler": "fifo", "size": 4, "prefetch": 2}},
    "wan-free-priority": {"delays": {"profile": "wan"}, "pace": "free", "virtual": {"step_times": TIMES}},
    "lossy-priority": {"delays": {"profile": LOSSY}, "buffer": {"prefetch": 3, "max_reuse": 3}},
    "lossy-block": {
        "delays": {"profile": LOSSY},
        "buffer": {"on_full": "block", "max_reuse": 1, "sampler": "fifo", "size": 2, "prefetch": 1},
    },
    "wan-block": {"delays": {"profile": "wan"}, "buffer": {"on_full": "block", "max_reuse": 2, "size": 3}},
    "straggler-max_age": {"delays": {"profile": STOPS}, "buffer": {"max_age": 3, "min_size": 2}},
    "straggler-free": {"delays": {"profile": STOPS}, "pace": "free", "buffer": {"prefetch": 1}},
    "narrow-link": {
        "delays": {"profile": NARROW},
        "buffer": {"size": 3, "max_reuse": 4, "sampler": "uniform", "min_size": 2},
    },
    "seconds-int8": {
        "delays": {"profile": SECONDS},
        "buffer": {"codec": "int8"},
        "virtual": {"step_times": TIMES},
    },
    "seconds-free-bf16": {
        "delays": {"profile": SECONDS},
        "buffer": {"codec": "bf16", "size": 1},
        "pace": "free",
        "virtual": {"step_times": TIMES},
    },
}


@dataclass
class Run:
    """A finished run."""

    config: Any
    virtual: VirtualRun
    recorder: Any

    @property
    def trace(self) -> list[Any]:
        return self.recorder.trace

    @functools.cached_property
    def stages(self) -> dict[int, list[Any]]:
        return by_stage(self.trace)

    @functools.cached_property
    def outcome(self) -> Any:
        return self.virtual.outcome()

    @property
    def hashes(self) -> dict[int, str]:
        return {j: end.state_sha256 for j, end in self.outcome.ends.items()}

    def starts(self, stage: int) -> list[float]:
        return [r.start_s for r in self.stages[stage]]


@pytest.fixture(scope="module")
def run_virtual(make_recorder, digits_folder):
    """``run_virtual(config)``: run it to its end; ``at_event(run)`` is called before each event."""

    def run(config: Any, at_event: Callable[[VirtualRun], None] = lambda run: None) -> Run:
        events = itertools.count()

        def check() -> None:
            if next(events) == MOST_EVENTS:
                pytest.fail(f"the run does not end: {virtual.outcome().ends}, {virtual.outcome().buffers}")
            at_event(virtual)

        recorder = make_recorder()
        virtual = VirtualRun(config, digits_folder if config.has_tensors else None, recorder, check)
        virtual.run()
        return Run(config, virtual, recorder)

    return run


@pytest.fixture(scope="module")
def virtual_config(small_config):
    """``virtual_config(...)``: of a small run in virtual time."""

    def make(**over: Any) -> Any:
        return small_config(**{**TINY, **over, "runtime": "virtual"})

    return make


@pytest.fixture(scope="module")
def moved(small_config, run_virtual):
    """``moved(batches=4, stages=2, ...)``: a run without arithmetic, of one epoch."""

    def run(batches: int, virtual: Any = None, **over: Any) -> Run:
        tree = {"epochs": 1, "stages": 2, "model": {"blocks": 5}, **over}
        virtual = {"train": False, "batches": batches, **(virtual or {})}
        return run_virtual(small_config(**{**tree, "runtime": "virtual", "virtual": virtual}))

    return run


@pytest.fixture(scope="module")
def trained(virtual_config, run_virtual):
    """``trained(name)``: one of RUNS, made once."""
    return functools.cache(lambda name: run_virtual(virtual_config(**RUNS[name])))


# --- Identities -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["random-lifo", "wan-block", "seconds-int8", "wan-free-priority"])
def test_a_repeated_run_is_wholly_equal(trained, run_virtual, name) -> None:
    """Identity e; its times are virtual, and so equal too."""
    one = trained(name)
    other = run_virtual(one.config)
    assert one.hashes == other.hashes
    assert one.trace == other.trace
    assert one.outcome == other.outcome
    assert one.recorder.epochs == other.recorder.epochs
    assert one.recorder.evaluations == other.recorder.evaluations


def test_another_seed_is_another_run(trained, virtual_config, run_virtual) -> None:
    other = run_virtual(virtual_config(**RUNS["random-lifo"], seed=1))
    assert not set(other.hashes.values()) & set(trained("random-lifo").hashes.values())
    assert other.trace != trained("random-lifo").trace


@pytest.fixture(scope="module")
def simulated(simulate, small_config):
    algorithms = ("sync-dgl", "sequential-dgl", "async-dgl")
    return {name: simulate(small_config(**TINY, algorithm=name)).hashes for name in algorithms}


@pytest.mark.parametrize("name", RUNS)
def test_stage_1_ends_as_in_every_other_run(trained, simulated, name) -> None:
    """Identity b."""
    hashes = trained(name).hashes
    assert {hashes[1]} == {of[1] for of in simulated.values()}
    if name == "default":
        # Equal times and no delay: all stages go in step, and each batch is used once, as Algorithm 1 does it.
        assert hashes == simulated["sync-dgl"]
    else:
        assert all(hashes[j] != of[j] for of in simulated.values() for j in (2, 3))


def assert_conserved(buffers: list[dict[str, int]]) -> None:
    """Rule 15."""
    for b in buffers:
        assert b.inserted == b.left + b.retired + b.overwritten_unused
        assert b.sent == b.inserted + b.on_the_way + b.lost + b.dropped


def assert_books_balance(run: Run) -> None:
    """The counts of all buffers and stages, against each other and against the trace."""
    assert_conserved(run.outcome.buffers)
    assert [b.after_stage for b in run.outcome.buffers] == list(range(1, run.config.stages))
    for b in run.outcome.buffers:
        j = b.after_stage
        assert b.sent == len(run.stages[j])
        assert b.sampled == len(run.stages[j + 1]) + b.fetched_unused
        assert b.fetched_unused == run.outcome.ends[j + 1].fetched_unused
        assert b.fetched_unused <= run.config.buffer.prefetch + 1, "fetched ahead, and one for a pass not made"
        assert b.left <= run.config.buffer.size
        used = {r.source_step for r in run.stages[j + 1]}
        assert len(used) <= b.retired + b.left
        if run.config.buffer.on_full == "block":
            assert b.overwritten_unused == 0 or run.config.buffer.max_age is not None
    for j, end in run.outcome.ends.items():
        assert (end.updates, end.forward_passes) == (
            sum(r.kind == TRAIN for r in run.stages[j]),
            sum(r.kind == FORWARD for r in run.stages[j]),
        )


@pytest.mark.parametrize("name", RUNS)
def test_entries_are_conserved(trained, name) -> None:
    assert_books_balance(trained(name))


@pytest.mark.parametrize(
    ("name", "counts"),
    [
        ("default", ["retired", "left"]),
        ("lossy-priority", ["lost", "fetched_unused"]),
        ("lossy-block", ["lost", "retired"]),
        ("wan-fifo", ["on_the_way"]),
        ("narrow-link", ["dropped"]),
        ("random-lifo", ["overwritten_unused", "retired"]),
        ("straggler-max_age", ["overwritten_unused", "retired"]),
    ],
)
def test_the_runs_of_these_tests_do_what_their_names_say(trained, name, counts) -> None:
    buffers = trained(name).outcome.buffers
    assert {what: sum(getattr(b, what) for b in buffers) > 0 for what in counts} == dict.fromkeys(counts, True)


@pytest.mark.parametrize("name", RUNS)
def test_without_arithmetic_the_trace_is_the_same_but_for_losses(trained, run_virtual, virtual_config, name) -> None:
    """Also the bytes: a narrow link takes as long for what is not there."""
    one = trained(name)
    settings_of = {**RUNS[name], "virtual": {**RUNS[name].get("virtual", {}), "train": False, "batches": 11}}
    other = run_virtual(virtual_config(**settings_of))
    assert other.trace == [r._replace(loss=None) for r in one.trace]
    assert other.outcome.buffers == one.outcome.buffers
    for j, end in one.outcome.ends.items():
        bare = other.outcome.ends[j]
        assert bare.state_sha256 is None
        assert (bare.updates, bare.forward_passes, bare.epochs) == (end.updates, end.forward_passes, end.epochs)
    timing = ("stage", "epoch", "updates", "end_s")
    assert [[getattr(line, key) for key in timing] for line in other.recorder.epochs] == [
        [getattr(line, key) for key in timing] for line in one.recorder.epochs
    ]
    assert other.recorder.evaluations == []


# --- Schedules, computed by hand --------------------------------------------------------------------------------------


def unequal(*train: float, forward: float = 1.0) -> dict[str, Any]:
    return {"step_times": [{"train": t, "forward": forward} for t in train]}


def delayed(latency: Any = None, **profile: Any) -> dict[str, Any]:
    link = {} if latency is None else {"every_link": {"latency": latency}}
    return {"profile": {"name": "delayed", **link, **profile}}


def passes(run: Run, stage: int) -> list[tuple[Any, ...]]:
    """Of a stage: start and end; where it reads a buffer, which entry and since when; waits, if there are any."""
    rows = []
    for r in run.stages[stage]:
        read = () if stage == 1 else (r.source_step, r.sampled_s)
        rows.append((r.start_s, r.end_s, *read, *([r.waits] if r.waits else [])))
    return rows


def test_a_slow_machine_holds_a_fast_one_back_once_the_window_is_used_up(moved) -> None:
    """Stage 1 is ahead by two steps at most; entries are read newest first, none twice."""
    run = moved(batches=4, virtual=unequal(1, 3))
    assert passes(run, 1) == [
        (0, 1),
        (1, 2),
        (2, 3),
        (3, 4),
        (4, 5),  # forward-only from here
        (7, 8, {"pace": 2}),
        (10, 11, {"pace": 2}),
    ]
    assert passes(run, 2) == [
        (1, 4, 0, 1, {"empty": 1}),
        (4, 7, 3, 4),
        (7, 10, 4, 7),
        (10, 13, 5, 10),
    ]
    assert [r.kind for r in run.stages[1]] == [TRAIN] * 4 + [FORWARD] * 3
    assert [r.source_update for r in run.stages[2]] == [0, 3, 4, 4]
    assert run.outcome.buffers[0].inserted == 7


def test_with_pace_free_nobody_waits_for_a_slow_machine(moved) -> None:
    run = moved(batches=4, virtual=unequal(1, 3, forward=0.5), pace="free")
    assert passes(run, 1) == [(t, t + 1) for t in range(4)] + [(4 + t / 2, 4.5 + t / 2) for t in range(18)]
    assert passes(run, 2) == [
        (1, 4, 0, 1, {"empty": 1}),
        (4, 7, 3, 4),
        (7, 10, 9, 7),
        (10, 13, 15, 10),
    ]


def test_three_stages_with_a_slow_second_one(moved) -> None:
    """S = 2: two passes ahead at first, then every second step. Entries are taken when passes start."""
    run = moved(batches=5, stages=3, delays={"profile": "slow_stage2"})
    assert run.config.time_unit == "steps"
    assert passes(run, 1) == [(t, t + 1) for t in range(8)]
    assert passes(run, 2) == [
        (1, 2, 0, 1, {"empty": 1}),
        (2, 3, 1, 2),
        (3, 4, 2, 3),
        (5, 6, 4, 5, {"slowdown": 1}),
        (7, 8, 6, 7, {"slowdown": 1}),
    ]
    assert passes(run, 3) == [
        (2, 3, 0, 2, {"empty": 2}),
        (3, 4, 1, 3),
        (4, 5, 2, 4),
        (5, 6, 2, 5),  # nothing newer, and all three used once
        (6, 7, 3, 6),
    ]
    assert [r.times_sampled for r in run.stages[3]] == [1, 1, 1, 2, 1]
    assert [r.kind for r in run.stages[1]] == [TRAIN] * 5 + [FORWARD] * 3


def test_three_stages_with_a_slow_second_one_and_pace_free(moved) -> None:
    run = moved(batches=5, stages=3, delays={"profile": "slow_stage2"}, pace="free")
    assert passes(run, 1) == [(t, t + 1) for t in range(10)]
    assert passes(run, 2) == [
        (1, 2, 0, 1, {"empty": 1}),
        (3, 4, 2, 3, {"slowdown": 1}),
        (5, 6, 4, 5, {"slowdown": 1}),
        (7, 8, 6, 7, {"slowdown": 1}),
        (9, 10, 8, 9, {"slowdown": 1}),
    ]
    assert passes(run, 3) == [
        (2, 3, 0, 2, {"empty": 2}),
        (3, 4, 0, 3),
        (4, 5, 1, 4),
        (5, 6, 1, 5),
        (6, 7, 2, 6),
    ]


@pytest.mark.parametrize("window", [0, 0.5, 1, 3.5])
def test_the_window_says_how_far_ahead(moved, window) -> None:
    """Stage 2 takes ten times as long: stage 1 makes as many passes more as the window has whole steps."""
    run = moved(batches=30, virtual=unequal(1, 10), delays={"profile": {"window": window}})
    first, second = run.starts(1), run.starts(2)
    assert second == [1 + 10 * k for k in range(30)]
    # While pass k of stage 2 is computed its clock is k + 1, and stage 1 gets to pass k + 1 + window.
    for k in range(1, 20):
        assert sum(t < second[k] for t in first) == k + 1 + int(window)


@pytest.mark.parametrize(
    ("prefetch", "sources", "sampled", "unused"),
    [
        (0, [0, 3, 6, 9], [1, 4, 7, 10], 0),
        (1, [0, 3, 2, 6], [1, 4, 4, 7], 1),  # while pass 1 is computed, entry 2 is what is left to fetch
        (2, [0, 3, 2, 1], [1, 4, 4, 4], 2),
        (3, [0, 3, 2, 1], [1, 4, 4, 4], 3),
    ],
)
def test_prefetch_takes_the_next_entries_as_a_pass_begins(moved, prefetch, sources, sampled, unused) -> None:
    """Each entry is used once. There is nothing to fetch beside the first pass; after the last one it is of no use."""
    run = moved(
        batches=4, virtual=unequal(1, 3), pace="free", buffer={"max_reuse": 1, "prefetch": prefetch, "size": 20}
    )
    reader = run.stages[2]
    assert [r.start_s for r in reader] == [1, 4, 7, 10]
    assert [r.source_step for r in reader] == sources
    assert [r.sampled_s for r in reader] == sampled
    assert [r.times_sampled for r in reader] == [1] * 4
    assert run.outcome.buffers[0].fetched_unused == run.outcome.ends[2].fetched_unused == unused
    assert run.outcome.buffers[0].sampled == 4 + unused
    assert run.outcome.ends[1].fetched_unused == 0


def test_a_prefetch_that_finds_nothing_is_not_waited_for(moved) -> None:
    run = moved(batches=4, virtual=unequal(3, 1), pace="free", buffer={"max_reuse": 1, "prefetch": 2})
    assert passes(run, 2) == [
        (3, 4, 0, 3, {"empty": 3}),
        (6, 7, 1, 6, {"reused_up": 2}),
        (9, 10, 2, 9, {"reused_up": 2}),
        (12, 13, 3, 12, {"reused_up": 2}),
    ]


@pytest.mark.parametrize("pace", ["profile", "free"])
@pytest.mark.parametrize("prefetch", [0, 1])
def test_on_full_block_makes_the_producer_wait(moved, pace, prefetch) -> None:
    """One place, one use; nothing is fetched ahead, since a place stands empty only after the entry was taken."""
    buffer = {"on_full": "block", "size": 1, "max_reuse": 1, "prefetch": 0}
    run = moved(batches=4, virtual=unequal(1, 3), pace=pace, buffer=buffer)
    assert passes(run, 1) == [
        (0, 1),
        (1, 2),
        (4, 5, {"full": 2}),
        (7, 8, {"full": 2}),
        (10, 11, {"full": 2}),  # forward-only
    ]
    assert passes(run, 2) == [
        (1, 4, 0, 1, {"empty": 1}),
        (4, 7, 1, 4),
        (7, 10, 2, 7),
        (10, 13, 3, 10),
    ]
    counts = run.outcome.buffers[0]
    assert (counts.sent, counts.retired, counts.left, counts.dropped) == (5, 4, 1, 0)
    # With more to fetch it comes earlier into the reader's hands, and the producer waits as long: one place only.
    ahead = moved(batches=4, virtual=unequal(1, 3), pace=pace, buffer={**buffer, "prefetch": prefetch})
    assert [r.source_step for r in ahead.stages[2]] == [0, 1, 2, 3]
    assert ahead.outcome.buffers[0].fetched_unused <= 1


def test_a_producer_whose_reader_has_stopped_needs_no_place(moved) -> None:
    """Stage 2 uses every entry twice and is done when stage 1 is half way; the rest goes nowhere, and is counted."""
    run = moved(batches=6, buffer={"on_full": "block", "max_reuse": 2, "size": 2})
    assert [(r.start_s, r.source_step) for r in run.stages[2]] == [(1, 0), (2, 1), (3, 1), (4, 2), (5, 2), (6, 3)]
    assert passes(run, 1) == [
        (0, 1),
        (1, 2),
        (3, 4, {"full": 1}),  # at 3 entry 1 was given for the second time
        (5, 6, {"full": 1}),
        (7, 8, {"full": 1}),  # stage 2 has stopped
        (8, 9),
    ]
    counts = run.outcome.buffers[0]
    assert {what: getattr(counts, what) for what in ("sent", "inserted", "retired", "left", "dropped")} == {
        "sent": 6,
        "inserted": 4,
        "retired": 2,
        "left": 2,  # entries 0 and 3, given once
        "dropped": 2,
    }
    assert_books_balance(run)


def test_a_place_is_reserved_before_the_input_is_taken(moved) -> None:
    """Stage 2 of three: it takes nothing from stage 1 as long as stage 3 leaves it no place."""
    run = moved(
        batches=3,
        stages=3,
        virtual=unequal(1, 1, 5),
        pace="free",
        buffer={"on_full": "block", "size": 1, "max_reuse": 1},
    )
    assert passes(run, 3)[:3] == [(2, 7, 0, 2, {"empty": 2}), (7, 12, 1, 7), (12, 17, 2, 12)]
    assert passes(run, 2)[:3] == [
        (1, 2, 0, 1, {"empty": 1}),
        (2, 3, 1, 2),
        (7, 8, 2, 7, {"full": 4}),
    ]
    assert passes(run, 1)[:4] == [(0, 1), (1, 2), (2, 3), (7, 8, {"full": 4})]


# Pauses


def test_a_pause_in_steps_stops_a_stage_until_the_others_have_made_them(moved) -> None:
    """Stage 1 pauses 3 steps after each pass: one pass every four, as the clock of stage 2 goes on."""
    profile = {"stages": {1: {"pause": {"probability": 1, "length": 3}}}}
    run = moved(batches=8, delays={"profile": profile})
    assert run.starts(2) == [1, 2, 3, 4, 5, 6, 7, 8]
    assert passes(run, 1) == [
        (0, 1),
        (1, 2),  # before stage 2 has begun, there is nobody to wait for
        (3, 4, {"pause": 1}),
        (7, 8, {"pause": 3}),
        (9, 10, {"pause": 1}),  # stage 2 is done
        (10, 11),
        (11, 12),
        (12, 13),
    ]


@pytest.mark.parametrize("pace", ["profile", "free"])
def test_a_pause_in_seconds_takes_them(moved, pace) -> None:
    profile = {"unit": "seconds", "every_stage": {"pause": {"probability": 1, "length": 2.5}}}
    run = moved(batches=3, stages=1, virtual=unequal(1), pace=pace, delays={"profile": profile})
    assert passes(run, 1) == [(0, 1), (3.5, 4.5, {"pause": 2.5}), (7, 8, {"pause": 2.5})]


def test_a_pause_in_steps_takes_so_many_mean_passes_of_unslowed_stages_when_free(moved) -> None:
    """Two unslowed stages, which take 1 and 3 seconds: a step is 2 seconds. The slowed third does not count."""
    profile = {"stages": {1: {"pause": {"probability": 1, "length": 3}}, 3: {"slowdown": 2}}}
    run = moved(batches=3, stages=3, virtual=unequal(1, 3, 9), pace="free", delays={"profile": profile})
    assert passes(run, 1)[:3] == [(0, 1), (7, 8, {"pause": 6}), (14, 15, {"pause": 6})]


@pytest.mark.parametrize("pace", ["profile", "free"])
def test_pauses_hold_nobody_else(moved, pace) -> None:
    """In seconds: the others go on meanwhile."""
    profile = {"unit": "seconds", "stages": {2: {"pause": {"probability": 0.3, "length": 20}}}}
    run = moved(batches=30, virtual=unequal(1), pace=pace, delays={"profile": profile})
    assert run.starts(1)[:30] == list(range(30))
    clock = make_clock(run.config, 2)
    pauses = [clock.length(step).pause for step in range(29)]
    assert 0 < pauses.count(20) < 29
    gaps = [r.start_s - before.end_s for before, r in itertools.pairwise(run.stages[2])]
    assert gaps == pauses
    assert sum(r.waits.get("pause", 0) for r in run.stages[2]) == sum(pauses)


# Links


@pytest.mark.parametrize("pace", ["profile", "free"])
def test_a_latency_in_steps_of_equal_stages(moved, pace) -> None:
    run = moved(batches=4, delays=delayed({"mean": 5}), pace=pace)
    assert passes(run, 1) == [(t, t + 1) for t in range(10)]
    assert passes(run, 2) == [
        (6, 7, 0, 6, {"empty": 1, "not_arrived": 5}),
        (7, 8, 1, 7),
        (8, 9, 2, 8),
        (9, 10, 3, 9),
    ]


def test_a_latency_in_steps_passes_on_the_profile_clock(moved) -> None:
    """A slowed stage 1 alone moves: the clock makes two steps with each of its passes, however long they take."""
    run = moved(
        batches=4,
        virtual=unequal(3, 1),
        delays=delayed({"mean": 5}, stages={1: {"slowdown": 2}}),
    )
    # Entry 0 leaves at clock 2 and arrives at 7; the clock is at 8 after four passes.
    assert passes(run, 2)[0] == (12, 13, 0, 12, {"empty": 3, "not_arrived": 9})
    # Entry k arrives at 7 + 2k, and stage 2 is there then: after its pass at clock 8 it is at 9.
    assert [r.source_step for r in run.stages[2]][:2] == [0, 1]


def test_what_has_arrived_by_the_clock_of_the_pass_may_be_read(moved) -> None:
    """S = 4: within the window stage 2 asks at a clock that stage 1 has not reached."""
    run = moved(batches=4, delays=delayed({"mean": 3}, stages={2: {"slowdown": 4}}))
    # Entry k leaves at clock k + 1 and arrives at k + 4; the passes of stage 2 are at clocks 4, 8, 12 and 16.
    assert passes(run, 2) == [
        (4, 5, 0, 4, {"empty": 1, "not_arrived": 3}),
        (6, 7, 4, 6, {"slowdown": 1}),
        (10, 11, 8, 10, {"slowdown": 3}),
        (14, 15, 12, 14, {"slowdown": 3}),
    ]


def test_time_jumps_to_the_next_arrival_where_nobody_moves(moved) -> None:
    """Stage 1 waits for a place and stage 2 for what is on the way: a latency in steps takes no time then."""
    run = moved(batches=2, delays=delayed({"mean": 1000}), buffer={"on_full": "block", "size": 1, "max_reuse": 1})
    assert run.starts(1)[:2] == [0, 1]
    assert [(r.sampled_s, r.start_s, r.source_step) for r in run.stages[2]] == [(1, 1, 0), (2, 2, 1)]


@pytest.mark.parametrize("pace", ["profile", "free"])
def test_a_latency_in_seconds(moved, pace) -> None:
    run = moved(batches=3, virtual=unequal(2, 1), pace=pace, delays=delayed({"mean": 5.5}, unit="seconds"))
    assert passes(run, 1)[:3] == [(0, 2), (2, 4), (4, 6)]
    assert passes(run, 2)[0] == (7.5, 8.5, 0, 7.5, {"empty": 2, "not_arrived": 5.5})
    # Entry 1 arrives at 9.5, entry 2 at 11.5; until then entry 0 is used again, and again.
    assert [(r.source_step, r.sampled_s) for r in run.stages[2]] == [(0, 7.5), (0, 8.5), (1, 9.5)]


@pytest.mark.parametrize(
    ("slowdown", "arrival"),
    [(1, 1 + 5 * 2.0), (4, 1 + 5 * 1.0)],  # a step is the mean of 1 and 3 seconds; or of stage 1 alone, 1 second
)
def test_a_latency_in_steps_with_pace_free(moved, slowdown, arrival) -> None:
    delays = delayed({"mean": 5}, stages={2: {"slowdown": slowdown}})
    run = moved(batches=2, virtual=unequal(1, 3), pace="free", delays=delays)
    assert run.stages[2][0].sampled_s == arrival
    assert run.stages[2][0].waits == {"empty": 1, "not_arrived": arrival - 1}


@pytest.mark.parametrize(
    ("codec", "nbytes"),
    [("none", 128 * (8 * 16 * 4 + 8)), ("bf16", 128 * (8 * 16 * 2 + 8)), ("int8", 128 * (8 * 16 + 8) + 8 * 4)],
)
def test_bandwidth_lets_one_entry_through_after_the_other(moved, codec, nbytes) -> None:
    """Encoded bytes: 128 images, 8 features of 4 x 4 pixels, labels of 8 bytes. Two seconds for each."""
    link = {"bandwidth": nbytes / 2}
    run = moved(
        batches=4,
        model={"blocks": 3},
        virtual=unequal(1, 0.5),
        pace="free",
        buffer={"max_reuse": 1, "codec": codec},
        delays={"profile": {"unit": "seconds", "every_link": link}},
    )
    assert run.starts(1)[:4] == [0, 1, 2, 3]
    assert [r.sampled_s for r in run.stages[2]] == pytest.approx([3, 5, 7, 9])
    assert [r.source_step for r in run.stages[2]] == [0, 1, 2, 3]


@pytest.mark.parametrize("pace", ["profile", "free"])
@pytest.mark.parametrize(
    "link",
    [
        pytest.param({"latency": {"law": "lognormal", "mean": 10}}, id="latency"),
        pytest.param({"bandwidth": 128 * (8 * 16 * 4 + 8) / 10}, id="bandwidth"),
        pytest.param({"loss": 0.9}, id="loss"),
        pytest.param({"latency": {"law": "exponential", "mean": 10}, "max_in_flight": 2}, id="dropping"),
    ],
)
def test_a_slow_link_never_slows_its_producer(moved, pace, link) -> None:
    """Nor the stages before it: here stage 2 sends through it, and stage 3 waits."""
    run = moved(batches=40, stages=3, model={"blocks": 3}, pace=pace, delays={"profile": {"links": {2: link}}})
    assert run.starts(1)[:40] == list(range(40))
    assert run.starts(2)[:40] == list(range(1, 41))
    assert run.starts(3)[0] > 2
    assert_books_balance(run)


def test_a_link_too_narrow_goes_on_at_its_bandwidth(moved) -> None:
    """An entry takes two passes to go through: half of them arrive, however long the run. The others are dropped."""
    link = {"bandwidth": 128 * (8 * 16 * 4 + 8) / 2}
    run = moved(batches=500, model={"blocks": 3}, delays={"profile": {"every_link": link}})
    assert run.outcome.buffers[0].inserted > 200
    assert max(r.times_sampled for r in run.stages[2]) < 10


# --- Slowdowns --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pace", ["profile", "free"])
@pytest.mark.parametrize("slowdown", [2, 3, 1.25])
def test_a_slowed_stage_makes_one_pass_where_others_make_s(moved, pace, slowdown) -> None:
    run = moved(
        batches=300, stages=3, pace=pace, delays={"profile": "slow_stage2", "slowdown": slowdown}, virtual=unequal(1)
    )
    for j in (1, 3):
        done = run.stages[j][299].end_s
        assert done == pytest.approx(300, abs=3)
        made = sum(r.end_s <= done for r in run.stages[2])
        assert made == pytest.approx(300 / slowdown, abs=3)
    own = run.stages[2][299].end_s - run.stages[2][0].start_s
    assert own == pytest.approx(300 * slowdown, abs=3 * slowdown)
    assert sum(sum(r.waits.values()) for r in run.stages[2]) == pytest.approx(300 * (slowdown - 1), abs=5)
    assert set().union(*(r.waits for r in run.stages[2])) == {"empty", "slowdown"}


@pytest.mark.parametrize("pace", ["profile", "free"])
def test_a_slow_stage_without_prefetch_reads_what_is_newest_when_its_pass_starts(moved, pace) -> None:
    run = moved(batches=20, pace=pace, delays={"profile": "slow_stage2", "slowdown": 10}, buffer={"sampler": "lifo"})
    assert [r.sampled_s for r in run.stages[2]] == run.starts(2)
    ended = [r.end_s for r in run.stages[1]]
    assert [ended[r.source_step] for r in run.stages[2]] == run.starts(2)


def test_under_pace_profile_the_hardware_does_not_matter(moved) -> None:
    """Stage 2 is slowed to half of stage 1, though its own machine is five times as fast."""
    run = moved(batches=200, virtual=unequal(1, 0.2), delays={"profile": "slow_stage2"})
    made = sum(r.end_s <= run.stages[1][199].end_s for r in run.stages[2])
    assert made == pytest.approx(100, abs=3)


def test_under_pace_free_it_does(moved) -> None:
    run = moved(batches=200, virtual=unequal(1, 0.2), delays={"profile": "slow_stage2"}, pace="free")
    assert run.stages[2][199].end_s == pytest.approx(1 + 199 * 0.4 + 0.2)


def test_pace_free_stretches_each_pass_by_its_draw_and_carries_debts_over(moved) -> None:
    """The pass k + 1 starts no earlier than the draws of all passes before it, in its own computing times, say."""
    profile = {"every_stage": {"step_law": "exponential", "slowdown": 1.5}}
    run = moved(batches=200, stages=1, virtual=unequal(0.5), delays={"profile": profile}, pace="free")
    clock = make_clock(run.config, 1)
    ends, owed = 0.0, 0.0
    for step, r in enumerate(run.stages[1]):
        assert r.start_s == pytest.approx(ends)
        owed += (clock.length(step).step - 1) * 0.5
        ends = r.end_s + max(owed, 0)  # a pass that should have been shorter than it is leaves a credit
        owed = min(owed, 0.0)
    assert run.starts(1)[199] == pytest.approx(200 * 0.75, rel=0.25)


CLOCKS = {
    "random": {"every_stage": {"step_law": "exponential"}},
    "slow-and-stopping": {
        "every_stage": {"slowdown": 1.3, "pause": {"probability": 0.1, "length": 5}},
        "stages": {3: {"slowdown": 2.5, "step_law": "exponential"}},
    },
}


@pytest.mark.parametrize("window", [0, 0.5, 2, 10])
@pytest.mark.parametrize("profile", CLOCKS)
def test_passes_start_as_soon_as_the_profile_clocks_let_them_and_no_sooner(moved, profile, window) -> None:
    """Rule 20, from the trace alone: v_j(k) <= min v_i + window at the start, and not before it.

    Nobody blocks here after its first pass, so that a clock is its first value and the lengths of the passes made.
    """
    times = {"step_times": [{"train": t, "forward": 0.3} for t in (0.4, 1.7, 0.1, 0.9)]}
    delays = {"profile": {**CLOCKS[profile], "window": window}}
    run = moved(batches=60, stages=4, virtual=times, delays=delays)
    lengths = {j: [sum(make_clock(run.config, j).length(k)) for k in range(len(run.stages[j]))] for j in run.stages}
    first: dict[int, float] = {1: 0.0}
    # The run up to where the first stage is done and may stop.
    end = min(p[59].end_s for p in run.stages.values())

    def clock(j: int, now: float) -> float:
        """v_j once all that ends at ``now`` has ended."""
        return first[j] + sum(length for r, length in zip(run.stages[j], lengths[j], strict=True) if r.end_s <= now)

    for j in (2, 3, 4):
        began = run.stages[j][0].start_s
        first[j] = min(clock(i, began) for i in range(1, j))
    events = sorted({r.end_s for r in run.trace if r.end_s <= end} | {0.0})
    waited = 0
    for j, passes_made in run.stages.items():
        for k, r in enumerate(passes_made):
            if r.start_s >= end:
                break
            moving = [i for i in first if run.stages[i][0].start_s <= r.start_s]
            v = first[j] + sum(lengths[j][:k])
            assert v <= min(clock(i, r.start_s) for i in moving) + window + 1e-9
            ready = passes_made[k - 1].end_s if k else r.start_s
            if r.start_s > ready:
                waited += 1
                before = max(t for t in events if t < r.start_s)
                assert ready <= before
                then = [i for i in first if run.stages[i][0].start_s <= before]
                assert v > min(clock(i, before) for i in then) + window - 1e-9
                assert set(r.waits) <= {"pace", "slowdown", "pause"}
            elif k:
                assert r.waits == {}
    assert waited > 20


# --- Quotas, forward-only passes and the end --------------------------------------------------------------------------


@pytest.mark.parametrize("name", RUNS)
def test_every_stage_makes_its_quota_of_updates_and_then_forward_only_passes(trained, name) -> None:
    run = trained(name)
    for j, made in run.stages.items():
        assert [r.step for r in made] == list(range(len(made)))
        assert [r.kind for r in made] == [TRAIN] * UPDATES + [FORWARD] * (len(made) - UPDATES)
        assert all((r.loss is None) == (r.kind == FORWARD) for r in made)
        assert run.outcome.ends[j].epochs == 2
    assert [r.batch for r in run.stages[1]] == [r.step for r in run.stages[1]]


def assert_stops_are_right(run: Run) -> None:
    """Rule 3: a stage goes on as long as a later one trains, and begins nothing afterwards."""
    quota = next(iter(run.outcome.ends.values())).updates
    done = {j: made[quota - 1].end_s for j, made in run.stages.items()}
    for j, made in run.stages.items():
        later = max((done[i] for i in done if i > j), default=0.0)
        assert all(r.start_s < later for r in made if r.kind == FORWARD)


@pytest.mark.parametrize("name", RUNS)
def test_a_stage_stops_as_soon_as_no_later_stage_trains(trained, name) -> None:
    assert_stops_are_right(trained(name))


@pytest.mark.parametrize("pace", ["profile", "free"])
def test_stages_that_are_done_feed_a_slow_one(moved, pace) -> None:
    run = moved(batches=20, stages=3, pace=pace, delays={"profile": "slow_stage3", "slowdown": 4})
    ends = run.outcome.ends
    assert [ends[j].updates for j in (1, 2, 3)] == [20] * 3
    # Passes take a turn as any other, until the last update: four times as many as stage 3 makes, but for the ends.
    assert ends[1].forward_passes == pytest.approx(60, abs=8)
    assert ends[2].forward_passes == pytest.approx(60, abs=8)
    assert ends[3].forward_passes == 0
    assert {r.source_step for r in run.stages[3]} & {r.step for r in run.stages[2] if r.kind == FORWARD}
    assert all(r.source_update == min(r.source_step, 20) for r in run.stages[3])


def test_forward_only_passes_take_their_own_time(moved) -> None:
    run = moved(batches=3, virtual=unequal(1, 4, forward=0.25), pace="free")
    for r in run.trace:
        expected = {(1, TRAIN): 1, (1, FORWARD): 0.25, (2, TRAIN): 4}[r.stage, r.kind]
        assert r.end_s - r.start_s == expected


def test_one_stage_alone(moved) -> None:
    run = moved(batches=5, stages=1)
    assert passes(run, 1) == [(t, t + 1) for t in range(5)]
    assert run.outcome.buffers == []


def test_below_min_size_ends_with_an_arrival(moved) -> None:
    """The second entry arrives at 6.5, between two passes of its producer: the reader begins then."""
    run = moved(batches=3, virtual=unequal(1), delays=delayed({"mean": 4.5}, unit="seconds"), buffer={"min_size": 2})
    assert passes(run, 2)[0] == (6.5, 7.5, 1, 6.5, {"empty": 1, "not_arrived": 4.5, "below_min_size": 1})


@pytest.mark.parametrize("pace", ["profile", "free"])
def test_below_min_size_with_all_places_on_the_way(moved, pace) -> None:
    """The producer has no place until both entries have arrived: nobody but time can go on."""
    buffer = {"on_full": "block", "max_reuse": 1, "size": 2, "min_size": 2}
    run = moved(batches=5, pace=pace, delays=delayed({"mean": 5}), buffer=buffer)
    assert [end.updates for end in run.outcome.ends.values()] == [5, 5]


class Stopped(Exception):
    """What a check raises."""


def test_a_run_that_is_stopped_says_how_far_it_came(virtual_config, digits_folder, make_recorder) -> None:
    events = itertools.count()

    def check() -> None:
        if next(events) == 8:
            raise Stopped

    recorder = make_recorder()
    virtual = VirtualRun(virtual_config(buffer={"prefetch": 1}), digits_folder, recorder, check)
    with pytest.raises(Stopped):
        virtual.run()
    outcome = virtual.outcome()
    counts = Counter(r.stage for r in recorder.trace)
    assert 8 < sum(counts.values()) < 33, "in the first epoch"
    assert {j: end.updates for j, end in outcome.ends.items()} == counts
    assert_conserved(outcome.buffers)
    for b in outcome.buffers:
        assert b.sent == counts[b.after_stage]
    assert outcome.evaluation is None


# --- What else a run tells --------------------------------------------------------------------------------------------


def test_evaluations_and_epoch_lines_have_virtual_times(trained) -> None:
    run = trained("slow_stage3-uniform")
    by_key = {(line.stage, line.epoch): line for line in run.recorder.epochs}
    assert sorted(by_key) == [(j, epoch) for j in (1, 2, 3) for epoch in (1, 2)]
    for (j, epoch), line in by_key.items():
        own = [r for r in run.stages[j] if r.kind == TRAIN][11 * (epoch - 1) : 11 * epoch]
        assert line.end_s == own[-1].end_s
        assert line.loss == pytest.approx(sum(r.loss for r in own) / 11)
    first, last = run.recorder.evaluations
    assert (first.epoch, first.final, last.epoch, last.final) == (1, False, 2, True)
    # When the slowest stage completes its epoch; and at the end of the run.
    assert first.end_s == max(by_key[j, 1].end_s for j in (1, 2, 3))
    assert last.end_s >= max(r.end_s for r in run.stages[3])
    assert last.test_accuracy == run.outcome.evaluation.test_accuracy


def test_progress_is_told_at_every_epoch(trained) -> None:
    told = Counter(j for j, _ in trained("default").recorder.progress)
    assert all(told[j] >= 2 for j in (1, 2, 3))


def test_passes_are_told_in_the_order_in_which_they_end(trained) -> None:
    for name in RUNS:
        ends = [r.end_s for r in trained(name).trace]
        assert ends == sorted(ends)


# --- Wrong configurations ---------------------------------------------------------------------------------------------

ONE = {"train": 1.0, "forward": 1.0}


@pytest.mark.parametrize(
    ("over", "message"),
    [
        pytest.param(
            {"virtual": {"step_times": [ONE, ONE]}},
            "virtual.step_times must have one item for each stage (3) or one for all, got 2",
            id="two-step-times-for-three-stages",
        ),
        pytest.param({"virtual": {"step_times": []}}, "(3) or one for all, got 0", id="no-step-times"),
        pytest.param({"virtual": {"step_times": [ONE] * 4}}, "got 4", id="four-step-times-for-three-stages"),
        pytest.param(
            {"virtual": {"step_times": "measure", "train": False}},
            "virtual.step_times measure needs virtual.train true",
            id="nothing-to-measure",
        ),
        pytest.param({"virtual": {"step_times": "guess"}}, "virtual.step_times", id="no-such-word"),
        pytest.param({"virtual": {"step_times": [{"train": 0, "forward": 1}]}}, "must be above 0", id="no-time-at-all"),
        pytest.param(
            {"delays": delayed({"mean": 1}, unit="seconds")}, "has no clock (latency of link 1)", id="latency"
        ),
        pytest.param(
            {"delays": delayed(unit="seconds", stages={2: {"pause": {"probability": 0.1, "length": 1}}})},
            "has no clock (pause of stage 2): use steps, or give virtual.step_times",
            id="pause",
        ),
        pytest.param(
            {"delays": delayed(unit="seconds", links={2: {"bandwidth": 5}})}, "(bandwidth of link 2)", id="bandwidth"
        ),
        pytest.param(
            {"algorithm": "sync-dgl"},
            "algorithm sync-dgl does not run on virtual: use --runtime ray or sim",
            id="sync-dgl",
        ),
        pytest.param({"algorithm": "backprop"}, "use --runtime sim", id="backprop"),
        pytest.param({"algorithm": "sequential-dgl"}, "use --runtime sim", id="sequential-dgl"),
        pytest.param(
            {
                "stages": 5,
                "model": {"blocks": 3},
                "virtual": {"train": False},
                "delays": {"profile": {"links": {1: {"bandwidth": 5}}}},
            },
            "have no sizes",
            id="bytes-of-stages-that-have-no-block",
        ),
    ],
)
def test_wrong_configurations(small_config, over, message) -> None:
    with pytest.raises(ConfigError) as error:
        small_config(**{**over, "runtime": "virtual"})
    assert message.lower() in str(error.value).lower()


def test_configurations_that_look_alike_and_are_right(small_config) -> None:
    for over in (
        {"virtual": {"step_times": [ONE]}},
        {"virtual": {"step_times": [ONE] * 3}},
        {"virtual": {"step_times": "measure"}},
        {"delays": delayed({"mean": 1}, unit="seconds"), "virtual": {"step_times": [ONE]}},
        {"delays": delayed(unit="seconds", stages={2: {"slowdown": 3}})},  # names no length of time
        {"stages": 300, "virtual": {"train": False}, "delays": {"profile": "wan"}},
    ):
        assert small_config(**{**over, "runtime": "virtual"}).runtime == "virtual"


# --- Any small configuration ------------------------------------------------------------------------------------------

# No links that starve their reader for good: a run with one has no end (see the narrow link above).
LATENCIES = st.fixed_dictionaries(
    {
        "law": st.sampled_from(["constant", "uniform", "exponential", "lognormal"]),
        "mean": st.sampled_from([0, 0.3, 1, 5.5]),
    }
)
LINKS = st.fixed_dictionaries(
    {}, optional={"latency": LATENCIES, "loss": st.sampled_from([0.05, 0.5]), "bandwidth": st.just(1e7)}
)
DELAYS = st.fixed_dictionaries(
    {},
    optional={
        "slowdown": st.sampled_from([1.3, 2, 5]),
        "step_law": st.just("exponential"),
        "pause": st.fixed_dictionaries(
            {"probability": st.sampled_from([0.05, 0.5, 1]), "length": st.sampled_from([0, 0.5, 7])}
        ),
    },
)
PASS_TIMES = st.fixed_dictionaries({"train": st.sampled_from([0.5, 1, 2]), "forward": st.sampled_from([0.5, 1])})


@st.composite
def trees(draw: Any) -> dict[str, Any]:
    stages = draw(st.integers(1, 5))
    unit = draw(st.sampled_from(["steps", "seconds"]))
    some_stages, some_links = st.integers(1, stages), st.integers(1, max(1, stages - 1))
    step_times = draw(st.sampled_from([None, 1, stages] if unit == "steps" else [1, stages]))
    profile = {
        "unit": unit,
        "window": draw(st.sampled_from([0, 0.5, 2, 10])),
        "every_stage": draw(DELAYS),
        "stages": draw(st.dictionaries(some_stages, DELAYS, max_size=2)),
        "every_link": draw(LINKS),
        "links": draw(st.dictionaries(some_links, LINKS, max_size=2)) if stages > 1 else {},
    }
    buffer = {}
    if stages > 1:
        size = draw(st.integers(1, 4))
        max_reuse = draw(st.sampled_from([None, 1, 2]))
        on_full = draw(st.sampled_from(["overwrite", "block"])) if max_reuse else "overwrite"
        buffer = {
            "size": size,
            "sampler": draw(st.sampled_from(["priority_lifo", "lifo", "fifo", "uniform"])),
            "max_reuse": max_reuse,
            "on_full": on_full,
            "min_size": draw(st.integers(1, size)),
            "max_age": draw(st.sampled_from([None, 1, 4])),
            "prefetch": draw(st.integers(0, 1 if on_full == "block" else 3)),
        }
    return {
        "runtime": "virtual",
        "device": "cpu",
        "precision": "float32",
        "threads": 1,
        "stages": stages,
        "epochs": draw(st.integers(1, 2)),
        "seed": draw(st.integers(0, 99)),
        "pace": draw(st.sampled_from(["profile", "free"])),
        "model": {"blocks": 5},
        "buffer": buffer,
        "delays": {"profile": profile},
        "virtual": {
            "train": False,
            "batches": draw(st.integers(1, 9)),
            "step_times": None
            if step_times is None
            else draw(st.lists(PASS_TIMES, min_size=step_times, max_size=step_times)),
        },
    }


def shortest_arrivals(run: Run, link: int) -> Callable[[int, float], float]:
    """When an entry arrives that was sent at a time, by the latency of its pass; a bandwidth makes it later.

    For links whose times pass in seconds; on the profile clock it is the clock that says.
    """
    config = run.config
    delay = config.profile.link(link)
    law: Law = delay.latency
    if config.profile.unit == "seconds":
        unit = 1.0
    elif config.pace == "profile":
        unit = 0.0
    else:
        slowdowns = [config.profile.stage(j).slowdown for j in range(1, config.stages + 1)]
        times = config.virtual.step_times or ({"train": 1.0},)
        each = [t["train"] if isinstance(t, dict) else t.train for t in times]
        trains = [each[j % len(each)] for j, s in enumerate(slowdowns) if s == min(slowdowns)]
        unit = sum(trains) / len(trains)
    draws = Draws(config.seed, "link", link)
    return lambda step, sent: sent + unit * law.quantile(draws.uniform("latency", 0, step))


def assert_is_a_run(run: Run) -> None:
    """All that any run in virtual time keeps to, from its trace."""
    config = run.config
    quota = config.epochs * config.virtual.batches
    assert sorted(run.stages) == list(range(1, config.stages + 1))
    assert_books_balance(run)
    assert_stops_are_right(run)
    for j, made in run.stages.items():
        assert [r.step for r in made] == list(range(len(made)))
        assert [r.kind for r in made] == [TRAIN] * quota + [FORWARD] * (len(made) - quota)
        ended = 0.0
        for r in made:
            assert ended <= r.start_s < r.end_s, "one pass after the other"
            # A stage that does not compute waits for something, and says for what.
            assert sum(r.waits.values()) == pytest.approx(r.start_s - ended, abs=1e-9)
            ended = r.end_s
        if j == 1:
            assert [r.batch for r in made] == list(range(len(made)))
            continue
        producer, given_so_far = run.stages[j - 1], Counter[int]()
        arrival = shortest_arrivals(run, j - 1)
        for r in sorted(made, key=lambda r: (r.sampled_s, r.step)):
            source = producer[r.source_step]
            assert arrival(source.step, source.end_s) <= r.sampled_s + 1e-9
            assert r.sampled_s <= r.start_s
            assert r.batch == source.batch
            assert r.source_update == sum(p.kind == TRAIN for p in producer[: source.step])
            given_so_far[r.source_step] += 1
            assert r.times_sampled == given_so_far[r.source_step]
            assert config.buffer.max_reuse is None or r.times_sampled <= config.buffer.max_reuse
        assert np.all(staleness(made, producer) >= 0)
        if config.buffer.sampler == "fifo" and config.buffer.max_reuse == 1:
            assert [r.source_step for r in made] == sorted(r.source_step for r in made)


@settings(max_examples=400, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
@given(tree=trees())
def test_any_small_run_comes_to_its_end(run_virtual, tree) -> None:
    """No deadlock, and all that holds for every run; conservation at every event."""
    if tree["stages"] == 1:
        del tree["buffer"]
    run = run_virtual(
        planned(RunConfig.checked(tree)), at_event=lambda virtual: assert_conserved(virtual.outcome().buffers)
    )
    assert_is_a_run(run)


@pytest.mark.parametrize("name", RUNS)
def test_runs_that_train_keep_to_it_too(trained, name) -> None:
    run = trained(name)
    assert_is_a_run(Run(run.config.replace(virtual={"batches": 11}), run.virtual, run.recorder))


@pytest.mark.parametrize("sampler", ["priority_lifo", "lifo", "fifo", "uniform"])
@pytest.mark.parametrize("prefetch", [0, 1, 2, 3])
def test_entries_fetched_ahead_are_in_the_books(moved, sampler, prefetch) -> None:
    blocking = [{"max_reuse": 2, "on_full": "block"}] if prefetch <= 1 else []
    for extra in ({}, {"max_reuse": 1}, *blocking, {"max_age": 2, "min_size": 3}):
        run = moved(
            batches=30,
            stages=3,
            virtual=unequal(1, 1.5, 2),
            delays={"profile": {"every_stage": {"step_law": "exponential"}, "every_link": {"loss": 0.2}}},
            buffer={"size": 4, "sampler": sampler, "prefetch": prefetch, **extra},
        )
        assert_is_a_run(run)
        early = sum(r.sampled_s < r.start_s - sum(r.waits.values()) for r in run.stages[2])
        assert (early > 0) == (prefetch > 0), "sampled before the pass before it had ended"
