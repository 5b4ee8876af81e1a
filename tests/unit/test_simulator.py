"""Runtime `sim`: Algorithms 1 and 2 in one process, on small runs on the digits."""

from __future__ import annotations

import functools
import itertools
from collections import Counter
from typing import Any

import pytest
import scipy.stats

from asyncdgl.algorithms import async_dgl
from asyncdgl.algorithms.async_dgl import drawn_turns
from asyncdgl.buffers.entry import PassName
from asyncdgl.data.dataset import open_dataset
from asyncdgl.engine.build import make_clock
from asyncdgl.engine.evaluations import Evaluation, Publication, evaluation_line
from asyncdgl.engine.sim import Simulation
from asyncdgl.learn.stage import make_stages
from asyncdgl.rundir.trace import by_stage, staleness

UPDATES = 22
"""Of each stage in a small run: 1,437 images in batches of 128, 2 epochs."""

WALL_TIMES = ("sampled_s", "start_s", "end_s")

ASYNCHRONOUS = {
    "default": {},
    "slow_stage3-uniform": {"delays": {"profile": "slow_stage3", "slowdown": 3}, "buffer": {"sampler": "uniform"}},
    "random-lifo": {"delays": {"profile": "random"}, "buffer": {"sampler": "lifo", "size": 2}},
    "wan-fifo": {"delays": {"profile": "wan"}, "buffer": {"sampler": "fifo", "size": 4}},
    "lossy-priority": {"delays": {"profile": {"name": "lossy", "every_link": {"loss": 0.3}}}},
    "lossy-block": {
        "delays": {"profile": {"name": "lossy", "every_link": {"loss": 0.3}}},
        "buffer": {"on_full": "block", "max_reuse": 1, "sampler": "fifo", "size": 2},
    },
    "wan-block": {
        "delays": {"profile": "wan"},
        "buffer": {"on_full": "block", "max_reuse": 2, "size": 3},
    },
    "straggler-max_age": {
        "delays": {"profile": {"name": "stops", "stages": {2: {"pause": {"probability": 0.2, "length": 8}}}}},
        "buffer": {"max_age": 3, "min_size": 2},
    },
    "narrow-link": {
        "delays": {
            "profile": {
                "name": "narrow",
                "every_link": {"latency": {"law": "exponential", "mean": 6}, "max_in_flight": 2},
            }
        },
        "buffer": {"size": 3, "max_reuse": 4, "sampler": "uniform"},
    },
    "int8": {"buffer": {"codec": "int8", "size": 1}},
}


@pytest.fixture(scope="module")
def asynchronous(simulate, small_config):
    """``asynchronous(name)``: a run of Algorithm 2, made once."""
    return functools.cache(lambda name: simulate(small_config(**ASYNCHRONOUS[name])))


@pytest.fixture(scope="module")
def synchronous(simulate, small_config):
    return simulate(small_config(algorithm="sync-dgl"))


def without_wall_times(trace: list[Any]) -> list[Any]:
    return [r._replace(start_s=0.0, end_s=0.0, sampled_s=None) for r in trace]


# --- Identities -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["slow_stage3-uniform", "wan-block", "narrow-link"])
def test_a_repeated_run_is_equal_but_for_wall_times(asynchronous, simulate, small_config, name) -> None:
    one, other = asynchronous(name), simulate(small_config(**ASYNCHRONOUS[name]))
    assert one.hashes == other.hashes
    assert without_wall_times(one.trace) == without_wall_times(other.trace)
    assert one.outcome.buffers == other.outcome.buffers
    evaluations = [run.outcome.evaluation.model_dump(exclude={"end_s"}) for run in (one, other)]
    assert evaluations[0] == evaluations[1]
    assert one.outcome.ends == other.outcome.ends


