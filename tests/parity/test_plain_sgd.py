"""Identity a: one stage is plain SGD bit for bit; and Algorithm 1 is a plain loop over stages, bit for bit.

The references are loops as a textbook has them: autograd, `torch.optim.SGD`, nothing of asyncdgl but its networks and
its mini-batches.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from asyncdgl.data.dataset import open_dataset
from asyncdgl.data.stream import make_stream
from asyncdgl.learn.stage import Stage
from asyncdgl.nets.base import StageNet, make_networks

pytestmark = pytest.mark.usefixtures("one_thread")

OPTIM = {"lr": 0.1, "momentum": 0.9, "weight_decay": 1e-2, "lr_decay_factor": 3}
SCHEDULES = {
    "decay-every": ({"lr_decay_every": 2}, [1, 1, 3, 3, 9]),
    "milestones": ({"lr_milestones": [1, 3]}, [1, 3, 3, 9, 9]),
}
"""Settings, and what the learning rate is divided by in each of five epochs."""

PER_EPOCH = 11


class PlainStage:
    """A network that learns by a loss of its own with torch's optimizer."""

    def __init__(self, net: StageNet) -> None:
        self.net = nn.ModuleDict({"module": net.module, "aux": net.aux}).to(memory_format=torch.channels_last)
        self.optimizer = torch.optim.SGD(
            self.net.parameters(),
            OPTIM["lr"],
            momentum=OPTIM["momentum"],
            weight_decay=OPTIM["weight_decay"],
            fused=True,
        )
        self.losses: list[float] = []

    def step(self, x: torch.Tensor, y: torch.Tensor, lr: float) -> torch.Tensor:
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.zero_grad()
        output = self.net["module"](x)
        loss = cross_entropy(self.net["aux"](output), y)
        loss.backward()
        self.optimizer.step()
        self.losses.append(loss.item())
        return output.detach()

    def state(self) -> dict[str, Any]:
        """In the form of ``Stage.state_dict``."""
        momentum = {n: self.optimizer.state[p]["momentum_buffer"] for n, p in self.net.named_parameters()}
        return {"weights": self.net.state_dict(), "optimizer": {"momentum": momentum}, "updates": len(self.losses)}


def plain_loop(config: Any, folder: Any, divisors: list[int]) -> list[PlainStage]:
    """For each mini-batch, for each network: forward, loss, backward, step; the output goes on detached."""
    torch.set_num_threads(1)
    dataset = open_dataset(config, folder)
    stages = [PlainStage(net) for net in make_networks(config, dataset.input_shape, len(dataset.classes))]
    stream = make_stream(config, dataset)
    for number in range(PER_EPOCH * config.epochs):
        batch = stream.get(number)
        x = batch.x
        for stage in stages:
            x = stage.step(x, batch.y, OPTIM["lr"] / divisors[number // PER_EPOCH])
    return stages


def state_hash(config: Any, plain: PlainStage) -> str:
    """The hash of a plain network, taken by a stage that has loaded it."""
    net = StageNet(plain.net["module"], plain.net["aux"])
    stage = Stage(net, config.optim, PER_EPOCH)
    stage.load_state_dict(plain.state())
    return stage.state_sha256()


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize(
    "tree",
    [
        pytest.param({"stages": 1}, id="async-dgl"),
        pytest.param({"stages": 1, "algorithm": "sync-dgl"}, id="sync-dgl"),
        pytest.param({"stages": 1, "delays": {"profile": "random"}, "data": {"augment": True}}, id="random-augmented"),
        pytest.param({"stages": 1, "model": {"head": "aux", "aux": "mlp-sr"}}, id="mlp-sr"),
        pytest.param({"stages": 1, "model": {"head": "aux", "aux": "cnn"}}, id="cnn"),
        pytest.param({"stages": 3, "algorithm": "backprop"}, id="backprop"),
        pytest.param({"stages": 3, "algorithm": "sync-dgl"}, id="sync-dgl-3-stages"),
        pytest.param({"stages": 2, "algorithm": "sync-dgl", "model": {"aux": "cnn"}}, id="sync-dgl-2-stages-cnn"),
    ],
)
def test_bit_for_bit(simulate, small_config, digits_folder, tree, schedule) -> None:
    optim, divisors = SCHEDULES[schedule]
    config = small_config(**{**tree, "epochs": 5, "optim": {**OPTIM, **optim}})
    run = simulate(config)
    plain = plain_loop(config, digits_folder, divisors)
    assert list(run.outcome.ends) == list(range(1, len(plain) + 1))
    for j, reference in enumerate(plain, 1):
        assert run.outcome.ends[j].updates == 5 * PER_EPOCH
        losses = [r.loss for r in run.trace if r.stage == j and r.kind == "train"]
        assert losses == reference.losses
        assert run.hashes[j] == state_hash(config, reference)


def test_the_hash_of_a_reference_tells_a_difference(small_config, digits_folder) -> None:
    config = small_config(stages=1, optim={**OPTIM, "lr_decay_every": 2}, epochs=1)
    one, other = plain_loop(config, digits_folder, [1])[0], plain_loop(config, digits_folder, [2])[0]
    assert state_hash(config, one) != state_hash(config, other)
    assert one.losses[0] == other.losses[0]
    assert one.losses[1:] != other.losses[1:]


def test_backprop_sends_gradients_through_the_whole_network(simulate, small_config) -> None:
    """Unlike stages: the first block of backprop ends elsewhere than stage 1, from the same first weights."""
    whole = simulate(small_config(algorithm="backprop", epochs=1))
    stages = simulate(small_config(algorithm="sync-dgl", epochs=1))
    assert whole.trace[0].loss == stages.trace[2].loss, "the last head's loss on the first batch"
    later = [r.loss for r in stages.trace if r.stage == 3][1:]
    assert [r.loss for r in whole.trace][1:] != later
