"""Images that a run has not seen, read as its own were: of the same size, and in grey where those were grey."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from asyncdgl.data.base import File, Request, listed, shown
from asyncdgl.data.image_folder import cannot_be_read, ending, in_words, place_of, read_all, visible, walk, why
from asyncdgl.data.images import NoImageError, fit, open_image
from asyncdgl.errors import DataError

if TYPE_CHECKING:
    from numpy.typing import NDArray

GREY, COLOUR = 1, 3
TEST = "test"


def check_images(shape: tuple[int, ...], bytes_read: bool) -> None:
    """Whether image files can be read as inputs of this shape.

    Args:
        shape: of one input, channels first.
        bytes_read: whether the inputs were images of bytes, which are normalised, and not floats.

    Raises:
        DataError: they can't; the message says what the run read.
    """
    what = f"this run's inputs are {list(shape)}"
    mend = "use its model from Python: load_run(...).model()"
    if len(shape) != 3:
        raise DataError(f"{what}, no images: {mend}")
    if not bytes_read:
        raise DataError(f"{what} floats, and their scale is not known: {mend}")
    channels, height, width = shape
    if height != width or channels not in (GREY, COLOUR):
        raise DataError(f"{what}, and image files are read square, in grey or three colours: {mend}")


def read_classes(
    folder: Path, classes: Sequence[str], shape: tuple[int, int, int], on_notice: Callable[[str], None]
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Every image of ``folder/<class>/``, or of ``folder/test/<class>/`` where that is a folder.

    A class may be missing. A ``/`` in the name of a class is ``_`` in the name of its folder.

    Args:
        folder: the folder.
        classes: those that the run knows, in their order.
        shape: of one input, channels first.
        on_notice: is told which files were left out, and which classes are missing.

    Returns:
        x [N, H, W, C] uint8 and y [N].

    Raises:
        DataError: the folder has another form or a class that the run does not know, or some images are damaged.
    """
    import numpy as np

    number_of = {name.replace("/", "_"): number for number, name in enumerate(classes)}
    try:
        top = folder / TEST if TEST not in number_of and (folder / TEST).is_dir() else folder
        names = {shown(entry.name): entry.name for entry in visible(top) if entry.is_dir()}
    except OSError as error:
        raise DataError(f"{shown(folder)} can't be read: {error.strerror or error}") from None
    expected = f"{shown(top)}/<class>/ with images, of the run's classes: {', '.join(list(number_of)[:20])}"
    if not names:
        raise DataError(f"{shown(top)} has no folders: expected {expected}")
    unknown = sorted(name for name in names if name not in number_of)
    if unknown:
        raise DataError(f"{shown(top)}: the run does not know the class {listed(unknown)}; expected {expected}")
    files = _files(top, list(names.values()))
    x, y, skipped, damaged = [], [], Counter[str](), []
    for file, image in read_all(Request(shape[1], top, files)):
        if isinstance(image, NoImageError):
            skipped[ending(file.path)] += 1
        elif isinstance(image, Exception):
            damaged.append((top / file.path, why(image)))
        else:
            x.append(_in_channels(image, shape[0]))
            y.append(number_of[shown(file.path.split("/", 1)[0])])
    if damaged:
        raise DataError(cannot_be_read(damaged))
    if skipped:
        on_notice(in_words(skipped))
    if not x:
        raise DataError(f"{shown(top)} has no images: expected {expected}")
    if missing := [name for number, name in enumerate(classes) if number not in y]:
        on_notice(f"no images of {len(missing)} of {len(classes)} classes: {listed(missing)}")
    return np.stack(x), np.asarray(y, np.int64)


def _files(top: Path, names: Sequence[str]) -> tuple[File, ...]:
    unreadable: list[tuple[Path, str]] = []
    found: list[File] = []
    for name in sorted(names):
        try:
            above = tuple(place_of((top / place).stat()) for place in ("", name))
            found += sorted(walk(top, name, above, unreadable), key=lambda file: os.path.split(file.path))
        except OSError as error:
            unreadable.append((top / name, error.strerror or str(error)))
    if unreadable:
        raise DataError(cannot_be_read(unreadable))
    return tuple(found)


def read_files(paths: Sequence[Path], shape: tuple[int, int, int]) -> tuple[NDArray[Any], list[str]]:
    """Image files as x [N, H, W, C] uint8, and what was done to each.

    Raises:
        DataError: some of them can't be read; the message names them.
    """
    import numpy as np

    x, done, damaged = [], [], []
    for path in paths:
        try:
            image = open_image(path)
        except NoImageError:
            damaged.append((path, "it is no image"))
        except OSError as error:
            damaged.append((path, error.strerror or why(error)))
        except Exception as error:  # damaged files make Pillow raise anything
            damaged.append((path, why(error)))
        else:
            pixels = np.asarray(fit(image, shape[1]))
            done.append(_what_was_done(image.size, pixels, shape))
            x.append(_in_channels(pixels, shape[0]))
    if damaged:
        raise DataError(cannot_be_read(damaged))
    return np.stack(x), done


def _what_was_done(size: tuple[int, int], pixels: NDArray[Any], shape: tuple[int, int, int]) -> str:
    channels, height, width = shape
    steps = []
    if size != (width, height):
        steps.append(f"resized from {size[0]}x{size[1]} to {width}x{height}")
        if size[0] != size[1]:
            steps.append("its middle taken")
    if channels == GREY and (pixels.min(2) != pixels.max(2)).any():
        steps.append("made grey")
    return ", ".join(steps)


def _in_channels(pixels: NDArray[Any], channels: int) -> NDArray[Any]:
    """[H, W, 3] with as many channels as the run's images have; what is grey keeps its values."""
    if channels == COLOUR:
        return pixels
    import numpy as np
    from PIL import Image

    return np.asarray(Image.fromarray(pixels).convert("L"))[..., None]
