"""The endless stream of training mini-batches. What is in batch n depends on (seed, n) alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from asyncdgl.data.batch import Batch
from asyncdgl.data.dataset import Dataset, Images
from asyncdgl.seeding import Draws

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from asyncdgl.config.resolved import ResolvedConfig

PADDING_SHARE = 8
"""An image of s pixels is padded with s / 8 zeros, at least one, before a random crop: 4 at 32, as in the paper."""


class BatchStream:
    """Mini-batches numbered from 0 without end; stream epoch e is batches e*n … e*n + n - 1 for n per epoch.

    Args:
        dataset: images and normalisation.
        batch_size: B; the incomplete last batch of an epoch is dropped.
        augment: random crop after padding, random horizontal flip.
        draws: keyed by the run's seed.
    """

    def __init__(self, dataset: Dataset, batch_size: int, augment: bool, draws: Draws) -> None:
        self.batches_per_epoch = len(dataset.train) // batch_size
        self._dataset = dataset
        self._batch_size = batch_size
        self._augment = augment
        self._draws = draws
        self._order: tuple[int, NDArray[np.int64]] = (-1, np.empty(0, np.int64))

    def get(self, number: int) -> Batch:
        """Mini-batch ``number``: x [B, C, H, W] (channels-last in memory), [B, T, D] or [B, D], float32; y [B]."""
        epoch, index = divmod(number, self.batches_per_epoch)
        if self._order[0] != epoch:
            rows = self._dataset.train.rows
            self._order = (epoch, rows[self._draws.generator("order", epoch).permutation(len(rows))])
        rows = self._order[1][index * self._batch_size : (index + 1) * self._batch_size]
        x = self._dataset.train.x[rows]
        if self._augment:
            x = crop_and_flip(x, self._draws.generator("augment", number))
        return _to_batch(self._dataset, x, self._dataset.train.y[rows], number)


def crop_and_flip(x: NDArray[Any], random: np.random.Generator) -> NDArray[Any]:
    """Each image of [B, H, W, C] cropped at a random place after padding with zeros, and flipped with chance 1/2."""
    count, height, width, channels = x.shape
    pad = max(1, min(height, width) // PADDING_SHARE)
    padded = np.zeros((count, height + 2 * pad, width + 2 * pad, channels), x.dtype)
    padded[:, pad : pad + height, pad : pad + width] = x
    top, left = random.integers(0, 2 * pad + 1, (2, count))
    flip = random.integers(0, 2, count).astype(bool)
    places = np.lib.stride_tricks.sliding_window_view(padded, (height, width, channels), axis=(1, 2, 3))
    cropped: NDArray[Any] = places[np.arange(count), top, left, 0]
    cropped[flip] = np.take(cropped[flip], np.arange(width)[::-1], axis=2)  # faster than a slice backwards
    return cropped


def in_order(dataset: Dataset, images: Images, batch_size: int) -> Iterator[Batch]:
    """All of ``images`` once, unaltered, for evaluation; the last batch may be smaller."""
    for start in range(0, len(images), batch_size):
        rows = images.rows[start : start + batch_size]
        yield _to_batch(dataset, images.x[rows], images.y[rows], start // batch_size)


def _to_batch(dataset: Dataset, x: NDArray[Any], y: NDArray[np.int64], number: int) -> Batch:
    rows = torch.from_numpy(np.ascontiguousarray(dataset.normalise(x)))
    images = rows.permute(0, 3, 1, 2) if rows.ndim == 4 else rows
    return Batch(images, torch.from_numpy(np.array(y)), number)


def make_stream(config: ResolvedConfig, dataset: Dataset) -> BatchStream:
    """The stream of training mini-batches."""
    return BatchStream(dataset, config.batch_size, config.data.augment, Draws(config.seed, "data"))