@pytest.mark.parametrize("algorithm", ["sync-dgl", "backprop"])
def test_repeated_baselines_are_equal_but_for_wall_times(simulate, small_config, algorithm) -> None:
    one, other = (simulate(small_config(algorithm=algorithm, epochs=1)) for _ in range(2))
    assert one.hashes == other.hashes
    assert without_wall_times(one.trace) == without_wall_times(other.trace)


def test_another_seed_is_another_run(asynchronous, simulate, small_config) -> None:
    other = simulate(small_config(seed=1))
    assert not set(asynchronous("default").hashes.values()) & set(other.hashes.values())


@pytest.mark.parametrize("name", ASYNCHRONOUS)
def test_stage_1_ends_the_same_in_every_run(asynchronous, synchronous, name) -> None:
    assert asynchronous(name).hashes[1] == synchronous.hashes[1]


@pytest.mark.parametrize("name", ASYNCHRONOUS)
def test_entries_are_conserved(asynchronous, name) -> None:
    run = asynchronous(name)
    stages = by_stage(run.trace)
    assert [b.after_stage for b in run.outcome.buffers] == [1, 2]
    for buffer in run.outcome.buffers:
        j = buffer.after_stage
        assert buffer.inserted == buffer.left + buffer.retired + buffer.overwritten_unused
        assert buffer.sent == buffer.inserted + buffer.on_the_way + buffer.lost + buffer.dropped
        # And against the trace: every pass of the producer sent one, every pass of the reader sampled one.
        if run.config.buffer.on_full == "overwrite":
            assert buffer.sent == len(stages[j])
        assert buffer.sampled == len(stages[j + 1])
        used = {(r.source_incarnation, r.source_step) for r in stages[j + 1]}
        assert buffer.retired <= len(used) <= buffer.retired + buffer.left
        assert buffer.left <= run.config.buffer.size


@pytest.mark.parametrize(
    ("name", "counts"),
    [
        ("default", ["retired", "left"]),
        ("lossy-priority", ["lost"]),
        ("lossy-block", ["lost", "retired"]),
        ("wan-fifo", ["on_the_way"]),
        ("narrow-link", ["dropped"]),
        ("random-lifo", ["overwritten_unused", "retired"]),
        ("straggler-max_age", ["overwritten_unused", "retired"]),
    ],
)
def test_the_runs_of_these_tests_do_what_their_names_say(asynchronous, name, counts) -> None:
    buffers = asynchronous(name).outcome.buffers
    assert {what: sum(getattr(b, what) for b in buffers) > 0 for what in counts} == dict.fromkeys(counts, True)


@pytest.mark.parametrize("name", ["lossy-block", "wan-block", "narrow-link"])
def test_entries_are_conserved_at_any_time(simulate, small_config, name) -> None:
    config = small_config(**ASYNCHRONOUS[name], epochs=1)
    seen = []

    def check(simulation: Simulation) -> None:
        for b in simulation.outcome().buffers:
            assert b.inserted == b.left + b.retired + b.overwritten_unused
            assert b.sent == b.inserted + b.on_the_way + b.lost + b.dropped
            assert b.left <= config.buffer.size
            if config.buffer.on_full == "block":
                assert b.left + b.on_the_way <= config.buffer.size
                assert b.overwritten_unused == 0
                # Only what a producer makes when its reader has stopped: there is no place for it, and no need.
                reader_trains = simulation._passes[b.after_stage + 1].is_training
                assert b.dropped == 0 or not reader_trains
            seen.append(b)

    run = simulate(config, on_pass=check)
    assert len(seen) == 2 * len(run.trace)


def test_a_blocked_producer_goes_on_when_its_reader_has_stopped(simulate, small_config) -> None:
    """Stage 2 uses every entry twice: it has done its quota when stage 1 is half way, and takes no more entries."""
    run = simulate(small_config(stages=2, epochs=1, buffer={"on_full": "block", "max_reuse": 2, "size": 3}))
    assert [end.updates for end in run.outcome.ends.values()] == [11, 11]


