"""Rule 24: an evaluation uses what each stage had published when the slowest one completed the epoch."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from asyncdgl.engine.evaluations import Evaluations

pytestmark = pytest.mark.usefixtures("one_thread")


def used(evaluations: list[Any]) -> list[tuple[int, float, list[int]]]:
    """Epoch, moment, and the epochs of the weights."""
    return [(e.epoch, e.end_s, [publication.epoch for publication in e.of]) for e in evaluations]


def test_each_evaluation_uses_the_newest_weights_of_its_moment() -> None:
    told = Evaluations(["a0", "b0"], epochs=4, every=1)
    for epoch in (1, 2, 3):
        told.completed(1, 1.0 * epoch, f"a{epoch}")
    told.completed(2, 2.5, "b1")
    [first] = told.due(3.0)
    assert (first.epoch, first.end_s) == (1, 2.5)
    assert [p.weights for p in first.of] == ["a2", "b1"]
    told.completed(1, 4.0, "a4")
    told.completed(2, 5.0, "b2")
    told.completed(2, 7.5, "b3")
    told.completed(2, 10.0, "b4")
    later = told.due(10.0)
    assert used(later) == [(2, 5.0, [4, 2]), (3, 7.5, [4, 3])]
    assert [[p.weights for p in e.of] for e in later] == [["a4", "b2"], ["a4", "b3"]]
    assert told.due(99.0) == [], "the last epoch is the run's"


def test_the_order_of_reports_decides_nothing() -> None:
    """Stage 1 is told of in one piece, before or after stage 2: weights of a later moment are never used."""
    reports = [(1, 1.0, "a1"), (1, 2.0, "a2"), (1, 3.0, "a3"), (2, 1.5, "b1"), (2, 2.5, "b2"), (2, 3.5, "b3")]
    expected = [(1, 1.5, [1, 1]), (2, 2.5, [2, 2])]
    in_order = [
        order
        for order in itertools.permutations(range(6))
        if all(order.index(a) < order.index(b) for a, b in ((0, 1), (1, 2), (3, 4), (4, 5)))
    ]
    for order in in_order:
        told = Evaluations([None, None], epochs=3, every=1)
        found = []
        for index in order:
            told.completed(*reports[index])
            # What is known of both stages: nothing yet of one that comes later in this order.
            known = [
                max((reports[i][1] for i in order[: order.index(index) + 1] if reports[i][0] == j), default=0.0)
                for j in (1, 2)
            ]
            found += told.due(min(known))
        found += told.due(99.0)
        assert used(found) == expected


def test_what_no_evaluation_can_use_any_more_is_let_go() -> None:
    told = Evaluations(["a0", "b0"], epochs=100, every=1)
    for epoch in range(1, 50):
        told.completed(1, 1.0 * epoch, f"a{epoch}")
        told.due(1.0 * epoch)
    assert [len(own) for own in told._published] == [1, 1]
    # Not known yet how long stage 2 has been at it: any of these may be the newest of its moment.
    for epoch in range(50, 60):
        told.completed(1, 1.0 * epoch, f"a{epoch}")
    told.due(50.5)
    assert [len(own) for own in told._published] == [10, 1]


@pytest.mark.parametrize(
    ("every", "expected"),
    [(1, [(1, [1, 0]), (2, [2, 0]), (3, [3, 0]), (1, [3, 1]), (2, [3, 2])]), (2, [(2, [2, 0]), (2, [3, 2])])],
)
def test_one_stage_after_the_other(every, expected) -> None:
    """A stage's own end is published, due or not."""
    told: Evaluations[str] = Evaluations(["a0", "b0"], epochs=3, every=every, one_by_one=True)
    found = []
    for time, (stage, epoch) in enumerate([(1, 1), (1, 2), (1, 3), (2, 1), (2, 2), (2, 3)], 1):
        weights = f"{'ab'[stage - 1]}{epoch}" if epoch % every == 0 or epoch == 3 else None
        told.completed(stage, float(time), weights)
        found += told.due(float(time))
    assert [(e.epoch, [p.epoch for p in e.of]) for e in found] == expected


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
def test_an_evaluation_is_due_when_the_slowest_has_completed_its_epoch(epochs, every, events) -> None:
    told: Evaluations[None] = Evaluations([None, None], epochs=epochs, every=every)
    now = 0.0
    for stage, epoch, due in events:
        for _ in range(len(told._completed[stage - 1]), epoch):  # a report may bring several epochs at once
            now += 1.0
            told.completed(stage, now, None)
        assert [e.epoch for e in told.due(now)] == due, (stage, epoch)


