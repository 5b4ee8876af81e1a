"""A stage: training and forward-only passes, learning rates, state in and out, and its hash."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from asyncdgl.config.model import OptimConfig
from asyncdgl.data.batch import Batch
from asyncdgl.learn.schedules import step
from asyncdgl.learn.stage import Stage
from asyncdgl.nets.base import StageNet, make_stage_net

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def net(small_config) -> Callable[..., StageNet]:
    """``net(seed)``: stage 2 of the small network, which begins with a pool: [B, 4, 8, 8] to [B, 8, 4, 4]."""

    def make(seed: int = 0) -> StageNet:
        return make_stage_net(small_config(seed=seed), 2, (1, 8, 8), 10)

    return make


@pytest.fixture
def stage(net) -> Callable[..., Stage]:
    """``stage(seed)``: with three updates an epoch and a drop of the learning rate after each second one."""

    def make(seed: int = 0, bf16: bool = False, **optim: float) -> Stage:
        return Stage(net(seed), OptimConfig(**{"lr": 0.1, "lr_decay_every": 2, **optim}), 3, bf16=bf16)

    return make


def momentum(state: dict[str, Any]) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = state["optimizer"]["momentum"]
    return found


def with_momentum(state: dict[str, Any], values: dict[str, torch.Tensor]) -> dict[str, Any]:
    return {**state, "optimizer": {"momentum": values}}


def batch(number: int) -> Batch:
    random = torch.Generator().manual_seed(number)
    x = torch.randn(16, 4, 8, 8, generator=random).contiguous(memory_format=torch.channels_last)
    return Batch(x, torch.randint(10, (16,), generator=random), number)


# --- Passes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_the_fused_optimizer_step_is_the_textbooks_whatever_lies_where(net, stage, layout) -> None:
    """Against torch's plain loop over parameters in another layout; only the rounding differs."""
    reference, learner = net(), stage()
    parts = nn.ModuleDict({"module": reference.module, "aux": reference.aux}).to(memory_format=layout)
    optimizer = torch.optim.SGD(parts.parameters(), 0.1, momentum=0.9, weight_decay=5e-4, foreach=False)
    for number in range(2):
        # Momentum as another process would have stored it: contiguous.
        state = learner.state_dict()
        state = with_momentum(state, {name: value.contiguous() for name, value in momentum(state).items()})
        learner.load_state_dict(state)
        learner.train(batch(number))
        optimizer.zero_grad()
        cross_entropy(parts["aux"](parts["module"](batch(number).x)), batch(number).y).backward()
        optimizer.step()
    for name, value in parts.state_dict().items():
        torch.testing.assert_close(learner.published()[name], value, rtol=1e-4, atol=1e-5)


def test_the_output_of_train_is_from_before_the_update(net, stage) -> None:
    reference, learner = net(), stage()
    nn.ModuleList(reference).to(memory_format=torch.channels_last)
    for number in range(3):
        x, y = batch(number).x, batch(number).y
        # The same state before each pass: load what the stage has now.
        state = learner.published()
        reference.module.load_state_dict({k[7:]: v for k, v in state.items() if k.startswith("module.")})
        reference.aux.load_state_dict({k[4:]: v for k, v in state.items() if k.startswith("aux.")})
        expected = reference.module.train()(x)
        scores = reference.aux.train()(expected)
        result = learner.train(batch(number))
        assert torch.equal(result.output, expected)
        assert result.loss == cross_entropy(scores, y).item()
        assert result.correct == int((scores.argmax(1) == y).sum())
        assert not torch.equal(learner.train(batch(number)).output, result.output)


def test_no_gradient_leaves_the_stage(stage) -> None:
    learner, images = stage(), batch(0)
    images.x.requires_grad_()
    before = images.x.detach().clone()
    result = learner.train(images)
    assert images.x.grad is None
    assert not result.output.requires_grad
    assert torch.equal(images.x.detach(), before)
    assert not learner.forward(images).requires_grad
    assert all(not part.requires_grad for part in learner.scores(images.x))


def test_train_changes_everything_that_learns(stage) -> None:
    learner = stage()
    before = learner.published()
    learner.train(batch(0))
    after = learner.published()
    assert [name for name in before if torch.equal(before[name], after[name])] == []
    assert learner.updates == 1


