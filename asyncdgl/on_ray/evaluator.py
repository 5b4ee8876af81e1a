"""The actor that evaluates published weights beside the training."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import ray
from numpy.typing import NDArray

from asyncdgl.config.resolved import ResolvedConfig
from asyncdgl.engine.evaluations import Evaluation
from asyncdgl.engine.history import MOST_DEATHS
from asyncdgl.errors import StageFailed
from asyncdgl.learn.arithmetic import set_up_torch
from asyncdgl.learn.evaluation import make_evaluator
from asyncdgl.on_ray.data import SharedData
from asyncdgl.on_ray.greeting import hello
from asyncdgl.on_ray.results import ProcessDied
from asyncdgl.registry import handed_over

NAME = "the evaluator"
DEAF = 10


class EvaluationActor:
    """Evaluates published weights beside the training."""

    def __init__(self, config: ResolvedConfig, data: SharedData, given: Mapping[str, Any]) -> None:
        set_up_torch(config)
        self._config = config
        with handed_over(given):
            self._evaluator = make_evaluator(config, data.open(config))

    def hello(self) -> dict[str, Any]:
        """See ``hello``."""
        return hello()

    def evaluate(self, published: Sequence[Mapping[str, NDArray[Any]]]) -> dict[str, dict[str, Any]]:
        """See ``Evaluator.evaluate``; the weights come as numpy arrays, which nobody may change."""
        import torch

        set_up_torch(self._config)  # see StageActor.run
        states = [{name: torch.from_numpy(value.copy()) for name, value in s.items()} for s in published]
        return self._evaluator.evaluate(states)


class EvaluatorClient:
    """The evaluator as the driver sees it. What it was asked for is asked again where its process has died.

    Args:
        make: a process for it.
        get: the result of a call, see ``result``.
        deaf_s: see ``ray.deaf_s``; an evaluation may take ten times as long.
        is_gone: told when its process has died.
        is_there: told the greeting of the one that has taken its place.
    """

    def __init__(
        self,
        make: Callable[[], Any],
        get: Callable[..., Any],
        deaf_s: float,
        is_gone: Callable[[], None],
        is_there: Callable[[Mapping[str, Any]], None],
    ) -> None:
        self._make, self._get, self._limit_s = make, get, DEAF * deaf_s
        self._is_gone, self._is_there = is_gone, is_there
        self._greets: Any = None
        self._actor = make()
        self._asked: deque[tuple[Evaluation[Any], Any]] = deque()
        self._died = 0

    def hello(self) -> Any:
        """See ``EvaluationActor``."""
        return self._actor.hello.remote()

    def evaluate(self, evaluation: Evaluation[Any]) -> None:
        """Ask for an evaluation, and don't wait for it."""
        weights = [publication.weights for publication in evaluation.of]
        self._asked.append((evaluation, self._actor.evaluate.remote(weights)))

    def collect(self, timeout: float | None) -> Iterator[tuple[Evaluation[Any], Mapping[str, Any]]]:
        """The evaluations that are done, in the order in which they were asked for.

        Args:
            timeout: how long to wait for each; None: until all are done.

        Raises:
            StageFailed: one fails, or its process dies again and again.
        """
        while self._asked:
            evaluation, ref = self._asked[0]
            if timeout is not None and not ray.wait([ref], timeout=timeout)[0]:
                return
            try:
                results = self._get(ref, NAME, "evaluating", self._limit_s)
            except (ProcessDied, TimeoutError) as error:
                self._died += 1
                if self._died == MOST_DEATHS:
                    raise StageFailed(f"{NAME}: {error or 'no answer'}", NAME) from None
                self._is_gone()
                with contextlib.suppress(Exception):
                    ray.kill(self._actor)
                self._actor = self._make()
                self._greets = self.hello()
                again, self._asked = self._asked, deque()
                for asked, _ in again:
                    self.evaluate(asked)
                continue
            if self._greets is not None:
                self._is_there(self._get(self._greets, NAME, "starting"))
            self._died, self._greets = 0, None
            self._asked.popleft()
            yield evaluation, results
