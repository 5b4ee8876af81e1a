"""Pairs of map-style data sets: of torch's and of anything with a length and items."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import TensorDataset

from asyncdgl.data.cache import from_pair
from asyncdgl.data.dataset import make_dataset
from asyncdgl.data.store import open_cached
from asyncdgl.data.stream import BatchStream, in_order
from asyncdgl.errors import DataError
from asyncdgl.seeding import Draws

pytestmark = pytest.mark.usefixtures("one_thread")


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def items(make: Any, count: int = 12) -> list[tuple[Any, int]]:
    return [(make(k), k % 3) for k in range(count)]


@pytest.mark.parametrize(
    ("make", "kept"),
    [
        pytest.param(lambda k: noise(6, 5, seed=k), lambda k: noise(6, 5, seed=k)[..., None], id="grey-array"),
        pytest.param(lambda k: noise(6, 5, 3, seed=k), lambda k: noise(6, 5, 3, seed=k), id="colour-array"),
        pytest.param(
            lambda k: torch.from_numpy(noise(6, 5, seed=k)), lambda k: noise(6, 5, seed=k)[..., None], id="grey-tensor"
        ),
        pytest.param(
            lambda k: Image.fromarray(noise(6, 5, seed=k)), lambda k: noise(6, 5, seed=k)[..., None], id="grey-image"
        ),
        pytest.param(lambda k: Image.fromarray(noise(6, 5, 3, seed=k)), lambda k: noise(6, 5, 3, seed=k), id="image"),
        pytest.param(
            lambda k: Image.fromarray(noise(6, 5, 4, seed=k)),
            lambda k: noise(6, 5, 4, seed=k)[..., :3],
            id="rgba-image",
        ),
        pytest.param(
            lambda k: torch.from_numpy(noise(3, 6, 5, seed=k)) / 8,
            lambda k: (noise(3, 6, 5, seed=k) / np.float32(8)).transpose(1, 2, 0),
            id="float-image",
        ),
        pytest.param(lambda k: noise(4, 7, seed=k) / 8, lambda k: noise(4, 7, seed=k) / 8, id="sequence"),
        pytest.param(
            lambda k: (torch.from_numpy(noise(7, seed=k)) / 8).bfloat16().requires_grad_(),
            lambda k: (torch.from_numpy(noise(7, seed=k)) / 8).bfloat16().float().numpy(),
            id="vector",
        ),
    ],
)
def test_items_of_all_kinds(empty_cache, make, kept) -> None:
    folder = from_pair(items(make), items(make, 6))
    assert folder.parent == empty_cache
    cached = open_cached(folder)
    expected = np.stack([kept(k) for k in range(12)])
    assert cached.train_x.dtype == (np.uint8 if expected.dtype == np.uint8 else np.float32)
    np.testing.assert_array_equal(cached.train_x, expected)
    np.testing.assert_array_equal(cached.test_x, expected[:6])
    assert cached.train_y.tolist() == [0, 1, 2] * 4
    assert cached.classes == ("0", "1", "2")
    assert (cached.mean == ()) == (expected.dtype != np.uint8)


def test_one_content_is_kept_once(empty_cache) -> None:
    pair = items(lambda k: noise(4, seed=k) / 8), items(lambda k: noise(4, seed=k) / 8, 3)
    first = from_pair(*pair)
    assert from_pair(*pair) == first
    others = {from_pair(*pair, classes=["a", "b", "c"]), from_pair(pair[0], pair[0]), from_pair(pair[0][::-1], pair[1])}
    assert len(others | {first}) == 4
    assert sorted(path.name for path in empty_cache.iterdir()) == sorted(path.name for path in others | {first})


def test_names_of_the_classes(empty_cache) -> None:
    class Named(list[Any]):
        classes = ("ant", "bee", "cow", "dog")

    data = Named(items(lambda k: noise(4, seed=k) / 8))
    assert open_cached(from_pair(data, data)).classes == ("ant", "bee", "cow", "dog")
    assert open_cached(from_pair(data, data, classes="xyz")).classes == ("x", "y", "z")


def test_torchs_own_data_sets_go_through_the_stream(empty_cache, small_config) -> None:
    random = torch.Generator().manual_seed(0)
    x, y = torch.randn(50, 4, 7, generator=random), torch.arange(50) % 5
    told = []
    pair = TensorDataset(x, y), TensorDataset(x[:9], y[:9])
    folder = from_pair(*pair, on_progress=lambda *numbers: told.append(numbers))
    dataset = make_dataset(open_cached(folder), small_config(batch_size=10))
    assert dataset.input_shape == (4, 7)
    batches = BatchStream(dataset, 10, False, Draws(0, "data"))
    seen = torch.cat([batches.get(number).x for number in range(5)])
    assert torch.equal(seen.flatten(1).sort(0).values, x.flatten(1).sort(0).values)
    (batch,) = in_order(dataset, dataset.test, 100)
    assert torch.equal(batch.x, x[:9])
    assert torch.equal(batch.y, y[:9])
    assert told == []  # at every 1000 only


def test_a_pair_is_trained_on(empty_cache, small_config, make_recorder) -> None:
    """Pictures of floats whose class is where they are bright."""
    from asyncdgl.engine.sim import Simulation

    random = np.random.default_rng(0)

    def bright_at(k: int) -> np.ndarray:
        x = random.normal(0, 0.3, (1, 8, 8)).astype(np.float32)
        x[0, :, 4 * (k % 2) : 4 * (k % 2) + 4] += 1
        return x

    data = [(bright_at(k), k % 2) for k in range(160)]
    recorder = make_recorder()
    config = small_config(batch_size=16, data={"augment": False})
    Simulation(config, from_pair(data, data[:20]), recorder).run()
    assert recorder.evaluations[-1].test_accuracy[-1] >= 0.9


def test_progress_counts_both_sets(empty_cache) -> None:
    data, told = items(lambda k: np.float32([k, 1]), 1500), []
    from_pair(data, data, on_progress=lambda done, total: told.append((done, total)))
    assert told == [(1000, 3000), (2000, 3000), (3000, 3000)]


class Broken:
    """Raises at its third item."""

    def __len__(self) -> int:
        return 5

    def __getitem__(self, index: int) -> tuple[Any, int]:
        if index == 2:
            raise OSError("disk gone")
        return np.float32([index]), index % 2


class Stream:
    """Has no length."""

    def __iter__(self) -> Any:
        return iter([])


GOOD = items(lambda k: np.float32([k, 1.0]))


def but(index: int, item: Any) -> list[Any]:
    return [*GOOD[:index], item, *GOOD[index + 1 :]]


@pytest.mark.parametrize(
    ("train", "test", "says"),
    [
        pytest.param([], GOOD, "train is empty", id="empty"),
        pytest.param(GOOD, [], "test is empty", id="empty-test"),
        pytest.param(Stream(), GOOD, "train is a Stream: it must have __len__ and __getitem__", id="iterable"),
        pytest.param(Broken(), GOOD, "train[2] can't be read: OSError: disk gone", id="raises"),
        pytest.param(but(4, np.float32([1, 2])), GOOD, "train[4] is a ndarray: it must be a pair (x, y)", id="no-pair"),
        pytest.param(but(4, ([1.0, 2.0], 0, 1)), GOOD, "train[4] is a tuple: it must be a pair", id="a-triple"),
        pytest.param(but(5, (np.float32([1]), 0)), GOOD, "train[5] is [1] float32, but train[0] is [2]", id="mixed"),
        pytest.param(
            GOOD, but(5, (np.float32([1]), 0)), "test[5] is [1] float32, but train[0] is [2]", id="mixed-test"
        ),
        pytest.param(but(5, (noise(2, 2), 0)), GOOD, "train[5] is [2, 2, 1] uint8, but train[0] is", id="mixed-types"),
        pytest.param(but(6, (np.float32([1, np.nan]), 0)), GOOD, "train[6] has numbers that are infinite", id="nan"),
        pytest.param(GOOD, but(6, (np.array([1, 1e300]), 0)), "test[6] has numbers that are infinite", id="overflow"),
        pytest.param(but(7, (GOOD[0][0], 1.5)), GOOD, "train[7] has y = 1.5: a class is a whole number", id="half"),
        pytest.param(but(7, (GOOD[0][0], 1.0)), GOOD, "train[7] has y = 1.0", id="float"),
        pytest.param(but(7, (GOOD[0][0], True)), GOOD, "train[7] has y = True", id="truth-value"),
        pytest.param(but(7, (GOOD[0][0], "cat")), GOOD, "train[7] has y = 'cat'", id="word"),
        pytest.param(but(7, (GOOD[0][0], None)), GOOD, "train[7] has y = None", id="none"),
        pytest.param(but(7, (GOOD[0][0], torch.tensor([0, 1]))), GOOD, "train[7] has y = tensor([0, 1])", id="one-hot"),
        pytest.param(but(7, (GOOD[0][0], -1)), GOOD, "train[7] has the class -1: classes count from 0", id="negative"),
        pytest.param(but(0, (np.arange(3), 0)), GOOD, "train[0] is [3] int64: x must be", id="integers"),
        pytest.param(but(0, (noise(3, 32, 32), 0)), GOOD, "train[0] is [3, 32, 32] uint8: x must be", id="bytes-chw"),
        pytest.param(but(0, (np.float32(1), 0)), GOOD, "train[0] is [] float32: x must be", id="number"),
        pytest.param(but(0, (np.zeros((2, 0)), 0)), GOOD, "train[0] is [2, 0] float64: x must be", id="no-numbers"),
        pytest.param(but(0, ("a text", 0)), GOOD, "train[0] is [] <U6: x must be", id="text"),
        pytest.param(but(0, (Image.new("F", (2, 2)), 0)), GOOD, "train[0]: its pixels are floating-point", id="deep"),
    ],
)
def test_a_wrong_pair_gets_one_message_that_names_the_item(empty_cache, train, test, says) -> None:
    with pytest.raises(DataError) as error:
        from_pair(train, test)
    assert str(error.value).startswith(says)
    assert not empty_cache.exists() or list(empty_cache.iterdir()) == []


def test_a_class_without_a_name(empty_cache) -> None:
    with pytest.raises(DataError, match=r"train\[2\] has the class 2, but the 2 classes count from 0"):
        from_pair(GOOD, GOOD, classes=["a", "b"])
    assert not empty_cache.exists()
