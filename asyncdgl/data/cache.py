"""The decoded cache: each data set is decoded once to uint8 arrays, which every process then maps into memory."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from asyncdgl.data.decode import DECODERS, FASHION_FILES, Decoded
from asyncdgl.errors import DataError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from asyncdgl.config.sections import DataConfig

CACHE_VARIABLE = "ASYNCDGL_CACHE"
FORMAT = 1
_ARRAYS = ("train_x", "train_y", "test_x", "test_y")
_NEEDS_TORCHVISION = ("fashion-mnist", "cifar10", "image-folder")


@dataclass(frozen=True)
class Cached:
    """A decoded data set, mapped from its files: all processes of a machine share one copy.

    Attributes:
        train_x, test_x: [N, H, W, C] uint8.
        train_y, test_y: [N] int64.
        classes: names of the classes.
        mean, std: of each channel over the training set, 0 to 1.
        sha256: of all arrays.
    """

    train_x: NDArray[np.uint8]
    train_y: NDArray[np.int64]
    test_x: NDArray[np.uint8]
    test_y: NDArray[np.int64]
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    sha256: str


def cache_root() -> Path:
    """Where decoded data sets lie: ``$ASYNCDGL_CACHE``, or ``asyncdgl`` in the user's cache folder."""
    if os.environ.get(CACHE_VARIABLE):
        return Path(os.environ[CACHE_VARIABLE])
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "asyncdgl"


def prepare(config: DataConfig, on_progress: Callable[[int, int], None] | None = None) -> Path:
    """Make sure that the data set is in the cache; returns its folder there.

    Raises:
        DataError: the images are missing, empty or corrupt; nothing is left in the cache.
    """
    root = cache_root()
    options: dict[str, Any] = {"dataset": config.dataset, "image_size": config.image_size}
    if config.dataset in _NEEDS_TORCHVISION:
        options["data_dir"] = os.path.abspath(config.data_dir or root / "downloads")
    folder = root / f"{config.dataset}-{_key(options)}"
    if (folder / "meta.json").is_file():
        return folder
    try:
        root.mkdir(parents=True, exist_ok=True)
        target = Path(tempfile.mkdtemp(prefix=".decoding-", dir=root))
    except OSError as error:
        raise DataError(
            f"the cache folder {root} can't be written ({error.strerror}): set {CACHE_VARIABLE} to another one"
        ) from None
    try:
        if config.dataset in _NEEDS_TORCHVISION:
            _decode_in_child(options, target, on_progress)
        else:
            save(DECODERS[config.dataset](options, lambda done, total: None), target)
        if config.dataset in _NEEDS_TORCHVISION and config.dataset != "image-folder":
            folder = root / f"{config.dataset}-{_key(options)}"  # a download changed what the folder holds
        try:
            target.rename(folder)
        except OSError:
            if not (folder / "meta.json").is_file():  # not another run that was quicker
                raise
    finally:
        shutil.rmtree(target, ignore_errors=True)
    return folder


_SHAPES = {"digits": (1, 10), "synthetic": (3, 10), "fashion-mnist": (1, 10), "cifar10": (3, 10)}


def image_shape(config: DataConfig) -> tuple[int, int]:
    """Channels and classes of a data set, without decoding it.

    Raises:
        DataError: an image folder is missing or empty.
    """
    if config.dataset in _SHAPES:
        return _SHAPES[config.dataset]
    assert config.data_dir is not None
    lines = _listing({"dataset": config.dataset, "data_dir": config.data_dir})
    return 3, len({line.split("/")[1] for line in lines if line.startswith("train/")})


def _key(options: dict[str, Any]) -> str:
    """Names what is decoded, and from which files: their names, sizes and times of change."""
    digest = hashlib.sha256(f"{FORMAT} {json.dumps(options, sort_keys=True)}".encode())
    if "data_dir" in options:
        for line in _listing(options):
            digest.update(line.encode())
    return digest.hexdigest()[:20]


