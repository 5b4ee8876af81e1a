"""Networks of one's own: their shapes and costs, how they are cut and seeded, how they learn, and what is refused."""

from __future__ import annotations

import copy
import sys
from typing import Any

import pytest
import torch
from torch import nn

from asyncdgl.buffers.codecs import encode, payload_bytes
from asyncdgl.buffers.size import entry_bytes
from asyncdgl.cli.main import main
from asyncdgl.config.yaml import parse_config
from asyncdgl.data.batch import Batch
from asyncdgl.errors import ConfigError
from asyncdgl.learn.stage import Stage
from asyncdgl.nets.auxiliary import cnn, mlp, mlp_sr, short_head
from asyncdgl.nets.base import make_networks, make_stage_net
from asyncdgl.nets.check import check_network
from asyncdgl.nets.cost import block_multiply_adds, stage_costs
from asyncdgl.nets.outputs import block_outputs
from asyncdgl.nets.probe import measured_outputs
from asyncdgl.plan.balance import best_cut, by_cost
from asyncdgl.plan.machine import bf16_gains
from asyncdgl.plan.memory import buffer_bytes, check_memory
from asyncdgl.plan.parts import check_parts
from asyncdgl.registry import find, handed_over

pytestmark = pytest.mark.usefixtures("one_thread", "own_parts")

IMAGE = (1, 8, 8)
NETWORKS = {
    "resnet": [(4, 8, 8), (4, 8, 8), (8, 4, 4), (8, 4, 4)],
    "mlp": [(16,), (16,), (16,)],
    "transformer": [(16, 8)] * 3,
}
"""Outputs of the blocks, for the digits."""


@pytest.fixture
def own(small_config):
    """``own("resnet", stages=2)``: a small run of a network of own_parts."""

    def make(name: str, **over: Any) -> Any:
        model = {"name": f"own_parts:{name}", "aux": "mlp", **over.pop("model", {})}
        return small_config(**{"stages": 3, "epochs": 1, **over, "model": model})

    return make


def same_weights(one: nn.Module, other: nn.Module) -> bool:
    a, b = one.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# --- Shapes and costs -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NETWORKS)
def test_shapes_are_those_that_real_tensors_have(own, name) -> None:
    config = own(name)
    assert block_outputs(config.model, IMAGE, 10) == NETWORKS[name]
    x, blocks = torch.zeros(2, *IMAGE), 0
    for net in make_networks(config, IMAGE, 10):
        blocks += len(net.module)
        x = net.module.eval()(x)
        assert x.shape == (2, *NETWORKS[name][blocks - 1])
        assert net.aux.eval()(x).shape == (2, 10)
    assert blocks == len(NETWORKS[name])


@pytest.mark.parametrize("size", [8, 9, 13])
@pytest.mark.parametrize("downsample", [(), (1,), (2, 4)])
def test_the_arithmetic_of_the_built_in_network_is_the_meta_devices(small_config, size, downsample) -> None:
    model = small_config(
        data={"dataset": "synthetic", "image_size": size}, model={"blocks": 4, "downsample": downsample}
    ).model
    assert block_outputs(model, (3, size, size), 10) == measured_outputs(model, (3, size, size), 10)
    assert block_outputs(model, (3, size, 2 * size), 10) == measured_outputs(model, (3, size, 2 * size), 10)


def test_options_reach_the_network(own) -> None:
    assert block_outputs(own("resnet", model={"options": {"width": 2, "blocks": 3}}).model, IMAGE, 10) == [
        (2, 8, 8),
        (2, 8, 8),
        (4, 4, 4),
    ]


def test_costs_by_hand(own) -> None:
    config = own("mlp", model={"aux": "own_parts:linear", "head": "aux"})
    first, second, _ = stage_costs(config, IMAGE, 10)
    assert (first.module_parameters, first.module_multiply_adds) == (64 * 16 + 16, 64 * 16)
    assert (second.module_parameters, second.module_multiply_adds) == (16 * 16 + 16, 16 * 16)
    assert (first.aux_parameters, first.aux_multiply_adds) == (16 * 10 + 10, 16 * 10)
    assert block_multiply_adds(config.model, IMAGE, 10) == [64 * 16, 16 * 16, 16 * 16]


