"""Optimizers and schedules against plain loops with torch.optim, bit for bit."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from asyncdgl.config.model import OptimConfig
from asyncdgl.data.batch import Batch
from asyncdgl.learn.learner import State
from asyncdgl.learn.stage import Stage
from asyncdgl.nets.base import StageNet, make_stage_net

pytestmark = pytest.mark.usefixtures("one_thread", "own_parts")

PER_EPOCH, EPOCHS = 3, 4
SETTINGS = {"lr": 0.02, "weight_decay": 0.05, "momentum": 0.8, "betas": (0.8, 0.95), "eps": 1e-6}

ADAM = {"weight_decay": 0.05, "betas": (0.8, 0.95), "eps": 1e-6}
OPTIMIZERS: dict[str, tuple[type[torch.optim.Optimizer], dict[str, Any]]] = {
    "sgd": (torch.optim.SGD, {"weight_decay": 0.05, "momentum": 0.8, "fused": True}),
    "adam": (torch.optim.Adam, {**ADAM, "fused": True}),
    "adamw": (torch.optim.AdamW, {**ADAM, "fused": True}),
    "torch.optim:SGD": (torch.optim.SGD, {"weight_decay": 0.05, "momentum": 0.8}),
    "torch.optim:Adam": (torch.optim.Adam, ADAM),
    "torch.optim:RMSprop": (torch.optim.RMSprop, {"weight_decay": 0.05, "momentum": 0.8, "eps": 1e-6}),
    "torch.optim:Adagrad": (torch.optim.Adagrad, {"weight_decay": 0.05, "eps": 1e-6}),
    "torch.optim:NAdam": (torch.optim.NAdam, ADAM),
}


def batch(number: int) -> Batch:
    random = torch.Generator().manual_seed(number)
    x = torch.randn(16, 4, 8, 8, generator=random).contiguous(memory_format=torch.channels_last)
    return Batch(x, torch.randint(10, (16,), generator=random), number)


@pytest.fixture
def net(small_config):
    """Stage 2 of the small network, from the same weights each time."""
    return lambda: make_stage_net(small_config(), 2, (1, 8, 8), 10)


def plain(net: StageNet, kind: type[torch.optim.Optimizer], settings: dict[str, Any], rates: list[float]) -> State:
    parts = nn.ModuleDict({"module": net.module, "aux": net.aux}).to(memory_format=torch.channels_last)
    optimizer = kind(parts.parameters(), lr=rates[0], **settings)
    for number, rate in enumerate(rates):
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.zero_grad()
        cross_entropy(parts["aux"](parts["module"](batch(number).x)), batch(number).y).backward()
        optimizer.step()
    return parts.state_dict()


def learned(stage: Stage, updates: range) -> State:
    for number in updates:
        stage.train(batch(number))
    return stage.published()


def assert_same(one: State, other: State) -> None:
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizers_are_torchs(net, name) -> None:
    kind, settings = OPTIMIZERS[name]
    stage = Stage(net(), OptimConfig(name=name, **SETTINGS, schedule="constant"), PER_EPOCH)
    assert_same(learned(stage, range(12)), plain(net(), kind, settings, [0.02] * 12))


@pytest.mark.parametrize("name", [*OPTIMIZERS, "own_parts:Counting", "own_parts:two_rates", "own_parts:SignSGD"])
def test_a_loaded_state_goes_on_bit_for_bit(net, name, tmp_path) -> None:
    optim = OptimConfig(name=name, **SETTINGS)
    one, other = Stage(net(), optim, PER_EPOCH), Stage(net(), optim, PER_EPOCH)
    learned(one, range(5))
    learned(other, range(50, 52))  # leaves no trace
    torch.save(one.state_dict(), tmp_path / "state.pt")
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert other.state_sha256() == one.state_sha256()
    assert_same(learned(one, range(5, 9)), learned(other, range(5, 9)))
    assert other.state_sha256() == one.state_sha256()


@pytest.mark.parametrize("name", ["adam", "torch.optim:RMSprop", "own_parts:Counting"])
def test_the_hash_covers_what_the_optimizer_keeps(net, name) -> None:
    stage = Stage(net(), OptimConfig(name=name, **SETTINGS), PER_EPOCH)
    learned(stage, range(2))
    state, before = stage.state_dict(), stage.state_sha256()
    kinds = state["optimizer"]
    assert kinds
    for values in kinds.values():
        parameter, value = next(iter(values.items()))
        values[parameter] = value + 1
        stage.load_state_dict(state)
        assert stage.state_sha256() != before
        values[parameter] = value
    stage.load_state_dict(state)
    assert stage.state_sha256() == before


def test_parameter_groups_keep_their_ratio(net) -> None:
    optim = OptimConfig(name="own_parts:two_rates", lr=0.1, lr_decay_every=1, lr_decay_factor=2)
    reference = nn.ModuleDict(net()._asdict()).to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(
        [{"params": list(reference["module"].parameters())}, {"params": list(reference["aux"].parameters())}], lr=0.1
    )
    for number in range(4):
        rate = 0.1 / 2 ** (number // 2)
        for group, share in zip(optimizer.param_groups, (1.0, 0.1 * 0.1 / 0.1), strict=True):
            group["lr"] = rate * share
        optimizer.zero_grad()
        cross_entropy(reference["aux"](reference["module"](batch(number).x)), batch(number).y).backward()
        optimizer.step()
    found = learned(Stage(net(), optim, 2, epochs=2), range(4))
    for name, value in reference.state_dict().items():
        torch.testing.assert_close(found[name], value, rtol=1e-6, atol=1e-7)


SCHEDULES: dict[str, Any] = {
    "step": (
        {"lr_decay_every": 2, "lr_decay_factor": 5},
        lambda o: torch.optim.lr_scheduler.StepLR(o, 2 * PER_EPOCH, 1 / 5),
    ),
    "step-milestones": (
        {"lr_decay_every": None, "lr_milestones": (1, 3), "lr_decay_factor": 10},
        lambda o: torch.optim.lr_scheduler.MultiStepLR(o, [PER_EPOCH, 3 * PER_EPOCH], 0.1),
    ),
    "constant": ({}, lambda o: torch.optim.lr_scheduler.ConstantLR(o, 1.0)),
    "cosine": ({}, lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, EPOCHS * PER_EPOCH)),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules_are_torchs(net, name) -> None:
    settings, make = SCHEDULES[name]
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.3)
    scheduler = make(optimizer)
    stage = Stage(net(), OptimConfig(lr=0.3, schedule=name.split("-")[0], **settings), PER_EPOCH, epochs=EPOCHS)
    for number in range(EPOCHS * PER_EPOCH):
        assert stage.lr == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9, abs=1e-12)
        stage.train(batch(number))
        optimizer.step()
        scheduler.step()
    assert stage.lr == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9, abs=1e-12)


def test_a_schedule_is_what_an_update_uses(net) -> None:
    stage = Stage(net(), OptimConfig(lr=0.1, momentum=0, weight_decay=0, schedule="cosine"), PER_EPOCH, epochs=EPOCHS)
    count = EPOCHS * PER_EPOCH
    rates = [0.1 * (1 + math.cos(math.pi * number / count)) / 2 for number in range(count)]
    expected = plain(net(), torch.optim.SGD, {"fused": True}, rates)
    assert_same(learned(stage, range(count)), expected)


def test_a_schedule_of_ones_own(net) -> None:
    stage = Stage(net(), OptimConfig(lr=0.1, schedule="own_parts:warm_up"), PER_EPOCH, epochs=EPOCHS)
    rates = []
    for number in range(8):
        rates.append(stage.lr)
        stage.train(batch(number))
    assert rates == pytest.approx([0.1 * min(1.0, (number / 3 + 0.1) / 2) for number in range(8)])
