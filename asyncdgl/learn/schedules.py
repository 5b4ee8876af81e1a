"""Learning-rate schedules: each stage follows its own completed epochs, whatever the others do."""

from __future__ import annotations

import math
from collections.abc import Callable

from asyncdgl.config.model import OptimConfig

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
    return float(optim.lr / optim.lr_decay_factor**drops)


def constant(optim: OptimConfig, epochs: float, quota: int) -> float:
    """Always the same."""
    return optim.lr


def cosine(optim: OptimConfig, epochs: float, quota: int) -> float:
    """Half a cosine from ``lr`` to 0 over all epochs, a little lower at every update."""
    return optim.lr * (1 + math.cos(math.pi * min(1.0, epochs / quota))) / 2
