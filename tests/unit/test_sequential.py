"""Algorithm `sequential-dgl`: one stage after the other, each bit for bit a plain PyTorch loop behind frozen ones."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from asyncdgl.data.dataset import open_dataset
from asyncdgl.data.stream import make_stream
from asyncdgl.engine.sim import Simulation
from asyncdgl.learn.stage import Stage
from asyncdgl.nets.base import StageNet, make_networks
from asyncdgl.rundir.trace import by_stage

pytestmark = pytest.mark.usefixtures("one_thread")

PER_EPOCH = 11
EPOCHS = 3
QUOTA = PER_EPOCH * EPOCHS
OPTIM = {"lr": 0.1, "momentum": 0.9, "weight_decay": 1e-2, "lr_decay_every": 2, "lr_decay_factor": 4}
LR = [0.1, 0.1, 0.025]
"""In each epoch: every stage's own schedule begins anew."""


def tree(**over: Any) -> dict[str, Any]:
    return {"algorithm": "sequential-dgl", "epochs": EPOCHS, "optim": OPTIM, **over}


@pytest.fixture(scope="module")
def three_stages(simulate, small_config):
    return simulate(small_config(**tree()))


class Plain:
    """The loop as a textbook has it: one optimizer for each stage, the earlier stages frozen.

    Attributes:
        nets: of all stages.
        losses: of each stage's updates.
        hashes: of each stage at its end, taken by a `Stage` that has loaded it.
        accuracies: (stage, epoch) to the accuracy of every head on the test set then.
    """

    def __init__(self, config: Any, folder: Any) -> None:
        torch.set_num_threads(1)
        self.dataset = open_dataset(config, folder)
        self.nets = [
            nn.ModuleDict({"module": net.module, "aux": net.aux}).to(memory_format=torch.channels_last)
            for net in make_networks(config, self.dataset.input_shape, len(self.dataset.classes))
        ]
        stream = make_stream(config, self.dataset)
        self.losses: list[list[float]] = []
        self.hashes: list[str] = []
        self.accuracies: dict[tuple[int, int], list[float]] = {}
        for j, net in enumerate(self.nets, 1):
            optimizer = torch.optim.SGD(
                net.parameters(),
                OPTIM["lr"],
                momentum=OPTIM["momentum"],
                weight_decay=OPTIM["weight_decay"],
                fused=True,
            )
            losses: list[float] = []
            for epoch, lr in enumerate(LR):
                optimizer.param_groups[0]["lr"] = lr
                for number in range(epoch * PER_EPOCH, (epoch + 1) * PER_EPOCH):
                    batch = stream.get(number)
                    net.train()
                    x = self.frozen(j - 1, batch.x)
                    loss = cross_entropy(net["aux"](net["module"](x)), batch.y)
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
                    losses.append(loss.item())
                self.accuracies[j, epoch + 1] = self.test_accuracy()
            self.losses.append(losses)
            self.hashes.append(self.state_hash(config, net, optimizer))

    def frozen(self, stages: int, x: torch.Tensor) -> torch.Tensor:
        """The output of the first ``stages`` stages, which learn nothing any more."""
        with torch.no_grad():
            for net in self.nets[:stages]:
                net.eval()
                x = net["module"](x)
        return x

    def test_accuracy(self) -> list[float]:
        test = self.dataset.test
        images = torch.from_numpy(self.dataset.normalise(test.x[test.rows])).permute(0, 3, 1, 2)
        labels = torch.from_numpy(test.y[test.rows])
        shares = []
        for j, net in enumerate(self.nets):
            with torch.no_grad():
                net.eval()
                scores = net["aux"](net["module"](self.frozen(j, images)))
            shares.append((scores.argmax(1) == labels).double().mean().item())
        return shares

    def state_hash(self, config: Any, net: nn.ModuleDict, optimizer: torch.optim.SGD) -> str:
        stage = Stage(StageNet(net["module"], net["aux"]), config.optim, PER_EPOCH)
        momentum = {n: optimizer.state[p]["momentum_buffer"] for n, p in net.named_parameters()}
        weights = {name: value.clone() for name, value in net.state_dict().items()}
        stage.load_state_dict({"weights": weights, "optimizer": {"momentum": momentum}, "updates": QUOTA})
        return stage.state_sha256()


