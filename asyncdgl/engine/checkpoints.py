"""When what a run goes on from is kept, and what of it (rule 29)."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from asyncdgl.buffers.entry import PassName
from asyncdgl.engine.evaluations import Evaluating
from asyncdgl.engine.passes import StagePasses
from asyncdgl.learn.learner import as_arrays
from asyncdgl.rundir import checkpoint as names
from asyncdgl.rundir.checkpoint import Keep, StagePosition

if TYPE_CHECKING:
    from numpy.typing import NDArray

SHARE = 0.005
"""Of the time that checkpoints may take where they are made, and again where they go to the disk."""


class Due:
    """When a checkpoint is due.

    Args:
        every: passes between two; None for as often as costs little.
        soonest_s: between two, where their number is not given: what was made meanwhile is soon made again.
        most: passes between two at most, whatever it costs; None for no bound.
    """

    def __init__(self, every: int | None, soonest_s: float, most: int | None = None) -> None:
        self._every, self._soonest_s, self._most = every, soonest_s, most
        self._made = 0
        self._not_before_s = time.perf_counter() + soonest_s

    def begin(self, made: int) -> None:
        """It goes on after so many passes."""
        self._made = made

    def is_due(self, made: int) -> bool:
        """Whether it is time, after so many passes."""
        if made == self._made:
            return False
        if self._every is not None:
            return made // self._every > self._made // self._every
        if self._most is not None and made >= self._made + self._most:
            return True
        return time.perf_counter() >= self._not_before_s

    def taken(self, made: int, cost_s: float) -> None:
        """There is one after so many passes, and it took so long."""
        self._made = made
        self._not_before_s = time.perf_counter() + max(self._soonest_s, cost_s / SHARE)


class Checkpoints:
    """Of a run whose stages are all in this process.

    Args:
        every: passes of each stage between two checkpoints; None: see ``Due``.
        passes: of each stage.
        evaluating: what an evaluation may still need.
        keep: writes a checkpoint; None where none is kept.
    """

    def __init__(
        self, every: int | None, passes: Mapping[int, StagePasses], evaluating: Evaluating, keep: Keep | None
    ) -> None:
        self._due = Due(None if every is None else every * len(passes), soonest_s=10.0)
        self._passes, self._evaluating, self._keep = passes, evaluating, keep
        self._made = 0
        self._has_warned = False

    def begin(self, made: int) -> None:
        """The run goes on after so many passes."""
        self._made = made
        self._due.begin(made)

    def are_due(self, made: int) -> bool:
        """Whether it is time, after so many passes."""
        return self._keep is not None and self._due.is_due(made)

    def take(self, made: int, elapsed_s: float, entries: Iterable[tuple[PassName, Any]]) -> None:
        """Keep what the run goes on from; where there is no room it is said once, and the run goes on without.

        Args:
            made: passes so far.
            elapsed_s: since training began.
            entries: that may still be read: the pass that made each, and its payload.
        """
        if self._keep is None or made == self._made:
            return
        began = time.perf_counter()
        arrays: dict[str, NDArray[Any]] = {}
        stages = []
        for passes in self._passes.values():
            position, of_stage = stage_parts(passes)
            stages.append(position)
            arrays.update(of_stage)
        for name, payload in entries:
            if payload is not None:
                from asyncdgl.buffers.codecs import to_arrays

                arrays.update(_named(names.entry(name.stage, name.step), to_arrays(payload)))
        for j, epoch, weights in self._evaluating.kept():
            arrays.update(_named(names.published(j, epoch), as_arrays(weights)))
        try:
            self._keep(made, elapsed_s, tuple(stages), arrays)
        except OSError as error:
            if not self._has_warned:
                self._has_warned = True
                warnings.warn(f"no checkpoint after {made} passes: {error}", stacklevel=2)
        self._made = made
        self._due.taken(made, time.perf_counter() - began)


def stage_parts(passes: StagePasses, v: float = 0.0) -> tuple[StagePosition, dict[str, NDArray[Any]]]:
    """Where a stage stands, and the arrays of its state by their names in a checkpoint.

    Args:
        passes: of the stage.
        v: its profile clock, in steps.
    """
    j = passes.number
    state = passes.learner.state_dict()
    arrays = _named(names.weights(j), as_arrays(state["weights"]))
    for kind, values in state["optimizer"].items():
        arrays.update(_named(f"{names.optimizer(j)}{kind}/", as_arrays(values)))
    return passes.position(state["optimizer"], v), arrays


def _named(prefix: str, arrays: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    return {prefix + name: value for name, value in arrays.items()}