def test_forward_changes_nothing(stage) -> None:
    learner = stage()
    learner.train(batch(0))
    before = learner.state_sha256()
    learner.forward(batch(1))
    learner.scores(batch(1).x)
    assert learner.state_sha256() == before
    assert learner.updates == 1


def test_forward_is_in_evaluation_mode(net, stage) -> None:
    learner, reference = stage(), net()
    nn.ModuleList(reference).to(memory_format=torch.channels_last)
    learner.train(batch(0))
    reference.module.load_state_dict({k[7:]: v for k, v in learner.published().items() if k.startswith("module.")})
    reference.aux.load_state_dict({k[4:]: v for k, v in learner.published().items() if k.startswith("aux.")})
    with torch.no_grad():
        expected = reference.module.eval()(batch(1).x)
        expected_scores = reference.aux.eval()(expected)
    assert torch.equal(learner.forward(batch(1)), expected)
    output, scores = learner.scores(batch(1).x)
    assert torch.equal(output, expected)
    assert torch.equal(scores, expected_scores)
    # In training mode the statistics of the batch itself would count.
    assert not torch.equal(learner.train(batch(1)).output, expected)


def test_a_forward_only_pass_between_updates_changes_no_update(stage) -> None:
    one, other = stage(), stage()
    one.train(batch(0))
    one.forward(batch(5))
    one.train(batch(1))
    other.train(batch(0))
    other.train(batch(1))
    assert one.state_sha256() == other.state_sha256()


def test_bf16_computes_in_bfloat16_and_keeps_float32_weights(stage) -> None:
    learner = stage(bf16=True)
    assert learner.train(batch(0)).output.dtype == torch.bfloat16
    assert learner.forward(batch(0)).dtype == torch.bfloat16
    assert learner.scores(batch(0).x)[1].dtype == torch.float32
    floating = [value.dtype for value in learner.published().values() if value.is_floating_point()]
    assert set(floating) == {torch.float32}


# --- Learning rate ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("optim", "expected"),
    [
        pytest.param(
            {"lr": 0.1, "lr_decay_every": 15},
            {0: 0.1, 14: 0.1, 15: 0.02, 29: 0.02, 30: 0.004, 45: 0.0008, 49: 0.0008},
            id="paper",
        ),
        pytest.param(
            {"lr": 0.01, "lr_decay_every": None, "lr_milestones": (150, 225), "lr_decay_factor": 10},
            {0: 0.01, 149: 0.01, 150: 0.001, 224: 0.001, 225: 0.0001, 299: 0.0001},
            id="resnet-milestones",
        ),
        pytest.param({"lr": 0.3, "lr_decay_every": 1, "lr_decay_factor": 1}, {0: 0.3, 9: 0.3}, id="factor-1"),
        pytest.param({"lr": 0.3, "lr_decay_every": None}, {0: 0.3, 1000: 0.3}, id="no-drop"),
    ],
)
def test_learning_rate_by_completed_epochs(optim, expected) -> None:
    config = OptimConfig(**optim)
    assert {epoch: step(config, epoch, 300) for epoch in expected} == pytest.approx(expected, rel=1e-12)


def test_a_run_of_ten_thousand_epochs_has_a_learning_rate_to_its_end() -> None:
    config = OptimConfig(lr=0.1, lr_decay_every=15, lr_decay_factor=5)
    rates = [step(config, epoch, 20_000) for epoch in (0, 15 * 441, 15 * 442, 20_000)]
    assert rates[0] == 0.1
    assert rates[0] > rates[1] > rates[2] >= rates[3] == 0.0


def test_the_learning_rate_follows_the_stages_own_updates(stage) -> None:
    learner, rates = stage(), []
    for number in range(13):
        rates.append(learner.lr)
        learner.train(batch(number))
    assert rates == pytest.approx([0.1] * 6 + [0.02] * 6 + [0.004])
    assert learner.completed_epochs == 4


def test_forward_only_passes_are_no_epochs(stage) -> None:
    learner = stage()
    for number in range(7):
        learner.forward(batch(number))
    assert (learner.completed_epochs, learner.lr) == (0, 0.1)