def _listing(options: dict[str, Any]) -> list[str]:
    folder = Path(options["data_dir"])
    if options["dataset"] == "image-folder":
        return [line for split in ("train", "test") for line in _image_listing(folder, split)]
    if options["dataset"] == "cifar10":
        files = sorted((folder / "cifar-10-batches-py").glob("*_batch*"))
    else:
        files = sorted(
            f for name in FASHION_FILES for place in ("", "FashionMNIST/raw") for f in (folder / place).glob(name + "*")
        )
    return [f"{file.name} {file.stat().st_size} {file.stat().st_mtime_ns}" for file in files]


def _image_listing(folder: Path, split: str) -> list[str]:
    try:
        return _images_in(folder, split)
    except OSError as error:
        raise DataError(f"{error.filename or folder / split} can't be read: {error.strerror or error}") from None


def _images_in(folder: Path, split: str) -> list[str]:
    top = folder / split
    if not top.is_dir():
        raise DataError(f"{top} is no folder: image-folder expects {folder}/train/<class>/ and {folder}/test/<class>/")
    classes = sorted(entry.name for entry in os.scandir(top) if entry.is_dir())
    if not classes:
        raise DataError(f"{top} has no class folders: image-folder expects {top}/<class>/ with images in it")
    lines = []
    for name in classes:
        files = sorted((entry.name, entry.stat()) for entry in os.scandir(top / name) if entry.is_file())
        if not files:
            raise DataError(f"{top / name} is empty: every class needs images")
        lines += [f"{split}/{name}/{file} {stat.st_size} {stat.st_mtime_ns}" for file, stat in files]
    return lines


def _decode_in_child(options: dict[str, Any], target: Path, on_progress: Callable[[int, int], None] | None) -> None:
    command = [sys.executable, "-m", "asyncdgl.data.decode", json.dumps(options), str(target)]
    # A folder without Python files as working directory: with -m it comes first in the child's module path.
    with (
        tempfile.TemporaryFile("w+") as errors,
        subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True, cwd=target
        ) as child,
    ):
        try:
            assert child.stdout is not None
            for line in child.stdout:
                numbers = line.split()
                if on_progress is not None and len(numbers) == 2 and all(n.isdigit() for n in numbers):
                    on_progress(int(numbers[0]), int(numbers[1]))
            code = child.wait()
        except BaseException:
            child.kill()
            raise
        if code != 0:
            errors.seek(0)
            lines = errors.read().strip().splitlines()
            message = lines[-1] if lines else f"the decoder ended with code {code}"
            raise DataError(message if code == 3 else f"decoding {options['dataset']} failed: {message}")


def save(decoded: Decoded, folder: Path) -> None:
    """Write a decoded data set to ``folder``; ``meta.json`` comes last and marks it complete."""
    if len(decoded.train_y) == 0 or len(decoded.test_y) == 0:
        raise DataError("the data set holds no images")
    digest = hashlib.sha256()
    for name in _ARRAYS:
        array = np.ascontiguousarray(getattr(decoded, name))
        digest.update(array.data)
        np.save(folder / f"{name}.npy", array)
    mean, std = _channel_statistics(decoded.train_x)
    meta = {"classes": decoded.classes, "mean": mean, "std": std, "sha256": digest.hexdigest()}
    (folder / "meta.json").write_text(json.dumps(meta))


def _channel_statistics(x: NDArray[np.uint8]) -> tuple[list[float], list[float]]:
    """Mean and deviation of each channel from its 256 counts: exact, and without a copy as floats."""
    values = np.arange(256) / 255
    means, stds = [], []
    for channel in range(x.shape[-1]):
        share = np.bincount(x[..., channel].ravel(), minlength=256) / x[..., channel].size
        mean = float(share @ values)
        means.append(mean)
        stds.append(max(float(share @ (values - mean) ** 2) ** 0.5, 1e-3))  # an empty channel must not divide by 0
    return means, stds


def open_cached(folder: Path) -> Cached:
    """Map a decoded data set into memory."""
    meta = json.loads((folder / "meta.json").read_text())
    arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False) for name in _ARRAYS}
    return Cached(
        **arrays,
        classes=tuple(meta["classes"]),
        mean=tuple(meta["mean"]),
        std=tuple(meta["std"]),
        sha256=meta["sha256"],
    )
