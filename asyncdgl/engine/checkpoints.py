"""When a run in one process is kept, and what of it (rule 29)."""

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
from asyncdgl.rundir.checkpoint import Keep

if TYPE_CHECKING:
    from numpy.typing import NDArray

SOONEST_S = 10.0
"""Between two checkpoints, where their number is not given: what was made in a few seconds is soon made again."""

SHARE = 0.01
"""Of the time that checkpoints may take, where their number is not given."""


class Checkpoints:
    """Of a run whose stages are all in this process.

    Args:
        every: passes of each stage between two checkpoints; None for as often as costs at most a hundredth of the time.
        passes: of each stage.
        evaluating: what an evaluation may still need.
        keep: writes a checkpoint; None where none is kept.
    """

    def __init__(
        self, every: int | None, passes: Mapping[int, StagePasses], evaluating: Evaluating, keep: Keep | None
    ) -> None:
        self._every = None if every is None else every * len(passes)
        self._passes, self._evaluating, self._keep = passes, evaluating, keep
        self._made = 0
        self._not_before_s = time.perf_counter() + SOONEST_S

    def begin(self, made: int) -> None:
        """The run goes on after so many passes."""
        self._made = made

    def are_due(self, made: int) -> bool:
        """Whether it is time, after so many passes."""
        if self._keep is None or made == self._made:
            return False
        if self._every is not None:
            return made // self._every > self._made // self._every
        return time.perf_counter() >= self._not_before_s

    def take(self, made: int, elapsed_s: float, entries: Iterable[tuple[PassName, Any]]) -> None:
        """Keep what the run goes on from; where there is no room it is said, and the run goes on without.

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
        for j, passes in self._passes.items():
            state = passes.learner.state_dict()
            stages.append(passes.position(state["optimizer"]))
            arrays.update(_named(names.weights(j), as_arrays(state["weights"])))
            for kind, values in state["optimizer"].items():
                arrays.update(_named(f"{names.optimizer(j)}{kind}/", as_arrays(values)))
        for name, payload in entries:
            if payload is not None:
                from asyncdgl.buffers.codecs import to_arrays

                arrays.update(_named(names.entry(name.stage, name.step), to_arrays(payload)))
        for j, epoch, weights in self._evaluating.kept():
            arrays.update(_named(names.published(j, epoch), as_arrays(weights)))
        try:
            self._keep(made, elapsed_s, tuple(stages), arrays)
        except OSError as error:
            warnings.warn(f"no checkpoint after {made} passes: {error}", stacklevel=2)
        self._made = made
        ended = time.perf_counter()
        self._not_before_s = ended + max(SOONEST_S, (ended - began) / SHARE)


def _named(prefix: str, arrays: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    return {prefix + name: value for name, value in arrays.items()}
