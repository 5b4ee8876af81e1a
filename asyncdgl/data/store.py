"""A decoded data set in a folder: arrays that all processes of a machine map into memory, and what is known of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from asyncdgl.data.base import Decoded
from asyncdgl.errors import DataError

if TYPE_CHECKING:
    from numpy.typing import NDArray

META = "meta.json"
"""Written last: its presence marks the folder as complete."""

ARRAYS = ("train_x", "train_y", "test_x", "test_y")
_NUMPY = b"\x93NUMPY"
_SEEN_AT_ONCE = 4096
LEAST_STD = 1e-3
"""An empty channel must not divide by 0."""


@dataclass(frozen=True)
class Cached:
    """A decoded data set, mapped from its files.

    Attributes:
        train_x, test_x: images [N, H, W, C], uint8 or float32; sequences [N, T, D] or vectors [N, D], float32.
        train_y, test_y: [N] int64.
        classes: names of the classes.
        mean, std: of each channel over the training set, 0 to 1; empty for floats, which are used as they are.
        sha256: of all arrays.
        notices: what the user should know of how they were made.
    """

    train_x: NDArray[Any]
    train_y: NDArray[np.int64]
    test_x: NDArray[Any]
    test_y: NDArray[np.int64]
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    sha256: str
    notices: tuple[str, ...] = ()

    @classmethod
    def of(cls, arrays: Mapping[str, NDArray[Any]], meta: Mapping[str, Any]) -> Cached:
        """Of these arrays, with what META says."""
        return cls(
            train_x=arrays["train_x"],
            train_y=arrays["train_y"],
            test_x=arrays["test_x"],
            test_y=arrays["test_y"],
            classes=tuple(meta["classes"]),
            mean=tuple(meta["mean"]),
            std=tuple(meta["std"]),
            sha256=meta["sha256"],
            notices=tuple(meta["notices"]),
        )


def input_shape(x: NDArray[Any]) -> tuple[int, ...]:
    """Shape of one of the rows of x, as a network sees it: (C, H, W), (T, D) or (D,)."""
    shape = tuple(int(side) for side in x.shape[1:])
    return (shape[2], shape[0], shape[1]) if len(shape) == 3 else shape


def save(decoded: Decoded, folder: Path, notices: Sequence[str] = ()) -> None:
    """Check a decoded data set and write it to ``folder``.

    Raises:
        DataError: it can't be learned from, or its arrays don't fit together.
        OSError: the folder can't be written.
    """
    decoded = _checked(decoded)
    arrays = {name: np.ascontiguousarray(getattr(decoded, name)) for name in ARRAYS}
    sizes = {}
    for name, array in arrays.items():
        path = folder / f"{name}.npy"
        np.save(path, array)
        sizes[path.name] = path.stat().st_size
    mean, std = _channel_statistics(decoded.train_x) if decoded.train_x.dtype == np.uint8 else ([], [])
    meta = {
        "classes": decoded.classes,
        "mean": mean,
        "std": std,
        "sha256": content_sha256(arrays),
        "notices": list(notices),
        "bytes": sizes,
    }
    (folder / META).write_text(json.dumps(meta))


def content_sha256(arrays: Mapping[str, NDArray[Any]]) -> str:
    """Names a data set, wherever it lies."""
    digest = hashlib.sha256()
    for name in ARRAYS:
        array = arrays[name]
        if array.dtype == np.float32:  # bytes of images always have one shape; these could have several
            digest.update(repr(array.shape).encode())
        digest.update(array.data)
    return digest.hexdigest()


def _checked(decoded: Decoded) -> Decoded:
    """The same with the exact types, if it can be learned from."""
    classes = [str(name) for name in decoded.classes]
    if len(classes) < 2:
        raise DataError(f"there is one class only ({', '.join(classes)}): a classifier needs two or more")
    train_x, train_y = _checked_split("training", decoded.train_x, decoded.train_y, len(classes))
    test_x, test_y = _checked_split("test", decoded.test_x, decoded.test_y, len(classes))
    if (train_x.shape[1:], train_x.dtype) != (test_x.shape[1:], test_x.dtype):
        one, other = (f"{list(x.shape[1:])} {x.dtype}" for x in (train_x, test_x))
        raise DataError(f"the training set's x are {one} each, the test set's {other}: they must be alike")
    if not any((part != train_x[0]).any() for part in _slices(train_x)):
        raise DataError(
            f"all {len(train_x)} of the training set are the same, {train_x.min()} to {train_x.max()} in every place: "
            "there is nothing to learn; look at how they were written"
        )
    return Decoded(train_x, train_y, test_x, test_y, classes)


def _checked_split(split: str, x: Any, y: Any, classes: int) -> tuple[NDArray[Any], NDArray[Any]]:
    rows, labels = np.asarray(x), np.asarray(y)
    if rows.size == 0 or labels.size == 0:
        raise DataError(f"the {split} set is empty: the data set holds no images, or nothing else to learn from")
    if labels.dtype.kind not in "iu" or labels.shape != (len(rows),):
        raise DataError(f"the {split} set's y must be [{len(rows)}] integers, got {list(labels.shape)} {labels.dtype}")
    if not 0 <= labels.min() <= labels.max() < classes:
        wrong = labels.min() if labels.min() < 0 else labels.max()
        raise DataError(f"the {split} set has the class {wrong}, but the classes are 0 to {classes - 1}")
    if rows.dtype.kind == "f" and 2 <= rows.ndim <= 4:
        rows = rows.astype(np.float32, copy=False)
        if not all(np.isfinite(part).all() for part in _slices(rows)):
            raise DataError(f"the {split} set has numbers that are infinite, or none (NaN)")
    elif rows.dtype != np.uint8 or rows.ndim != 4:
        raise DataError(
            f"the {split} set's x must be images [N, H, W, C] as uint8 or floats, or sequences [N, T, D] or vectors "
            f"[N, D] as floats; got {list(rows.shape)} {rows.dtype}"
        )
    return rows, labels.astype(np.int64, copy=False)


def _slices(x: NDArray[Any]) -> list[NDArray[Any]]:
    return [x[start : start + _SEEN_AT_ONCE] for start in range(0, len(x), _SEEN_AT_ONCE)]


def _channel_statistics(x: NDArray[np.uint8]) -> tuple[list[float], list[float]]:
    """Mean and deviation of each channel from its 256 counts: exact, and without a copy as floats."""
    values = np.arange(256) / 255
    means, stds = [], []
    for channel in range(x.shape[-1]):
        share = np.bincount(x[..., channel].ravel(), minlength=256) / x[..., channel].size
        mean = float(share @ values)
        means.append(mean)
        stds.append(max(float(share @ (values - mean) ** 2) ** 0.5, LEAST_STD))
    return means, stds


def damage(folder: Path) -> str | None:
    """What a folder lacks of a decoded data set; None if it is whole.

    Raises:
        PermissionError: it can't be read.
    """
    try:
        meta = json.loads((folder / META).read_bytes())
        for name in (f"{array}.npy" for array in ARRAYS):
            with (folder / name).open("rb") as file:
                whole = file.read(len(_NUMPY)) == _NUMPY and file.seek(0, 2) == meta["bytes"][name]
            if not whole:
                return f"{name} is cut short or altered"
    except (FileNotFoundError, NotADirectoryError) as error:
        return f"{Path(error.filename).name} is missing"
    except (ValueError, KeyError, TypeError):
        return f"{META} is cut short or altered"
    return None


def open_cached(folder: Path) -> Cached:
    """Map a decoded data set into memory.

    Raises:
        DataError: something is missing there.
    """
    if problem := damage(folder):
        raise DataError(f"the decoded data in {folder} is damaged ({problem}): the next run decodes it again")
    return Cached.of(mapped(folder), json.loads((folder / META).read_bytes()))


def mapped(folder: Path) -> dict[str, NDArray[Any]]:
    """The arrays of a decoded data set, mapped from their files."""
    return {name: np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False) for name in ARRAYS}