def test_attention_is_counted(own) -> None:
    tokens, width = NETWORKS["transformer"][0]
    cost = block_multiply_adds(own("transformer").model, IMAGE, 10)
    matrices = tokens * width * (3 * width + width + 2 * 2 * width)  # queries, keys, values; out; two of the MLP
    assert cost[0] == tokens * 4 * width
    assert cost[1] == matrices + 2 * tokens * tokens * width


@pytest.mark.parametrize("codec", ["none", "bf16", "int8", "own_parts:Float8"])
@pytest.mark.parametrize("name", NETWORKS)
def test_entry_bytes_are_those_of_an_encoded_entry(own, name, codec) -> None:
    config = own(name, batch_size=6, buffer={"codec": codec})
    batch = Batch(torch.randn(6, *IMAGE), torch.arange(6), 0)
    sizes = []
    for net in make_networks(config, IMAGE, 10)[:-1]:
        output = Stage(net, config.optim, 1).forward(batch)
        sizes.append(payload_bytes(encode(codec, output, batch.y)))
        batch = Batch(output, batch.y, 0)
    assert entry_bytes(config, False, block_outputs(config.model, IMAGE, 10)) == sizes


# --- Auxiliary networks -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(5, 1, 1), (5, 6, 3), (7, 5), (1, 5), (5,)])
@pytest.mark.parametrize("make", [mlp, mlp_sr, short_head])
def test_built_in_auxiliary_networks_read_every_kind_of_output(make, shape) -> None:
    aux = make(shape, 10)
    scores = aux(torch.randn(4, *shape, requires_grad=True))
    assert scores.shape == (4, 10)
    assert all(gradient is not None for gradient in torch.autograd.grad(scores.sum(), list(aux.parameters())))


@pytest.mark.parametrize("make", [mlp, mlp_sr])
@pytest.mark.parametrize(("shape", "units"), [((7, 5), 5), ((5,), 5), ((5, 4, 4), 20)])
def test_three_hidden_layers_as_wide_as_their_input(make, shape, units) -> None:
    linear = [(m.in_features, m.out_features) for m in make(shape, 10).modules() if isinstance(m, nn.Linear)]
    assert linear == [(units, units)] * 3 + [(units, 10)]


def test_the_mean_over_positions_is_taken() -> None:
    aux = mlp((7, 5), 10).eval()
    x = torch.randn(2, 7, 5)
    assert torch.allclose(aux(x), mlp_without_mean(aux)(x.mean(1)), atol=1e-6)


def mlp_without_mean(aux: nn.Sequential) -> nn.Sequential:
    return aux[1:]


@pytest.mark.parametrize("shape", [(7, 5), (5,)])
def test_convolutions_need_pixels(shape) -> None:
    with pytest.raises(ConfigError, match=r"auxiliary network cnn reads outputs \[B, C, H, W\]"):
        cnn(shape, 10)


# --- Initial weights --------------------------------------------------------------------------------------------------


def test_weights_are_drawn_under_the_stages_own_key(own) -> None:
    nets = make_networks(own("resnet"), IMAGE, 10)
    torch.manual_seed(1)
    again = make_stage_net(own("resnet", batch_size=16), 2, IMAGE, 10)
    other = make_stage_net(own("resnet", seed=1), 2, IMAGE, 10)
    assert same_weights(again.module, nets[1].module)
    assert same_weights(again.aux, nets[1].aux)
    assert not same_weights(other.module, nets[1].module)


def test_a_given_row_keeps_its_weights_and_is_copied(small_config) -> None:
    row = nn.Sequential(nn.Sequential(nn.Flatten(), nn.Linear(64, 6)), nn.Linear(6, 6), nn.Linear(6, 6))
    before = copy.deepcopy(row)
    with handed_over({"network": row}):
        config = small_config(stages=3, model={"name": "given"})
        nets = make_networks(config, IMAGE, 10)
        auxiliary = make_stage_net(config.replace(seed=5), 1, IMAGE, 10).aux
    for net, block in zip(nets, row, strict=True):
        assert same_weights(net.module[0], block)
    Stage(nets[0], config.optim, 1).train(Batch(torch.randn(4, *IMAGE), torch.arange(4), 0))
    assert same_weights(row, before)
    assert not same_weights(auxiliary, nets[0].aux), "auxiliary networks are drawn under the seed"


