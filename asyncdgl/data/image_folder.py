"""Images in `train/<class>/` and `test/<class>/`, also in folders below those."""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from asyncdgl.data.base import Decoded, File, Request, Source, listed, shown
from asyncdgl.data.images import NoImageError, read_image
from asyncdgl.errors import DataError

if TYPE_CHECKING:
    from numpy.typing import NDArray

SPLITS = ("train", "test")
DARK = 64
"""What is darker than this, of 255, was hardly meant so."""

Problem = tuple[Path, str]
"""A file and why it can't be read."""

NOBODYS = "__MACOSX"
"""What archives of a Mac leave; like names that begin with a dot, nobody's data."""


def files(folder: Path) -> tuple[File, ...]:
    """Every file of every class, in the order of training and test set.

    Raises:
        DataError: the folder has another form, or the classes of its two parts differ.
    """
    found: list[File] = []
    unreadable: list[Problem] = []
    for split in SPLITS:
        for name in _classes(folder, split):
            above = tuple(place_of((folder / place).stat()) for place in ("", split, f"{split}/{name}"))
            inside = list(walk(folder, f"{split}/{name}", above, unreadable))
            if not inside and not unreadable:
                raise DataError(f"{shown(folder / split / name)} is empty: every class needs images")
            found += sorted(inside, key=lambda file: os.path.split(file.path))
    if unreadable:
        raise DataError(cannot_be_read(unreadable))
    train, test = (class_names(found, split) for split in SPLITS)
    odd = [f"{shown(name)} ({'train' if name in train else 'test'})" for name in sorted({*train} ^ {*test})]
    if odd:
        raise DataError(
            f"{shown(folder)}: train and test must have the same classes; only in one of them: {listed(odd)}"
        )
    return tuple(found)


def class_names(found: Sequence[File], split: str) -> list[str]:
    """The classes of a split, sorted."""
    return sorted({file.path.split("/", 2)[1] for file in found if file.path.startswith(f"{split}/")})


def _classes(folder: Path, split: str) -> list[str]:
    top = folder / split
    if not top.is_dir():
        others = [name for name in ("val", "valid", "validation") if (folder / name).is_dir()]
        hint = f"; there is {others[0]}/: rename it, or link {split} to it" if others and split == "test" else ""
        raise DataError(
            f"{shown(top)} is no folder: image-folder expects {shown(folder)}/train/<class>/ and "
            f"{shown(folder)}/test/<class>/{hint}"
        )
    names = sorted(entry.name for entry in visible(top) if entry.is_dir())
    if not names:
        raise DataError(f"{shown(top)} has no class folders: image-folder expects {shown(top)}/<class>/ with images")
    return names


def visible(folder: Path) -> list[os.DirEntry[str]]:
    """What lies in a folder, without what is nobody's data."""
    with os.scandir(folder) as entries:
        return [entry for entry in entries if not entry.name.startswith(".") and entry.name != NOBODYS]


def place_of(status: os.stat_result) -> tuple[int, int]:
    """What two links to one folder have in common."""
    return status.st_dev, status.st_ino


def walk(folder: Path, below: str, above: tuple[tuple[int, int], ...], unreadable: list[Problem]) -> Iterator[File]:
    """Files below a folder, links followed; ``above`` is where the walk came through, so that a circle ends."""
    for entry in visible(folder / below):
        path = f"{below}/{entry.name}"
        try:
            status = entry.stat()
        except OSError as error:
            what = "a link that leads nowhere" if entry.is_symlink() else error.strerror
            unreadable.append((folder / path, what or str(error)))
            continue
        place = place_of(status)
        if stat.S_ISDIR(status.st_mode):
            if place not in above:
                yield from walk(folder, path, (*above, place), unreadable)
        elif stat.S_ISREG(status.st_mode):
            yield File(path, status.st_size, status.st_mtime_ns)
        else:
            unreadable.append((folder / path, "no regular file"))


