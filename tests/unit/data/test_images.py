"""One image file to pixels: sizes, kinds of pixels, and which way up."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from asyncdgl.data.images import LONGEST, NoImageError, read_image


def read(tmp_path: Path, image: Image.Image, name: str = "image.png", size: int = 8, **options: Any) -> np.ndarray:
    image.save(tmp_path / name, **options)
    x = read_image(tmp_path / name, size)
    assert x.shape == (size, size, 3)
    assert x.dtype == np.uint8
    return x


@pytest.mark.parametrize(
    ("height", "width", "rows", "columns"),
    [
        pytest.param(8, 16, slice(None), slice(4, 12), id="wide"),
        pytest.param(14, 8, slice(3, 11), slice(None), id="tall"),
    ],
)
def test_the_centre_is_cropped(tmp_path, colours, height, width, rows, columns) -> None:
    x = colours(height, width)
    np.testing.assert_array_equal(read(tmp_path, Image.fromarray(x)), x[rows, columns])


@pytest.mark.parametrize(
    ("shape", "size", "resized", "corner"),
    [
        ((32, 16), 8, (16, 8), (4, 0)),
        ((9, 7), 8, (10, 8), (1, 0)),
        ((7, 31), 8, (8, 35), (0, 14)),
        ((3, 50), 8, (8, 133), (0, 62)),
        ((33, 90), 8, (8, 21), (0, 6)),
        ((8, 9), 8, (8, 9), (0, 0)),
        ((1, 1), 13, (13, 13), (0, 0)),
        ((7, 31), 13, (13, 57), (0, 22)),
        ((200, 1), 13, (2600, 13), (1294, 0)),
        ((33, 90), 13, (13, 35), (0, 11)),
        ((60, 45), 13, (17, 13), (2, 0)),
    ],
)
def test_sizes_and_places_are_those_of_torchvision(tmp_path, colours, shape, size, resized, corner) -> None:
    """Data sets that it resized and cropped before keep their bits; its numbers for each shape stand here."""
    image = Image.fromarray(colours(*shape))
    x = read(tmp_path, image, size=size)
    whole = np.asarray(image.resize(resized[::-1], Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(x, whole[corner[0] : corner[0] + size, corner[1] : corner[1] + size])


@pytest.mark.parametrize(("height", "width"), [(32, 16), (9, 7), (7, 31), (1, 1), (3, 50), (2, 60_000), (60_000, 2)])
def test_other_sizes_are_resized_without_distortion(tmp_path, height, width) -> None:
    # A ramp in each direction: its middle value must be in the middle, and a square pixel must stay one.
    down, right = np.mgrid[0:height, 0:width]
    x = np.stack([down * 255 / max(height - 1, 1), right * 255 / max(width - 1, 1), 0 * down], -1).round()
    decoded = read(tmp_path, Image.fromarray(x.astype(np.uint8))).astype(float)
    shorter = min(height, width)
    for axis, channel, length in ((0, 0, height), (1, 1, width)):
        values = decoded[..., channel].mean(1 - axis)
        if length == 1:
            assert np.ptp(values) == 0
            continue
        # One pixel of the result is shorter / 8 pixels of the source; the middle of both is the same.
        expected = 127.5 + (np.arange(8) - 3.5) * shorter / 8 * 255 / (length - 1)
        assert values == pytest.approx(np.clip(expected, 0, 255), abs=255 / (length - 1) + 0.5)


def test_a_long_strip_needs_little_memory(tmp_path, monkeypatch) -> None:
    sizes = []
    resize = Image.Image.resize

    def watched(image: Image.Image, size: tuple[int, int], *rest: Any) -> Image.Image:
        sizes.append(size)
        return resize(image, size, *rest)

    monkeypatch.setattr(Image.Image, "resize", watched)
    read(tmp_path, Image.new("RGB", (60_000, 1), (1, 2, 3)), size=64)
    assert sizes == [(64 * LONGEST, 64)]


# --- Pixels -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "value", "name", "expected"),
    [
        pytest.param("L", 77, "a.png", [77, 77, 77], id="grey"),
        pytest.param("1", 1, "a.png", [255, 255, 255], id="black-and-white"),
        pytest.param("LA", (50, 9), "a.png", [50, 50, 50], id="grey-and-alpha"),
        pytest.param("RGBA", (10, 20, 30, 0), "a.png", [10, 20, 30], id="transparent"),
        pytest.param("RGBA", (10, 20, 30, 128), "a.webp", [10, 20, 30], id="webp"),
        pytest.param("CMYK", (255, 0, 255, 0), "a.tif", [0, 255, 0], id="print-colours"),
        pytest.param("YCbCr", (128, 128, 128), "a.jpg", [128, 128, 128], id="television-colours"),
        pytest.param("P", 0, "a.gif", [0, 0, 0], id="palette"),
    ],
)
def test_all_kinds_of_pixels_become_rgb(tmp_path, mode, value, name, expected) -> None:
    options = {"lossless": True, "exact": True} if name.endswith("webp") else {}
    x = read(tmp_path, Image.new(mode, (8, 8), value), name, **options)
    assert np.abs(x.astype(int) - expected).max() <= 1


def test_a_palette_with_a_transparent_colour(tmp_path) -> None:
    image = Image.new("P", (8, 8), 1)
    image.putpalette([0, 0, 0, 200, 100, 50])
    assert (read(tmp_path, image, transparency=1) == [200, 100, 50]).all()


def test_jpeg(tmp_path) -> None:
    x = read(tmp_path, Image.new("RGB", (20, 30), (200, 100, 50)), "photo.JPEG", quality=95)
    assert np.abs(x.astype(int) - [200, 100, 50]).max() <= 4


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.pgm", "a.jp2"])
def test_sixteen_bits_are_scaled_to_eight(tmp_path, name) -> None:
    deep = np.linspace(0, 65535, 64).round().astype(np.uint16).reshape(8, 8)
    if name == "a.pgm":
        (tmp_path / name).write_bytes(b"P5 8 8 65535\n" + deep.astype(">u2").tobytes())
        x = read_image(tmp_path / name, 8)
    else:
        x = read(tmp_path, Image.fromarray(deep), name)
    np.testing.assert_array_equal(x, np.rint(deep / 257).astype(np.uint8)[..., None].repeat(3, -1))


@pytest.mark.parametrize(
    ("dtype", "says"), [(np.float32, "floating-point numbers, whose range"), (np.int32, "32-bit integers, whose range")]
)
def test_numbers_of_unknown_range_are_refused(tmp_path, dtype, says) -> None:
    Image.fromarray(np.arange(64).reshape(8, 8).astype(dtype)).save(tmp_path / "a.tif")
    with pytest.raises(ValueError, match=says):
        read_image(tmp_path / "a.tif", 8)


# --- Which way up -----------------------------------------------------------------------------------------------------

STORED = {
    1: lambda x: x,
    2: lambda x: x[:, ::-1],
    3: lambda x: x[::-1, ::-1],
    4: lambda x: x[::-1],
    5: lambda x: x.swapaxes(0, 1),
    6: lambda x: np.rot90(x, 1),
    7: lambda x: np.rot90(x, 2).swapaxes(0, 1),
    8: lambda x: np.rot90(x, -1),
}
"""How a camera stores an image so that this EXIF orientation turns it upright."""


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp", "a.tif"])
@pytest.mark.parametrize("orientation", STORED)
def test_exif_turns_the_image_upright(tmp_path, orientation, name) -> None:
    upright = np.zeros((16, 24, 3), np.uint8)
    upright[:8, :12], upright[:8, 12:], upright[8:, :12] = [250, 0, 0], [0, 250, 0], [0, 0, 250]
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(np.ascontiguousarray(STORED[orientation](upright)))
    options = {"lossless": True} if name == "a.webp" else {"quality": 95} if name == "a.jpg" else {}
    x = read(tmp_path, stored, name, exif=exif, **options).astype(int)
    corners = [x[0, 0], x[0, 7], x[7, 0], x[7, 7]]
    expected = [[250, 0, 0], [0, 250, 0], [0, 0, 250], [0, 0, 0]]
    assert np.abs(np.array(corners) - expected).max() < 30


UNKNOWN_ORIENTATION = b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x63\0\0\0\0\0\0\0"


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
@pytest.mark.parametrize("exif", [b"nonsense", b"II*\0\x08\0\0\0\xff\xff", UNKNOWN_ORIENTATION])
def test_damaged_exif_leaves_the_image_as_it_is_stored(tmp_path, exif) -> None:
    x = read(tmp_path, Image.new("RGB", (8, 8), (9, 90, 200)), "a.jpg", exif=b"Exif\0\0" + exif, quality=95)
    assert np.abs(x.astype(int) - [9, 90, 200]).max() < 6


# --- No images --------------------------------------------------------------------------------------------------------


def test_too_many_pixels_are_refused_with_the_most(tmp_path, monkeypatch) -> None:
    Image.new("1", (2000, 2000)).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1_500_000)
    with pytest.raises(ValueError, match="more than 3 million pixels: make it smaller"):
        read_image(tmp_path / "a.png", 8)


@pytest.mark.parametrize("content", [b"", b"text", b"\0" * 200, bytes(range(256)) * 4])
def test_what_has_neither_the_content_nor_the_name_of_an_image(tmp_path, content) -> None:
    """Also where a format without a mark of its own could take it for an image."""
    for name in ("a.txt", "a", "a.npy"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(NoImageError):
            read_image(tmp_path / name, 8)
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(ValueError, match="its content is no image"):
        read_image(tmp_path / "a.png", 8)


def test_a_file_with_the_header_of_a_targa_is_one_only_by_name(tmp_path) -> None:
    content = io.BytesIO()
    Image.new("RGB", (8, 8), (1, 2, 3)).save(content, "TGA")
    (tmp_path / "a.tga").write_bytes(content.getvalue())
    assert (read_image(tmp_path / "a.tga", 8) == [1, 2, 3]).all()
    (tmp_path / "a.bin").write_bytes(content.getvalue())
    with pytest.raises(NoImageError):
        read_image(tmp_path / "a.bin", 8)
