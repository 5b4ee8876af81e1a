"""What is measured while a run goes on, and when the test set is due."""

from __future__ import annotations

import pytest

from asyncdgl.engine.evaluations import EvaluationSchedule
from asyncdgl.learn.meter import EpochMeter
from asyncdgl.rundir.measures import stage_summaries
from asyncdgl.rundir.outcome import StageEnd


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


@pytest.mark.parametrize(
    ("epochs", "every", "events"),
    [
        pytest.param(
            3, 1, [(1, 1, []), (2, 1, [1]), (2, 2, []), (2, 3, []), (1, 2, [2]), (1, 3, [])], id="every-epoch"
        ),
        pytest.param(
            5,
            2,
            [(1, 1, []), (2, 1, []), (1, 2, []), (1, 3, []), (2, 2, [2]), (2, 3, []), (1, 4, []), (2, 4, [4])],
            id="every-second",
        ),
        pytest.param(4, 2, [(1, 4, []), (2, 1, []), (2, 2, [2]), (2, 3, []), (2, 4, [])], id="last-has-no-turn"),
        pytest.param(3, 5, [(1, 3, []), (2, 3, [])], id="longer-than-the-run"),
        pytest.param(5, 2, [(1, 5, []), (2, 4, [2, 4]), (2, 5, [])], id="epochs-at-once"),
    ],
)
def test_evaluation_follows_the_slowest_stage(epochs, every, events) -> None:
    schedule = EvaluationSchedule(stages=2, epochs=epochs, every=every)
    for stage, epoch, due in events:
        assert schedule.completed(stage, epoch) == due, (stage, epoch)


def test_evaluation_with_one_stage() -> None:
    schedule = EvaluationSchedule(stages=1, epochs=3, every=1)
    assert [schedule.completed(1, epoch) for epoch in (1, 2, 3)] == [[1], [2], []]


def test_stage_summaries_of_a_hand_made_run(record) -> None:
    first = [
        record(1, 0, 1.0, waits={"pace": 0.25}),
        record(1, 1, 2.0, waits={"pace": 0.25, "full": 0.5}),
        record(1, 2, 3.0),
        record(1, 3, 5.0, kind="forward", loss=None, start_s=3.0),
    ]
    second = [
        record(
            2, 0, 2.5, sampled_s=2.0, source_incarnation=0, source_step=0, source_update=0, times_sampled=1, batch=0
        ),
        record(
            2, 1, 3.5, sampled_s=2.5, source_incarnation=0, source_step=0, source_update=0, times_sampled=2, batch=0
        ),
        record(
            2, 2, 6.0, sampled_s=5.0, source_incarnation=0, source_step=3, source_update=3, times_sampled=1, batch=3
        ),
    ]
    ends = {
        2: StageEnd(3, 0, 1, "second"),
        1: StageEnd(3, 1, 1, "first", lost_turns={"full": 2}),
    }
    one, two = stage_summaries([*second, *first], ends, 10.0, [0.5, 0.75])
    nothing = dict.fromkeys(("mean", "p50", "p95", "max"))
    assert one == {
        "stage": 1,
        "updates": 3,
        "forward_passes": 1,
        "epochs": 1,
        "test_accuracy": 0.5,
        "busy_fraction": pytest.approx(0.35),
        "wait_seconds": {"pace": 0.5, "full": 0.5},
        "staleness": nothing,
        "batch_age": nothing,
        "times_sampled": nothing,
        "state_sha256": "first",
        "lost_turns": {"full": 2},
    }
    assert two["test_accuracy"] == 0.75
    assert two["staleness"] == {"mean": 1.0, "p50": 1.0, "p95": 1.0, "max": 1.0}
    assert two["batch_age"] == {"mean": pytest.approx(2 / 3), "p50": 1.0, "p95": 1.0, "max": 1.0}
    assert two["times_sampled"]["mean"] == pytest.approx(4 / 3)
    assert two["times_sampled"]["max"] == 2.0
    assert two["wait_seconds"] == {}
    assert "lost_turns" not in two


def test_a_run_without_a_pass_has_a_summary_too() -> None:
    (summary,) = stage_summaries([], {1: StageEnd(0, 0, 0, None)}, 0.0, [None])
    assert (summary["busy_fraction"], summary["test_accuracy"], summary["state_sha256"]) == (0.0, None, None)
