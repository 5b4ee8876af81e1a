"""Rule 24 on Ray: whatever the order in which reports come in, an evaluation uses the weights of its moment."""

from __future__ import annotations

import pytest

SLOW_LAST = {
    "data": {"dataset": "synthetic"},
    "model": {"width": 4},
    "stages": 3,
    "epochs": 4,
    "delays": {"profile": "slow_stage3", "slowdown": 3},
}


@pytest.mark.ray
def test_each_evaluation_uses_the_newest_weights_of_its_moment(run_ray) -> None:
    recorder = run_ray(SLOW_LAST)
    ends = {j: [line.end_s for line in recorder.epochs if line.stage == j] for j in (1, 2, 3)}
    assert [len(own) for own in ends.values()] == [4, 4, 4]
    assert [line.epoch for line in recorder.evaluations] == [1, 2, 3, 4]
    for line in recorder.evaluations[:-1]:
        assert line.end_s == max(own[line.epoch - 1] for own in ends.values())
        assert line.epochs == tuple(sum(end <= line.end_s for end in own) for own in ends.values())
    assert recorder.evaluations[-1].epochs == (4, 4, 4)
    ahead = recorder.evaluations[0].epochs
    assert ahead[0] > ahead[2], "a fast stage has gone on while the slow one learned"


@pytest.mark.ray
def test_equal_weights_give_equal_accuracies(run_ray) -> None:
    """The head of a stage that is done is read with its last weights, in every later evaluation."""
    recorder = run_ray(SLOW_LAST)
    done = [line for line in recorder.evaluations if line.epochs[0] == 4]
    assert len(done) >= 2
    assert len({line.test_accuracy[0] for line in done}) == 1
