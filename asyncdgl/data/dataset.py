"""A data set ready for a run: its splits, and how an image becomes numbers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from asyncdgl.data.store import Cached, input_shape, open_cached
from asyncdgl.errors import ConfigError, DataError
from asyncdgl.seeding import Draws

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from asyncdgl.config.resolved import ResolvedConfig


@dataclass(frozen=True)
class Images:
    """Some rows of a decoded data set, of images or of anything else.

    Attributes:
        x: all rows of the file: [N, H, W, C], uint8 or float32; [N, T, D] or [N, D], float32.
        y: [N] int64.
        rows: which of them belong here.
    """

    x: NDArray[Any]
    y: NDArray[np.int64]
    rows: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.rows)


@dataclass(frozen=True)
class Dataset:
    """The splits of a data set and its normalisation.

    Attributes:
        train, validation, test: its splits.
        classes: names of the classes.
        mean, std: of each channel, 0 to 1; empty for floats, which are used as they are.
        sha256: of all arrays.
    """

    train: Images
    validation: Images | None
    test: Images
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    sha256: str

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one x, as a network sees it: (C, H, W), (T, D) or (D,)."""
        return input_shape(self.train.x)

    @property
    def channels(self) -> int:
        """Channels of an image."""
        return self.input_shape[0]

    def normalise(self, x: NDArray[Any]) -> NDArray[np.float32]:
        """[B, H, W, C] bytes to float32 with mean 0 and deviation 1 in each channel; floats as they are."""
        normal = x.astype(np.float32)
        if not self.mean:
            return normal
        scale = (1 / (255 * np.asarray(self.std))).astype(np.float32)
        shift = (-np.asarray(self.mean) / np.asarray(self.std)).astype(np.float32)
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
        ConfigError: something is asked for that can't be done with this data.
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
    shape = input_shape(cached.train_x)
    if config.data.augment and len(shape) != 3:
        raise ConfigError(
            f"data.augment crops and flips images, and this data has x of the shape {list(shape)}: set it to false"
        )
    if mean and not cached.mean:
        raise ConfigError("data.mean and data.std are for images of bytes; this data holds floats, used as they are")
    if mean and len(mean) != shape[0]:
        raise DataError(f"data.mean has {len(mean)} channels, but the images have {shape[0]}")
    validation = Images(cached.train_x, cached.train_y, np.sort(order[:held_out])) if held_out else None
    return Dataset(
        train=Images(cached.train_x, cached.train_y, train_rows),
        validation=validation,
        test=Images(cached.test_x, cached.test_y, np.arange(len(cached.test_y))),
        classes=cached.classes,
        mean=mean,
        std=std,
        sha256=cached.sha256,
    )


def open_dataset(config: ResolvedConfig, folder: Path) -> Dataset:
    """The data set that lies decoded in ``folder``."""
    return make_dataset(open_cached(folder), config)
