"""The stream of mini-batches, and batches in order."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
import torch

from asyncdgl.data.cache import prepare
from asyncdgl.data.dataset import Dataset, Images, make_dataset
from asyncdgl.data.store import open_cached
from asyncdgl.data.stream import BatchStream, crop_and_flip, in_order, make_stream
from asyncdgl.seeding import Draws

pytestmark = pytest.mark.usefixtures("one_thread")


def numbered(count: int, size: int = 8) -> Dataset:
    """Random images whose class is their number."""
    x = np.random.default_rng(3).integers(1, 256, (count, size, size, 1), np.uint8)
    images = Images(x, np.arange(count), np.arange(count))
    return Dataset(images, None, images, ("0",), (0.0,), (1 / 255,), "")


def stream(dataset: Dataset, augment: bool = False, seed: int = 0) -> BatchStream:
    return BatchStream(dataset, 10, augment, Draws(seed, "data"))


@pytest.mark.parametrize("augment", [False, True], ids=["plain", "augmented"])
def test_a_batch_depends_on_seed_and_number_alone(augment) -> None:
    dataset = numbered(45)
    one, other = stream(dataset, augment), stream(dataset, augment)
    assert one.batches_per_epoch == 4
    in_turn = [one.get(number) for number in range(12)]
    for number in (7, 0, 11, 3, 3, 4, 8):
        batch = other.get(number)
        assert batch.number == number
        assert torch.equal(batch.x, in_turn[number].x)
        assert torch.equal(batch.y, in_turn[number].y)
    assert not torch.equal(stream(dataset, augment, seed=1).get(0).y, in_turn[0].y)


def test_every_batch_has_crops_of_its_own() -> None:
    image = numbered(1).train.x
    images = Images(np.repeat(image, 40, 0), np.zeros(40, np.int64), np.arange(40))
    batches = stream(Dataset(images, None, images, ("0",), (0.0,), (1.0,), ""), augment=True)
    # The same picture in all of them, so that only crops and flips differ; batches 0 and 4 begin an epoch.
    assert len({batches.get(number).x.numpy().tobytes() for number in range(8)}) == 8


@pytest.mark.parametrize("count", [40, 45, 49])
def test_an_epoch_has_every_image_at_most_once_and_whole_batches(count) -> None:
    batches = stream(numbered(count))
    orders = []
    for epoch in range(3):
        ids = [batches.get(epoch * 4 + index).y.tolist() for index in range(4)]
        assert [len(part) for part in ids] == [10] * 4
        orders.append([image for part in ids for image in part])
        assert len(set(orders[-1])) == 40
    assert orders[0] != orders[1] != orders[2] != orders[0]
    assert orders[0] != sorted(orders[0])


def test_the_dropped_images_are_others_in_another_epoch() -> None:
    batches = stream(numbered(45))
    used = {image for number in range(40) for image in batches.get(number).y.tolist()}
    assert used == set(range(45))


def test_a_batch_is_float32_channels_last(digits, small_config) -> None:
    config = small_config(data={"dataset": "synthetic", "image_size": 8})
    dataset = make_dataset(open_cached(prepare(config.data)), config)
    batch = stream(dataset).get(0)
    assert batch.x.shape == (10, 3, 8, 8)
    assert batch.x.dtype == torch.float32
    assert batch.y.dtype == torch.int64
    assert batch.x.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("augment", [False, True], ids=["plain", "augmented"])
def test_images_keep_their_classes(augment) -> None:
    dataset = numbered(45)
    batch = stream(dataset, augment).get(2)
    for x, number in zip(batch.x.permute(0, 2, 3, 1).numpy(), batch.y.tolist(), strict=True):
        # Pixels as they were, since the mean is 0 and the deviation 1/255: the whole image, or a crop of it.
        image = dataset.train.x[number]
        if augment:
            assert any(np.allclose(x, crop, atol=1e-3) for crop in all_crops(image, 1))
        else:
            np.testing.assert_allclose(x, image, atol=1e-3)


def all_crops(image: np.ndarray, pad: int) -> list[np.ndarray]:
    """Slowly, pixel by pixel: every crop after padding with zeros, as it is and mirrored, by (top, left, flip)."""
    height, width, _ = image.shape
    crops = []
    for top in range(2 * pad + 1):
        for left in range(2 * pad + 1):
            crop = np.zeros_like(image)
            for row in range(height):
                for column in range(width):
                    r, c = row + top - pad, column + left - pad
                    if 0 <= r < height and 0 <= c < width:
                        crop[row, column] = image[r, c]
            crops += [crop, crop[:, ::-1]]
    assert len({crop.tobytes() for crop in crops}) == len(crops)
    return crops


@pytest.mark.parametrize(("size", "pad"), [(8, 1), (16, 2), (4, 1), (7, 1), (2, 1)])
def test_crops_and_flips_are_those_of_a_slow_reference(size, pad) -> None:
    x = np.random.default_rng(1).integers(1, 256, (5, size, size, 3), np.uint8)
    for seed in range(4):
        augmented = crop_and_flip(x, np.random.default_rng(seed))
        assert augmented.dtype == np.uint8
        for image, result in zip(x, augmented, strict=True):
            assert any(np.array_equal(result, crop) for crop in all_crops(image, pad))


def test_an_image_of_32_pixels_is_padded_by_4() -> None:
    x = np.full((2000, 32, 32, 1), 9, np.uint8)
    augmented = crop_and_flip(x, np.random.default_rng(0))[..., 0]
    rows = (augmented.max(2) == 0).sum(1)
    columns = (augmented.max(1) == 0).sum(1)
    assert set(rows) == set(columns) == {0, 1, 2, 3, 4}


def test_all_crops_and_flips_are_equally_likely() -> None:
    image = np.random.default_rng(1).integers(1, 256, (8, 8, 1), np.uint8)
    place = {crop.tobytes(): index for index, crop in enumerate(all_crops(image, 1))}
    augmented = crop_and_flip(np.repeat(image[None], 3600, 0), np.random.default_rng(0))
    counts = np.bincount([place[result.tobytes()] for result in augmented], minlength=18)
    assert scipy.stats.chisquare(counts).pvalue > 1e-3


def test_crops_leave_the_images_as_they_were() -> None:
    dataset = numbered(20)
    before = dataset.train.x.copy()
    stream(dataset, augment=True).get(0).x.zero_()
    stream(dataset).get(0).x.zero_()
    np.testing.assert_array_equal(dataset.train.x, before)


@pytest.mark.parametrize("batch_size", [1, 7, 45, 100])
def test_in_order_covers_everything_once_unaltered(batch_size) -> None:
    dataset = numbered(45)
    images = Images(dataset.train.x, dataset.train.y, np.arange(0, 45, 2))
    batches = list(in_order(dataset, images, batch_size))
    assert torch.cat([batch.y for batch in batches]).tolist() == list(range(0, 45, 2))
    assert [batch.number for batch in batches] == list(range(len(batches)))
    assert all(len(batch.y) == batch_size for batch in batches[:-1])
    x = torch.cat([batch.x for batch in batches]).permute(0, 2, 3, 1).numpy()
    np.testing.assert_allclose(x, dataset.train.x[::2], atol=1e-3)


@pytest.mark.parametrize("seed", [0, 5])
def test_the_stream_of_a_run_is_keyed_by_its_seed(digits, small_config, seed) -> None:
    config = small_config(seed=seed, data={"augment": True})
    dataset = make_dataset(digits, config)
    ours, expected = make_stream(config, dataset), BatchStream(dataset, 128, True, Draws(seed, "data"))
    other = BatchStream(dataset, 128, True, Draws(seed + 1, "data"))
    for number in (0, 11, 25):
        assert torch.equal(ours.get(number).x, expected.get(number).x)
        assert not torch.equal(ours.get(number).x, other.get(number).x)


def test_the_stream_of_a_run_leaves_the_validation_share_out(digits, small_config) -> None:
    config = small_config(data={"validation": 0.3})
    dataset = make_dataset(digits, config)
    batches = BatchStream(dataset, config.batch_size, False, Draws(0, "data"))
    assert batches.batches_per_epoch == (1437 - 431) // 128
    held_out = {dataset.normalise(digits.train_x[row]).tobytes() for row in dataset.validation.rows}
    used = {x.permute(1, 2, 0).numpy().tobytes() for n in range(7) for x in batches.get(n).x}
    # Two digits of 1,797 may be the same picture, hence not quite disjoint as pictures.
    assert len(held_out & used) <= 2


@pytest.mark.parametrize("sides", [(17, 9), (9, 17)])
def test_images_of_two_sides_are_padded_as_the_shorter_one(sides) -> None:
    x = np.random.default_rng(1).integers(1, 256, (9, *sides, 2), np.uint8)
    for image, result in zip(x, crop_and_flip(x, np.random.default_rng(0)), strict=True):
        assert any(np.array_equal(result, crop) for crop in all_crops(image, 1))


# --- What is no image of bytes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "seen"), [((7,), (7,)), ((4, 7), (4, 7)), ((6, 5, 3), (3, 6, 5))], ids=["vectors", "sequences", "images"]
)
def test_batches_of_floats(shape, seen) -> None:
    x = np.random.default_rng(0).normal(size=(45, *shape)).astype(np.float32)
    rows = Images(x, np.arange(45), np.arange(45))
    dataset = Dataset(rows, None, rows, ("0",), (), (), "")
    batches = [stream(dataset).get(number) for number in range(4)]
    assert len({y for batch in batches for y in batch.y.tolist()}) == 40
    for batch in (*batches, *in_order(dataset, rows, 20)):
        assert batch.x.shape == (len(batch.y), *seen)
        assert batch.x.dtype == torch.float32
        back = batch.x.permute(0, 2, 3, 1) if len(shape) == 3 else batch.x
        assert back.is_contiguous()
        np.testing.assert_array_equal(back.numpy(), x[batch.y.numpy()])


def test_images_of_floats_are_cropped_and_flipped() -> None:
    x = np.random.default_rng(0).normal(size=(20, 8, 8, 1)).astype(np.float32)
    rows = Images(x, np.arange(20), np.arange(20))
    batch = stream(Dataset(rows, None, rows, ("0",), (), (), ""), augment=True).get(0)
    for image, number in zip(batch.x.permute(0, 2, 3, 1).numpy(), batch.y.tolist(), strict=True):
        assert any(np.array_equal(image, crop) for crop in all_crops(x[number], 1))
