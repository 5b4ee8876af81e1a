"""A data set ready for a run: its splits, and how an image becomes numbers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from asyncdgl.data.cache import Cached, open_cached
from asyncdgl.errors import ConfigError, DataError
from asyncdgl.seeding import Draws

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from asyncdgl.config.resolved import ResolvedConfig


@dataclass(frozen=True)
class Images:
    """Some rows of decoded images.

    Attributes:
        x: [N, H, W, C] uint8, all images of the file.
        y: [N] int64.
        rows: which of them belong here.
    """

    x: NDArray[np.uint8]
    y: NDArray[np.int64]
    rows: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.rows)


@dataclass(frozen=True)
class Dataset:
    """The splits of a data set and its normalisation (mean and deviation of each channel, 0 to 1)."""

    train: Images
    validation: Images | None
    test: Images
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    sha256: str

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Of one image, without the batch: (C, H, W)."""
        height, width, channels = self.train.x.shape[1:]
        return channels, height, width

    @property
    def channels(self) -> int:
        """Channels of an image."""
        return int(self.train.x.shape[-1])

    def normalise(self, x: NDArray[np.uint8]) -> NDArray[np.float32]:
        """[B, H, W, C] bytes to float32 with mean 0 and deviation 1 in each channel."""
        scale = (1 / (255 * np.asarray(self.std))).astype(np.float32)
        shift = (-np.asarray(self.mean) / np.asarray(self.std)).astype(np.float32)
        normal = x.astype(np.float32)
        width = x.shape[2]
        rows = normal.reshape(-1, width * self.channels)  # whole rows at a time: numpy is slow along three channels
        rows *= np.tile(scale, width)
        rows += np.tile(shift, width)
        return normal


def make_dataset(cached: Cached, config: ResolvedConfig) -> Dataset:
    """The splits that a run uses.

    The held-out share is the same for every seed, so that runs can be compared.

    Raises:
        DataError: the training set is smaller than one batch, or the given mean has other channels than the images.
    """
    count = len(cached.train_y)
    order = Draws(0, "validation").generator().permutation(count)
    held_out = round(config.data.validation * count)
    train_rows = np.sort(order[held_out:])
    if len(train_rows) < config.batch_size:
        mend = "use a smaller --batch-size" + (" or a smaller data.validation" if held_out else "")
        raise DataError(
            f"the training set has {len(train_rows)} images, fewer than one batch of {config.batch_size}: {mend}"
        )
    if config.data.validation > 0 and held_out == 0:
        raise ConfigError(f"data.validation {config.data.validation} of {count} images is none: use a larger share")
    mean, std = config.data.mean or cached.mean, config.data.std or cached.std
    channels = cached.train_x.shape[-1]
    if len(mean) != channels:
        raise DataError(f"data.mean has {len(mean)} channels, but the images have {channels}")
    validation = Images(cached.train_x, cached.train_y, np.sort(order[:held_out])) if held_out else None
    return Dataset(
        train=Images(cached.train_x, cached.train_y, train_rows),
        validation=validation,
        test=Images(cached.test_x, cached.test_y, np.arange(len(cached.test_y))),
        classes=cached.classes,
        mean=tuple(mean),
        std=tuple(std),
        sha256=cached.sha256,
    )


def open_dataset(config: ResolvedConfig, folder: Path) -> Dataset:
    """The data set that lies decoded in ``folder``."""
    return make_dataset(open_cached(folder), config)
