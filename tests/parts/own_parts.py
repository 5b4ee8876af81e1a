"""Parts as users write them, right and wrong; tests choose them as ``own_parts:name``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from asyncdgl.algorithms.base import Algorithm

# --- Networks ---------------------------------------------------------------------------------------------------------


class Residual(nn.Module):
    """Two 3x3 convolutions with a skip connection around them."""

    def __init__(self, before: int, features: int, stride: int = 1) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(before, features, 3, stride, 1, bias=False),
            nn.BatchNorm2d(features),
            nn.ReLU(inplace=True),
            nn.Conv2d(features, features, 3, 1, 1, bias=False),
            nn.BatchNorm2d(features),
        )
        self.skip = nn.Conv2d(before, features, 1, stride, bias=False) if before != features or stride > 1 else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.body(x) + (x if self.skip is None else self.skip(x)))


def resnet(input_shape: tuple[int, ...], classes: int, width: int = 4, blocks: int = 4) -> list[nn.Module]:
    rows: list[nn.Module] = [Residual(input_shape[0], width)]
    for number in range(1, blocks):
        rows.append(Residual(width, 2 * width, 2) if number == 2 else Residual(width, width))
        width = 2 * width if number == 2 else width
    return rows


def mlp(input_shape: tuple[int, ...], classes: int, width: int = 16) -> list[nn.Module]:
    first = nn.Sequential(nn.Flatten(), nn.Linear(math.prod(input_shape), width), nn.ReLU())
    return [first, *(nn.Sequential(nn.Linear(width, width), nn.ReLU()) for _ in range(2))]


class Patches(nn.Module):
    """[B, C, H, W] to [B, T, D]: a token for each patch, and where it is."""

    def __init__(self, channels: int, pixels: int, patch: int, width: int) -> None:
        super().__init__()
        self.embed = nn.Conv2d(channels, width, patch, patch)
        self.place = nn.Parameter(torch.randn((pixels // patch) ** 2, width) / 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.embed(x).flatten(2).transpose(1, 2) + self.place


def transformer(input_shape: tuple[int, ...], classes: int, width: int = 8, dropout: float = 0.1) -> list[nn.Module]:
    layers = [
        nn.TransformerEncoderLayer(width, 2, 2 * width, dropout, batch_first=True, norm_first=True) for _ in range(2)
    ]
    return [Patches(input_shape[0], input_shape[1], 2, width), *layers]


def flat_sequential() -> nn.Sequential:
    """As people write it: layers, not blocks."""
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.ReLU(), nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 12))


given = nn.Sequential(nn.Sequential(nn.Flatten(), nn.Linear(64, 6)), nn.Linear(6, 6), nn.Linear(6, 6))
"""A row itself, with its weights."""


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return self.inner(x) * mask


class Gives(nn.Module):
    """Makes whatever it is told of its input."""

    def __init__(self, makes: Any) -> None:
        super().__init__()
        self.inner = nn.Linear(1, 1)
        self.makes = makes

    def forward(self, x: torch.Tensor) -> Any:
        return self.makes(x)


def _images(*blocks: nn.Module) -> list[nn.Module]:
    return [nn.Conv2d(1, 4, 3, padding=1), *blocks]


def two_inputs(input_shape: Any, classes: int) -> list[nn.Module]:
    return _images(nn.Conv2d(4, 4, 1), TwoInputs())


def returns_a_tuple(input_shape: Any, classes: int) -> list[nn.Module]:
    return [nn.Flatten(), nn.Linear(64, 4), nn.Unflatten(1, (2, 2)), nn.LSTM(2, 2, batch_first=True)]


def changes_the_batch(input_shape: Any, classes: int) -> list[nn.Module]:
    return _images(Gives(lambda x: x.reshape(-1, 8)))


def forgets_the_batch(input_shape: Any, classes: int) -> list[nn.Module]:
    return _images(Gives(lambda x: x.sum()))


def features_do_not_fit(input_shape: Any, classes: int) -> list[nn.Module]:
    return _images(nn.Conv2d(8, 4, 3))


def no_module(input_shape: Any, classes: int) -> list[Any]:
    return [*_images(), torch.relu]


def shared(input_shape: Any, classes: int) -> list[nn.Module]:
    block = nn.Conv2d(4, 4, 3, padding=1)
    return _images(block, nn.ReLU(), block)


def tied(input_shape: Any, classes: int) -> list[nn.Module]:
    first, second = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)
    second.weight = first.weight
    return _images(first, second)


def lazy(input_shape: Any, classes: int) -> list[nn.Module]:
    return _images(nn.LazyConv2d(4, 3), nn.Conv2d(4, 4, 1))


def without_parameters(input_shape: Any, classes: int) -> list[nn.Module]:
    return _images(nn.ReLU(), nn.Conv2d(4, 4, 1))


def frozen(input_shape: Any, classes: int) -> list[nn.Module]:
    return _images(nn.Conv2d(4, 4, 1).requires_grad_(False), nn.Conv2d(4, 4, 1))


def in_place(input_shape: Any, classes: int) -> list[nn.Module]:
    return _images(nn.Sequential(nn.ReLU(inplace=True), nn.Conv2d(4, 4, 1)), nn.Conv2d(4, 4, 1))


def in_place_in_training(input_shape: Any, classes: int) -> list[nn.Module]:
    return _images(nn.Sequential(nn.Dropout(0.1, inplace=True), nn.Conv2d(4, 4, 1)), nn.Conv2d(4, 4, 1))


def two_blocks(input_shape: Any, classes: int) -> list[nn.Module]:
    return _images(nn.Conv2d(4, 4, 1))


def no_blocks(input_shape: Any, classes: int) -> list[nn.Module]:
    return []


def a_module(input_shape: Any, classes: int) -> nn.Module:
    return nn.Conv2d(1, 4, 3)


def raises(input_shape: Any, classes: int) -> list[nn.Module]:
    raise RuntimeError("no weights for so many classes")


# --- Auxiliary networks -----------------------------------------------------------------------------------------------


def linear(output_shape: Sequence[int], classes: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(math.prod(output_shape), classes))


def too_few_classes(output_shape: Sequence[int], classes: int) -> nn.Module:
    return linear(output_shape, classes - 1)


def ignores_the_shape(output_shape: Sequence[int], classes: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(7, classes))


def aux_in_place(output_shape: Sequence[int], classes: int) -> nn.Module:
    return nn.Sequential(nn.ReLU(inplace=True), *linear(output_shape, classes))


# --- The other doors --------------------------------------------------------------------------------------------------


def margin(scores: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return nn.functional.multi_margin_loss(scores, y)


def loss_of_each(scores: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return nn.functional.cross_entropy(scores, y, reduction="none")


def loss_without_gradient(scores: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return nn.functional.cross_entropy(scores.detach(), y)


def warm_up(optim: Any, epochs: float, quota: int) -> float:
    return float(optim.lr * min(1.0, (epochs + 0.1) / 2))


def negative(optim: Any, epochs: float, quota: int) -> float:
    return float(optim.lr - epochs)


class SignSGD:
    """An optimizer of one's own, in the protocol's words."""

    def __init__(self, parameters: Any, optim: Any) -> None:
        self._parameters = parameters

    def step(self, gradients: Any, lr: float) -> None:
        with torch.no_grad():
            for parameter, gradient in zip(self._parameters.values(), gradients, strict=True):
                if gradient is not None:
                    parameter -= lr * gradient.sign()

    def state(self) -> dict[str, dict[str, torch.Tensor]]:
        return {}

    def load(self, state: Any) -> None:
        pass


class Counting(torch.optim.Optimizer):
    """Keeps a Python number for each parameter, as many optimizers on PyPI do."""

    def __init__(self, params: Any, lr: float, weight_decay: float = 0.0) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    state = self.state[parameter]
                    state["count"] = state.get("count", 0) + 1
                    state["share"] = state.get("share", 1.0) * 0.9
                    parameter -= group["lr"] * state["share"] / state["count"] * parameter.grad


def two_rates(parameters: Any, optim: Any) -> torch.optim.Optimizer:
    """The auxiliary network learns at a tenth of the rate."""
    groups = [
        {"params": [p for name, p in parameters.items() if name.startswith("aux.") is aux], "lr": optim.lr * rate}
        for aux, rate in ((False, 1.0), (True, 0.1))
    ]
    return torch.optim.SGD([group for group in groups if group["params"]], lr=optim.lr)


def second_newest(entries: Sequence[Any], uniform: Any) -> Any:
    return entries[-2:][0]


def nothing(entries: Sequence[Any], uniform: Any) -> Any:
    return None


def nothing_when_many(entries: Sequence[Any], uniform: Any) -> Any:
    return entries[0] if len(entries) < 4 else None


def an_index(entries: Sequence[Any], uniform: Any) -> Any:
    return len(entries) - 1


class Float8:
    """Codec: numpy has no such type."""

    @staticmethod
    def encode(x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"small": x.detach().to(torch.float8_e4m3fn).contiguous()}

    @staticmethod
    def decode(payload: dict[str, torch.Tensor]) -> torch.Tensor:
        return payload["small"].float()


class Sparse(Float8):
    @staticmethod
    def encode(x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"values": x[x != 0]}

    @staticmethod
    def decode(payload: dict[str, torch.Tensor]) -> torch.Tensor:
        return payload["values"]


class Flat(Float8):
    @staticmethod
    def decode(payload: dict[str, torch.Tensor]) -> torch.Tensor:
        return payload["small"].float().flatten()


class NamesTheLabels(Float8):
    @staticmethod
    def encode(x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"y": x}


class NoTensors(Float8):
    @staticmethod
    def encode(x: torch.Tensor) -> Any:
        return x.numpy().tobytes()


def two_values(law: Any, u: float) -> float:
    return 1.0 if u < 0.5 else 3.0


def below_zero(law: Any, u: float) -> float:
    return u - 0.5


# --- Algorithms -------------------------------------------------------------------------------------------------------


def backwards(stages: Any) -> Any:
    """The last stage first, as soon as there is something for it."""
    while running := stages.running:
        for j in reversed(running):
            if j in stages.running:
                yield j, None


def no_such_stage(stages: Any) -> Any:
    yield 9, None


def no_pair(stages: Any) -> Any:
    yield 1


def past(stages: Any) -> Any:
    yield 1, -1.0


def ends_at_once(stages: Any) -> Any:
    yield 1, None


def order_that_raises(stages: Any) -> Any:
    yield stages.there_is_no_such_thing, None


def ends_after_a_while(stages: Any) -> Any:
    for _ in range(300):
        yield 1, None


backwards_dgl = Algorithm(order=backwards)
names_no_stage = Algorithm(order=no_such_stage)
gives_no_pair = Algorithm(order=no_pair)
goes_back_in_time = Algorithm(order=past)
stops_at_once = Algorithm(order=ends_at_once)
fails_at_once = Algorithm(order=order_that_raises)
stops_in_the_middle = Algorithm(order=ends_after_a_while)
impossible_buffers = Algorithm(order=backwards, between={"size": 0, "colour": "blue"})
end_to_end = Algorithm(order=backwards, in_one=True)
virtual_only = Algorithm(order=backwards, runtimes=("virtual",))