def test_evaluations_of_one_stage() -> None:
    told: Evaluations[None] = Evaluations([None], epochs=3, every=1)
    found = []
    for now in (1.0, 2.0, 3.0):
        told.completed(1, now, None)
        found.append([e.epoch for e in told.due(now)])
    assert found == [[1], [2], []]


# --- In the engines ---------------------------------------------------------------------------------------------------

SLOW_LAST = {
    "stages": 3,
    "epochs": 4,
    "delays": {"profile": "slow_stage3", "slowdown": 3},
    "buffer": {"prefetch": 0},
}


def weights_at_epochs(passes: Any, kept: dict[tuple[int, int], Any]) -> None:
    """Remember what each stage's weights are at the end of each of its epochs."""
    for j, own in passes.items():
        updates = own.learner.updates
        if updates % 11 == 0:
            kept.setdefault((j, updates // 11), own.learner.published())


@pytest.mark.parametrize("runtime", ["sim", "virtual"])
def test_every_line_is_what_these_weights_give(small_config, digits_folder, make_recorder, runtime) -> None:
    """Of each stage the weights of the epoch that the line names, and no epoch but the newest of that moment."""
    from asyncdgl.data.dataset import open_dataset
    from asyncdgl.engine.sim import Simulation
    from asyncdgl.engine.virtual import VirtualRun
    from asyncdgl.learn.evaluation import make_evaluator

    config = small_config(**SLOW_LAST, runtime=runtime)
    recorder = make_recorder()
    run = {"sim": Simulation, "virtual": VirtualRun}[runtime](config, digits_folder, recorder)
    kept: dict[tuple[int, int], Any] = {(j, 0): own.learner.published() for j, own in run._passes.items()}
    recorder.on_passes = lambda _: weights_at_epochs(run._passes, kept)
    run.run()

    ends = {j: [line.end_s for line in recorder.epochs if line.stage == j] for j in (1, 2, 3)}
    evaluator = make_evaluator(config, open_dataset(config, digits_folder))
    seen = []
    for line in recorder.evaluations:
        moment = line.end_s
        if not line.final:
            assert moment == max(ends[j][line.epoch - 1] for j in ends)
        epochs = [sum(end <= moment for end in ends[j]) for j in ends]
        assert line.epochs == tuple(epochs)
        seen.append(epochs)
        weights = [kept[j, epoch] for j, epoch in enumerate(epochs, 1)]
        assert line.test_accuracy == tuple(evaluator.evaluate(weights)["test"]["accuracy"])
    assert len(seen) == 4
    assert any(epochs[0] == 4 and epochs[2] < 3 for epochs in seen), "a fast stage is done while the slow one learns"


def test_a_stage_that_is_done_is_read_with_its_last_weights(simulate) -> None:
    """Once: for six evaluations heads 1 to 3 kept what they had an epoch before their end."""
    from asyncdgl.config.yaml import parse_config

    run = simulate(
        parse_config(
            {
                "runtime": "sim",
                "threads": 1,
                "epochs": 8,
                "device": "cpu",
                "precision": "float32",
                "delays": {"profile": "slow_stage4", "slowdown": 4},
                "optim": {"lr_decay_every": 7},
            }
        )
    )
    lines = run.recorder.evaluations
    done = [line for line in lines if line.epochs[:3] == (8, 8, 8)]
    assert len(done) >= 6
    assert all(line.test_accuracy[:3] == lines[-1].test_accuracy[:3] for line in done)


def test_a_virtual_instant_is_over_before_it_is_evaluated(small_config, digits_folder, make_recorder) -> None:
    """Stages of equal speed complete their epochs at the same moment: each is read with the weights of then."""
    from asyncdgl.engine.virtual import VirtualRun

    recorder = make_recorder()
    VirtualRun(small_config(runtime="virtual", buffer={"prefetch": 0}, epochs=3), digits_folder, recorder).run()
    for line in recorder.evaluations:
        moment = line.end_s
        by_stage = [[e.end_s for e in recorder.epochs if e.stage == j] for j in (1, 2, 3)]
        assert line.epochs == tuple(sum(end <= moment for end in ends) for ends in by_stage)
