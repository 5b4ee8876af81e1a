"""A stage: module f_j with its auxiliary network, its optimizer and its learning-rate schedule."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.optim.sgd import sgd

from asyncdgl.config.model import OptimConfig
from asyncdgl.data.batch import Batch
from asyncdgl.nets.network import StageNet

State = dict[str, torch.Tensor]


@dataclass(frozen=True)
class TrainResult:
    """What one training pass gives.

    Attributes:
        output: [B, C, H, W] the module's output, detached, from before the update.
        loss: mean cross-entropy of the stage's own head.
        correct: images of the batch that it classified right.
    """

    output: torch.Tensor
    loss: float
    correct: int


def _laid_out_as(parameter: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    return value if value.stride() == parameter.stride() else torch.empty_like(parameter).copy_(value)


def learning_rate(optim: OptimConfig, completed_epochs: int) -> float:
    """The learning rate after so many of a stage's own completed epochs."""
    if optim.lr_milestones is not None:
        drops = sum(milestone <= completed_epochs for milestone in optim.lr_milestones)
    elif optim.lr_decay_every is not None:
        drops = completed_epochs // optim.lr_decay_every
    else:
        drops = 0
    return float(optim.lr / optim.lr_decay_factor**drops)


class Stage:
    """One decoupled learner: it sees batches and its own loss, and knows nothing of time, buffers or other stages.

    Args:
        net: module and auxiliary network; the stage owns them from now on.
        optim: SGD and the schedule.
        updates_per_epoch: updates that make one of the stage's own epochs.
        device: where to compute.
        bf16: whether the arithmetic runs in bfloat16 (autocast; the weights stay float32).
    """

    def __init__(
        self, net: StageNet, optim: OptimConfig, updates_per_epoch: int, device: str = "cpu", bf16: bool = False
    ) -> None:
        self._net = nn.ModuleDict({"module": net.module, "aux": net.aux})
        self._net.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._optim = optim
        self._updates_per_epoch = updates_per_epoch
        self._device = device
        self._bf16 = bf16
        self._parameters: list[torch.Tensor] = list(self._net.parameters())
        self._momentum: list[torch.Tensor | None] = [None] * len(self._parameters)
        self.updates = 0

    @property
    def completed_epochs(self) -> int:
        """Own epochs completed."""
        return self.updates // self._updates_per_epoch

    @property
    def lr(self) -> float:
        """The learning rate of the next update."""
        return learning_rate(self._optim, self.completed_epochs)

    def train(self, batch: Batch) -> TrainResult:
        """One update on the stage's own loss (Algorithms 1 and 2: update of theta_j and gamma_j).

        Args:
            batch: x [B, C, H, W], y [B]; no gradient flows back into x.
        """
        self._set_mode(training=True)
        x, y = batch.x.to(self._device), batch.y.to(self._device)
        with self._autocast():
            output = self._net["module"](x)
            scores = self._net["aux"](output)
            loss = cross_entropy(scores, y)
        self._step(torch.autograd.grad(loss, self._parameters))
        correct = (scores.detach().argmax(1) == y).sum()
        # Both in one read, since each one waits for a GPU; float32 holds the count exactly.
        read_loss, read_correct = torch.stack((loss.detach(), correct)).tolist()
        return TrainResult(output.detach(), read_loss, int(read_correct))

    def forward(self, batch: Batch) -> torch.Tensor:
        """The module's output [B, C, H, W] in evaluation mode; nothing of the stage changes."""
        self._set_mode(training=False)
        with torch.no_grad(), self._autocast():
            output: torch.Tensor = self._net["module"](batch.x.to(self._device))
        if self._device == "cuda":  # where nothing is read, nothing waits, and the pass would seem to take no time
            torch.cuda.synchronize()
        return output

    def scores(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Output [B, C, H, W] and class scores [B, classes] in evaluation mode."""
        self._set_mode(training=False)
        with torch.no_grad(), self._autocast():
            output = self._net["module"](x.to(self._device))
            return output, self._net["aux"](output).float()

    def _set_mode(self, training: bool) -> None:
        if self._net.training != training:  # torch goes through all modules, which a pass of small ones would feel
            self._net.train(training)

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self._device, dtype=torch.bfloat16, enabled=self._bf16)

    def _step(self, gradients: tuple[torch.Tensor, ...]) -> None:
        # The functional form of torch.optim.SGD(fused=True): the class would import the compiler, 2 s in every process.
        with torch.no_grad():
            sgd(
                self._parameters,
                # The fused kernel goes through memory as it lies: a gradient must lie as its parameter does.
                [_laid_out_as(p, g) for p, g in zip(self._parameters, gradients, strict=True)],
                self._momentum,
                lr=self.lr,
                momentum=self._optim.momentum,
                weight_decay=self._optim.weight_decay,
                dampening=0,
                nesterov=False,
                maximize=False,
                foreach=False,
                fused=True,
            )
        self.updates += 1

    def published(self) -> State:
        """A copy of the weights and buffers, on the CPU: what evaluation needs."""
        return {name: value.detach().cpu().clone() for name, value in self._net.state_dict().items()}

    def load_published(self, state: State) -> None:
        """Take weights and buffers that another instance of this stage published."""
        self._net.load_state_dict(state)

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next update depends on: weights, buffers, momentum, number of updates."""
        names = [name for name, _ in self._net.named_parameters()]
        momentum = {n: m.cpu().clone() for n, m in zip(names, self._momentum, strict=True) if m is not None}
        return {"weights": self.published(), "momentum": momentum, "updates": self.updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on exactly where ``state_dict`` was taken."""
        self.load_published(state["weights"])
        self._momentum = [
            torch.empty_like(parameter).copy_(state["momentum"][name]) if name in state["momentum"] else None
            for name, parameter in self._net.named_parameters()
        ]
        self.updates = state["updates"]

    def state_sha256(self) -> str:
        """Hash of all that ``state_dict`` holds: names in order, contiguous bytes; the same on any memory layout."""
        state = self.state_dict()
        digest = hashlib.sha256()
        for part in ("weights", "momentum"):
            for name, value in sorted(state[part].items()):
                digest.update(f"{part}/{name}\n".encode())
                digest.update(value.contiguous().numpy().tobytes())
        digest.update(f"updates/{state['updates']}".encode())
        return digest.hexdigest()
