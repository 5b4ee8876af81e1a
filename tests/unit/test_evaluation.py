"""Evaluation: every head and every ensemble of heads, against plain references."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from asyncdgl.data.dataset import Dataset, Images, open_dataset
from asyncdgl.data.stream import in_order, make_stream
from asyncdgl.learn.evaluation import EVALUATION_BATCH, Evaluator, make_evaluator
from asyncdgl.learn.stage import make_stages

pytestmark = pytest.mark.usefixtures("one_thread")


class FixedHead:
    """Gives the scores that were published to it, whatever the image."""

    def load_published(self, state: Any) -> None:
        self._scores = torch.tensor(state)

    def scores(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return x, self._scores.expand(len(x), -1)


def dataset_of(y: list[int]) -> Dataset:
    images = Images(np.zeros((len(y), 4, 4, 1), np.uint8), np.array(y, np.int64), np.arange(len(y)))
    return Dataset(images, None, images, ("0", "1"), (0.5,), (1.0,), "")


@pytest.mark.parametrize(
    ("scores", "ensembles"),
    [
        # Equal weights would give class 1, and so would weights in the other order.
        pytest.param([[0.0, 1.5], [1.0, 0.0]], [1, 0], id="later-head-counts-double"),
        # 4/7 of 0.8 against 1/7 + 2/7: the third head outvotes both others.
        pytest.param([[0.0, 1.0], [0.0, 1.0], [0.8, 0.0]], [1, 1, 0], id="third-against-both"),
        pytest.param([[0.0, 2.0], [0.0, 1.0], [0.9, 0.0]], [1, 1, 1], id="scores-count-not-votes"),
        pytest.param([[0.0, 9.0], [0.0, 0.0], [0.0, 0.0], [1.0, 0.0]], [1, 1, 1, 1], id="a-sure-first-head"),
    ],
)
def test_ensemble_weights_are_powers_of_two(scores, ensembles) -> None:
    # All images are of class 0: an accuracy of 1 says that class 0 was given.
    result = Evaluator([FixedHead() for _ in scores], dataset_of([0] * 5)).evaluate(scores)["test"]
    assert result["ensemble_accuracy"] == [float(given == 0) for given in ensembles]
    assert result["accuracy"] == [float(row[0] >= row[1]) for row in scores]


def test_shares_and_mean_loss_count_every_image_alike() -> None:
    y = [0] * 260 + [1] * 40  # two batches of unequal size
    assert EVALUATION_BATCH < len(y) < 2 * EVALUATION_BATCH
    result = Evaluator([FixedHead()], dataset_of(y)).evaluate([[2.0, 1.0]])["test"]
    expected = cross_entropy(torch.tensor([[2.0, 1.0]]).expand(300, -1), torch.tensor(y))
    assert result["accuracy"] == [pytest.approx(260 / 300)]
    assert result["loss"] == [pytest.approx(expected.item())]


def test_a_run_can_be_stopped_between_batches() -> None:
    calls = []

    def check() -> None:
        calls.append(len(calls))
        if len(calls) == 2:
            raise TimeoutError

    evaluator = Evaluator([FixedHead()], dataset_of([0] * (2 * EVALUATION_BATCH)))
    with pytest.raises(TimeoutError):
        evaluator.evaluate([[2.0, 1.0]], check)


@pytest.fixture
def trained(small_config, digits_folder):
    """Three stages after twelve updates of Algorithm 1, and their data set with a validation share."""
    config = small_config(data={"validation": 0.2})
    dataset = open_dataset(config, digits_folder)
    stages, stream = make_stages(config, dataset), make_stream(config, dataset)
    for number in range(12):
        batch = stream.get(number)
        for stage in stages:
            batch = type(batch)(stage.train(batch).output, batch.y, number)
    return config, dataset, stages


def test_all_heads_and_ensembles_against_a_plain_reference(trained) -> None:
    config, dataset, stages = trained
    hashes = [stage.state_sha256() for stage in stages]
    results = make_evaluator(config, dataset).evaluate([stage.published() for stage in stages])
    assert set(results) == {"test", "validation"}
    for split, images in (("test", dataset.test), ("validation", dataset.validation)):
        (everything,) = in_order(dataset, images, len(images))
        x, heads, losses = everything.x, [], []
        for stage in stages:
            x, scores = stage.scores(x)
            heads.append(scores.double().numpy())
            losses.append(cross_entropy(scores, everything.y).item())
        y = everything.y.numpy()
        accuracy = [float((scores.argmax(1) == y).mean()) for scores in heads]
        ensemble = []
        for n in range(1, len(heads) + 1):
            weights = [2 ** (j - 1) / (2**n - 1) for j in range(1, n + 1)]
            assert sum(weights) == pytest.approx(1)
            mixed = sum(w * scores for w, scores in zip(weights, heads[:n], strict=True))
            ensemble.append(float((mixed.argmax(1) == y).mean()))
        assert results[split]["accuracy"] == pytest.approx(accuracy)
        assert results[split]["ensemble_accuracy"] == pytest.approx(ensemble)
        assert results[split]["loss"] == pytest.approx(losses, rel=1e-5)
        assert len(set(accuracy)) > 1  # heads that all agreed would show nothing
    assert [stage.state_sha256() for stage in stages] == hashes


def test_there_is_no_validation_without_a_share(small_config, digits_folder) -> None:
    config = small_config()
    dataset = open_dataset(config, digits_folder)
    stages = make_stages(config, dataset)
    assert set(make_evaluator(config, dataset).evaluate([stage.published() for stage in stages])) == {"test"}


def test_weights_of_every_stage_are_needed(trained) -> None:
    config, dataset, stages = trained
    with pytest.raises(ValueError, match="shorter"):
        make_evaluator(config, dataset).evaluate([stage.published() for stage in stages[:2]])


@pytest.mark.usefixtures("own_parts")
@pytest.mark.parametrize("name", ["resnet", "mlp", "transformer"])
def test_networks_of_ones_own_against_a_plain_reference(small_config, digits_folder, name) -> None:
    config = small_config(model={"name": f"own_parts:{name}"})
    dataset = open_dataset(config, digits_folder)
    stages, stream = make_stages(config, dataset), make_stream(config, dataset)
    for number in range(44):
        batch = stream.get(number)
        for stage in stages:
            batch = type(batch)(stage.train(batch).output, batch.y, number)
    result = make_evaluator(config, dataset).evaluate([stage.published() for stage in stages])["test"]
    (everything,) = in_order(dataset, dataset.test, len(dataset.test))
    x = everything.x
    for stage, accuracy in zip(stages, result["accuracy"], strict=True):
        x, scores = stage.scores(x)
        assert accuracy == pytest.approx((scores.argmax(1) == everything.y).float().mean().item())
    assert max(result["accuracy"]) > 0.2
