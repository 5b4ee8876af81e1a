"""Losses, optimizers, schedules, samplers, codecs and laws of one's own: they work, or are named before anything is."""

from __future__ import annotations

import subprocess
import sys
import time
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy

from asyncdgl.buffers.buffer import ReplayBuffer
from asyncdgl.buffers.entry import Entry, PassName, Provenance
from asyncdgl.buffers.link import Link
from asyncdgl.config.model import BufferConfig
from asyncdgl.delays.profiles import LinkDelay
from asyncdgl.errors import ConfigError, PartFailed
from asyncdgl.learn.learner import Learner, NoArithmetic
from asyncdgl.learn.losses import label_smoothing
from asyncdgl.plan.parts import check_parts
from asyncdgl.registry import choices, find
from asyncdgl.seeding import Draws

pytestmark = pytest.mark.usefixtures("one_thread", "own_parts")

IMAGE = (1, 8, 8)


def test_every_word_names_a_part() -> None:
    for kind in ("network", "auxiliary", "loss", "optimizer", "schedule", "sampler", "codec", "law"):
        for word in choices(kind):
            assert find(kind, word) is not None, (kind, word)


@pytest.mark.parametrize(
    "tree",
    [
        {"model": {"loss": "label-smoothing"}},
        {"model": {"loss": "own_parts:margin"}},
        {"model": {"aux": "own_parts:linear"}},
        {"optim": {"name": "adam", "lr": 0.003}},
        {"optim": {"name": "adamw", "lr": 0.003, "schedule": "cosine"}},
        {"optim": {"name": "torch.optim:RMSprop", "lr": 0.001}},
        {"optim": {"name": "own_parts:SignSGD", "lr": 0.002}},
        {"optim": {"schedule": "own_parts:warm_up"}},
        {"buffer": {"sampler": "own_parts:second_newest"}},
        {"buffer": {"codec": "own_parts:Float8"}},
        {"delays": {"profile": {"every_link": {"latency": {"law": "own_parts:two_values"}}}}},
        {"delays": {"profile": {"every_link": {"latency": {"law": "empirical", "values": [1, 2, 9]}}}}},
    ],
    ids=str,
)
def test_they_run_and_repeat_themselves(small_config, simulate, tree) -> None:
    config = small_config(**{**tree, "epochs": 2, "stages": 2})
    check_parts(config, IMAGE, 10)
    one, other = simulate(config), simulate(config)
    assert one.hashes == other.hashes
    assert one.hashes != simulate(small_config(epochs=2, stages=2)).hashes, "the part had an effect"
    assert one.outcome.evaluation.test_accuracy[-1] > 0.2


@pytest.mark.parametrize(
    ("tree", "says"),
    [
        ({"model": {"loss": "own_parts:loss_of_each"}}, r"loss own_parts:loss_of_each must give .*got shape \[10\]"),
        ({"model": {"loss": "own_parts:loss_without_gradient"}}, r"loss .* that scores have a gradient of"),
        ({"model": {"loss": "own_parts:warm_up"}}, r"loss own_parts:warm_up fails on scores \[10, 10\]: TypeError"),
        ({"optim": {"schedule": "own_parts:negative"}}, r"schedule .* at least 0, got -0.9.* after 1 of 2 epochs"),
        ({"optim": {"schedule": "own_parts:margin"}}, r"schedule own_parts:margin fails: TypeError"),
        ({"optim": {"name": "torch.optim:LBFGS"}}, r"optimizer torch.optim:LBFGS: it computes the loss several times"),
        ({"optim": {"name": "own_parts:margin"}}, r"optimizer own_parts:margin: can't be made|fails"),
        ({"optim": {"name": "torch.optim:Nadam"}}, r"optimizer torch.optim:Nadam: can't be imported"),
        ({"buffer": {"sampler": "own_parts:nothing"}}, r"sampler own_parts:nothing gave None, which is no entry"),
        ({"buffer": {"sampler": "own_parts:an_index"}}, r"sampler own_parts:an_index gave 0, which is no entry"),
        ({"buffer": {"sampler": "own_parts:margin"}}, r"sampler own_parts:margin fails"),
        ({"buffer": {"codec": "own_parts:Sparse"}}, r"codec own_parts:Sparse: decode must give back the shape"),
        (
            {"buffer": {"codec": "own_parts:Flat"}},
            r"codec own_parts:Flat: decode must give back the shape \[3, 4, 8, 8\]",
        ),
        ({"buffer": {"codec": "own_parts:NamesTheLabels"}}, r"codec .*: the name y is the labels'"),
        ({"buffer": {"codec": "own_parts:NoTensors"}}, r"codec .*: encode must give tensors by name .*, got bytes"),
        ({"buffer": {"codec": "own_parts:linear"}}, r"codec own_parts:linear: fails on an output"),
        (
            {"delays": {"profile": {"every_link": {"latency": {"law": "own_parts:below_zero"}}}}},
            r"law own_parts:below_zero: its quantile of 1e-09 must be a length of at least 0, got -0.49",
        ),
    ],
    ids=str,
)
def test_a_wrong_part_is_named(small_config, tree, says) -> None:
    with pytest.raises(ConfigError, match=says) as error:
        check_parts(small_config(**tree), IMAGE, 10)
    assert len(error.value.problems) == 1