# --- Algorithm 1 ------------------------------------------------------------------------------------------------------


def test_algorithm_1_takes_every_batch_through_all_stages(synchronous) -> None:
    trace = synchronous.trace
    assert [(r.stage, r.step, r.batch, r.kind) for r in trace] == [
        (stage, batch, batch, "train") for batch in range(UPDATES) for stage in (1, 2, 3)
    ]
    for r in trace:
        source = (None, None, None, None) if r.stage == 1 else (0, r.step, r.step, 1)
        assert (r.source_incarnation, r.source_step, r.source_update, r.times_sampled) == source


def test_algorithm_1_has_staleness_0(synchronous) -> None:
    stages = by_stage(synchronous.trace)
    for j in (2, 3):
        # The last pass samples when its producer has done its updates: it doesn't count.
        assert staleness(stages[j], stages[j - 1]).tolist() == [0] * (UPDATES - 1)


def test_algorithm_1_passes_each_entry_on_once(synchronous) -> None:
    for buffer in synchronous.outcome.buffers:
        assert {what: getattr(buffer, what) for what in ("sent", "inserted", "sampled", "retired")} == dict.fromkeys(
            ("sent", "inserted", "sampled", "retired"), UPDATES
        )
        assert (buffer.left, buffer.overwritten_unused, buffer.lost, buffer.dropped) == (0, 0, 0, 0)
    assert all(end.lost_turns is None for end in synchronous.outcome.ends.values())


def test_backprop_is_one_stage_without_buffers(simulate, small_config) -> None:
    run = simulate(small_config(algorithm="backprop", epochs=1))
    assert [(r.stage, r.step, r.kind) for r in run.trace] == [(1, step, "train") for step in range(11)]
    assert run.outcome.buffers == []
    assert list(run.outcome.ends) == [1]
    assert len(run.outcome.evaluation.test_accuracy) == 1


# --- Quotas and forward-only passes -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ASYNCHRONOUS)
def test_every_stage_makes_its_quota_of_updates_and_no_more(asynchronous, name) -> None:
    run = asynchronous(name)
    for j, passes in by_stage(run.trace).items():
        end = run.outcome.ends[j]
        assert [r.step for r in passes] == list(range(len(passes)))
        assert (end.updates, end.epochs, end.forward_passes) == (UPDATES, 2, len(passes) - UPDATES)
        # Updates first, then forward-only passes, which have no loss.
        assert [r.kind for r in passes] == ["train"] * UPDATES + ["forward"] * end.forward_passes
        assert all((r.loss is None) == (r.kind == "forward") for r in passes)
    assert all(r.batch == r.step for r in run.trace if r.stage == 1)


@pytest.mark.parametrize("name", ASYNCHRONOUS)
def test_a_stage_stops_as_soon_as_no_later_stage_trains(asynchronous, name) -> None:
    trace = asynchronous(name).trace
    last_update = {r.stage: index for index, r in enumerate(trace) if r.kind == "train"}
    last_pass = {r.stage: index for index, r in enumerate(trace)}
    for j in (1, 2, 3):
        later = [last_update[i] for i in (1, 2, 3) if i > j]
        assert last_pass[j] <= max([last_update[j], *later])
    assert max(last_update.values()) == len(trace) - 1, "the run ends with its last update"


def test_a_stage_that_is_done_goes_on_feeding_a_slow_one(asynchronous) -> None:
    run = asynchronous("slow_stage3-uniform")
    ends = run.outcome.ends
    assert ends[1].forward_passes > UPDATES
    assert ends[2].forward_passes > UPDATES
    assert ends[3].forward_passes == 0
    forwarded = {r.step for r in run.trace if r.stage == 2 and r.kind == "forward"}
    assert forwarded & {r.source_step for r in run.trace if r.stage == 3}


