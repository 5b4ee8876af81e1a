"""One image file to an array of bytes: every kind that Pillow reads, as a viewer shows it."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL import Image

_NO_PIXELS = {"BUFR", "GRIB", "HDF5", "WMF", "MPEG", "EPS"}
"""Pillow knows these by their first bytes only, or asks another program to draw them."""

_TURNS = {2: 0, 3: 3, 4: 1, 5: 5, 6: 4, 7: 6, 8: 2}
"""EXIF orientation to Pillow's number of the transposition that undoes it."""

_ORIENTATION = 0x0112

LONGEST = 256
"""Of a longer strip than so many times its width, the middle is cut out before it is resized, which would need much
memory for pixels that are then cropped."""


class NoImageError(Exception):
    """A file that is no image, by its content and by its name."""


@cache
def _formats() -> tuple[dict[str, str], dict[str, bool]]:
    """Endings of files to formats; and the formats that are read, with whether their content can be told."""
    from PIL import Image

    Image.init()
    readable = {name: accept is not None for name, (_, accept) in Image.OPEN.items() if name not in _NO_PIXELS}
    return Image.registered_extensions(), readable


def read_image(path: Path, size: int) -> NDArray[Any]:
    """[size, size, 3] uint8: turned upright, shorter side resized, centre cropped, RGB.

    Raises:
        NoImageError, Exception: as ``open_image``.
    """
    import numpy as np

    return np.asarray(fit(open_image(path), size))


def open_image(path: Path) -> Image.Image:
    """The whole image, upright, in eight bits and three colours.

    Raises:
        NoImageError: Pillow doesn't know the content, and the ending is not that of an image.
        Exception: it is damaged, too large, or of a kind whose range of values is not known.
    """
    from PIL import Image, UnidentifiedImageError

    endings, readable = _formats()
    named = endings.get(path.suffix.lower())
    try:
        # Formats without a mark of their own would take any file for theirs: only where the name says so.
        with Image.open(path, formats=[name for name, marked in readable.items() if marked or name == named]) as file:
            return to_rgb(_upright(file))
    except UnidentifiedImageError:
        if named in readable:
            raise ValueError("its content is no image") from None
        raise NoImageError from None
    except Image.DecompressionBombError:
        limit = 2 * (Image.MAX_IMAGE_PIXELS or 0) // 10**6
        raise ValueError(f"more than {limit} million pixels: make it smaller") from None


def to_rgb(image: Image.Image) -> Image.Image:
    """Eight bits and three colours; deeper greys scaled by what their mode can hold.

    Raises:
        ValueError: its values have no known range.
    """
    import numpy as np
    from PIL import Image

    sixteen_bits = image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM"))
    if sixteen_bits:
        deep = np.asarray(image).astype(np.int64)
        image = Image.fromarray(((deep + 128) // 257).astype(np.uint8))
    elif image.mode in ("I", "F"):
        kind = "32-bit integers" if image.mode == "I" else "floating-point numbers"
        raise ValueError(f"its pixels are {kind}, whose range is not known: save it with 8 or 16 bits")
    return image.convert("RGB")


def _upright(image: Image.Image) -> Image.Image:
    from PIL import Image

    image.load()  # some formats turn the image themselves, and then no longer say that it lies
    try:
        turn = _TURNS.get(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # damaged EXIF: a viewer shows the image as it is stored
        turn = None
    if turn is None:
        return image
    turned = image.transpose(Image.Transpose(turn))
    turned.format = image.format
    return turned


def fit(image: Image.Image, size: int) -> Image.Image:
    """The shorter side resized to ``size``, and the middle."""
    from PIL import Image

    if image.size == (size, size):
        return image
    shorter = min(image.size)
    if max(image.size) > LONGEST * shorter:
        image = _centre(image, min(image.width, LONGEST * shorter), min(image.height, LONGEST * shorter))
    width, height = (size if side == shorter else int(size * side / shorter) for side in image.size)
    if image.size != (width, height):
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    return _centre(image, size, size)


def _centre(image: Image.Image, width: int, height: int) -> Image.Image:
    left, top = round((image.width - width) / 2), round((image.height - height) / 2)
    return image.crop((left, top, left + width, top + height))
