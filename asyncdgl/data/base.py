"""What a data source is. The sources are told from each other by a name, or by `package.module:attribute`."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from numpy.typing import NDArray

SHOWN = 5
"""So many of a list of files stand in a message; the rest are counted."""


class Decoded(NamedTuple):
    """A whole data set: training and test set, and the names of the classes.

    Attributes:
        train_x, test_x: images [N, H, W, C], uint8 or float32; sequences [N, T, D] or vectors [N, D], float32.
        train_y, test_y: [N] int64, numbers of classes from 0.
        classes: a name for each class.
    """

    train_x: NDArray[Any]
    train_y: NDArray[Any]
    test_x: NDArray[Any]
    test_y: NDArray[Any]
    classes: list[str]


class File(NamedTuple):
    """A file that a source reads: its path below the folder, its size in bytes, when it was changed (nanoseconds)."""

    path: str
    size: int
    changed: int


@dataclass(frozen=True)
class Request:
    """What a source is asked to decode.

    Attributes:
        image_size: pixels of a side, for a source that makes images of any size.
        folder: where its files are, for a source that reads files.
        files: those that its ``files`` found in the folder.
        on_progress: told (done, total).
        on_notice: told what the user should know, such as files that were left out.
    """

    image_size: int = 8
    folder: Path = Path()
    files: tuple[File, ...] = ()
    on_progress: Callable[[int, int], None] = field(default=lambda done, total: None, compare=False)
    on_notice: Callable[[str], None] = field(default=lambda text: None, compare=False)


@dataclass(frozen=True)
class Source:
    """A data set, and what a run on it is by default. Reading it imports nothing large: ``decode`` does that.

    Attributes:
        decode: makes the arrays; raises DataError where the files are missing or wrong.
        defaults: of the configuration, as a tree; those of the fields stand for what is missing.
        image_size: pixels of a side, where all images have one size.
        resizes: whether it makes images of ``data.image_size``.
        files: lists what is read in a folder; None where nothing is. A source of one's own that has none is decoded
            for each run: nobody knows what it read.
        download: brings the files into an empty folder, where nothing was found and no folder was given.
        needs_folder: what must be in the folder that the user has to name; None where none has to be named.
        shape: shape of one x, channels first, and number of classes, without decoding; None where that isn't known.
        in_process: whether decoding takes less than starting a process for it.
    """

    decode: Callable[[Request], Decoded]
    defaults: Mapping[str, Any] = field(default_factory=dict)
    image_size: int | None = None
    resizes: bool = False
    files: Callable[[Path], tuple[File, ...]] | None = None
    download: Callable[[Path], object] | None = None
    needs_folder: str | None = None
    shape: Callable[[Request], tuple[tuple[int, ...], int]] | None = None
    in_process: bool = False

    @property
    def reads_files(self) -> bool:
        """Whether ``data.data_dir`` means something to it."""
        return self.files is not None


def file_at(folder: Path, path: str) -> File:
    """The file at a path below a folder, as it is now."""
    status = (folder / path).stat()
    return File(path, status.st_size, status.st_mtime_ns)


def shown(path: Path | str) -> str:
    """A path as a message shows it: on one line, whatever bytes its name has."""
    text = os.fsencode(path).decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def listed(items: list[str]) -> str:
    """The first of many, and how many more there are."""
    more = len(items) - SHOWN
    return "; ".join(items[:SHOWN]) + (f"; and {more} more" if more > 0 else "")
