"""Optimizers of a stage. The built-in ones are torch's functional forms, fused.

The classes of `torch.optim` would import the compiler, 2 s in every process; so does one that is chosen by its path.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch.optim.adam import adam
from torch.optim.sgd import sgd

from asyncdgl.config.sections import OptimConfig
from asyncdgl.errors import ConfigError, PartFailed
from asyncdgl.registry import find

Parameters = Mapping[str, torch.Tensor]
Gradients = Sequence[torch.Tensor | None]
OptimizerState = dict[str, dict[str, torch.Tensor]]
"""What an optimizer remembers: of each kind (``momentum``), a tensor for each name of a parameter that has one."""


class Optimizer(Protocol):
    """Changes parameters by their gradients. It is made by ``part(parameters, optim)``, optim being the section.

    A part may also be a class of `torch.optim`, or make one of its objects.
    """

    def step(self, gradients: Gradients, lr: float) -> None:
        """One update in place; a parameter without a gradient (None) stays as it is."""

    def state(self) -> OptimizerState:
        """All that the next step depends on beside the parameters: copies, on the CPU."""

    def load(self, state: OptimizerState) -> None:
        """Go on exactly where ``state`` was taken."""


def make_optimizer(optim: OptimConfig, parameters: Parameters) -> Optimizer:
    """The optimizer that ``optim.name`` names.

    Raises:
        ConfigError: it can't be made.
    """
    part = find("optimizer", optim.name)
    try:
        if isinstance(part, type) and issubclass(part, torch.optim.Optimizer):
            settings = {"lr", "momentum", "weight_decay", "betas", "eps"} & set(inspect.signature(part).parameters)
            made = part(parameters.values(), **{key: getattr(optim, key) for key in settings})
        else:
            made = part(parameters, optim)
    except Exception as error:  # a part of the user's may raise anything
        raise ConfigError(f"optimizer {optim.name}: can't be made: {type(error).__name__}: {error}") from error
    optimizer: Optimizer = TorchOptimizer(parameters, optim, made) if isinstance(made, torch.optim.Optimizer) else made
    return optimizer


def check_optimizer(optim: OptimConfig) -> None:
    """Whether an optimizer of one's own can make a step, and give and take its state.

    Raises:
        ConfigError: it can't; the message says at what.
    """
    parameters = {"weight": torch.ones(3, 2, requires_grad=True), "unused": torch.ones(2, requires_grad=True)}
    optimizer = make_optimizer(optim, parameters)
    try:
        optimizer.step([torch.ones(3, 2), None], optim.lr)
        state = optimizer.state()
        make_optimizer(optim, parameters).load(state)
    except PartFailed as error:
        raise ConfigError(str(error)) from None
    except Exception as error:  # a part of the user's may raise anything
        raise ConfigError(f"optimizer {optim.name} fails: {type(error).__name__}: {error}") from error
    if not all(isinstance(value, torch.Tensor) for values in state.values() for value in values.values()):
        raise ConfigError(f"optimizer {optim.name}: its state must be tensors by kind and by name of the parameter")


class SGD:
    """SGD with momentum, as ``torch.optim.SGD(fused=True)``; weight decay is added to the gradient."""

    def __init__(self, parameters: Parameters, optim: OptimConfig) -> None:
        self._parameters = parameters
        self._optim = optim
        self._momentum: dict[str, torch.Tensor | None] = dict.fromkeys(parameters)

    def step(self, gradients: Gradients, lr: float) -> None:
        """See ``Optimizer``."""
        names, parameters, laid_out = _with_gradients(self._parameters, gradients)
        momentum = [self._momentum[name] for name in names]
        with torch.no_grad():
            sgd(
                parameters,
                laid_out,
                momentum,
                lr=lr,
                momentum=self._optim.momentum,
                weight_decay=self._optim.weight_decay,
                dampening=0,
                nesterov=False,
                maximize=False,
                foreach=False,
                fused=True,
            )
        self._momentum.update(zip(names, momentum, strict=True))

    def state(self) -> OptimizerState:
        """The momentum of the parameters that have been updated."""
        return {"momentum": {name: _copy(m) for name, m in self._momentum.items() if m is not None}}

    def load(self, state: OptimizerState) -> None:
        """See ``Optimizer``."""
        kept = state["momentum"]
        self._momentum = {name: _as(p, kept[name]) if name in kept else None for name, p in self._parameters.items()}


class Adam:
    """As ``torch.optim.Adam(fused=True)``; weight decay is added to the gradient."""

    _decoupled = False

    def __init__(self, parameters: Parameters, optim: OptimConfig) -> None:
        self._parameters = parameters
        self._optim = optim
        self._means = {name: torch.zeros_like(p) for name, p in parameters.items()}
        self._squares = {name: torch.zeros_like(p) for name, p in parameters.items()}
        self._steps = {name: torch.zeros((), device=p.device) for name, p in parameters.items()}

    def step(self, gradients: Gradients, lr: float) -> None:
        """See ``Optimizer``."""
        names, parameters, laid_out = _with_gradients(self._parameters, gradients)
        beta1, beta2 = self._optim.betas
        with torch.no_grad():
            adam(
                parameters,
                laid_out,
                [self._means[name] for name in names],
                [self._squares[name] for name in names],
                [],
                [self._steps[name] for name in names],
                foreach=False,
                fused=True,
                decoupled_weight_decay=self._decoupled,
                amsgrad=False,
                beta1=beta1,
                beta2=beta2,
                lr=lr,
                weight_decay=self._optim.weight_decay,
                eps=self._optim.eps,
                maximize=False,
            )

    def state(self) -> OptimizerState:
        """Means of the gradients and of their squares, and how many updates went into them."""
        kinds = {"mean": self._means, "square": self._squares, "steps": self._steps}
        return {kind: {name: _copy(value) for name, value in values.items()} for kind, values in kinds.items()}

    def load(self, state: OptimizerState) -> None:
        """See ``Optimizer``."""
        for name, parameter in self._parameters.items():
            self._means[name] = _as(parameter, state["mean"][name])
            self._squares[name] = _as(parameter, state["square"][name])
            self._steps[name] = state["steps"][name].to(parameter.device, copy=True)


class AdamW(Adam):
    """As ``torch.optim.AdamW(fused=True)``: Adam that draws the weights to zero apart from the gradient."""

    _decoupled = True


_NUMBER = ":number"
"""Ends the kind of what is a Python number in an optimizer of torch, and has to be one again."""


class TorchOptimizer:
    """An object of `torch.optim`, or of a class made on it.

    Args:
        parameters: by name.
        optim: the section of the configuration.
        optimizer: over these parameters. A group whose learning rate is not ``optim.lr`` keeps the ratio.
    """

    def __init__(self, parameters: Parameters, optim: OptimConfig, optimizer: torch.optim.Optimizer) -> None:
        closure = inspect.signature(type(optimizer).step).parameters.get("closure")
        if closure is not None and closure.default is inspect.Parameter.empty:
            raise ConfigError(
                f"optimizer {optim.name}: it computes the loss several times in one step (a closure), and a stage "
                "computes it once: use another one"
            )
        self._parameters = parameters
        self._optimizer = optimizer
        self._ratios = [float(group["lr"]) / optim.lr for group in optimizer.param_groups]

    def step(self, gradients: Gradients, lr: float) -> None:
        """See ``Optimizer``."""
        for group, ratio in zip(self._optimizer.param_groups, self._ratios, strict=True):
            group["lr"] = lr * ratio
        for parameter, gradient in zip(self._parameters.values(), gradients, strict=True):
            parameter.grad = gradient
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)

    def state(self) -> OptimizerState:
        """All that torch keeps of each parameter; Python numbers become tensors."""
        kept: OptimizerState = {}
        for name, parameter in self._parameters.items():
            for kind, value in self._optimizer.state.get(parameter, {}).items():
                if isinstance(value, torch.Tensor):
                    kept.setdefault(kind, {})[name] = _copy(value)
                elif isinstance(value, int | float):
                    kind_of = torch.float64 if isinstance(value, float) else torch.int64
                    kept.setdefault(kind + _NUMBER, {})[name] = torch.tensor(value, dtype=kind_of)
                elif value is not None:
                    raise PartFailed(
                        f"optimizer {type(self._optimizer).__name__}: it keeps {kind} as {type(value).__name__}; only "
                        "tensors and numbers can be kept in a checkpoint"
                    )
        return kept

    def load(self, state: OptimizerState) -> None:
        """See ``Optimizer``."""
        for name, parameter in self._parameters.items():
            own = self._optimizer.state[parameter]
            own.clear()
            for kind, values in state.items():
                if name not in values:
                    continue
                value = values[name]
                if kind.endswith(_NUMBER):
                    own[kind.removesuffix(_NUMBER)] = value.item()
                elif value.shape == parameter.shape:
                    own[kind] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
                else:  # counters lie on the CPU, as torch makes them
                    own[kind] = value.to(parameter.device if value.dim() else "cpu", copy=True)


def _with_gradients(
    parameters: Parameters, gradients: Gradients
) -> tuple[list[str], list[torch.Tensor], list[torch.Tensor]]:
    """Names, parameters and gradients of those that have one.

    The fused kernels go through memory as it lies: a gradient must lie as its parameter does.
    """
    used = [(n, p, g) for (n, p), g in zip(parameters.items(), gradients, strict=True) if g is not None]
    laid_out = [g if g.stride() == p.stride() else torch.empty_like(p).copy_(g) for _, p, g in used]
    return [n for n, _, _ in used], [p for _, p, _ in used], laid_out


def _as(parameter: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """A copy that lies as the parameter does."""
    return torch.empty_like(parameter).copy_(value)


def _copy(value: torch.Tensor) -> torch.Tensor:
    return value.detach().cpu().clone()