def test_a_row_can_be_named(own) -> None:
    row = find("network", "own_parts:given")
    assert same_weights(make_stage_net(own("given"), 2, IMAGE, 10).module[0], row[1])


# --- Learning ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", ["async-dgl", "sync-dgl", "sequential-dgl", "backprop"])
@pytest.mark.parametrize("name", NETWORKS)
def test_they_learn_and_repeat_themselves_bit_for_bit(own, simulate, name, algorithm) -> None:
    config = own(name, algorithm=algorithm, epochs=3, batch_size=64, optim={"lr": 0.05})
    check_parts(config, IMAGE, 10)
    runs = [simulate(config) for _ in range(2)]
    assert runs[0].hashes == runs[1].hashes
    accuracies = runs[0].outcome.evaluation.test_accuracy
    assert len(accuracies) == (1 if algorithm == "backprop" else 3)
    assert accuracies[-1] > 0.2, "twice what guessing gives"


def test_what_is_drawn_in_training_depends_on_seed_stage_and_update_alone(own) -> None:
    config = own("transformer", model={"options": {"dropout": 0.5}})
    batch = Batch(torch.randn(8, *IMAGE), torch.arange(8), 0)
    inputs = Batch(torch.randn(8, 16, 8), torch.arange(8), 0)

    def losses(disturb: bool) -> list[float | None]:
        first, second = (
            Stage(net, config.optim, 10, draws=find_draws(config, j))
            for j, net in enumerate(make_networks(config, IMAGE, 10)[:2], 1)
        )
        found = []
        for number in range(4):
            if disturb:  # other stages that train between, and others who draw
                first.train(batch)
                torch.manual_seed(number)
            found.append(second.train(inputs).loss)
        return found

    assert losses(False) == losses(True)
    again = Stage(make_stage_net(config, 2, IMAGE, 10), config.optim, 10, draws=find_draws(config, 3))
    assert again.train(inputs).loss != losses(False)[0], "another key draws other numbers"


def find_draws(config: Any, number: int) -> Any:
    from asyncdgl.seeding import Draws

    return Draws(config.seed, "stage", number)


def test_training_leaves_torchs_generator_as_it_was(own) -> None:
    stage = Stage(make_stage_net(own("transformer"), 2, IMAGE, 10), own("transformer").optim, 10)
    before = torch.random.get_rng_state()
    stage.train(Batch(torch.randn(8, 16, 8), torch.arange(8), 0))
    assert not torch.equal(torch.random.get_rng_state(), before)  # the input was drawn
    before = torch.random.get_rng_state()
    stage.train(Batch(torch.zeros(8, 16, 8), torch.arange(8), 0))
    assert torch.equal(torch.random.get_rng_state(), before)


