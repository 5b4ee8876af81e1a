"""Splits of a data set, and how it becomes numbers."""

from __future__ import annotations

import numpy as np
import pytest

from asyncdgl.config.sections import DataConfig
from asyncdgl.data.base import Decoded
from asyncdgl.data.cache import prepare
from asyncdgl.data.dataset import make_dataset
from asyncdgl.data.store import open_cached, save
from asyncdgl.errors import ConfigError, DataError


# --- Splits and normalisation -----------------------------------------------------------------------------------------
def test_the_validation_split_is_disjoint_and_the_same_for_every_seed(digits, small_config) -> None:
    one, other = (make_dataset(digits, small_config(seed=seed, data={"validation": 0.2})) for seed in (0, 7))
    assert one.validation is not None
    assert len(one.validation) == 287
    assert sorted([*one.train.rows, *one.validation.rows]) == list(range(1437))
    np.testing.assert_array_equal(one.validation.rows, other.validation.rows)
    assert len(one.test) == 360
    # A random share, not one end of the file.
    assert 600 < one.validation.rows.mean() < 840


def test_without_validation_all_rows_are_for_training(digits, small_config) -> None:
    dataset = make_dataset(digits, small_config())
    assert dataset.validation is None
    assert dataset.train.rows.tolist() == list(range(1437))


def test_a_set_smaller_than_one_batch_is_refused(digits, small_config) -> None:
    with pytest.raises(DataError, match=r"1437 images, fewer than one batch of 1438.*--batch-size"):
        make_dataset(digits, small_config(batch_size=1438))
    assert len(make_dataset(digits, small_config(batch_size=1437)).train) == 1437
    with pytest.raises(DataError, match="1150 images"):
        make_dataset(digits, small_config(batch_size=1437, data={"validation": 0.2}))


def test_a_share_that_rounds_to_no_image_is_refused(digits, small_config) -> None:
    with pytest.raises(ConfigError, match=r"data\.validation"):
        make_dataset(digits, small_config(data={"validation": 1e-4}))


def test_given_statistics_replace_the_measured_ones(digits, small_config) -> None:
    dataset = make_dataset(digits, small_config(data={"mean": [0.5], "std": [0.25]}))
    x = dataset.normalise(np.array([0, 255], np.uint8).reshape(1, 1, 2, 1))
    assert x.ravel() == pytest.approx([-2, 2])


def test_statistics_of_other_channels_are_refused(digits, small_config) -> None:
    with pytest.raises(DataError, match="3 channels, but the images have 1"):
        make_dataset(digits, small_config(data={"mean": [0.5] * 3, "std": [0.5] * 3}))


def test_normalised_training_images_have_mean_0_and_deviation_1(small_config) -> None:
    cached = open_cached(prepare(DataConfig(dataset="synthetic", image_size=8)))
    dataset = make_dataset(cached, small_config(data={"dataset": "synthetic", "image_size": 8}))
    x = dataset.normalise(cached.train_x)
    assert x.dtype == np.float32
    assert x.mean((0, 1, 2), dtype=np.float64) == pytest.approx([0, 0, 0], abs=1e-5)
    assert x.std((0, 1, 2), dtype=np.float64) == pytest.approx([1, 1, 1], abs=1e-5)


# --- What is no image of bytes ----------------------------------------------------------------------------------------


@pytest.fixture
def floats(tmp_path):
    """``floats(2, 3)``: a decoded data set of rows of this shape."""

    def make(*shape: int):
        x = np.random.default_rng(0).normal(2, 3, (130, *shape)).astype(np.float32)
        y = np.arange(130) % 3
        save(Decoded(x, y, x[:10], y[:10], list("abc")), tmp_path)
        return open_cached(tmp_path)

    return make


@pytest.mark.parametrize(
    ("shape", "seen"), [((7,), (7,)), ((4, 7), (4, 7)), ((6, 5, 3), (3, 6, 5))], ids=["vectors", "sequences", "images"]
)
def test_floats_are_used_as_they_are(floats, small_config, shape, seen) -> None:
    cached = floats(*shape)
    dataset = make_dataset(cached, small_config())
    assert dataset.input_shape == seen
    assert dataset.mean == dataset.std == ()
    normal = dataset.normalise(cached.train_x)
    np.testing.assert_array_equal(normal, cached.train_x)
    normal[:] = 0  # a copy: what is mapped stays as it is
    assert cached.train_x.any()


def test_shape_of_images_of_bytes(digits, small_config) -> None:
    dataset = make_dataset(digits, small_config())
    assert dataset.input_shape == (1, 8, 8)
    assert dataset.channels == 1


def test_what_means_nothing_to_the_data_is_refused(floats, small_config) -> None:
    with pytest.raises(ConfigError, match=r"data\.augment .* shape \[7\]"):
        make_dataset(floats(7), small_config(data={"augment": True}))
    with pytest.raises(ConfigError, match=r"data\.mean and data\.std are for images of bytes"):
        make_dataset(floats(7), small_config(data={"mean": [0.5], "std": [0.5]}))
    assert make_dataset(floats(6, 6, 1), small_config(data={"augment": True})).input_shape == (1, 6, 6)
