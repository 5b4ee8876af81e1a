"""The actor of a stage: a process that has all that takes long behind it before it takes a stage's place."""

from __future__ import annotations

import resource
from collections.abc import Mapping
from typing import Any

from asyncdgl.config.resolved import ResolvedConfig
from asyncdgl.engine.reports import Chunk
from asyncdgl.learn.arithmetic import set_up_torch
from asyncdgl.on_ray.data import SharedData
from asyncdgl.on_ray.greeting import hello
from asyncdgl.on_ray.stage import Arrays, Place, StageInPlace
from asyncdgl.plan.step_times import pass_of
from asyncdgl.registry import handed_over
from asyncdgl.rundir.checkpoint import StagePosition
from asyncdgl.rundir.outcome import StageEnd
from asyncdgl.rundir.trace import TRAIN


class StageActor:
    """Becomes a stage with ``take_place``; until then it is a spare.

    Args:
        config: the run.
        data: the decoded data set, which stage 1 alone reads.
        given: parts of the run that were handed over as objects, by kind.
    """

    _stage: StageInPlace

    def __init__(self, config: ResolvedConfig, data: SharedData, given: Mapping[str, Any]) -> None:
        set_up_torch(config)
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # each place of an entry that it maps keeps one open
        self._config, self._data, self._given = config, data, given

    def hello(self) -> dict[str, Any]:
        """See ``hello``."""
        return hello()

    def rehearse(self) -> dict[str, Any]:
        """Make a pass of each stage, and forget it: the first one takes longer than others. Returns ``hello``."""
        set_up_torch(self._config)  # see StageInPlace.run
        with handed_over(self._given):
            dataset = self._data.without_content(self._config)
            for number in range(1, self._config.stages + 1):
                pass_of(self._config, dataset, number)(TRAIN)
        return self.hello()

    def take_place(self, place: Place) -> dict[str, Any]:
        """Become a stage. Returns ``hello``, with what the bits of a run depend on.

        Raises:
            NeedsRestart: what the stage's last process had read is lost.
            DataError: the data set did not come to this machine.
        """
        import torch

        with handed_over(self._given):
            dataset = (self._data.open if place.number == 1 else self._data.without_content)(self._config)
            self._stage = StageInPlace(self._config, dataset, place)
        own = {"threads": torch.get_num_threads(), "torch": torch.__version__}
        return {**hello(), **own, "calls_over_sockets": self._stage.calls_over_sockets}

    def begin(self, origin: float) -> int:
        """See ``StageInPlace``."""
        return self._stage.begin(origin)

    def run(self, seconds: float, origin: float) -> Chunk:
        """See ``StageInPlace``."""
        return self._stage.run(seconds, origin)

    def finish(self, keeps: bool) -> tuple[StageEnd, Arrays, tuple[StagePosition, Arrays] | None]:
        """See ``StageInPlace``."""
        return self._stage.finish(keeps)
