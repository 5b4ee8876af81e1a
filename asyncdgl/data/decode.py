"""Decoders of the data sets: files to uint8 arrays. Also a program, in a process that dies with its parent.

Only this process imports torchvision. It is given the data configuration as JSON and a folder to write to, prints
``done total`` lines while it works, and an error as the last line of stderr with exit code 3.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import sys
import threading
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from asyncdgl.errors import DataError
from asyncdgl.seeding import Draws

if TYPE_CHECKING:
    from numpy.typing import NDArray

SPLIT_SEED = 0
"""The digits are split the same way in every run, whatever its seed."""

Progress = Callable[[int, int], None]


class Decoded(NamedTuple):
    """A whole data set: images [N, H, W, C] uint8 and classes [N] int64, for training and test."""

    train_x: NDArray[np.uint8]
    train_y: NDArray[np.int64]
    test_x: NDArray[np.uint8]
    test_y: NDArray[np.int64]
    classes: list[str]


def decode_digits(options: dict[str, Any], progress: Progress) -> Decoded:
    """The digits that scikit-learn ships: 1,797 grey images of 8x8, split 80/20 with equal shares of each class."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    x = np.rint(digits.images * (255 / 16)).astype(np.uint8)[..., None]
    y = digits.target.astype(np.int64)
    train_x, test_x, train_y, test_y = train_test_split(x, y, test_size=0.2, random_state=SPLIT_SEED, stratify=y)
    return Decoded(train_x, train_y, test_x, test_y, [str(name) for name in digits.target_names])


def decode_synthetic(options: dict[str, Any], progress: Progress) -> Decoded:
    """Ten classes of noisy colour patterns, made from a fixed seed: for tests and timing, not for results."""
    size, classes = int(options["image_size"]), 10
    draws = Draws(SPLIT_SEED, "synthetic", size)
    coarse = draws.generator("patterns").uniform(60, 195, (classes, 4, 4, 3))
    rows = np.arange(size) * 4 // size
    patterns = coarse[:, rows][:, :, rows]

    def images(split: str, count: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        random = draws.generator(split)
        y = np.arange(count, dtype=np.int64) % classes
        noise = random.normal(0, 60, (count, size, size, 3))
        return np.clip(patterns[y] + noise, 0, 255).astype(np.uint8), y

    train, test = images("train", 2048), images("test", 500)
    return Decoded(*train, *test, [f"pattern{k}" for k in range(classes)])


FASHION_FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)


def decode_fashion_mnist(options: dict[str, Any], progress: Progress) -> Decoded:
    """Fashion-MNIST: 70,000 grey images of 28x28, from its four files (plain or gzipped), downloaded if missing."""
    from torchvision.datasets import FashionMNIST

    folder = Path(options["data_dir"])
    places = (folder, folder / "FashionMNIST" / "raw")

    def find(name: str) -> Path | None:
        found = (place / (name + end) for place in places for end in ("", ".gz"))
        return next((path for path in found if path.is_file()), None)

    if any(find(name) is None for name in FASHION_FILES):
        _download(lambda: FashionMNIST(str(folder), download=True), folder, f"the files {', '.join(FASHION_FILES)}")
    arrays: list[NDArray[np.uint8]] = []
    for name in FASHION_FILES:
        path = find(name)
        assert path is not None
        try:
            with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
                raw = np.frombuffer(file.read(), np.uint8)
        except (OSError, EOFError, zlib.error) as error:
            raise DataError(f"{path} is corrupt ({error}): bring it again") from None
        header, shape = (16, (-1, 28, 28, 1)) if "images" in name else (8, (-1,))
        if raw.size < header or (raw.size - header) % abs(int(np.prod(shape))):
            raise DataError(f"{path} is corrupt: it is no file of 28x28 images or labels")
        arrays.append(raw[header:].reshape(shape))
        if "labels" in name and len(arrays[-1]) != len(arrays[-2]):
            raise DataError(f"{path} is corrupt: {len(arrays[-1])} labels for {len(arrays[-2])} images")
    return Decoded(arrays[0], arrays[1].astype(np.int64), arrays[2], arrays[3].astype(np.int64), FashionMNIST.classes)