def decode(request: Request) -> Decoded:
    """Every image of the listing; files that are none are counted aloud, damaged ones refused."""
    import numpy as np

    x = np.empty((len(request.files), request.image_size, request.image_size, 3), np.uint8)
    names = class_names(request.files, "train")
    number_of = {name: number for number, name in enumerate(names)}
    skipped: Counter[str] = Counter()
    damaged: list[Problem] = []
    labels: dict[str, list[int]] = {split: [] for split in SPLITS}
    count = 0
    for file, image in read_all(request):
        if isinstance(image, NoImageError):
            skipped[ending(file.path)] += 1
        elif isinstance(image, Exception):
            damaged.append((request.folder / file.path, why(image)))
        else:
            split, name, _ = file.path.split("/", 2)
            x[count] = image
            labels[split].append(number_of[name])
            count += 1
    if damaged:
        raise DataError(cannot_be_read(damaged))
    told = in_words(skipped)
    for split, y in labels.items():
        present = {names[k] for k in y}
        empty = [shown(request.folder / split / name) for name in names if name not in present]
        if empty:
            raise DataError(f"{listed(empty)}: no images there ({told}), and every class needs some")
    if skipped:
        request.on_notice(told)
    if count and (brightest := x[:count].max()) < DARK:
        request.on_notice(
            f"the brightest pixel of all images is {brightest} of 255: images of 12 bits, saved as 16, lose their fine "
            "steps; scale them before"
        )
    train_y, test_y = (np.asarray(labels[split], np.int64) for split in SPLITS)
    classes = [os.fsencode(name).decode("utf-8", "backslashreplace") for name in names]
    return Decoded(x[: len(train_y)], train_y, x[len(train_y) : count], test_y, classes)


def read_all(request: Request) -> Iterator[tuple[File, NDArray[Any] | Exception]]:
    """Each file with its image, or with why there is none."""
    from concurrent.futures import ThreadPoolExecutor

    def read(file: File) -> NDArray[Any] | Exception:
        try:
            return read_image(request.folder / file.path, request.image_size)
        except Exception as error:  # damaged files make Pillow raise anything
            return error

    total = len(request.files)
    with ThreadPoolExecutor() as pool:
        for done, result in enumerate(zip(request.files, pool.map(read, request.files), strict=True), 1):
            if done % 1000 == 0:
                request.on_progress(done, total)
            yield result


def ending(path: str) -> str:
    """Of a file's name, for a message."""
    name = path.rsplit("/", 1)[1]
    return shown(Path(name).suffix.lower()) or "without an ending"


def in_words(skipped: Counter[str]) -> str:
    """Files that were left out, by their ending."""
    count = skipped.total()
    return f"{count} file{'s' * (count > 1)} skipped: " + ", ".join(f"{e} {n}" for e, n in skipped.most_common(10))


def why(error: Exception) -> str:
    """Why a file can't be read, on one line."""
    return " ".join(str(error).split()) or type(error).__name__


def cannot_be_read(problems: list[Problem]) -> str:
    """The message for files that are no images: the first few of them, and how many more."""
    if len(problems) == 1:
        return f"{shown(problems[0][0])} can't be read as an image: {problems[0][1]}"
    each = [f"{shown(path)} ({reason})" for path, reason in problems]
    return f"{len(problems)} files can't be read as images: {listed(each)}"


SOURCE = Source(
    decode,
    defaults={
        "stages": 6,
        "epochs": 50,
        "batch_size": 128,
        "threads": "auto",
        "data": {"image_size": 32, "augment": True},
        "model": {"blocks": 6, "width": 128, "downsample": (2, 4), "aux": "mlp-sr"},
        "optim": {"lr": 0.1, "lr_decay_every": 15},
    },
    resizes=True,
    files=files,
    needs_folder="train/<class>/ and test/<class>/",
    shape=lambda request: ((3, request.image_size, request.image_size), len(class_names(request.files, "train"))),
)