# --- State ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("momentum", [0.9, 0.0])
@pytest.mark.parametrize("updates", [0, 4, 6])
def test_a_loaded_state_goes_on_bit_for_bit(stage, updates, momentum, tmp_path) -> None:
    one, other = stage(seed=0, momentum=momentum), stage(seed=1, momentum=momentum)
    for number in range(updates):
        one.train(batch(number))
    other.train(batch(99))  # what was there before must leave no trace
    # Through a file that loads without executing code, as a checkpoint does.
    torch.save(one.state_dict(), tmp_path / "state.pt")
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert other.state_sha256() == one.state_sha256()
    for number in range(updates, updates + 4):
        one_result, other_result = one.train(batch(number)), other.train(batch(number))
        assert one_result.loss == other_result.loss
        assert torch.equal(one_result.output, other_result.output)
    assert other.state_sha256() == one.state_sha256()
    assert other.updates == updates + 4


def test_a_state_is_a_copy(stage) -> None:
    learner = stage()
    learner.train(batch(0))
    state, published = learner.state_dict(), learner.published()
    kept = copy.deepcopy((state, published))
    learner.train(batch(1))
    for now, then in ((state["weights"], kept[0]["weights"]), (momentum(state), momentum(kept[0]))):
        assert all(torch.equal(now[name], then[name]) for name in then)
    assert all(torch.equal(published[name], kept[1][name]) for name in published)
    # And the other way round: the stage owns what it has loaded.
    other = stage()
    other.load_state_dict(state)
    before = other.state_sha256()
    for value in (*state["weights"].values(), *momentum(state).values()):
        value.zero_()
    assert other.state_sha256() == before


def test_published_weights_are_all_that_evaluation_needs(stage) -> None:
    learner, evaluator = stage(seed=0), stage(seed=1)
    for number in range(3):
        learner.train(batch(number))
    evaluator.load_published(learner.published())
    assert torch.equal(evaluator.scores(batch(7).x)[1], learner.scores(batch(7).x)[1])
    assert evaluator.updates == 0
    assert momentum(evaluator.state_dict()) == {}
    assert all(value.device.type == "cpu" for value in learner.published().values())


# --- Hash -------------------------------------------------------------------------------------------------------------


def test_the_hash_is_the_same_on_any_memory_layout(net) -> None:
    parts = [net(), net()]
    optim = OptimConfig(lr=0.1)
    one, other = (Stage(part, optim, 3) for part in parts)
    for number in range(2):
        one.train(batch(number))
    state = one.state_dict()
    nn.ModuleList(parts[1]).to(memory_format=torch.contiguous_format)
    other.load_state_dict(with_momentum(state, {name: value.contiguous() for name, value in momentum(state).items()}))
    # A 3x3 kernel with several channels tells the layouts apart.
    kernels = [next(p for p in part.module.parameters() if p.dim() == 4) for part in parts]
    assert kernels[0].stride() != kernels[1].stride()
    assert one.state_sha256() == other.state_sha256()


def test_the_hash_depends_on_every_part(stage) -> None:
    learner = stage()
    learner.train(batch(0))
    state = learner.state_dict()
    hashes = {learner.state_sha256()}
    variants = 0
    for part in (lambda of: of["weights"], momentum):
        for name, value in part(state).items():
            changed = copy.deepcopy(state)
            flat = part(changed)[name].reshape(-1)
            flat[-1] += 1
            part(changed)[name] = flat.reshape(value.shape)
            other = stage()
            other.load_state_dict(changed)
            hashes.add(other.state_sha256())
            variants += 1
    counted = stage()
    counted.load_state_dict({**state, "updates": 2})
    hashes.add(counted.state_sha256())
    without_momentum = stage()
    without_momentum.load_state_dict(with_momentum(state, {}))
    hashes.add(without_momentum.state_sha256())
    assert variants > 20
    assert len(hashes) == 1 + variants + 2


def test_the_hash_tells_the_smallest_change(stage) -> None:
    one, other = stage(), stage()
    state = one.state_dict()
    name = next(name for name in state["weights"] if name.endswith("0.bias"))
    state["weights"][name] = -state["weights"][name] * 0 - 0.0  # minus zero against zero: equal, but other bits
    one.load_state_dict({**state, "weights": {**state["weights"], name: torch.zeros_like(state["weights"][name])}})
    other.load_state_dict(state)
    assert torch.equal(one.published()[name], other.published()[name]) is True
    assert one.state_sha256() != other.state_sha256()
