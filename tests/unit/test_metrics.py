"""What is measured while a run goes on, and when the test set is due."""

from __future__ import annotations

import pytest

from asyncdgl.learn.meter import EpochMeter
from asyncdgl.rundir.measures import stage_summaries
from asyncdgl.rundir.outcome import Outcome, StageEnd
from asyncdgl.rundir.records import EpochLine
from asyncdgl.rundir.summary import make_summary
from asyncdgl.rundir.writer import RunWriter


def test_meter_gives_means_over_the_epoch() -> None:
    meter = EpochMeter(batch_size=10)
    assert (meter.loss, meter.accuracy) == (None, None)
    meter.add(2.0, 4)
    meter.add(1.0, 9)
    assert (meter.loss, meter.accuracy) == (1.5, 0.65)
    meter.reset()
    assert (meter.loss, meter.accuracy) == (None, None)
    meter.add(0.25, 10)
    assert (meter.loss, meter.accuracy) == (0.25, 1.0)


# --- The summary of a hand-made trace ---------------------------------------------------------------------------------


@pytest.fixture
def trace(record):
    """Two stages: the second trains on a batch twice, forwards once, and skips batches 1, 2 and 4."""
    source = {"sampled_s": 2.0, "source_incarnation": 0, "source_step": 0, "source_update": 0}
    late = {"sampled_s": 5.0, "source_incarnation": 0, "source_step": 3, "source_update": 3}
    last = {"sampled_s": 8.0, "source_incarnation": 0, "source_step": 5, "source_update": 4}
    first = [
        record(1, 0, 1.0, waits={"pace": 0.25}),
        record(1, 1, 2.0, waits={"pace": 0.25, "full": 0.5}),
        record(1, 2, 3.0),
        record(1, 3, 5.0, kind="forward", loss=None, start_s=3.0),
        record(1, 4, 6.0),
        record(1, 5, 8.0),
    ]
    second = [
        record(2, 0, 2.5, batch=0, times_sampled=1, **source),
        record(2, 1, 3.5, batch=0, times_sampled=2, **{**source, "sampled_s": 2.5}),
        record(2, 2, 6.0, batch=3, times_sampled=1, **late),
        record(2, 3, 7.0, batch=3, times_sampled=8, kind="forward", loss=None, **late),
        record(2, 4, 10.0, batch=5, times_sampled=1, start_s=8.0, **last),
    ]
    return [*second, *first]


def test_stage_summaries_of_a_hand_made_run(trace, evaluation_of) -> None:
    ends = {2: StageEnd(4, 1, 1, "second"), 1: StageEnd(5, 1, 1, "first", lost_turns={"full": 2})}
    evaluation = evaluation_of([0.5, 0.75], validation_accuracy=(0.25, 0.375))
    one, two = (stage.model_dump() for stage in stage_summaries(trace, ends, 10.0, evaluation))
    nothing = dict.fromkeys(("mean", "p50", "p95", "max"))
    assert one == {
        "stage": 1,
        "updates": 5,
        "forward_passes": 1,
        "epochs": 1,
        "test_accuracy": 0.5,
        "validation_accuracy": 0.25,
        "busy_fraction": pytest.approx(0.45),
        "wait_seconds": {"pace": 0.5, "full": 0.5},
        "staleness": nothing,
        "batch_age": nothing,
        "batches_unseen": pytest.approx(1 / 6),  # it trained on 0, 1, 2, 4 and 5
        "times_sampled": nothing,
        "lost_turns": {"full": 2},
        "state_sha256": "first",
    }
    assert (two["updates"], two["forward_passes"], two["epochs"], two["state_sha256"]) == (4, 1, 1, "second")
    assert (two["test_accuracy"], two["validation_accuracy"]) == (0.75, 0.375)
    assert two["busy_fraction"] == pytest.approx(0.4)
    assert two["wait_seconds"] == {}
    assert two["lost_turns"] is None
    # Of its four updates: stage 1 had made 2, 2 and 3 updates, and was done when the last entry was sampled.
    assert two["staleness"] == {"mean": pytest.approx(2 / 3), "p50": 1.0, "p95": 1.0, "max": 1.0}
    # Stage 1 had completed batches 1, 1, 3 and 5 when it used 0, 0, 3 and 5.
    assert two["batch_age"] == {"mean": 0.5, "p50": 0.5, "p95": 1.0, "max": 1.0}
    assert two["batches_unseen"] == 0.5  # of the batches 0 to 5 it trained on 0, 3 and 5
    # The forward-only pass, which read an entry for the eighth time, does not count.
    assert two["times_sampled"] == {"mean": 1.25, "p50": 1.0, "p95": pytest.approx(1.85), "max": 2.0}


