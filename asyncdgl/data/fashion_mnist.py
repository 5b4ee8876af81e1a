"""Fashion-MNIST: 70,000 grey images of 28x28, from its four files, plain or gzipped."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from asyncdgl.data.base import Decoded, File, Request, Source, file_at, shown
from asyncdgl.errors import DataError

if TYPE_CHECKING:
    from numpy.typing import NDArray

FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)
PLACES = ("", "FashionMNIST/raw", "raw")
"""Where the files may lie: in the folder itself, or where torchvision puts them."""

CLASSES = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)
SIDE = 28
MOST = 10_000_000
"""Images in a file; a header that promises more is wrong."""


def spellings(name: str) -> tuple[str, ...]:
    """How archives and unpackers name a file."""
    dotted = name.replace("-idx", ".idx")
    return (name, name + ".gz", dotted, dotted + ".gz")


def files(folder: Path) -> tuple[File, ...]:
    """The first spelling of each file that is there."""
    found = []
    for name in FILES:
        paths = (f"{place}/{spelling}".lstrip("/") for place in PLACES for spelling in spellings(name))
        found += [file_at(folder, path) for path in paths if (folder / path).is_file()][:1]
    return tuple(found)


def decode(request: Request) -> Decoded:
    """Images and labels of both splits."""
    paths = {name: file.path for name in FILES for file in request.files if Path(file.path).name in spellings(name)}
    missing = [name for name in FILES if name not in paths]
    if missing:
        there = f" (there is {', '.join(paths.values())})" if paths else ""
        raise DataError(
            f"{shown(request.folder)} does not hold {', '.join(missing)}{there}: bring the four files, plain or "
            "with .gz, and name their folder with --data-dir"
        )
    arrays = []
    for images, labels in (FILES[:2], FILES[2:]):
        x = _read_idx(request.folder / paths[images], 2051, (SIDE, SIDE))
        path = request.folder / paths[labels]
        y = _read_idx(path, 2049, ())
        if len(y) != len(x):
            raise DataError(f"{shown(path)} is corrupt: {len(y)} labels for {len(x)} images")
        if len(y) and y.max() >= len(CLASSES):
            raise DataError(
                f"{shown(path)} has the label {y.max()}, and Fashion-MNIST's are 0 to 9: it is another data set's"
            )
        arrays += [x[..., None], y.astype("int64")]
    return Decoded(arrays[0], arrays[1], arrays[2], arrays[3], list(CLASSES))


def _read_idx(path: Path, magic: int, shape: tuple[int, ...]) -> NDArray[Any]:
    """An array of bytes, whose header (magic number, count, size of each axis) must fit exactly."""
    import numpy as np

    header = 4 * (2 + len(shape))
    each = int(np.prod(shape))
    try:
        with path.open("rb") as plain:
            zipped = plain.read(2) == b"\x1f\x8b"  # by content: browsers unpack a file and leave its name
        with gzip.open(path) if zipped else path.open("rb") as file:
            head = file.read(header)
            numbers = [int.from_bytes(head[start : start + 4], "big") for start in range(0, len(head), 4)]
            if len(head) < header or numbers[0] != magic:
                begins = f"it begins with {numbers[0]}" if numbers else "it has no header"
                what = "images" if shape else "labels"
                raise DataError(f"{shown(path)} is corrupt or no file of {what}: {begins}, not with {magic}")
            if tuple(numbers[2:]) != shape:
                raise DataError(f"{shown(path)} has images of {numbers[2]}x{numbers[3]} pixels, not {SIDE}x{SIDE}")
            count = numbers[1]
            content = file.read(each * min(count, MOST) + 1)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise DataError(f"{shown(path)} is corrupt ({error}): bring it again") from None
    if len(content) != each * count:
        more = "more than that" if len(content) > each * count else f"{len(content) // each} whole ones"
        raise DataError(f"{shown(path)} is corrupt: its header says {count}, and it holds {more}")
    return np.frombuffer(content, np.uint8).reshape(count, *shape)


def download(folder: Path) -> None:
    """Bring the files from torchvision's mirrors."""
    from torchvision.datasets import FashionMNIST

    FashionMNIST(str(folder), download=True)


SOURCE = Source(
    decode,
    defaults={
        "stages": 4,
        "epochs": 12,
        "batch_size": 128,
        "threads": "auto",
        "data": {"image_size": SIDE, "augment": True},
        "model": {"blocks": 4, "width": 32, "downsample": (2, 4), "aux": "mlp-sr"},
        "optim": {"lr": 0.1, "lr_decay_every": 5},
    },
    image_size=SIDE,
    files=files,
    download=download,
    shape=lambda request: ((1, SIDE, SIDE), len(CLASSES)),
)