def test_what_forward_only_passes_hand_on_counts_no_updates_of_theirs(asynchronous) -> None:
    run = asynchronous("slow_stage3-uniform")
    stages = by_stage(run.trace)
    for reader in stages[3]:
        assert reader.source_update == min(reader.source_step, UPDATES)


@pytest.mark.parametrize("stages", [1, 3])
def test_a_quota_of_one_update(simulate, small_config, stages) -> None:
    """The warm-up gives every stage two turns; the last one has nothing to do in its second."""
    run = simulate(small_config(stages=stages, batch_size=1437, epochs=1))
    assert {j: end.updates for j, end in run.outcome.ends.items()} == dict.fromkeys(range(1, stages + 1), 1)
    expected = [(1, "train"), (1, "forward"), (2, "train"), (2, "forward"), (3, "train")]
    assert [(r.stage, r.kind) for r in run.trace] == (expected if stages == 3 else expected[:1])


# --- Turns ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("profile", "slowdowns"),
    [
        pytest.param("none", [1, 1, 1, 1], id="none"),
        pytest.param("random", [1, 1, 1, 1], id="random"),
        pytest.param("slow_stage2", [1, 2, 1, 1], id="slow_stage2"),
        pytest.param(
            {"every_stage": {"slowdown": 1.5}, "stages": {1: {"slowdown": 4}, 3: {}}}, [4, 1.5, 1, 1.5], id="inline"
        ),
    ],
)
def test_draws_are_in_proportion_to_speed_and_advance_the_time(small_config, profile, slowdowns) -> None:
    config = small_config(stages=4, model={"blocks": 4}, delays={"profile": profile})
    number = 20_000
    turns = list(itertools.islice(drawn_turns(config, lambda: [1, 2, 3, 4]), number))
    speeds = [1 / s for s in slowdowns]
    counts = Counter(j for j, _ in turns)
    expected = [number * speed / sum(speeds) for speed in speeds]
    assert scipy.stats.chisquare([counts[j] for j in (1, 2, 3, 4)], expected).pvalue > 1e-3
    # Draws that follow each other know nothing of each other.
    pairs = Counter(itertools.pairwise(j for j, _ in turns))
    independent = {
        (i, j): (number - 1) * speeds[i - 1] * speeds[j - 1] / sum(speeds) ** 2
        for i in range(1, 5)
        for j in range(1, 5)
    }
    statistic = sum((pairs[pair] - mean) ** 2 / mean for pair, mean in independent.items())
    assert scipy.stats.chi2.sf(statistic, 15) > 1e-3
    step = 1 / sum(speeds)
    assert [now for _, now in turns[:5]] == pytest.approx([step * n for n in range(1, 6)])
    assert turns[-1][1] == pytest.approx(step * number)


def test_draws_are_among_the_stages_that_have_not_stopped(small_config) -> None:
    config = small_config(delays={"profile": "slow_stage2"})
    asked = iter([[1, 2, 3]] * 3 + [[1, 2]] * 300 + [[1]] * 2 + [[]])
    turns = list(drawn_turns(config, lambda: next(asked)))
    assert len(turns) == 305
    times = [now for _, now in turns]
    steps = [b - a for a, b in itertools.pairwise([0.0, *times])]
    assert steps == pytest.approx([1 / 2.5] * 3 + [1 / 1.5] * 300 + [1.0] * 2)
    counts = Counter(j for j, _ in turns[3:303])
    assert set(counts) == {1, 2}
    assert scipy.stats.chisquare([counts[1], counts[2]], [200, 100]).pvalue > 1e-3
    assert [j for j, _ in turns[303:]] == [1, 1]


def test_draws_depend_on_the_seed_alone(small_config) -> None:
    def first(**over: Any) -> list[tuple[int, float]]:
        return list(itertools.islice(drawn_turns(small_config(**over), lambda: [1, 2, 3]), 50))

    assert first() == first(epochs=7, buffer={"size": 1})
    assert first() != first(seed=1)


