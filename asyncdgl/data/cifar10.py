"""CIFAR-10: 60,000 colour images of 32x32, from the files of its Python version."""

from __future__ import annotations

import hashlib
import io
import pickle
from pathlib import Path
from typing import TYPE_CHECKING, Any

from asyncdgl.data.base import Decoded, File, Request, Source, file_at, shown
from asyncdgl.errors import DataError

if TYPE_CHECKING:
    from numpy.typing import NDArray

BATCHES = "cifar-10-batches-py"
TRAIN = tuple(f"data_batch_{number}" for number in range(1, 6))
FILES = (*TRAIN, "test_batch")
NAMES = "batches.meta"
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
SIDE = 32
ORIGINAL = 10_000
"""Images in each of the original files."""

_ARRAYS_ALONE = {
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("_codecs", "encode"),
    *((f"numpy.{core}.multiarray", "_reconstruct") for core in ("core", "_core")),
    *((f"numpy.{core}.numeric", "_frombuffer") for core in ("core", "_core")),
}


class _Unpickler(pickle.Unpickler):
    """Makes arrays, and nothing that could run a stranger's code."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ARRAYS_ALONE:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no data file needs")
        return super().find_class(module, name)


def files(folder: Path) -> tuple[File, ...]:
    """The batches that are there, in the folder itself or where the archive puts them."""
    for place in (f"{BATCHES}/", ""):
        found = [place + name for name in (*FILES, NAMES) if (folder / place / name).is_file()]
        if found:
            return tuple(file_at(folder, path) for path in found)
    return ()


def decode(request: Request) -> Decoded:
    """All images of the six files, in their order. Files cut down to fewer images are read, and told."""
    import numpy as np

    paths = {Path(file.path).name: request.folder / file.path for file in request.files}
    _check_complete(request.folder, list(paths))
    read = {name: _read_batch(paths[name]) for name in FILES}
    classes = list(CLASSES)
    if NAMES in paths:
        classes = [_text(name) for name in _unpickle(paths[NAMES]).get("label_names", CLASSES)]
    train = [read[name] for name in TRAIN]
    x, y = np.concatenate([x for x, _ in train]), np.concatenate([y for _, y in train])
    test_x, test_y = read["test_batch"]
    if any(len(x) != ORIGINAL for x, _ in read.values()):
        request.on_notice(
            f"{shown(paths[TRAIN[0]].parent)} holds {len(y)} training and {len(test_y)} test images, where CIFAR-10 "
            f"has {5 * ORIGINAL} and {ORIGINAL}"
        )
    elif altered := _altered(paths):
        request.on_notice(f"not as CIFAR-10's authors published them: {', '.join(shown(path) for path in altered)}")
    return Decoded(x, y, test_x, test_y, classes)


def _check_complete(folder: Path, found: list[str]) -> None:
    missing = [name for name in FILES if name not in found]
    if not missing:
        return
    others = ("cifar-10-python.tar.gz", "cifar-10-batches-bin", "cifar-10-binary.tar.gz")
    there = [name for name in others if (folder / name).exists()]
    mend = "bring it from another machine and name its folder with --data-dir"
    if "cifar-10-python.tar.gz" in there:
        mend = (
            f"unpack the archive that lies there (tar -xzf {shown(folder)}/cifar-10-python.tar.gz -C {shown(folder)})"
        )
    elif there:
        mend = f"{there[0]} is the binary version, and the Python version is needed (cifar-10-python.tar.gz)"
    what = f"the folder {BATCHES}" if len(missing) == len(FILES) else f"{', '.join(missing)} of {BATCHES}"
    raise DataError(f"{shown(folder)} does not hold {what}: {mend}")


def _unpickle(path: Path) -> dict[str, Any]:
    try:
        content = _Unpickler(io.BytesIO(path.read_bytes()), encoding="latin1").load()
    except Exception as error:  # a damaged pickle raises anything
        raise DataError(f"{shown(path)} is corrupt ({error or type(error).__name__}): bring it again") from None
    if not isinstance(content, dict):
        raise DataError(f"{shown(path)} is corrupt: it holds no dictionary")
    return {_text(key): value for key, value in content.items()}


def _text(name: Any) -> str:
    """A name that may be bytes: those who cut the files down often read them so."""
    return name.decode("latin1") if isinstance(name, bytes) else str(name)


def _read_batch(path: Path) -> tuple[NDArray[Any], NDArray[Any]]:
    import numpy as np

    content = _unpickle(path)
    x, y = np.asarray(content.get("data")), np.asarray(content.get("labels"))
    if x.dtype != np.uint8 or x.shape != (len(x) if x.ndim else 0, 3 * SIDE * SIDE):
        raise DataError(f"{shown(path)} is corrupt: its images are no [N, {3 * SIDE * SIDE}] bytes")
    if y.shape != (len(x),) or (y.size and y.dtype.kind not in "iu"):
        raise DataError(f"{shown(path)} is corrupt: it has {len(x)} images and {y.size} labels")
    if y.size and not 0 <= y.min() <= y.max() < len(CLASSES):
        raise DataError(f"{shown(path)} has the label {y.max()}, and CIFAR-10's are 0 to 9: it is another data set's")
    return np.ascontiguousarray(x.reshape(-1, 3, SIDE, SIDE).transpose(0, 2, 3, 1)), y.astype(np.int64)


def _altered(paths: dict[str, Path]) -> list[Path]:
    from torchvision.datasets import CIFAR10

    sums = dict(CIFAR10.train_list + CIFAR10.test_list)
    return [path for name, path in paths.items() if sums.get(name) not in (None, _md5(path))]


def _md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()


def download(folder: Path) -> None:
    """Bring the archive and unpack it."""
    from torchvision.datasets import CIFAR10

    CIFAR10(str(folder), download=True)
    (folder / CIFAR10.filename).unlink(missing_ok=True)


SOURCE = Source(
    decode,
    defaults={
        "stages": 6,
        "epochs": 50,
        "batch_size": 128,
        "threads": "auto",
        "data": {
            "image_size": SIDE,
            "augment": True,
            "mean": (0.4914, 0.4822, 0.4465),
            "std": (0.2023, 0.1994, 0.2010),
        },
        "model": {"blocks": 6, "width": 128, "downsample": (2, 4), "aux": "mlp-sr"},
        "optim": {"lr": 0.1, "lr_decay_every": 15},
    },
    image_size=SIDE,
    files=files,
    download=download,
    shape=lambda request: ((3, SIDE, SIDE), len(CLASSES)),
)