def test_frozen_and_unused_parameters_stay_as_they_are(small_config) -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.frozen, self.unused = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
            self.frozen.requires_grad_(False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.frozen(self.used(x))

    with handed_over({"network": nn.Sequential(Block())}):
        config = small_config(stages=1).replace(model={"name": "given"})
        stage = Stage(make_stage_net(config, 1, (4,), 10), config.optim, 1)
    before = stage.published()
    stage.train(Batch(torch.randn(8, 4), torch.arange(8), 0))
    changed = {name for name, value in stage.published().items() if not torch.equal(value, before[name])}
    assert {name for name in changed if name.startswith("module.")} == {
        "module.0.used.weight",
        "module.0.used.bias",
    }
    stage.load_state_dict(stage.state_dict())
    stage.train(Batch(torch.randn(8, 4), torch.arange(8), 0))


def test_parameters_of_five_dimensions(small_config) -> None:
    """Which have no channels-last layout of images."""
    row = nn.Sequential(nn.Sequential(nn.Conv3d(1, 2, 3, padding=1), nn.Flatten(), nn.Linear(54, 4)))
    with handed_over({"network": row}):
        config = small_config(stages=1).replace(model={"name": "given"})
        stage = Stage(make_stage_net(config, 1, (1, 3, 3, 3), 10), config.optim, 1)
    stage.train(Batch(torch.randn(8, 1, 3, 3, 3), torch.arange(8), 0))
    assert stage.updates == 1


# --- What is planned --------------------------------------------------------------------------------------------------


def test_the_best_cut_is_measured(own) -> None:
    config = own("resnet", stages=2)
    assert best_cut(config, IMAGE, 10).cut in {(1,), (2,), (3,)}
    model = {"name": "own_parts:resnet", "balance": "cost"}
    decided, measured = by_cost(parse_config({"runtime": "sim", "stages": 2, "model": model}), config, IMAGE, 10)
    assert measured is not None
    assert decided.model.cut == measured.cut
    assert [len(net.module) for net in make_networks(decided, IMAGE, 10)] == [measured.cut[0], 4 - measured.cut[0]]


@pytest.mark.parametrize(("width", "gains"), [(4, False), (512, True)])
def test_bfloat16_gains_where_blocks_multiply_much(own, width, gains) -> None:
    config = own("resnet", model={"options": {"width": width}})
    assert bf16_gains(config, {"amx_bf16"}) is gains
    assert bf16_gains(config, set()) is False


def test_the_memory_of_the_buffers(own) -> None:
    config = own("mlp", batch_size=32, buffer={"size": 5})
    assert buffer_bytes(config) == [5 * 32 * (4 * 16 + 8)] * 2
    with pytest.raises(ConfigError, match=r"buffer.size 1000000000: .* would fit"):
        check_memory(own("mlp", buffer={"size": 10**9}))
    assert buffer_bytes(config, [(3,)] * 3) == [5 * 32 * (4 * 3 + 8)] * 2


# --- What is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("two_inputs", r"block 3 \(TwoInputs\) can't be called with its one input, \[B, 4, 8, 8\].*mask"),
        ("returns_a_tuple", r"block 4 \(LSTM\) must return one tensor.*got tuple"),
        (
            "changes_the_batch",
            r"block 2 \(Gives\) must keep the batch as the first dimension: 3 images became \[96, 8\]",
        ),
        ("forgets_the_batch", r"block 2 \(Gives\) must keep the batch.*became \[\]"),
        ("features_do_not_fit", r"block 2 \(Conv2d\) can't be called with its one input, \[B, 4, 8, 8\]"),
        ("no_module", r"block 2 must be a torch.nn.Module, got builtin_function_or_method"),
        ("shared", r"block 4 shares weight with block 2"),
        ("tied", r"block 3 shares weight with block 2"),
        ("lazy", r"block 2: weight has no shape before its first use"),
        ("without_parameters", r"stage 2 \(block 2 of network own_parts:without_parameters\) has no parameters"),
        ("frozen", r"stage 2 \(block 2 .*\) has no parameters that learn"),
        ("in_place", r"stage 2 \(block 2 .*\) changes its input in place.*inplace=False"),
        ("in_place_in_training", r"stage 2 \(block 2 .*\) changes its input in place"),
        ("two_blocks", r"stages must be at most the blocks of network own_parts:two_blocks, 2.*got 3"),
        ("no_blocks", r"own_parts:no_blocks has no blocks"),
        ("a_module", r"own_parts:a_module must give a list of blocks, got Conv2d"),
        ("raises", r"can't be made for input \(1, 8, 8\) and 10 classes: RuntimeError: no weights for so many classes"),
        ("missing", r"network own_parts:missing: can't be imported: AttributeError"),
    ],
)
def test_a_wrong_network_is_named(own, name, says) -> None:
    with pytest.raises(ConfigError, match=says) as error:
        check_parts(own(name), IMAGE, 10)
    assert len(error.value.problems) == 1
    assert len(str(error.value)) < 500


@pytest.mark.parametrize("over", [{"model": {"options": {"depth": 3}}}, {"model": {"cut": (1, 4)}}], ids=str)
def test_settings_that_do_not_fit_the_network(own, over) -> None:
    with pytest.raises(
        ConfigError, match=r"depth|model\.cut must name blocks below the last one of .*, 4; got \[1, 4\]"
    ):
        check_parts(own("resnet", **over), IMAGE, 10)


