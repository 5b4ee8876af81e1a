"""More epochs for a run that was stopped: what it computed must be what it would have computed with them."""

from __future__ import annotations

from asyncdgl.config.resolved import ResolvedConfig
from asyncdgl.errors import ConfigError
from asyncdgl.learn.schedules import Schedule
from asyncdgl.registry import find
from asyncdgl.rundir.checkpoint import Checkpoint
from asyncdgl.rundir.reader import Run
from asyncdgl.rundir.records import EpochLine

POINTS = 1000
"""At which two schedules are compared."""


def with_epochs(left: Run, epochs: int | None) -> ResolvedConfig:
    """The configuration of a run that goes on.

    Args:
        left: what it has left.
        epochs: of each stage, from now on; None for as many as it has.

    Raises:
        ConfigError: they are fewer, or its learning rates would have been others.
    """
    config = left.config
    if epochs is None or epochs == config.epochs:
        return config
    if epochs < config.epochs:
        raise ConfigError(f"--epochs can only be raised: the run has {config.epochs}, got {epochs}")
    more = ResolvedConfig.checked({**config.model_dump(exclude_unset=True), "epochs": epochs})
    if config.has_tensors:
        schedule: Schedule = find("schedule", config.optim.schedule)
        for point in range(POINTS):
            at = config.epochs * point / POINTS
            if schedule(config.optim, at, config.epochs) != schedule(config.optim, at, epochs):
                raise ConfigError(
                    f"optim.schedule {config.optim.schedule} spreads over all epochs, so that with {epochs} of them "
                    f"the run would have had other learning rates from the start: begin a new one"
                )
    return more


def is_before_the_end(left: Run, kept: Checkpoint) -> bool:
    """Whether a checkpoint of a run in one process is from before any stage had done its quota."""
    lines = left.lines[: kept.position.metrics_lines]
    return not any(isinstance(line, EpochLine) and line.epoch >= left.config.epochs for line in lines)


def only_trained(kept: Checkpoint, stage: int) -> bool:
    """Whether a stage on Ray had made no forward-only passes by then."""
    position = kept.of(stage)
    return position.updates == position.step