def test_staleness_is_of_the_stage_before_and_batch_age_of_the_first(record) -> None:
    """Stage 1 updates each second, stage 2 every other one; stage 3 reads at 6 s what stage 2 made of batch 0."""
    made = [record(1, n, n + 1.0) for n in range(10)]
    made += [record(2, n, 2.0 + 2 * n, batch=n, sampled_s=1.0 + 2 * n, **FROM_FIRST) for n in range(5)]
    made += [record(3, 0, 7.0, batch=0, sampled_s=6.0, **FROM_FIRST)]
    made += [record(3, 1, 9.0, batch=0, kind="forward", loss=None, waits={"empty": 0.5}, **FROM_FIRST)]
    ends = {j: StageEnd(1, 0, 0, None) for j in (1, 2, 3)}
    last = stage_summaries(made, ends, 10.0)[2]
    assert last.staleness.mean == 2  # stage 2 had made three updates: its first one and two more
    assert last.batch_age.mean == 5  # stage 1 had completed batch 5
    assert last.wait_seconds == {"empty": 0.5}  # a forward-only pass waits as well


FROM_FIRST = {"source_incarnation": 0, "source_step": 0, "source_update": 0, "times_sampled": 1}


def test_the_rest_of_the_summary_of_a_hand_made_run(trace, small_config, evaluation_of, tmp_path) -> None:
    config = small_config(stages=2, runtime="ray", batch_size=10, ray={"threads": [1, 1]})
    writer = RunWriter(tmp_path)
    writer.passed(trace)
    ends = {1: StageEnd(5, 1, 1, "first"), 2: StageEnd(4, 1, 1, "second")}
    held_out = {"validation_accuracy": (0.1, 0.2), "validation_ensemble_accuracy": (0.1, 0.3)}
    evaluation = evaluation_of([0.875, 0.75], test_ensemble_accuracy=(0.5, 0.625), **held_out)
    summary = make_summary(config, writer, Outcome(ends, [], evaluation), "completed", None, 12.0)
    writer.close()
    assert (summary.status, summary.error, summary.algorithm, summary.runtime) == (
        *("completed", None, "async-dgl", "ray"),
    )
    assert (summary.test_accuracy, summary.ensemble_test_accuracy) == (0.75, 0.625)
    assert (summary.validation_accuracy, summary.ensemble_validation_accuracy) == (0.2, 0.3)
    assert (summary.wall_seconds, summary.train_seconds, summary.time_unit) == (12.0, 10.0, "seconds")
    assert summary.images_per_second == 4 * 10 / 10.0  # the last stage's updates, not the first one's
    assert [stage.updates for stage in summary.stages] == [5, 4]
    assert summary.faults == ()


@pytest.mark.parametrize(
    ("tree", "unit"),
    [
        ({"runtime": "sim"}, "seconds"),
        ({"runtime": "virtual"}, "steps"),
        ({"runtime": "virtual", "virtual": {"step_times": [{"train": 1, "forward": 1}]}}, "seconds"),
    ],
)
def test_images_per_second_are_those_of_processes_at_the_same_time(trace, small_config, tmp_path, tree, unit) -> None:
    writer = RunWriter(tmp_path)
    writer.passed(trace)
    summary = make_summary(small_config(stages=2, **tree), writer, None, "interrupted", None, 1.0)
    writer.close()
    assert summary.images_per_second is None
    assert (summary.train_seconds, summary.time_unit) == (10.0, unit)


def test_stages_that_could_not_say_it_are_counted_from_the_trace(trace, small_config, tmp_path) -> None:
    writer = RunWriter(tmp_path)
    writer.passed(trace)
    line = EpochLine(stage=2, epoch=1, updates=3, loss=1.0, accuracy=0.5, lr=0.1, end_s=6.0)
    writer.epoch_completed(line)
    told = Outcome({1: StageEnd(9, 9, 9, "first")}, [], None)
    summary = make_summary(small_config(stages=2), writer, told, "failed", "stage 2 died", 1.0)
    writer.close()
    one, two = summary.stages
    assert (one.updates, one.state_sha256) == (9, "first")
    assert (two.updates, two.forward_passes, two.epochs, two.state_sha256) == (4, 1, 1, None)
    assert (summary.status, summary.error, summary.test_accuracy) == ("failed", "stage 2 died", None)


def test_a_run_without_a_pass_has_a_summary_too() -> None:
    (summary,) = stage_summaries([], {1: StageEnd(0, 0, 0, None)}, 0.0)
    assert (summary.busy_fraction, summary.test_accuracy, summary.state_sha256) == (0.0, None, None)
    assert summary.batches_unseen is None