@pytest.mark.parametrize(
    "over",
    [
        pytest.param({}, id="3-stages"),
        pytest.param({"stages": 2, "model": {"aux": "cnn"}, "data": {"augment": True}}, id="2-stages-cnn-augmented"),
        pytest.param({"stages": 2, "model": {"head": "aux", "aux": "mlp-sr"}, "seed": 5}, id="2-stages-mlp-sr"),
        pytest.param({"stages": 1}, id="1-stage"),
    ],
)
def test_every_stage_is_a_plain_loop_bit_for_bit(simulate, small_config, digits_folder, over) -> None:
    config = small_config(**tree(**over))
    run, plain = simulate(config), Plain(config, digits_folder)
    assert len(plain.nets) == config.stages
    stages = by_stage(run.trace)
    for j in range(1, config.stages + 1):
        assert [r.loss for r in stages[j] if r.kind == "train"] == plain.losses[j - 1]
        assert run.hashes[j] == plain.hashes[j - 1]
    # And its evaluations, which come at the end of each epoch of the stage that trains.
    told = {(line.stage, line.epoch): line.test_accuracy for line in run.recorder.evaluations}
    assert list(told) == list(plain.accuracies)
    assert {key: pytest.approx(shares) for key, shares in told.items()} == plain.accuracies


def test_the_reference_depends_on_what_it_is_to_show(small_config, digits_folder) -> None:
    """Other later stages if the earlier ones are as they began; other losses with another order of batches."""
    plain = Plain(small_config(**tree()), digits_folder)
    other = Plain(small_config(**tree(seed=1)), digits_folder)
    assert all(len(set(losses)) > QUOTA / 2 for losses in plain.losses)
    assert not set(plain.hashes) & set(other.hashes)

    class Untrained(Plain):
        def frozen(self, stages: int, x: torch.Tensor) -> torch.Tensor:
            first = make_networks(small_config(**tree()), (1, 8, 8), 10)
            with torch.no_grad():
                for net in first[:stages]:
                    x = net.module.eval()(x)
            return x

    untrained = Untrained(small_config(**tree()), digits_folder)
    assert untrained.hashes[0] == plain.hashes[0]
    assert not set(untrained.hashes[1:]) & set(plain.hashes[1:])


def without_time(run) -> dict[str, Any]:
    """The last evaluation, but for when it was and who trained."""
    return run.outcome.evaluation.model_dump(exclude={"end_s", "stage"})


def test_one_stage_is_backprop(simulate, small_config) -> None:
    alone = simulate(small_config(**tree(stages=1)))
    backprop = simulate(small_config(**tree(stages=1, algorithm="backprop")))
    # Not the hashes: what they cover has longer names where the whole network is one module.
    assert [r.loss for r in alone.trace] == [r.loss for r in backprop.trace]
    assert without_time(alone) == without_time(backprop)


@pytest.mark.parametrize("algorithm", ["sync-dgl", "async-dgl"])
def test_stage_1_ends_as_in_the_other_algorithms(three_stages, simulate, small_config, algorithm) -> None:
    other = simulate(small_config(**tree(algorithm=algorithm)))
    assert three_stages.hashes[1] == other.hashes[1]
    assert three_stages.hashes[2] != other.hashes[2]


def test_the_trace_has_stage_after_stage(three_stages) -> None:
    """A batch goes through the trained stages, without an update, and then into the stage that trains."""
    expected = [
        (i, "train" if i == j else "forward", number)
        for j in (1, 2, 3)
        for number in range(QUOTA)
        for i in range(1, j + 1)
    ]
    assert [(r.stage, r.kind, r.batch) for r in three_stages.trace] == expected
    for j, passes in by_stage(three_stages.trace).items():
        assert [r.step for r in passes] == list(range(QUOTA * (4 - j)))
        assert [r.kind for r in passes] == ["train"] * QUOTA + ["forward"] * QUOTA * (3 - j)
        assert all((r.loss is None) == (r.kind == "forward") for r in passes)
        assert all(r.waits == {} for r in passes)


def test_every_pass_reads_what_the_stage_before_it_has_just_made(three_stages) -> None:
    for made, read in itertools.pairwise(three_stages.trace):
        if read.stage == 1:
            assert (read.source_step, read.source_update, read.times_sampled, read.sampled_s) == (None,) * 4
        else:
            assert made.stage == read.stage - 1
            # Its producer has done its quota before this stage begins.
            assert (read.source_step, read.source_update, read.times_sampled) == (made.step, QUOTA, 1)
            assert made.end_s <= read.sampled_s <= read.start_s


def test_ends_count_updates_and_forward_passes(three_stages) -> None:
    ends = three_stages.outcome.ends
    assert {j: (e.updates, e.epochs, e.forward_passes) for j, e in ends.items()} == {
        1: (QUOTA, EPOCHS, 2 * QUOTA),
        2: (QUOTA, EPOCHS, QUOTA),
        3: (QUOTA, EPOCHS, 0),
    }
    assert all(e.lost_turns is None and e.fetched_unused == 0 for e in ends.values())