@pytest.mark.parametrize("name", ["default", "slow_stage3-uniform", "random-lifo"])
def test_the_warm_up_takes_every_stage_twice(asynchronous, name) -> None:
    trace = asynchronous(name).trace
    assert [r.stage for r in trace[:6]] == [1, 1, 2, 2, 3, 3]


def test_the_warm_up_passes_over_stages_that_cannot_move(simulate, small_config) -> None:
    # One place and one use: the second turn of stages 1 and 2 finds no place, that of stage 3 no entry.
    config = small_config(epochs=1, buffer={"size": 1, "max_reuse": 1, "on_full": "block"})
    run = simulate(config)
    drawn = [j for j, _ in itertools.islice(drawn_turns(config, lambda: [1, 2, 3]), 1000)]
    # After the warm-up all places are free again, so that only stage 1 can move.
    assert [r.stage for r in run.trace[:4]] == [1, 2, 3, 1]
    before_it = drawn.index(1)
    lost = Counter(drawn[:before_it])
    assert run.outcome.ends[2].lost_turns["reused_up"] >= lost[2]
    assert all(end.updates == 11 for end in run.outcome.ends.values())


@pytest.mark.parametrize("name", ["lossy-block", "wan-fifo", "straggler-max_age", "default"])
def test_every_drawn_turn_is_a_pass_or_lost(simulate, small_config, monkeypatch, name) -> None:
    drawn: Counter[int] = Counter()

    def counted(*arguments: Any) -> Any:
        for turn in drawn_turns(*arguments):
            drawn[turn[0]] += 1
            yield turn

    monkeypatch.setattr(async_dgl, "drawn_turns", counted)
    made_before_draws: Counter[int] = Counter()
    run = simulate(small_config(**ASYNCHRONOUS[name]))
    passes = Counter(r.stage for r in run.trace)
    for j, end in run.outcome.ends.items():
        lost = sum(end.lost_turns.values())
        made_before_draws[j] = passes[j] + lost - drawn[j]
    # What is not from a draw is from the warm-up: two passes at most, and two of stage 1 where nothing stops it.
    assert all(0 <= made <= 2 for made in made_before_draws.values())
    if name == "default":
        assert made_before_draws == {1: 2, 2: 2, 3: 2}
        assert all(not end.lost_turns for end in run.outcome.ends.values())


def test_lost_turns_have_their_reasons(asynchronous) -> None:
    reasons = {
        name: {j: set(end.lost_turns) for j, end in asynchronous(name).outcome.ends.items()}
        for name in ("lossy-block", "wan-fifo", "straggler-max_age", "default")
    }
    assert reasons["default"] == {1: set(), 2: set(), 3: set()}
    assert "full" in reasons["lossy-block"][1]
    assert reasons["lossy-block"][1] <= {"full"}
    assert reasons["lossy-block"][3] & {"reused_up", "empty"}
    assert "not_arrived" in reasons["wan-fifo"][2]
    assert reasons["wan-fifo"][1] == set()
    assert "pause" in reasons["straggler-max_age"][2]
    assert "pause" not in reasons["straggler-max_age"][1] | reasons["straggler-max_age"][3]


def test_min_size_is_waited_for(simulate, small_config) -> None:
    run = simulate(small_config(epochs=1, buffer={"min_size": 5}))
    assert run.outcome.ends[2].lost_turns["below_min_size"] > 0
    first_reader = next(index for index, r in enumerate(run.trace) if r.stage == 2)
    assert [r.stage for r in run.trace[:first_reader]] == [1] * first_reader
    assert first_reader >= 5


def test_a_pause_loses_the_turns_until_it_is_over(simulate, small_config) -> None:
    # One stage alone has a turn at every step; a pass at t with a pause of 3 steps loses the turns at t + 1 and t + 2.
    pause = {"name": "stops", "every_stage": {"pause": {"probability": 1, "length": 3}}}
    run = simulate(small_config(stages=1, epochs=1, delays={"profile": pause}))
    (end,) = run.outcome.ends.values()
    assert end.updates == 11
    assert end.lost_turns == {"pause": 2 * 10}