def buffer_with(sampler: str, entries: int) -> ReplayBuffer[None]:
    draws = Draws(0, "test")
    buffer: ReplayBuffer[None] = ReplayBuffer(BufferConfig(sampler=sampler), Link(LinkDelay(), draws), draws)
    for step in range(entries):
        buffer.insert(Entry(Provenance(PassName(1, 0, step), step, True, step), None, 1), 0.0)
    return buffer


def test_a_sampler_that_goes_wrong_later_gets_one_clear_error() -> None:
    assert buffer_with("own_parts:nothing_when_many", 3).sample(0.0).source.name.step == 0
    buffer = buffer_with("own_parts:nothing_when_many", 4)
    with pytest.raises(PartFailed, match=r"sampler own_parts:nothing_when_many gave None, which is no entry"):
        buffer.sample(0.0)
    assert (buffer.sampled, [entry.times_sampled for entry in buffer.held]) == (0, [0] * 4)


def test_label_smoothing_is_cross_entropy_to_smoothed_labels() -> None:
    scores, y = torch.randn(6, 5, generator=torch.Generator().manual_seed(0)), torch.arange(6) % 5
    labels = 0.9 * torch.nn.functional.one_hot(y, 5) + 0.1 / 5
    assert torch.allclose(label_smoothing(scores, y), -(labels * scores.log_softmax(1)).sum(1).mean())
    assert label_smoothing(scores, y) != cross_entropy(scores, y)


def test_the_built_in_optimizers_do_not_import_the_compiler() -> None:
    """Two seconds in every process of a run."""
    code = """
import sys, torch
from asyncdgl.config.model import OptimConfig
from asyncdgl.learn.optimizers import make_optimizer
for name in ("sgd", "adam", "adamw"):
    optimizer = make_optimizer(OptimConfig(name=name), {"w": torch.ones(2, requires_grad=True)})
    optimizer.step([torch.ones(2)], 0.1)
sys.exit(any(module.startswith("torch._dynamo") for module in sys.modules))
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# --- The learner that computes nothing --------------------------------------------------------------------------------


def test_no_arithmetic_counts_and_gives_nothing() -> None:
    learner: Learner = NoArithmetic(updates_per_epoch=3)
    nothing: Any = None
    for _ in range(7):
        result = learner.train(nothing)
        assert learner.forward(nothing) is None
    assert (result.output, result.loss, result.correct) == (None, None, 0)
    assert (learner.updates, learner.completed_epochs) == (7, 2)
    assert (learner.lr, learner.published(), learner.state_sha256()) == (None, None, None)


def test_no_arithmetic_is_cheap() -> None:
    """A run of 1,024 stages has 626,000 passes, and a few seconds for all of them."""
    learner, began = NoArithmetic(100), time.process_time()
    for _ in range(626_000):
        learner.train(None)
    assert time.process_time() - began < 2


def test_no_arithmetic_needs_no_torch() -> None:
    code = "import sys; from asyncdgl.learn.learner import NoArithmetic; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
