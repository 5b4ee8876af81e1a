"""A decoded data set on its way to another machine: what is known of it goes ahead, its content follows in pieces."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from asyncdgl.data.cache import cannot_be_written, content_folder, keep
from asyncdgl.data.scratch import one_at_a_time
from asyncdgl.data.store import ARRAYS, META, Cached, content_sha256, damage, mapped
from asyncdgl.errors import DataError

NAME = "fetched"
"""What the folders of such data sets in the cache begin with."""

Fetch = Callable[[str], Iterable[bytes]]
"""The pieces of one file of the folder, in order."""


@dataclass(frozen=True)
class Outline:
    """All that is known of a decoded data set but its content.

    Attributes:
        folder: where it lies, on the machine that has it.
        meta: what stands in its meta.json.
        arrays: shape and type of each of its arrays.
    """

    folder: Path
    meta: str
    arrays: Mapping[str, tuple[tuple[int, ...], str]]

    def without_content(self) -> Cached:
        """As many rows, all of them zero, which take no memory: for a stage that never reads one."""
        arrays = {name: np.broadcast_to(np.zeros((), kind), shape) for name, (shape, kind) in self.arrays.items()}
        return Cached.of(arrays, json.loads(self.meta))


def outline_of(folder: Path) -> Outline:
    """Of the data set that lies decoded in ``folder``."""
    arrays = {name: (array.shape, array.dtype.str) for name, array in mapped(folder).items()}
    return Outline(folder, (folder / META).read_text(), arrays)


def bring(outline: Outline, fetch: Fetch) -> Path:
    """The folder of a data set on this machine; what is not here yet is fetched into the cache.

    Raises:
        DataError: it came damaged, or the cache can't be written.
    """
    if _lies_in(outline.folder, outline):
        return outline.folder
    folder = content_folder(NAME, outline.meta.encode())
    try:
        with one_at_a_time(folder):  # stage 1 and the evaluator may be on one machine
            if not _lies_in(folder, outline):
                keep(lambda target: _write(outline, fetch, target), NAME, folder)
    except OSError as error:
        raise cannot_be_written(error) from None
    return folder


def _lies_in(folder: Path, outline: Outline) -> bool:
    """Whether this data set does: the same path may lead to another one here."""
    try:
        return damage(folder) is None and (folder / META).read_text() == outline.meta
    except OSError:
        return False


def _write(outline: Outline, fetch: Fetch, target: Path) -> None:
    for name in ARRAYS:
        with (target / f"{name}.npy").open("wb") as file:
            for piece in fetch(f"{name}.npy"):
                file.write(piece)
    (target / META).write_text(outline.meta)
    if damage(target) or content_sha256(mapped(target)) != json.loads(outline.meta)["sha256"]:
        raise DataError(f"the data set of {outline.folder} did not come whole from the machine of the main process")
