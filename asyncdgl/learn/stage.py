"""A stage: module f_j with its auxiliary network, its loss, its optimizer and its learning-rate schedule."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import nn

from asyncdgl.config.resolved import ResolvedConfig
from asyncdgl.config.sections import OptimConfig
from asyncdgl.data.batch import Batch
from asyncdgl.data.dataset import Dataset
from asyncdgl.learn.learner import State, TrainResult
from asyncdgl.learn.losses import Loss, cross_entropy
from asyncdgl.learn.optimizers import make_optimizer
from asyncdgl.learn.schedules import Schedule
from asyncdgl.nets.base import StageNet, make_networks, make_stage_net
from asyncdgl.registry import find
from asyncdgl.seeding import Draws


class Stage:
    """One decoupled learner: it sees batches and its own loss, and knows nothing of time, buffers or other stages.

    Args:
        net: module and auxiliary network; the stage owns them from now on.
        optim: the optimizer and the schedule.
        updates_per_epoch: updates that make one of the stage's own epochs.
        device: where to compute.
        bf16: whether the arithmetic runs in bfloat16 (autocast; the weights stay float32).
        epochs: how many of its own epochs it makes in all, for schedules that ask.
        loss: of the stage's own class scores.
        draws: keyed by (seed, stage): what the modules draw as they train, such as dropout.
    """

    def __init__(
        self,
        net: StageNet,
        optim: OptimConfig,
        updates_per_epoch: int,
        device: str = "cpu",
        bf16: bool = False,
        *,
        epochs: int = 1,
        loss: Loss = cross_entropy,
        draws: Draws | None = None,
    ) -> None:
        self._net = nn.ModuleDict({"module": net.module, "aux": net.aux}).to(device)
        for tensor in (*self._net.parameters(), *self._net.buffers()):
            if tensor.dim() == 4:
                tensor.data = tensor.data.to(memory_format=torch.channels_last)
        self._optim = optim
        self._schedule: Schedule = find("schedule", optim.schedule)
        self._loss = loss
        self._updates_per_epoch = updates_per_epoch
        self._epochs = epochs
        self._device = device
        self._bf16 = bf16
        self._draws = draws or Draws(0, "stage")
        named = {name: parameter for name, parameter in self._net.named_parameters() if parameter.requires_grad}
        self._parameters = list(named.values())
        self._optimizer = make_optimizer(optim, named)
        self.updates = 0

    @property
    def completed_epochs(self) -> int:
        """Own epochs completed."""
        return self.updates // self._updates_per_epoch

    @property
    def lr(self) -> float:
        """The learning rate of the next update."""
        return self._schedule(self._optim, self.updates / self._updates_per_epoch, self._epochs)

    def train(self, batch: Batch) -> TrainResult:
        """One update on the stage's own loss (Algorithms 1 and 2: update of theta_j and gamma_j).

        Args:
            batch: x [B, ...], y [B]; no gradient flows back into x.
        """
        self._set_mode(training=True)
        x, y = batch.x.to(self._device), batch.y.to(self._device)
        generator = self._generator()
        before = generator.get_state()
        generator.manual_seed(self._draws.integer(self.updates))
        try:
            with self._autocast():
                output = self._net["module"](x)
                scores = self._net["aux"](output)
                loss = self._loss(scores, y)
            gradients = torch.autograd.grad(loss, self._parameters, allow_unused=True)
        finally:
            generator.set_state(before)
        self._optimizer.step(gradients, self.lr)
        self.updates += 1
        correct = (scores.detach().argmax(1) == y).sum()
        # Both in one read, since each one waits for a GPU; float32 holds the count exactly.
        read_loss, read_correct = torch.stack((loss.detach(), correct)).tolist()
        return TrainResult(output.detach(), read_loss, int(read_correct))

    def forward(self, batch: Batch) -> torch.Tensor:
        """The module's output [B, ...] in evaluation mode; nothing of the stage changes."""
        self._set_mode(training=False)
        with torch.no_grad(), self._autocast():
            output: torch.Tensor = self._net["module"](batch.x.to(self._device))
        if self._device == "cuda":  # where nothing is read, nothing waits, and the pass would seem to take no time
            torch.cuda.synchronize()
        return output

    def scores(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Output [B, ...] and class scores [B, classes] in evaluation mode."""
        self._set_mode(training=False)
        with torch.no_grad(), self._autocast():
            output = self._net["module"](x.to(self._device))
            return output, self._net["aux"](output).float()

    def _set_mode(self, training: bool) -> None:
        if self._net.training != training:  # torch goes through all modules, which a pass of small ones would feel
            self._net.train(training)

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self._device, dtype=torch.bfloat16, enabled=self._bf16)

    def _generator(self) -> torch.Generator:
        """Where modules draw from: torch's own generator. Each update is lent a seed of its own (rule 6)."""
        if self._device == "cuda":
            return torch.cuda.default_generators[torch.cuda.current_device()]
        return torch.default_generator

    def published(self) -> State:
        """A copy of the weights and buffers, on the CPU: what evaluation needs."""
        return {name: value.detach().cpu().clone() for name, value in self._net.state_dict().items()}

    def load_published(self, state: State) -> None:
        """Take weights and buffers that another instance of this stage published."""
        self._net.load_state_dict(state)

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next update depends on: weights, buffers, the optimizer's state, number of updates."""
        return {"weights": self.published(), "optimizer": self._optimizer.state(), "updates": self.updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on exactly where ``state_dict`` was taken."""
        self.load_published(state["weights"])
        self._optimizer.load(state["optimizer"])
        self.updates = state["updates"]

    def state_sha256(self) -> str:
        """Hash of all that ``state_dict`` holds: names in order, contiguous bytes; the same on any memory layout."""
        state = self.state_dict()
        digest = hashlib.sha256()
        for part, values in (("weights", state["weights"]), *sorted(state["optimizer"].items())):
            for name, value in sorted(values.items()):
                digest.update(f"{part}/{name}\n".encode())
                digest.update(value.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        digest.update(f"updates/{state['updates']}".encode())
        return digest.hexdigest()


def make_stages(config: ResolvedConfig, dataset: Dataset, only: int | None = None) -> list[Stage]:
    """All trained stages, or only number ``only``."""
    input_shape, classes = dataset.input_shape, len(dataset.classes)
    if only is None or config.in_one:
        nets = make_networks(config, input_shape, classes)
    else:
        nets = [make_stage_net(config, only, input_shape, classes)]
    per_epoch = len(dataset.train) // config.batch_size
    bf16 = config.precision == "bf16"
    return [
        Stage(
            net,
            config.optim,
            per_epoch,
            config.device,
            bf16,
            epochs=config.epochs,
            loss=find("loss", config.model.loss),
            draws=Draws(config.seed, "stage", number),
        )
        for number, net in enumerate(nets, only or 1)
    ]