@pytest.mark.parametrize(
    ("aux", "says"),
    [
        (
            "own_parts:too_few_classes",
            r"stage 1: auxiliary network .* must make class scores \[3, 10\] .*, got \[3, 9\]",
        ),
        ("own_parts:ignores_the_shape", r"stage 1: auxiliary network .* can't be used on the stage's output \[3, 16\]"),
        ("own_parts:aux_in_place", r"stage 1: auxiliary network .* changes the stage's output in place"),
        ("cnn", r"stage 1: auxiliary network cnn reads outputs \[B, C, H, W\], and a stage's output is \[B, 16\]"),
    ],
)
def test_a_wrong_auxiliary_network_is_named(own, aux, says) -> None:
    with pytest.raises(ConfigError, match=says):
        check_parts(own("mlp", model={"aux": aux}), IMAGE, 10)


def test_layers_of_a_sequential_are_blocks(small_config) -> None:
    """A flat one is cut where the user says, or is refused where a stage would not learn."""
    row = find("network", "own_parts:flat_sequential")()
    with handed_over({"network": row}):
        with pytest.raises(ConfigError, match=r"stage 1 \(block 1 of the given Sequential\) has no parameters"):
            check_network(small_config(stages=6, model={"name": "given"}), IMAGE, 10)
        check_network(small_config(stages=3, model={"name": "given", "cut": (3, 5)}), IMAGE, 10)


def test_a_given_network_has_to_be_handed_over_again(small_config) -> None:
    with pytest.raises(ConfigError, match=r"network given: .*hand it over again"):
        check_parts(small_config(model={"name": "given"}), IMAGE, 10)


def test_a_module_that_is_imported_while_shapes_are_found_is_real(own, monkeypatch) -> None:
    monkeypatch.delitem(sys.modules, "own_parts", raising=False)
    config = own("given")
    assert block_outputs(config.model, IMAGE, 10) == [(6,)] * 3
    assert not next(make_stage_net(config, 1, IMAGE, 10).module.parameters()).is_meta


def test_the_network_conv_needs_images(small_config) -> None:
    with pytest.raises(ConfigError, match=r"model.name conv needs images"):
        check_parts(small_config(), (64,), 10)


def test_a_shared_module_without_weights_is_no_harm(small_config) -> None:
    act = nn.ReLU()
    row = nn.Sequential(*(nn.Sequential(nn.Flatten(), nn.Linear(64, 64), act) for _ in range(3)))
    with handed_over({"network": row}):
        check_network(small_config(stages=3, model={"name": "given"}), IMAGE, 10)


def test_parts_that_are_built_in_are_not_tried(small_config, monkeypatch) -> None:
    monkeypatch.setattr("asyncdgl.nets.check.check_network", lambda *a: pytest.fail("tried"))
    check_parts(small_config(), IMAGE, 10)


@pytest.mark.parametrize("flags", [[], ["--dry-run"]], ids=["run", "dry-run"])
@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (["--model", "own_parts:two_inputs"], "network own_parts:two_inputs: block 3 (TwoInputs) can't be called"),
        (["--model", "own_parts:missing"], "network own_parts:missing: can't be imported"),
        (["--model", "own_parts:mlp", "--aux", "cnn"], "auxiliary network cnn reads outputs [B, C, H, W]"),
        (["--set", "optim.name=torch.optim:LBFGS"], "optimizer torch.optim:LBFGS: it computes the loss several times"),
        (["--sampler", "own_parts:nothing"], "sampler own_parts:nothing gave None"),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else "",
)
def test_nothing_is_made_where_a_part_is_wrong(wrong, says, flags, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = ["--runtime", "sim", "--stages", "2", "--epochs", "1", "--aux", "mlp", *wrong, *flags]
    monkeypatch.setattr(sys, "argv", ["asyncdgl", "run", *arguments])
    with pytest.raises(SystemExit) as exit_code:
        main()
    assert exit_code.value.code == 2
    printed = capsys.readouterr()
    assert says in printed.err.replace("\n", " ")
    assert "Traceback" not in printed.err
    assert list(tmp_path.iterdir()) == []