def decode_cifar10(options: dict[str, Any], progress: Progress) -> Decoded:
    """CIFAR-10 in its Python version, downloaded where that is possible."""
    from torchvision.datasets import CIFAR10

    folder = Path(options["data_dir"])

    def load(train: bool, download: bool = False) -> CIFAR10:
        return CIFAR10(str(folder), train=train, download=download)

    try:
        load(train=True)
    except RuntimeError:
        _download(lambda: load(train=True, download=True), folder, "the folder cifar-10-batches-py")
    train, test = load(train=True), load(train=False)
    return Decoded(
        train.data,
        np.asarray(train.targets, np.int64),
        test.data,
        np.asarray(test.targets, np.int64),
        list(train.classes),
    )


def _download(download: Callable[[], object], folder: Path, needed: str) -> None:
    try:
        download()
    except Exception as error:  # torchvision raises whatever its mirrors do
        for left in (folder / "FashionMNIST" / "raw", folder / "FashionMNIST"):
            with contextlib.suppress(OSError):
                left.rmdir()
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(
            f"{folder} does not hold {needed}, and it can't be downloaded ({reason}): "
            "bring it from another machine and name its folder with --data-dir"
        ) from None


def decode_image_folder(options: dict[str, Any], progress: Progress) -> Decoded:
    """Images in ``train/<class>/`` and ``test/<class>/``: shorter side resized, centre cropped, RGB."""
    from concurrent.futures import ThreadPoolExecutor

    from PIL import Image, UnidentifiedImageError
    from torchvision.datasets import ImageFolder
    from torchvision.transforms.functional import center_crop, resize

    folder, size = Path(options["data_dir"]), int(options["image_size"])
    try:
        parts = [ImageFolder(str(folder / split)) for split in ("train", "test")]
    except FileNotFoundError as error:
        raise DataError(f"{folder}: {str(error).splitlines()[0]}") from None
    if parts[0].classes != parts[1].classes:
        odd = sorted(set(parts[0].classes) ^ set(parts[1].classes))
        raise DataError(f"{folder}: train and test must have the same classes; only in one of them: {', '.join(odd)}")

    def read(path: str) -> NDArray[np.uint8]:
        try:
            with Image.open(path) as file:
                image = file.convert("RGB")
        except (OSError, UnidentifiedImageError, Image.DecompressionBombError, SyntaxError, ValueError) as error:
            raise DataError(f"{path} can't be read as an image: {error}") from None
        if image.size != (size, size):
            image = center_crop(resize(image, [size]), [size])
        return np.asarray(image)

    total, done = sum(len(part) for part in parts), 0
    arrays: list[NDArray[Any]] = []
    with ThreadPoolExecutor() as pool:
        for part in parts:
            x = np.empty((len(part), size, size, 3), np.uint8)
            for index, image in enumerate(pool.map(read, (path for path, _ in part.samples))):
                x[index] = image
                done += 1
                if done % 1000 == 0:
                    progress(done, total)
            arrays += [x, np.asarray(part.targets, np.int64)]
    return Decoded(arrays[0], arrays[1], arrays[2], arrays[3], parts[0].classes)


DECODERS: dict[str, Callable[[dict[str, Any], Progress], Decoded]] = {
    "digits": decode_digits,
    "synthetic": decode_synthetic,
    "fashion-mnist": decode_fashion_mnist,
    "cifar10": decode_cifar10,
    "image-folder": decode_image_folder,
}


def _die_with_parent() -> None:
    """The parent holds the other end of stdin: when it ends, however it does, so does this process."""
    sys.stdin.buffer.read()
    os._exit(1)


def main() -> None:
    """Decode what the first argument (JSON) asks for into the folder that the second names."""
    from asyncdgl.data.cache import save

    threading.Thread(target=_die_with_parent, daemon=True).start()
    options = json.loads(sys.argv[1])

    def on_progress(done: int, total: int) -> None:
        sys.stdout.write(f"{done} {total}\n")
        sys.stdout.flush()

    try:
        decoded = DECODERS[options["dataset"]](options, on_progress)
        save(decoded, Path(sys.argv[2]))
    except DataError as error:
        sys.stderr.write(f"\n{error}")
        sys.stderr.flush()
        os._exit(3)
    os._exit(0)


if __name__ == "__main__":
    main()