def test_pauses_are_those_of_the_profile_clock(asynchronous, small_config) -> None:
    """A stage makes no pass in the pause that its clock gives after a pass; every stage's turns are those drawn."""
    run = asynchronous("straggler-max_age")
    clock = make_clock(run.config, 2)
    pauses = [clock.length(step).pause for step in range(len(by_stage(run.trace)[2]))]
    assert set(pauses) == {0.0, 8.0}
    lost = run.outcome.ends[2].lost_turns["pause"]
    # A third of the draws of 8 steps are turns of stage 2 while three stages run, that is 8 of them on average.
    assert lost <= 3 * 8 * sum(pause > 0 for pause in pauses)
    assert lost >= sum(pause > 0 for pause in pauses)


# --- What else a run tells --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("epochs", "every", "expected"),
    [(3, 1, [1, 2, 3]), (4, 2, [2, 4]), (3, 2, [2, 3]), (1, 5, [1])],
)
@pytest.mark.parametrize("algorithm", ["async-dgl", "sync-dgl"])
def test_evaluations_come_when_the_slowest_stage_is_due_and_at_the_end(
    simulate, small_config, algorithm, epochs, every, expected
) -> None:
    run = simulate(small_config(algorithm=algorithm, epochs=epochs, batch_size=479, evaluation={"every": every}))
    lines = run.recorder.evaluations
    assert [line.epoch for line in lines] == expected
    assert [line.final for line in lines] == [False] * (len(expected) - 1) + [True]
    assert all(len(line.test_ensemble_accuracy) == 3 for line in lines)
    assert lines[-1].test_accuracy == run.outcome.evaluation.test_accuracy
    # When the slowest stage completes the epoch: it has 3 updates an epoch.
    updates = [r for r in run.trace if r.kind == "train"]
    for line in lines[:-1]:
        ends = [[r.end_s for r in updates if r.stage == j][3 * line.epoch - 1] for j in (1, 2, 3)]
        assert line.end_s >= max(ends)


def test_epoch_lines_sum_up_the_updates(asynchronous) -> None:
    run = asynchronous("default")
    assert sorted((line.stage, line.epoch) for line in run.recorder.epochs) == [
        (j, epoch) for j in (1, 2, 3) for epoch in (1, 2)
    ]
    for line in run.recorder.epochs:
        own = [r for r in run.trace if r.stage == line.stage and r.kind == "train"]
        losses = [r.loss for r in own[11 * (line.epoch - 1) : 11 * line.epoch]]
        assert line.loss == pytest.approx(sum(losses) / 11)
        assert 0 <= line.accuracy <= 1
        assert line.updates == 11 * line.epoch
        assert line.end_s == own[11 * line.epoch - 1].end_s
        assert (line.kind, line.lr) == ("epoch", 0.05)


def test_the_validation_share_is_evaluated_too(simulate, small_config) -> None:
    run = simulate(small_config(epochs=1, data={"validation": 0.25}))
    (line,) = run.recorder.evaluations
    for split in ("test", "validation"):
        for what in ("accuracy", "loss", "ensemble_accuracy"):
            assert len(getattr(line, f"{split}_{what}")) == 3


def test_evaluation_line() -> None:
    test = {"accuracy": [0.5, 0.75], "ensemble_accuracy": [0.5, 0.25], "loss": [1.0, 2.0]}
    evaluation = Evaluation(3, 0.5, [Publication(4, 0.4, None), Publication(3, 0.5, None)])
    line = evaluation_line(evaluation, {"test": test}, True)
    assert (line.kind, line.epoch, line.epochs, line.final, line.end_s, line.stage) == (
        *("evaluation", 3, (4, 3), True, 0.5, None),
    )
    assert evaluation_line(evaluation._replace(stage=2), {"test": test}).stage == 2
    assert (line.test_accuracy, line.test_ensemble_accuracy, line.test_loss) == ((0.5, 0.75), (0.5, 0.25), (1.0, 2.0))
    assert (line.validation_accuracy, line.validation_loss) == (None, None)


