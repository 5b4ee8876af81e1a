"""When the test set is used, and with which weights (rule 24)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

from asyncdgl.observer import Observer
from asyncdgl.rundir.records import EvaluationLine

if TYPE_CHECKING:
    from asyncdgl.config.resolved import ResolvedConfig
    from asyncdgl.engine.build import Parts
    from asyncdgl.engine.passes import EpochEnd
    from asyncdgl.learn.learner import State

Weights = TypeVar("Weights")


class Publication(NamedTuple, Generic[Weights]):
    """Weights that a stage had at the end of one of its own epochs; epoch 0 are the initial ones."""

    epoch: int
    end_s: float
    weights: Weights


class Evaluation(NamedTuple, Generic[Weights]):
    """An evaluation that is due.

    Attributes:
        epoch: that the slowest training stage has completed.
        end_s: when it did, in seconds since training began.
        of: what each stage had published last by then, in the order of the stages.
        stage: which stage trains, where one trains after the other.
    """

    epoch: int
    end_s: float
    of: list[Publication[Weights]]
    stage: int | None = None


class Evaluations(Generic[Weights]):
    """Keeps what stages publish as long as an evaluation may still need it.

    An evaluation belongs to the moment at which the slowest training stage completes an epoch that is due, and uses
    what each stage had published by then, whenever that is learned: reports of several processes come in any order.

    Args:
        initial: weights that stages 1 … J begin with.
        epochs: quota of each stage.
        every: epochs between two evaluations.
        one_by_one: whether stages train one after the other; then each is the slowest while it trains.
    """

    def __init__(self, initial: Sequence[Weights], epochs: int, every: int, one_by_one: bool = False) -> None:
        self._published = [[Publication(0, 0.0, weights)] for weights in initial]
        self._completed: list[list[float]] = [[] for _ in initial]  # when each stage completed epochs 1, 2, …
        self._epochs = epochs
        self._every = every
        self._one_by_one = one_by_one
        self._by_all = 0  # epochs that every stage has completed
        self._pending: list[tuple[float, int, int | None]] = []

    def completed(self, stage: int, end_s: float, weights: Weights | None) -> None:
        """Stage ``stage`` has completed its next epoch, and published weights if that is due."""
        own = self._completed[stage - 1]
        own.append(end_s)
        if weights is not None:
            self._published[stage - 1].append(Publication(len(own), end_s, weights))
        if self._one_by_one:
            ends_run = stage == len(self._completed) and len(own) == self._epochs
            if len(own) % self._every == 0 and not ends_run:
                self._pending.append((end_s, len(own), stage))
            return
        while self._by_all < min(map(len, self._completed)):
            slowest_s = max(of_stage[self._by_all] for of_stage in self._completed)
            self._by_all += 1
            # The last epoch needs no turn here: a run that ends is evaluated with its final weights.
            if self._by_all % self._every == 0 and self._by_all < self._epochs:
                self._pending.append((slowest_s, self._by_all, None))

    def due(self, known_until_s: float) -> list[Evaluation[Weights]]:
        """The evaluations that can be made now, each once, in their order.

        Args:
            known_until_s: all that stages did until this moment has been told.
        """
        found = []
        while self._pending and self._pending[0][0] <= known_until_s:
            end_s, epoch, stage = self._pending.pop(0)
            newest = [[p for p in own if p.end_s <= end_s][-1] for own in self._published]
            found.append(Evaluation(epoch, end_s, newest, stage))
        # An evaluation to come is no earlier than this, and can't use what was replaced by then.
        earliest_s = min([known_until_s, *(end_s for end_s, _, _ in self._pending)])
        for own in self._published:
            while len(own) > 1 and own[1].end_s <= earliest_s:
                del own[0]
        return found

    @property
    def published(self) -> Iterator[tuple[int, Publication[Weights]]]:
        """What an evaluation may still need, with the stage that published it."""
        for stage, own in enumerate(self._published, 1):
            yield from ((stage, publication) for publication in own)

    def final(self, weights: Sequence[Weights], epochs: Sequence[int], end_s: float) -> Evaluation[Weights]:
        """The evaluation of the weights that the run ended with."""
        of = [Publication(epoch, end_s, own) for epoch, own in zip(epochs, weights, strict=True)]
        return Evaluation(self._epochs, end_s, of, len(of) if self._one_by_one else None)


def evaluation_line(
    evaluation: Evaluation[Any], results: Mapping[str, Mapping[str, Any]], final: bool = False
) -> EvaluationLine:
    """The line of metrics.jsonl for one evaluation.

    Args:
        evaluation: when it was, and of which weights.
        results: what ``Evaluator.evaluate`` gave.
        final: whether the weights are those of the end.
    """
    measured = {f"{split}_{what}": tuple(values) for split, of in results.items() for what, values in of.items()}
    line = {
        "epoch": evaluation.epoch,
        "epochs": tuple(publication.epoch for publication in evaluation.of),
        "final": final,
        "end_s": evaluation.end_s,
        "stage": evaluation.stage,
    }
    return EvaluationLine.model_validate({**line, **measured})


class Evaluating:
    """Evaluations of a run whose stages are all in this process, made as they come due.

    Args:
        parts: of the run; without an evaluator nothing is evaluated.
        config: the run.
        one_by_one: see ``Evaluations``.
        observer: is told of each.
        check: called while the test set is used; raises where the run is to stop.
        made: the first evaluations, where those were made already.

    Attributes:
        last: the line of the last one.
    """

    def __init__(
        self,
        parts: Parts,
        config: ResolvedConfig,
        one_by_one: bool,
        observer: Observer,
        check: Callable[[], None],
        made: Sequence[EvaluationLine] = (),
    ) -> None:
        self._passes, self._evaluator = parts.passes, parts.evaluator
        self._quota = config.epochs
        self._observer = observer
        self._check = check
        self._evaluations = Evaluations(self._weights(), config.epochs, config.evaluation.every, one_by_one)
        self._made = list(made)
        self.last: EvaluationLine | None = None

    def _weights(self) -> list[State | None]:
        return [passes.learner.published() for passes in self._passes.values()]

    def completed(self, stage: int, epoch_end: EpochEnd) -> None:
        """A stage has completed its next epoch."""
        self._observer.epoch_completed(epoch_end.line)
        if self._evaluator is not None:
            self._evaluations.completed(stage, epoch_end.line.end_s, epoch_end.published)

    def kept(self) -> Iterator[tuple[int, int, State]]:
        """Weights that an evaluation may still need: of which stage, after how many of its own epochs."""
        for stage, publication in self._evaluations.published:
            if publication.weights is not None and publication.epoch > 0:  # the initial ones are made again
                yield stage, publication.epoch, publication.weights

    def catch_up(self, known_until_s: float) -> None:
        """Make the evaluations that are due."""
        for evaluation in self._evaluations.due(known_until_s) if self._evaluator is not None else ():
            self._evaluate(evaluation)

    def end(self, end_s: float) -> None:
        """The run has come to its end: evaluate the final weights."""
        weights = self._weights()
        self._evaluate(self._evaluations.final(weights, [self._quota] * len(weights), end_s), final=True)

    def _evaluate(self, evaluation: Evaluation[State | None], final: bool = False) -> None:
        if self._evaluator is None:
            return
        if self._made:
            self.last = self._made.pop(0)
            return
        weights = [publication.weights for publication in evaluation.of if publication.weights is not None]
        self.last = evaluation_line(evaluation, self._evaluator.evaluate(weights, self._check), final)
        self._observer.evaluated(self.last)
