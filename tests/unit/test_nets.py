"""Networks: shapes, the cut into stages, auxiliary networks, initial weights, entry sizes and cost."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from asyncdgl.buffers.codecs import encode, payload_bytes
from asyncdgl.buffers.size import entry_bytes
from asyncdgl.config.yaml import parse_config
from asyncdgl.data.batch import Batch
from asyncdgl.learn.stage import Stage
from asyncdgl.nets.auxiliary import AveragePool, cnn, mlp, mlp_sr, short_head
from asyncdgl.nets.base import StageNet, make_networks, make_stage_net
from asyncdgl.nets.cost import stage_costs
from asyncdgl.nets.outputs import block_outputs
from asyncdgl.nets.shape import conv_shapes, cut

pytestmark = pytest.mark.usefixtures("one_thread")

PAPER = {
    "learning-curves": ((2, 4), [128, 256, 256, 512, 512, 512], [32, 16, 16, 8, 8, 8]),
    "asynchronous-study": ((3, 5), [128, 128, 256, 256, 512, 512], [32, 32, 16, 16, 8, 8]),
}
"""paper.md: blocks that begin with a pool, features and pixels of each of the six blocks at F = 128."""

DOWNSAMPLE = pytest.mark.parametrize(("downsample", "features", "pixels"), PAPER.values(), ids=PAPER)


def cifar(**over: Any) -> Any:
    return parse_config({"data": {"dataset": "cifar10"}, **over})


def leaves(module: nn.Module) -> Iterator[nn.Module]:
    return (part for part in module.modules() if not list(part.children()))


def drawn(module: nn.Module) -> list[str]:
    """The layers in a notation that shows kind and size."""
    notation = {
        nn.Conv2d: lambda m: (
            f"conv{m.kernel_size[0]} {m.in_channels}>{m.out_channels} pad{m.padding[0]}"
            + (" bias" if m.bias is not None else "")
        ),
        nn.BatchNorm2d: lambda m: f"norm {m.num_features}",
        nn.BatchNorm1d: lambda m: f"norm {m.num_features}",
        nn.ReLU: lambda m: "relu",
        nn.MaxPool2d: lambda m: f"max {m.kernel_size}",
        AveragePool: lambda m: f"average {m.size[0]}",
        nn.Linear: lambda m: f"linear {m.in_features}>{m.out_features}",
        nn.Flatten: lambda m: "flatten",
    }
    return [notation[type(part)](part) for part in leaves(module)]


def same_weights(one: nn.Module, other: nn.Module) -> bool:
    a, b = one.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# --- Shapes -----------------------------------------------------------------------------------------------------------


@DOWNSAMPLE
def test_block_shapes_are_the_papers(downsample, features, pixels) -> None:
    model = cifar(model={"downsample": downsample}).model
    shapes = conv_shapes((3, 32, 32), model.blocks, model.width, model.downsample)
    assert [shape.features for shape in shapes] == features
    assert [(shape.height, shape.width) for shape in shapes] == [(size, size) for size in pixels]
    assert block_outputs(model, (3, 32, 32), 10) == [(c, s, s) for c, s in zip(features, pixels, strict=True)]
    assert [shape.in_features for shape in shapes] == [3, *features[:-1]]
    assert [number for number, shape in enumerate(shapes, 1) if shape.pool] == list(downsample)


def test_the_default_is_that_of_the_learning_curves() -> None:
    assert cifar().model.downsample == (2, 4)


@DOWNSAMPLE
def test_the_network_has_these_shapes(downsample, features, pixels) -> None:
    config = cifar(model={"downsample": downsample}, stages=6)
    with torch.device("meta"):
        nets = make_networks(config, (3, 32, 32), 10)
        x = torch.empty(2, 3, 32, 32)
        for net, c, s in zip(nets, features, pixels, strict=True):
            x = net.module(x)
            assert x.shape == (2, c, s, s)
            assert net.aux(x).shape == (2, 10)


def test_a_block_is_pool_convolution_norm_relu() -> None:
    with torch.device("meta"):
        nets = make_networks(cifar(), (3, 32, 32), 10)
    assert drawn(nets[0].module) == ["conv3 3>128 pad1", "norm 128", "relu"]
    assert drawn(nets[1].module) == ["max 2", "conv3 128>256 pad1", "norm 256", "relu"]
    assert drawn(nets[2].module) == ["conv3 256>256 pad1", "norm 256", "relu"]


@pytest.mark.parametrize("size", [9, 15, 17])
def test_odd_image_sizes(size) -> None:
    config = parse_config(
        {"data": {"dataset": "synthetic", "image_size": size}, "model": {"width": 4}, "runtime": "sim"}
    )
    shapes = block_outputs(config.model, (3, size, size), 10)
    x = torch.zeros(2, 3, size, size)
    for net, shape in zip(make_networks(config, (3, size, size), 10), shapes, strict=True):
        x = net.module.eval()(x)
        assert x.shape == (2, *shape)
        assert net.aux.eval()(x).shape == (2, 10)


# --- The cut ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stages", "sizes"), [(1, [6]), (2, [3, 3]), (3, [2, 2, 2]), (4, [2, 2, 1, 1]), (5, [2, 1, 1, 1, 1]), (6, [1] * 6)]
)
def test_six_blocks_are_cut_evenly(stages, sizes) -> None:
    assert [len(part) for part in cut(6, stages)] == sizes


@given(st.integers(1, 64).flatmap(lambda blocks: st.tuples(st.just(blocks), st.integers(1, blocks))))
def test_a_cut_keeps_all_blocks_in_order(blocks_and_stages) -> None:
    blocks, stages = blocks_and_stages
    parts = cut(blocks, stages)
    assert len(parts) == stages
    assert [block for part in parts for block in part] == list(range(blocks))
    sizes = [len(part) for part in parts]
    assert max(sizes) - min(sizes) <= 1
    assert min(sizes) >= 1


@pytest.mark.parametrize("stages", [1, 2, 3, 4, 5, 6])
def test_the_same_blocks_overall_whatever_the_cut(stages) -> None:
    with torch.device("meta"):
        whole = make_networks(cifar(stages=1), (3, 32, 32), 10)
        nets = make_networks(cifar(stages=stages), (3, 32, 32), 10)
    assert [layer for net in nets for layer in drawn(net.module)] == drawn(whole[0].module)
    assert len(nets) == stages


# --- Auxiliary networks -----------------------------------------------------------------------------------------------


def hidden(layers: int, units: int) -> list[str]:
    return [f"linear {units}>{units}", f"norm {units}", "relu"] * layers + [f"linear {units}>10"]


AUXILIARY = {"mlp": mlp, "mlp-sr": mlp_sr, "cnn": cnn}

AUX_LAYERS = {
    "mlp": ["average 8", "average 2", "flatten", *hidden(3, 512)],
    "mlp-sr": ["average 8", *["conv1 128>128 pad0", "norm 128", "relu"] * 3, "average 2", "flatten", *hidden(3, 512)],
    "cnn": [*["conv3 128>128 pad1", "norm 128", "relu"] * 2, "average 2", "norm 128", "flatten", "linear 512>10"],
}


@pytest.mark.parametrize("kind", AUX_LAYERS)
def test_auxiliary_networks_are_the_papers(kind) -> None:
    with torch.device("meta"):
        assert drawn(AUXILIARY[kind]((128, 32, 32), 10)) == AUX_LAYERS[kind]


@pytest.mark.parametrize(("pixels", "quarter"), [(32, 8), (16, 4), (9, 3), (8, 2), (7, 2), (4, 1), (2, 1)])
@pytest.mark.parametrize("kind", ["mlp", "mlp-sr"])
def test_the_first_average_is_a_quarter_rounded_up(kind, pixels, quarter) -> None:
    aux = AUXILIARY[kind]((4, pixels, pixels), 10).eval()
    assert drawn(aux)[0] == f"average {quarter}"
    assert aux(torch.zeros(2, 4, pixels, pixels)).shape == (2, 10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("pixels", "size"), [(32, 8), (8, 2), (6, 2), (7, 2), (2, 2), (1, 2)])
def test_averages_and_their_gradients_are_torchs(pixels, size, dtype) -> None:
    x = torch.randn(3, 5, pixels, pixels, dtype=dtype).to(memory_format=torch.channels_last).requires_grad_()
    gradient = torch.randn(3, 5, size, size, dtype=dtype)
    found, expected = AveragePool(pixels, size)(x), nn.AdaptiveAvgPool2d(size)(x)
    (a,), (b,) = (torch.autograd.grad(out, x, gradient) for out in (found, expected))
    if pixels // size == 3:  # not divided by a power of two: the last bit may differ
        torch.testing.assert_close((found, a), (expected, b))
    else:
        assert torch.equal(found, expected)
        assert torch.equal(a, b)


def test_the_short_head_is_the_papers() -> None:
    with torch.device("meta"):
        assert drawn(short_head((128, 8, 8), 10)) == ["average 2", "flatten", *hidden(2, 512)]


@pytest.mark.parametrize("kind", AUX_LAYERS)
@pytest.mark.parametrize("head", ["mlp-2", "aux"])
def test_which_stage_has_which_head(kind, head) -> None:
    with torch.device("meta"):
        nets = make_networks(cifar(model={"aux": kind, "head": head}), (3, 32, 32), 10)
        last = short_head((512, 8, 8), 10) if head == "mlp-2" else AUXILIARY[kind]((512, 8, 8), 10)
        expected = [AUXILIARY[kind]((c, s, s), 10) for c, s in [(128, 32), (256, 16), (256, 16), (512, 8), (512, 8)]]
    assert [drawn(net.aux) for net in nets] == [drawn(aux) for aux in [*expected, last]]


# --- Initial weights --------------------------------------------------------------------------------------------------


def test_initial_weights_depend_on_seed_and_stage_alone(small_config) -> None:
    config = small_config()
    nets = make_networks(config, (1, 8, 8), 10)
    torch.manual_seed(99)
    for number in (3, 1, 2):  # any order, any state of torch's generator, any other setting
        again = make_stage_net(small_config(epochs=9, batch_size=32, buffer={"size": 2}), number, (1, 8, 8), 10)
        assert same_weights(again.module, nets[number - 1].module)
        assert same_weights(again.aux, nets[number - 1].aux)


def test_stages_and_seeds_begin_with_different_weights() -> None:
    # Blocks 2 and 3 of this network have the same shape, so that only the key can tell them apart.
    tree = {"runtime": "sim", "stages": 3, "model": {"blocks": 3, "width": 4, "downsample": [1]}}
    nets = [make_networks(parse_config({**tree, "seed": seed}), (1, 8, 8), 10) for seed in (0, 1)]
    modules = [net.module for seed in nets for net in seed[1:]]
    assert len(modules) == 4
    assert not any(same_weights(a, b) for i, a in enumerate(modules) for b in modules[:i])


def test_backprop_begins_with_the_weights_of_the_stages(small_config) -> None:
    stages = make_networks(small_config(), (1, 8, 8), 10)
    (whole,) = make_networks(small_config(algorithm="backprop"), (1, 8, 8), 10)
    assert same_weights(whole.module, nn.Sequential(*(net.module for net in stages)))
    assert same_weights(whole.aux, stages[-1].aux)


def test_building_leaves_torchs_generator_as_it_was(small_config) -> None:
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    make_networks(small_config(), (1, 8, 8), 10)
    assert torch.equal(torch.random.get_rng_state(), before)


# --- Size of an entry -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bf16", [False, True], ids=["float32", "bf16"])
@pytest.mark.parametrize("codec", ["none", "bf16", "int8"])
@pytest.mark.parametrize("stages", [2, 4])
def test_entry_bytes_are_those_of_an_encoded_entry(small_config, codec, stages, bf16) -> None:
    config = small_config(
        stages=stages,
        batch_size=6,
        buffer={"codec": codec},
        model={"blocks": 4, "downsample": [2, 3]},
        data={"dataset": "synthetic", "image_size": 9},
    )
    batch = Batch(torch.randn(6, 3, 9, 9), torch.arange(6), 0)
    sizes = []
    for net in make_networks(config, (3, 9, 9), 10)[:-1]:
        stage = Stage(net, config.optim, 1, bf16=bf16)
        output, trained = stage.forward(batch), stage.train(batch).output
        payloads = [encode(codec, x, batch.y) for x in (output, trained)]
        assert payload_bytes(payloads[0]) == payload_bytes(payloads[1])
        sizes.append(payload_bytes(payloads[0]))
        batch = Batch(output.float(), batch.y, 0)
    assert entry_bytes(config, bf16, block_outputs(config.model, (3, 9, 9), 10)) == sizes


def test_backprop_and_one_stage_have_no_entries(small_config) -> None:
    assert entry_bytes(small_config(algorithm="backprop"), False, [(4, 8, 8)] * 3) == []
    assert entry_bytes(small_config(stages=1), False, [(4, 8, 8)] * 3) == []


def test_a_mini_batch_of_the_asynchronous_study_is_218_mb() -> None:
    config = cifar(model={"downsample": (3, 5)})
    sizes = entry_bytes(config, False, block_outputs(config.model, (3, 32, 32), 10))
    assert len(sizes) == 5
    assert sum(sizes) / 1e6 == pytest.approx(218, abs=0.5)


# --- Cost -------------------------------------------------------------------------------------------------------------


def test_costs_of_a_stage_are_counted_by_hand() -> None:
    second = stage_costs(cifar(model={"aux": "mlp-sr"}), (3, 32, 32), 10)[1]
    # A 3x3 convolution from 128 to 256 features at 16x16 pixels; at 4x4 pixels three 1x1 convolutions.
    assert second.module_multiply_adds == 16 * 16 * 9 * 128 * 256
    assert second.aux_multiply_adds == 4 * 4 * 3 * 256**2 + 3 * 1024**2 + 1024 * 10
    assert second.module_parameters == 9 * 128 * 256 + 2 * 256
    assert second.aux_parameters == 3 * (256**2 + 2 * 256) + 3 * (1024**2 + 3 * 1024) + 1024 * 10 + 10


def test_counted_parameters_are_those_of_the_network() -> None:
    config = parse_config({"runtime": "sim"})
    costs = stage_costs(config, (1, 8, 8), 10)
    nets = make_networks(config, (1, 8, 8), 10)

    def size(net: StageNet) -> list[int]:
        return [sum(p.numel() for p in part.parameters()) for part in net]

    assert [[cost.module_parameters, cost.aux_parameters] for cost in costs] == [size(net) for net in nets]


@pytest.mark.parametrize("downsample", [(2, 4), (3, 5)], ids=["learning-curves", "asynchronous-study"])
@pytest.mark.parametrize(
    ("kind", "least", "most"),
    [
        # The published text has under 1 %; its own layers, counted, have 4.8 % (pools at 3, 5) and 6.7 % (2, 4).
        ("mlp", 0.045, 0.07),
        ("mlp-sr", 0.025, 0.1),
        ("cnn", 1.5, 3.0),
    ],
)
def test_share_of_the_auxiliary_networks_at_paper_scale(kind, least, most, downsample) -> None:
    costs = stage_costs(cifar(model={"aux": kind, "downsample": downsample}), (3, 32, 32), 10)
    share = sum(cost.aux_multiply_adds for cost in costs) / sum(cost.module_multiply_adds for cost in costs)
    assert least <= share <= most