def test_training_learns(simulate, small_config) -> None:
    run = simulate(small_config(epochs=4, batch_size=32, model={"width": 8}))
    assert run.outcome.evaluation.test_accuracy[2] > 0.85
    assert run.outcome.evaluation.test_ensemble_accuracy[2] > 0.85


def test_progress_is_told_for_every_stage_at_every_epoch(asynchronous) -> None:
    recorder = asynchronous("default").recorder
    assert len(recorder.progress) >= 3 * len(recorder.epochs)
    told = dict(recorder.progress)
    assert set(told) == {1, 2, 3}
    assert all((p.epoch, p.updates, p.stopped) == (2, UPDATES, True) for p in told.values())
    assert any(not p.stopped for _, p in recorder.progress)


def test_times_of_a_trace_follow_each_other(asynchronous) -> None:
    run = asynchronous("wan-fifo")
    last = 0.0
    for r in run.trace:
        assert last <= r.start_s <= r.end_s
        assert r.stage == 1 or last <= r.sampled_s <= r.start_s
        last = r.end_s


class Stopped(Exception):
    """What a check raises."""


def test_a_run_that_is_stopped_says_how_far_it_came(small_config, digits_folder, make_recorder) -> None:
    def check() -> None:
        if len(recorder.trace) == 10:
            raise Stopped

    recorder = make_recorder()
    simulation = Simulation(small_config(), digits_folder, recorder, check)
    with pytest.raises(Stopped):
        simulation.run()
    outcome = simulation.outcome()
    # Every pass happened whole: made, sent and told.
    assert {j: end.updates for j, end in outcome.ends.items()} == Counter(r.stage for r in recorder.trace)
    assert len(recorder.trace) == 10
    assert outcome.evaluation is None
    for b in outcome.buffers:
        assert b.sent == outcome.ends[b.after_stage].updates
        assert b.sampled == outcome.ends[b.after_stage + 1].updates


def test_a_run_can_be_stopped_while_it_evaluates(small_config, digits_folder, make_recorder) -> None:
    def check() -> None:
        if len(recorder.trace) == 11:
            raise Stopped

    recorder = make_recorder()
    # One stage and one epoch: after the last pass there is only the evaluation.
    simulation = Simulation(small_config(stages=1, epochs=1), digits_folder, recorder, check)
    with pytest.raises(Stopped):
        simulation.run()
    assert recorder.evaluations == []
    assert simulation.outcome().ends[1].updates == 11


def test_one_stage_can_be_made_alone(small_config, digits_folder) -> None:
    """As an actor does, which holds one stage of the run."""
    config = small_config()
    dataset = open_dataset(config, digits_folder)
    whole = make_stages(config, dataset)
    for number in (3, 1, 2):
        (alone,) = make_stages(config, dataset, only=number)
        assert alone.state_sha256() == whole[number - 1].state_sha256()


def test_entries_are_named_by_the_pass_that_made_them(asynchronous) -> None:
    stages = by_stage(asynchronous("wan-block").trace)
    made = {PassName(r.stage, r.incarnation, r.step): r for j in (1, 2) for r in stages[j]}
    for j in (2, 3):
        given: Counter[PassName] = Counter()
        for r in stages[j]:
            source = made[PassName(j - 1, r.source_incarnation, r.source_step)]
            given[PassName(j - 1, r.source_incarnation, r.source_step)] += 1
            assert r.batch == source.batch
            assert r.times_sampled == given[PassName(j - 1, r.source_incarnation, r.source_step)]
            assert source.end_s <= r.sampled_s
        assert max(given.values()) == 2  # max_reuse
