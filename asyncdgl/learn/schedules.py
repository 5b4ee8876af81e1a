"""Learning-rate schedules: each stage follows its own completed epochs, whatever the others do."""

from __future__ import annotations

import math
from collections.abc import Callable

from asyncdgl.config.sections import OptimConfig
from asyncdgl.errors import ConfigError
from asyncdgl.registry import find

Schedule = Callable[[OptimConfig, float, int], float]
"""``schedule(optim, epochs, quota)``: the learning rate of a stage's next update.

``optim.lr`` is the rate to begin with; ``epochs`` counts the stage's own completed epochs, parts included (updates
divided by updates per epoch); ``quota`` is how many it makes in all.
"""


def step(optim: OptimConfig, epochs: float, quota: int) -> float:
    """Divided by ``lr_decay_factor`` every ``lr_decay_every`` epochs, or at ``lr_milestones`` (paper's scripts)."""
    completed = int(epochs)
    if optim.lr_milestones is not None:
        drops = sum(milestone <= completed for milestone in optim.lr_milestones)
    elif optim.lr_decay_every is not None:
        drops = completed // optim.lr_decay_every
    else:
        drops = 0
    try:
        return float(optim.lr / optim.lr_decay_factor**drops)
    except OverflowError:  # hundreds of drops: nothing is left of it
        return 0.0


def constant(optim: OptimConfig, epochs: float, quota: int) -> float:
    """Always the same."""
    return optim.lr


def cosine(optim: OptimConfig, epochs: float, quota: int) -> float:
    """Half a cosine from ``lr`` to 0 over all epochs, a little lower at every update."""
    return optim.lr * (1 + math.cos(math.pi * min(1.0, epochs / quota))) / 2


def check_schedule(optim: OptimConfig, quota: int) -> None:
    """Whether a schedule of one's own gives learning rates.

    Raises:
        ConfigError: it fails, or gives something else.
    """
    schedule: Schedule = find("schedule", optim.schedule)
    for epochs in (0.0, quota / 2, float(quota)):
        try:
            rate = schedule(optim, epochs, quota)
        except Exception as error:  # a part of the user's may raise anything
            raise ConfigError(f"schedule {optim.schedule} fails: {type(error).__name__}: {error}") from error
        if not (isinstance(rate, int | float) and 0 <= rate < math.inf):
            raise ConfigError(
                f"schedule {optim.schedule} must give a learning rate of at least 0, got {rate!r} after {epochs:g} of "
                f"{quota} epochs"
            )