def test_one_batch_stands_between(three_stages) -> None:
    """Each is read by the next stage at once, or by nobody where that has not begun."""
    passes = {1: 3 * QUOTA, 2: 2 * QUOTA}
    unread = {1: QUOTA, 2: QUOTA}
    for b in three_stages.outcome.buffers:
        j = b.after_stage
        assert b.sent == b.inserted == passes[j]
        assert b.sampled == b.retired == passes[j] - unread[j]
        assert b.overwritten_unused + b.left == unread[j]
    assert [b.after_stage for b in three_stages.outcome.buffers] == [1, 2]


def test_no_entry_outlives_its_batch(simulate, small_config, monkeypatch) -> None:
    """However long the run: the passes through the stages of one batch are all that is held."""
    import gc
    import weakref

    from asyncdgl.buffers.entry import Entry
    from asyncdgl.engine import passes

    class Watched(Entry):
        __slots__ = ("__weakref__",)

    alive: weakref.WeakSet[Entry] = weakref.WeakSet()

    def watched(*arguments: Any) -> Entry:
        entry = Watched(*arguments)
        alive.add(entry)
        return entry

    monkeypatch.setattr(passes, "Entry", watched)
    most = []

    def count(simulation: Any) -> None:
        most.append(len(alive))

    simulate(small_config(**tree(epochs=1)), on_pass=count)
    gc.collect()
    assert 1 <= max(most) <= 3


@pytest.mark.parametrize(
    ("every", "expected"),
    [
        (1, [(j, e) for j in (1, 2, 3) for e in (1, 2, 3)]),
        (2, [(1, 2), (2, 2), (3, 2), (3, 3)]),
        (3, [(1, 3), (2, 3), (3, 3)]),
        (9, [(3, 3)]),
    ],
)
def test_evaluations_come_when_they_are_due_and_at_the_end(simulate, small_config, every, expected) -> None:
    run = simulate(small_config(**tree(batch_size=479, evaluation={"every": every})))
    lines = run.recorder.evaluations
    assert [(line.stage, line.epoch) for line in lines] == expected
    assert [line.final for line in lines] == [False] * (len(expected) - 1) + [True]
    assert lines[-1].test_accuracy == run.outcome.evaluation.test_accuracy


def test_earlier_heads_keep_their_accuracy_and_later_ones_have_not_begun(three_stages) -> None:
    by_key = {(line.stage, line.epoch): line.test_accuracy for line in three_stages.recorder.evaluations}
    for j in (2, 3):
        for epoch in (1, 2, 3):
            assert by_key[j, epoch][: j - 1] == by_key[3, 3][: j - 1]
    assert by_key[1, 1][0] != by_key[1, 3][0]
    assert all(by_key[1, epoch][1] < 0.4 and by_key[2, epoch][2] < 0.4 for epoch in (1, 2, 3)), "untrained heads"


def test_epoch_lines_come_stage_after_stage_each_with_its_own_schedule(three_stages) -> None:
    lines = three_stages.recorder.epochs
    assert [(line.stage, line.epoch, line.updates) for line in lines] == [
        (j, e, e * PER_EPOCH) for j in (1, 2, 3) for e in (1, 2, 3)
    ]
    assert [line.lr for line in lines] == pytest.approx(LR * 3)


def test_a_repeated_run_is_equal_but_for_wall_times(three_stages, simulate, small_config) -> None:
    again = simulate(small_config(**tree()))
    assert again.hashes == three_stages.hashes
    assert without_time(again) == without_time(three_stages)

    def bare(run: Any) -> list[Any]:
        return [r._replace(start_s=0.0, end_s=0.0, sampled_s=None) for r in run.trace]

    assert bare(again) == bare(three_stages)


def test_a_run_that_is_stopped_says_how_far_it_came(small_config, digits_folder, make_recorder) -> None:
    class Stopped(Exception):
        pass

    def check() -> None:
        if len(recorder.trace) == QUOTA + 20:
            raise Stopped

    recorder = make_recorder()
    simulation = Simulation(small_config(**tree()), digits_folder, recorder, check)
    with pytest.raises(Stopped):
        simulation.run()
    ends = simulation.outcome().ends
    assert {j: (e.updates, e.forward_passes) for j, e in ends.items()} == {1: (QUOTA, 10), 2: (10, 0), 3: (0, 0)}
