"""Images: decoders, the cache, splits, and the stream of mini-batches."""

from __future__ import annotations

import gzip
import json
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
from PIL import Image

from asyncdgl.config.sections import DataConfig
from asyncdgl.data import cache, decode
from asyncdgl.data.cache import Cached, image_shape, open_cached, prepare
from asyncdgl.data.dataset import Dataset, Images, make_dataset
from asyncdgl.data.stream import BatchStream, crop_and_flip, in_order
from asyncdgl.errors import ConfigError, DataError
from asyncdgl.seeding import Draws

pytestmark = pytest.mark.usefixtures("one_thread")

FASHION = [f"{part}-{what}-ubyte" for part in ("train", "t10k") for what in ("images-idx3", "labels-idx1")]


@pytest.fixture
def empty_cache(tmp_path, monkeypatch) -> Path:
    """A cache folder of this test alone."""
    folder = tmp_path / "cache"
    monkeypatch.setenv(cache.CACHE_VARIABLE, str(folder))
    return folder


@pytest.fixture
def no_network(monkeypatch) -> None:
    """Downloads fail at once: nobody listens at the discard port."""
    for variable in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(variable, "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)


@pytest.fixture
def decoded_here(monkeypatch) -> list[Path]:
    """Decode in this process, which saves the seconds of a second start of torchvision; lists what was decoded."""
    decoded = []

    def here(options: dict[str, Any], target: Path, on_progress: Callable[[int, int], None] | None) -> None:
        decoded.append(target)
        cache.save(decode.DECODERS[options["dataset"]](options, on_progress or (lambda done, total: None)), target)

    monkeypatch.setattr(cache, "_decode_in_child", here)
    return decoded


# --- Digits and synthetic ---------------------------------------------------------------------------------------------


def test_digits(digits_folder) -> None:
    digits = open_cached(digits_folder)
    assert digits.train_x.shape == (1437, 8, 8, 1)
    assert digits.test_x.shape == (360, 8, 8, 1)
    assert digits.train_x.dtype == np.uint8
    assert digits.train_y.dtype == np.int64
    assert digits.classes == tuple("0123456789")
    assert (digits.train_x.min(), digits.train_x.max()) == (0, 255)
    # Equal shares of each class, to within one image.
    train, test = (np.bincount(y, minlength=10) for y in (digits.train_y, digits.test_y))
    assert np.abs(test - 0.2 * (train + test)).max() <= 1


def test_digits_are_those_of_scikit_learn(digits_folder) -> None:
    from sklearn.datasets import load_digits

    digits, shipped = open_cached(digits_folder), load_digits()
    ours = np.concatenate([digits.train_x, digits.test_x])[..., 0]
    labels = np.concatenate([digits.train_y, digits.test_y])
    expected = np.rint(shipped.images * 255 / 16).astype(np.uint8)

    def rows(x, y):
        return sorted(zip((image.tobytes() for image in x), y.tolist(), strict=True))

    assert rows(ours, labels) == rows(expected, shipped.target)


def test_the_split_of_the_digits_is_fixed(digits_folder, empty_cache) -> None:
    again = prepare(DataConfig())
    assert again.parent == empty_cache
    assert open_cached(again).sha256 == open_cached(digits_folder).sha256


def test_synthetic_is_the_same_each_time_and_depends_on_its_size(empty_cache) -> None:
    small = decode.decode_synthetic({"image_size": 8}, lambda done, total: None)
    folder = prepare(DataConfig(dataset="synthetic", image_size=8))
    cached = open_cached(folder)
    np.testing.assert_array_equal(cached.train_x, small.train_x)
    np.testing.assert_array_equal(cached.test_y, small.test_y)
    assert cached.train_x.shape == (2048, 8, 8, 3)
    assert cached.test_x.shape == (500, 8, 8, 3)
    assert set(np.bincount(cached.test_y)) == {50}
    assert prepare(DataConfig(dataset="synthetic", image_size=9)) != folder


def test_synthetic_classes_can_be_told_apart() -> None:
    data = decode.decode_synthetic({"image_size": 8}, lambda done, total: None)
    means = np.stack([data.train_x[data.train_y == k].mean(0) for k in range(10)])
    distance = ((data.test_x[:, None] - means) ** 2).sum((2, 3, 4))
    assert (distance.argmin(1) == data.test_y).mean() > 0.9


@pytest.mark.parametrize(
    ("dataset", "shape"),
    [("digits", (1, 10)), ("synthetic", (3, 10)), ("fashion-mnist", (1, 10)), ("cifar10", (3, 10))],
)
def test_image_shape_needs_no_files(dataset, shape) -> None:
    assert image_shape(DataConfig(dataset=dataset)) == shape


# --- The cache --------------------------------------------------------------------------------------------------------


def test_statistics_of_the_cache_are_those_of_the_training_images(digits_folder) -> None:
    digits = open_cached(digits_folder)
    x = digits.train_x / 255
    assert digits.mean == pytest.approx([x.mean()])
    assert digits.std == pytest.approx([x.std()])


def test_an_empty_channel_does_not_divide_by_zero(tmp_path) -> None:
    x = np.zeros((4, 2, 2, 3), np.uint8)
    x[:2, ..., 0] = 200
    y = np.arange(4)
    cache.save(decode.Decoded(x, y, x, y, list("abcd")), tmp_path)
    cached = open_cached(tmp_path)
    assert cached.std[0] == pytest.approx(100 / 255)
    assert min(cached.std) > 0


def test_a_data_set_without_images_is_refused(tmp_path) -> None:
    x, y = np.zeros((0, 8, 8, 1), np.uint8), np.zeros(0, np.int64)
    with pytest.raises(DataError, match="no images"):
        cache.save(decode.Decoded(x, y, x, y, ["a"]), tmp_path)


def test_arrays_are_mapped_read_only(digits_folder) -> None:
    digits = open_cached(digits_folder)
    assert isinstance(digits.train_x, np.memmap)
    assert not digits.train_x.flags.writeable


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"ASYNCDGL_CACHE": "/a", "XDG_CACHE_HOME": "/b"}, "/a"),
        ({"ASYNCDGL_CACHE": "", "XDG_CACHE_HOME": "/b"}, "/b/asyncdgl"),
        ({"HOME": "/c"}, "/c/.cache/asyncdgl"),
    ],
    ids=["own-variable", "users-cache-folder", "home"],
)
def test_where_the_cache_lies(monkeypatch, environment, expected) -> None:
    for variable in ("ASYNCDGL_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(variable, raising=False)
    for variable, value in environment.items():
        monkeypatch.setenv(variable, value)
    assert cache.cache_root() == Path(expected)


def test_a_cache_that_cannot_be_written_is_named(tmp_path, monkeypatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(cache.CACHE_VARIABLE, str(tmp_path / "file" / "cache"))
    with pytest.raises(DataError, match="ASYNCDGL_CACHE") as error:
        prepare(DataConfig())
    assert str(tmp_path / "file" / "cache") in str(error.value)


def test_a_second_call_decodes_nothing(digits_folder, monkeypatch) -> None:
    monkeypatch.setitem(decode.DECODERS, "digits", None)
    assert prepare(DataConfig()) == digits_folder


def test_another_run_was_quicker(empty_cache, monkeypatch) -> None:
    """Two runs decode at once: the second one to finish uses what the first one left."""
    decoder = decode.DECODERS["digits"]

    def slow(options: dict[str, Any], progress: Callable[[int, int], None]) -> Any:
        monkeypatch.setitem(decode.DECODERS, "digits", decoder)
        other.append(prepare(DataConfig()))
        return decoder(options, progress)

    other: list[Path] = []
    monkeypatch.setitem(decode.DECODERS, "digits", slow)
    assert [prepare(DataConfig())] == other
    assert list(empty_cache.iterdir()) == other
    assert len(open_cached(other[0]).train_y) == 1437


def test_a_failed_decode_leaves_nothing(empty_cache, monkeypatch) -> None:
    def broken(options: dict[str, Any], progress: Callable[[int, int], None]) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setitem(decode.DECODERS, "digits", broken)
    with pytest.raises(KeyboardInterrupt):
        prepare(DataConfig())
    assert list(empty_cache.iterdir()) == []


# --- Image folders ----------------------------------------------------------------------------------------------------


def colours(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


@pytest.fixture
def image_folder(tmp_path) -> Path:
    """Two classes, two images in each split and class: PNG, 8x8, so that they are decoded as they are."""
    folder = tmp_path / "images"
    for split, seed in (("train", 0), ("test", 10)):
        for k, name in enumerate(("cat", "dog")):
            (folder / split / name).mkdir(parents=True)
            for i in range(2):
                Image.fromarray(colours(8, 8, seed + 2 * k + i)).save(folder / split / name / f"{i}.png")
    return folder


def folder_config(folder: Path, size: int = 8) -> DataConfig:
    return DataConfig(dataset="image-folder", data_dir=str(folder), image_size=size)


PREPARE_TWICE = """
import json, sys
from asyncdgl.config.sections import DataConfig
from asyncdgl.data import cache
config = DataConfig(dataset="image-folder", data_dir=sys.argv[1], image_size=8)
progress = []
folder = cache.prepare(config, lambda done, total: progress.append((done, total)))
cache.subprocess.Popen = None  # a second decoding process would fail
again = cache.prepare(config)
cached = cache.open_cached(folder)
print(json.dumps({
    "folders": [str(folder), str(again)],
    "progress": progress,
    "imported": [name for name in ("torchvision", "torch", "PIL") if name in sys.modules],
    "images": [len(cached.train_y), len(cached.test_y)],
}))
"""


def test_only_the_decoding_process_imports_torchvision(image_folder, empty_cache) -> None:
    source = image_folder / "train" / "dog" / "0.png"
    for number in range(997):
        os.link(source, source.with_name(f"link{number}.png"))
    run = subprocess.run(
        [sys.executable, "-c", PREPARE_TWICE, str(image_folder)], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    told = json.loads(run.stdout)
    assert told["imported"] == []
    assert told["folders"][0] == told["folders"][1]
    assert told["images"] == [1001, 4]
    assert told["progress"] == [[1000, 1005]]
    assert [str(path) for path in empty_cache.iterdir()] == told["folders"][:1]


def test_images_of_the_right_size_are_kept_as_they_are(image_folder, empty_cache, decoded_here) -> None:
    cached = open_cached(prepare(folder_config(image_folder)))
    np.testing.assert_array_equal(cached.train_x, [colours(8, 8, seed) for seed in range(4)])
    np.testing.assert_array_equal(cached.test_x, [colours(8, 8, 10 + seed) for seed in range(4)])
    assert cached.train_y.tolist() == cached.test_y.tolist() == [0, 0, 1, 1]
    assert cached.classes == ("cat", "dog")
    assert image_shape(folder_config(image_folder)) == (3, 2)


def test_a_changed_file_makes_a_new_key(image_folder, empty_cache, decoded_here) -> None:
    first = prepare(folder_config(image_folder))
    assert prepare(folder_config(image_folder)) == first
    assert len(decoded_here) == 1
    path = image_folder / "train" / "cat" / "0.png"
    Image.fromarray(colours(8, 8, 77)).save(path)
    os.utime(path, ns=(1, 1))
    second = prepare(folder_config(image_folder))
    assert second != first
    np.testing.assert_array_equal(open_cached(second).train_x[0], colours(8, 8, 77))
    np.testing.assert_array_equal(open_cached(first).train_x[0], colours(8, 8, 0))
    path.rename(path.with_name("renamed.png"))
    assert prepare(folder_config(image_folder)) not in (first, second)
    assert prepare(folder_config(image_folder, size=4)) not in (first, second)
    assert len(decoded_here) == 4


def decode_one(tmp_path: Path, image: Image.Image, name: str = "image.png", **options: Any) -> np.ndarray:
    for split in ("train", "test"):
        (tmp_path / split / "only").mkdir(parents=True)
        image.save(tmp_path / split / "only" / name, **options)
    decoded = decode.decode_image_folder({"data_dir": str(tmp_path), "image_size": 8}, lambda done, total: None)
    assert decoded.train_x.shape == (1, 8, 8, 3)
    np.testing.assert_array_equal(decoded.train_x, decoded.test_x)
    return decoded.train_x[0]


@pytest.mark.parametrize(
    ("height", "width", "rows", "columns"),
    [
        pytest.param(8, 16, slice(None), slice(4, 12), id="wide"),
        pytest.param(14, 8, slice(3, 11), slice(None), id="tall"),
    ],
)
def test_the_centre_is_cropped(tmp_path, height, width, rows, columns) -> None:
    x = colours(height, width)
    np.testing.assert_array_equal(decode_one(tmp_path, Image.fromarray(x)), x[rows, columns])


@pytest.mark.parametrize(("height", "width"), [(32, 16), (9, 7), (7, 31), (1, 1), (3, 50)])
def test_other_sizes_are_resized_without_distortion(tmp_path, height, width) -> None:
    # A ramp in each direction: its middle value must be in the middle, and a square pixel must stay one.
    down, right = np.mgrid[0:height, 0:width]
    x = np.stack([down * 255 / max(height - 1, 1), right * 255 / max(width - 1, 1), 0 * down], -1).round()
    decoded = decode_one(tmp_path, Image.fromarray(x.astype(np.uint8))).astype(float)
    shorter = min(height, width)
    for axis, channel, length in ((0, 0, height), (1, 1, width)):
        values = decoded[..., channel].mean(1 - axis)
        if length == 1:
            assert np.ptp(values) == 0
            continue
        # One pixel of the result is shorter / 8 pixels of the source; the middle of both is the same.
        expected = 127.5 + (np.arange(8) - 3.5) * shorter / 8 * 255 / (length - 1)
        assert values == pytest.approx(np.clip(expected, 0, 255), abs=255 / (length - 1))


@pytest.mark.parametrize(
    ("mode", "value", "expected"),
    [
        pytest.param("L", 77, [77, 77, 77], id="grey"),
        pytest.param("1", 1, [255, 255, 255], id="black-and-white"),
        pytest.param("RGBA", (10, 20, 30, 0), [10, 20, 30], id="transparent"),
    ],
)
def test_all_kinds_of_images_become_rgb(tmp_path, mode, value, expected) -> None:
    x = decode_one(tmp_path, Image.new(mode, (8, 8), value))
    assert (x == expected).all()


def test_jpeg(tmp_path) -> None:
    x = decode_one(tmp_path, Image.new("RGB", (20, 30), (200, 100, 50)), "photo.JPEG", quality=95)
    assert np.abs(x.astype(int) - [200, 100, 50]).max() <= 4


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:60])


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(truncate, id="cut-short"),
        pytest.param(lambda path: path.write_bytes(b""), id="no-bytes"),
        pytest.param(lambda path: path.write_text("<html>not found</html>"), id="a-web-page"),
    ],
)
@pytest.mark.parametrize("split", ["train", "test"])
def test_a_damaged_image_is_named_and_nothing_is_left(image_folder, empty_cache, decoded_here, damage, split) -> None:
    path = image_folder / split / "cat" / "1.png"
    damage(path)
    with pytest.raises(DataError, match="can't be read as an image") as error:
        prepare(folder_config(image_folder))
    assert str(path) in str(error.value)
    assert list(empty_cache.iterdir()) == []


def remove_all(folder: Path) -> None:
    for path in sorted(folder.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()


@pytest.mark.parametrize(
    ("damage", "named", "problem"),
    [
        pytest.param(lambda top: remove_all(top) or top.rmdir(), "train", "is no folder", id="missing"),
        pytest.param(lambda top: remove_all(top / "test"), "test", "has no class folders", id="no-classes"),
        pytest.param(lambda top: remove_all(top / "train" / "dog"), "train/dog", "is empty", id="empty-class"),
        pytest.param(
            lambda top: (top / "test" / "dog").rename(top / "test" / "wolf"), "", "dog, wolf", id="other-classes"
        ),
        pytest.param(
            lambda top: [p.rename(p.with_suffix(".txt")) for p in (top / "train" / "dog").iterdir()],
            "",
            "dog",
            id="no-image-files",
        ),
    ],
)
def test_a_folder_of_another_shape(image_folder, empty_cache, decoded_here, damage, named, problem) -> None:
    damage(image_folder)
    with pytest.raises(DataError) as error:
        prepare(folder_config(image_folder))
    assert str(image_folder / named) in str(error.value)
    assert problem in str(error.value)
    assert not empty_cache.exists() or list(empty_cache.iterdir()) == []


def test_image_shape_of_a_missing_folder(tmp_path) -> None:
    with pytest.raises(DataError, match="is no folder"):
        image_shape(folder_config(tmp_path / "nowhere"))


# --- The decoding process ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    # Large images for the process that is to die while it decodes.
    ("stdin_stays", "size"),
    [(True, 8), (False, 48)],
    ids=["parent-lives", "parent-died"],
)
def test_the_decoding_process_dies_with_its_parent(tmp_path, stdin_stays, size) -> None:
    options = json.dumps({"dataset": "synthetic", "image_size": size})
    command = [sys.executable, "-m", "asyncdgl.data.decode", options, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as child:
        assert child.stdin is not None
        if not stdin_stays:
            child.stdin.close()
        code = child.wait(60)
    assert code == (0 if stdin_stays else 1)
    assert (tmp_path / "meta.json").exists() == stdin_stays


@pytest.fixture
def decoder(monkeypatch, tmp_path) -> Callable[[str], None]:
    """``decoder(script)``: a shell script in place of the decoding process."""

    def install(script: str) -> None:
        program = tmp_path / "decoder"
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
        monkeypatch.setattr(cache.sys, "executable", str(program))

    return install


def test_an_interrupt_ends_the_decoding_process(image_folder, empty_cache, decoder, monkeypatch) -> None:
    children = []

    class Watched(subprocess.Popen):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            children.append(self)

    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cache.subprocess, "Popen", Watched)
    decoder("echo 1000 2000; exec sleep 600")
    with pytest.raises(KeyboardInterrupt):
        prepare(folder_config(image_folder), interrupt)
    assert [child.poll() for child in children] == [-signal.SIGKILL]
    assert list(empty_cache.iterdir()) == []


@pytest.mark.parametrize(
    ("script", "message"),
    [
        pytest.param("exit 7", "decoding image-folder failed: the decoder ended with code 7", id="silent"),
        pytest.param("echo one >&2; echo two >&2; exit 1", "decoding image-folder failed: two", id="unexpected"),
        pytest.param("echo noise >&2; echo told >&2; exit 3", "told", id="expected"),
    ],
)
def test_what_a_failing_decoding_process_said(image_folder, empty_cache, decoder, script, message) -> None:
    decoder(script)
    with pytest.raises(DataError) as error:
        prepare(folder_config(image_folder))
    assert str(error.value) == message
    assert list(empty_cache.iterdir()) == []


def test_progress_is_told_and_other_output_is_not(image_folder, empty_cache, decoder) -> None:
    decoder("echo 1000 2005; echo a library says 3; echo 4; echo; echo 2000 2005; exit 1")
    told = []
    with pytest.raises(DataError):
        prepare(folder_config(image_folder), lambda done, total: told.append((done, total)))
    assert told == [(1000, 2005), (2000, 2005)]


# --- Fashion-MNIST ----------------------------------------------------------------------------------------------------


def fashion_images(count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 28, 28), np.uint8)


def fashion_files() -> dict[str, bytes]:
    """The four files of the data set, with 6 training and 4 test images."""

    def images(x: np.ndarray) -> bytes:
        return b"".join(n.to_bytes(4, "big") for n in (2051, len(x), 28, 28)) + x.tobytes()

    def labels(y: list[int]) -> bytes:
        return b"".join(n.to_bytes(4, "big") for n in (2049, len(y))) + bytes(y)

    parts = [images(fashion_images(6, 0)), labels([0, 1, 2, 3, 4, 9])]
    parts += [images(fashion_images(4, 1)), labels([9, 8, 7, 6])]
    return dict(zip(FASHION, parts, strict=True))


def write_fashion(folder: Path, compressed: bool = False) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in fashion_files().items():
        if compressed:
            (folder / f"{name}.gz").write_bytes(gzip.compress(content))
        else:
            (folder / name).write_bytes(content)


def fashion_config(folder: Path) -> DataConfig:
    return DataConfig(dataset="fashion-mnist", data_dir=str(folder), image_size=28)


@pytest.mark.parametrize("place", ["", "FashionMNIST/raw"], ids=["in-the-folder", "where-torchvision-puts-them"])
@pytest.mark.parametrize("compressed", [False, True], ids=["plain", "gz"])
def test_fashion_mnist(tmp_path, empty_cache, decoded_here, no_network, place, compressed) -> None:
    write_fashion(tmp_path / "files" / place, compressed)
    cached = open_cached(prepare(fashion_config(tmp_path / "files")))
    np.testing.assert_array_equal(cached.train_x, fashion_images(6, 0)[..., None])
    np.testing.assert_array_equal(cached.test_x, fashion_images(4, 1)[..., None])
    assert cached.train_y.tolist() == [0, 1, 2, 3, 4, 9]
    assert cached.test_y.tolist() == [9, 8, 7, 6]
    assert cached.classes[0] == "T-shirt/top"
    assert len(cached.classes) == 10


def test_fashion_files_that_change_are_decoded_again(tmp_path, empty_cache, decoded_here, no_network) -> None:
    write_fashion(tmp_path)
    first = prepare(fashion_config(tmp_path))
    assert prepare(fashion_config(tmp_path)) == first
    os.utime(tmp_path / FASHION[1], ns=(1, 1))
    assert prepare(fashion_config(tmp_path)) != first
    assert len(decoded_here) == 2


@pytest.mark.parametrize(
    ("name", "content"),
    [
        pytest.param(FASHION[0], lambda whole: whole[:-5], id="images-cut-short"),
        pytest.param(FASHION[0], lambda whole: whole[:10], id="header-cut-short"),
        pytest.param(FASHION[1], lambda whole: b"", id="labels-empty"),
        pytest.param(FASHION[1], lambda whole: whole[:-1], id="fewer-labels-than-images"),
        pytest.param(FASHION[2] + ".gz", lambda whole: gzip.compress(whole)[:-20], id="gz-cut-short"),
        pytest.param(FASHION[2] + ".gz", lambda whole: b"<html>" + whole, id="no-gz"),
        pytest.param(
            FASHION[2] + ".gz", lambda whole: (z := gzip.compress(whole))[:10] + b"\xff" * 9 + z[19:], id="gz-damaged"
        ),
    ],
)
def test_corrupt_fashion_files_are_named(tmp_path, empty_cache, decoded_here, no_network, name, content) -> None:
    write_fashion(tmp_path / "files")
    path = tmp_path / "files" / name
    plain = path.with_name(name.removesuffix(".gz"))
    whole = plain.read_bytes()
    plain.unlink()
    path.write_bytes(content(whole))
    with pytest.raises(DataError, match="corrupt") as error:
        prepare(fashion_config(tmp_path / "files"))
    assert str(path) in str(error.value)
    assert list(empty_cache.iterdir()) == []


def test_missing_fashion_files_say_what_to_bring(tmp_path, empty_cache, no_network) -> None:
    """In the real decoding process: what it raises must arrive whole."""
    (tmp_path / "files").mkdir()
    with pytest.raises(DataError) as error:
        prepare(fashion_config(tmp_path / "files"))
    message = str(error.value)
    assert str(tmp_path / "files") in message
    assert all(name in message for name in FASHION)
    assert "--data-dir" in message
    assert list(empty_cache.iterdir()) == []


# --- CIFAR-10 ---------------------------------------------------------------------------------------------------------


def test_missing_cifar10_says_how_to_bring_it(tmp_path, empty_cache, decoded_here, no_network) -> None:
    with pytest.raises(DataError) as error:
        prepare(DataConfig(dataset="cifar10", data_dir=str(tmp_path / "files"), image_size=32))
    message = str(error.value)
    assert str(tmp_path / "files") in message
    assert "cifar-10-batches-py" in message
    assert "--data-dir" in message
    assert list(empty_cache.iterdir()) == []


def write_cifar(folder: Path, monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
    """Files of CIFAR-10's form with one image a batch; their sums are not those of the real ones."""
    from torchvision.datasets import CIFAR10

    monkeypatch.setattr(CIFAR10, "train_list", [[name, None] for name, _ in CIFAR10.train_list])
    monkeypatch.setattr(CIFAR10, "test_list", [[name, None] for name, _ in CIFAR10.test_list])
    monkeypatch.setattr(CIFAR10, "meta", {**CIFAR10.meta, "md5": None})
    (folder / CIFAR10.base_folder).mkdir(parents=True)
    x = np.random.default_rng(0).integers(0, 256, (6, 32, 32, 3), np.uint8)
    for label, (name, _) in enumerate(CIFAR10.train_list + CIFAR10.test_list):
        content = {"data": x[label].transpose(2, 0, 1).reshape(1, -1), "labels": [label]}
        (folder / CIFAR10.base_folder / name).write_bytes(pickle.dumps(content))
    names = {"label_names": [f"class{k}" for k in range(10)]}
    (folder / CIFAR10.base_folder / CIFAR10.meta["filename"]).write_bytes(pickle.dumps(names))
    return x


def test_cifar10(tmp_path, empty_cache, decoded_here, no_network, monkeypatch) -> None:
    x = write_cifar(tmp_path, monkeypatch)
    config = DataConfig(dataset="cifar10", data_dir=str(tmp_path), image_size=32)
    cached = open_cached(prepare(config))
    np.testing.assert_array_equal(cached.train_x, x[:5])
    np.testing.assert_array_equal(cached.test_x, x[5:])
    assert cached.train_y.tolist() == [0, 1, 2, 3, 4]
    assert cached.test_y.tolist() == [5]
    assert cached.classes[9] == "class9"
    prepare(config)
    assert len(decoded_here) == 1


def test_a_download_is_found_again(empty_cache, decoded_here, monkeypatch) -> None:
    """Without --data-dir the files go to the cache; the key names them as they are after the download."""
    from torchvision.datasets import FashionMNIST

    def downloaded(root: str, download: bool) -> None:
        write_fashion(Path(root) / "FashionMNIST" / "raw")

    downloaded.classes = FashionMNIST.classes  # type: ignore[attr-defined]
    monkeypatch.setattr("torchvision.datasets.FashionMNIST", downloaded)
    config = DataConfig(dataset="fashion-mnist", image_size=28)
    first = prepare(config)
    assert len(open_cached(first).train_y) == 6
    assert (empty_cache / "downloads" / "FashionMNIST" / "raw" / FASHION[0]).is_file()
    assert prepare(config) == first
    assert len(decoded_here) == 1


# --- Splits and normalisation -----------------------------------------------------------------------------------------


@pytest.fixture
def digits(digits_folder) -> Cached:
    return open_cached(digits_folder)


def test_the_validation_split_is_disjoint_and_the_same_for_every_seed(digits, small_config) -> None:
    one, other = (make_dataset(digits, small_config(seed=seed, data={"validation": 0.2})) for seed in (0, 7))
    assert one.validation is not None
    assert len(one.validation) == 287
    assert sorted([*one.train.rows, *one.validation.rows]) == list(range(1437))
    np.testing.assert_array_equal(one.validation.rows, other.validation.rows)
    assert len(one.test) == 360
    # A random share, not one end of the file.
    assert 600 < one.validation.rows.mean() < 840


def test_without_validation_all_rows_are_for_training(digits, small_config) -> None:
    dataset = make_dataset(digits, small_config())
    assert dataset.validation is None
    assert dataset.train.rows.tolist() == list(range(1437))


def test_a_set_smaller_than_one_batch_is_refused(digits, small_config) -> None:
    with pytest.raises(DataError, match=r"1437 images, fewer than one batch of 1438.*--batch-size"):
        make_dataset(digits, small_config(batch_size=1438))
    assert len(make_dataset(digits, small_config(batch_size=1437)).train) == 1437
    with pytest.raises(DataError, match="1150 images"):
        make_dataset(digits, small_config(batch_size=1437, data={"validation": 0.2}))


def test_a_share_that_rounds_to_no_image_is_refused(digits, small_config) -> None:
    with pytest.raises(ConfigError, match=r"data\.validation"):
        make_dataset(digits, small_config(data={"validation": 1e-4}))


def test_given_statistics_replace_the_measured_ones(digits, small_config) -> None:
    dataset = make_dataset(digits, small_config(data={"mean": [0.5], "std": [0.25]}))
    x = dataset.normalise(np.array([0, 255], np.uint8).reshape(1, 1, 2, 1))
    assert x.ravel() == pytest.approx([-2, 2])


def test_statistics_of_other_channels_are_refused(digits, small_config) -> None:
    with pytest.raises(DataError, match="3 channels, but the images have 1"):
        make_dataset(digits, small_config(data={"mean": [0.5] * 3, "std": [0.5] * 3}))


def test_normalised_training_images_have_mean_0_and_deviation_1(small_config) -> None:
    cached = open_cached(prepare(DataConfig(dataset="synthetic", image_size=8)))
    dataset = make_dataset(cached, small_config(data={"dataset": "synthetic", "image_size": 8}))
    x = dataset.normalise(cached.train_x)
    assert x.dtype == np.float32
    assert x.mean((0, 1, 2), dtype=np.float64) == pytest.approx([0, 0, 0], abs=1e-5)
    assert x.std((0, 1, 2), dtype=np.float64) == pytest.approx([1, 1, 1], abs=1e-5)


# --- The stream -------------------------------------------------------------------------------------------------------


def numbered(count: int, size: int = 8) -> Dataset:
    """Random images whose class is their number."""
    x = np.random.default_rng(3).integers(1, 256, (count, size, size, 1), np.uint8)
    images = Images(x, np.arange(count), np.arange(count))
    return Dataset(images, None, images, ("0",), (0.0,), (1 / 255,), "")


def stream(dataset: Dataset, augment: bool = False, seed: int = 0) -> BatchStream:
    return BatchStream(dataset, 10, augment, Draws(seed, "data"))


@pytest.mark.parametrize("augment", [False, True], ids=["plain", "augmented"])
def test_a_batch_depends_on_seed_and_number_alone(augment) -> None:
    dataset = numbered(45)
    one, other = stream(dataset, augment), stream(dataset, augment)
    assert one.batches_per_epoch == 4
    in_turn = [one.get(number) for number in range(12)]
    for number in (7, 0, 11, 3, 3, 4, 8):
        batch = other.get(number)
        assert batch.number == number
        assert torch.equal(batch.x, in_turn[number].x)
        assert torch.equal(batch.y, in_turn[number].y)
    assert not torch.equal(stream(dataset, augment, seed=1).get(0).y, in_turn[0].y)


def test_every_batch_has_crops_of_its_own() -> None:
    image = numbered(1).train.x
    images = Images(np.repeat(image, 40, 0), np.zeros(40, np.int64), np.arange(40))
    batches = stream(Dataset(images, None, images, ("0",), (0.0,), (1.0,), ""), augment=True)
    # The same picture in all of them, so that only crops and flips differ; batches 0 and 4 begin an epoch.
    assert len({batches.get(number).x.numpy().tobytes() for number in range(8)}) == 8


@pytest.mark.parametrize("count", [40, 45, 49])
def test_an_epoch_has_every_image_at_most_once_and_whole_batches(count) -> None:
    batches = stream(numbered(count))
    orders = []
    for epoch in range(3):
        ids = [batches.get(epoch * 4 + index).y.tolist() for index in range(4)]
        assert [len(part) for part in ids] == [10] * 4
        orders.append([image for part in ids for image in part])
        assert len(set(orders[-1])) == 40
    assert orders[0] != orders[1] != orders[2] != orders[0]
    assert orders[0] != sorted(orders[0])


def test_the_dropped_images_are_others_in_another_epoch() -> None:
    batches = stream(numbered(45))
    used = {image for number in range(40) for image in batches.get(number).y.tolist()}
    assert used == set(range(45))


def test_a_batch_is_float32_channels_last(digits, small_config) -> None:
    config = small_config(data={"dataset": "synthetic", "image_size": 8})
    dataset = make_dataset(open_cached(prepare(config.data)), config)
    batch = stream(dataset).get(0)
    assert batch.x.shape == (10, 3, 8, 8)
    assert batch.x.dtype == torch.float32
    assert batch.y.dtype == torch.int64
    assert batch.x.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("augment", [False, True], ids=["plain", "augmented"])
def test_images_keep_their_classes(augment) -> None:
    dataset = numbered(45)
    batch = stream(dataset, augment).get(2)
    for x, number in zip(batch.x.permute(0, 2, 3, 1).numpy(), batch.y.tolist(), strict=True):
        # Pixels as they were, since the mean is 0 and the deviation 1/255: the whole image, or a crop of it.
        image = dataset.train.x[number]
        if augment:
            assert any(np.allclose(x, crop, atol=1e-3) for crop in all_crops(image, 1))
        else:
            np.testing.assert_allclose(x, image, atol=1e-3)


def all_crops(image: np.ndarray, pad: int) -> list[np.ndarray]:
    """Slowly, pixel by pixel: every crop after padding with zeros, as it is and mirrored, by (top, left, flip)."""
    height, width, _ = image.shape
    crops = []
    for top in range(2 * pad + 1):
        for left in range(2 * pad + 1):
            crop = np.zeros_like(image)
            for row in range(height):
                for column in range(width):
                    r, c = row + top - pad, column + left - pad
                    if 0 <= r < height and 0 <= c < width:
                        crop[row, column] = image[r, c]
            crops += [crop, crop[:, ::-1]]
    assert len({crop.tobytes() for crop in crops}) == len(crops)
    return crops


@pytest.mark.parametrize(("size", "pad"), [(8, 1), (16, 2)])
def test_crops_and_flips_are_those_of_a_slow_reference(size, pad) -> None:
    x = np.random.default_rng(1).integers(1, 256, (5, size, size, 3), np.uint8)
    for seed in range(4):
        augmented = crop_and_flip(x, np.random.default_rng(seed))
        assert augmented.dtype == np.uint8
        for image, result in zip(x, augmented, strict=True):
            assert any(np.array_equal(result, crop) for crop in all_crops(image, pad))


def test_an_image_of_32_pixels_is_padded_by_4() -> None:
    x = np.full((2000, 32, 32, 1), 9, np.uint8)
    augmented = crop_and_flip(x, np.random.default_rng(0))[..., 0]
    rows = (augmented.max(2) == 0).sum(1)
    columns = (augmented.max(1) == 0).sum(1)
    assert set(rows) == set(columns) == {0, 1, 2, 3, 4}


def test_all_crops_and_flips_are_equally_likely() -> None:
    image = np.random.default_rng(1).integers(1, 256, (8, 8, 1), np.uint8)
    place = {crop.tobytes(): index for index, crop in enumerate(all_crops(image, 1))}
    augmented = crop_and_flip(np.repeat(image[None], 3600, 0), np.random.default_rng(0))
    counts = np.bincount([place[result.tobytes()] for result in augmented], minlength=18)
    assert scipy.stats.chisquare(counts).pvalue > 1e-3


def test_crops_leave_the_images_as_they_were() -> None:
    dataset = numbered(20)
    before = dataset.train.x.copy()
    stream(dataset, augment=True).get(0).x.zero_()
    stream(dataset).get(0).x.zero_()
    np.testing.assert_array_equal(dataset.train.x, before)


@pytest.mark.parametrize("batch_size", [1, 7, 45, 100])
def test_in_order_covers_everything_once_unaltered(batch_size) -> None:
    dataset = numbered(45)
    images = Images(dataset.train.x, dataset.train.y, np.arange(0, 45, 2))
    batches = list(in_order(dataset, images, batch_size))
    assert torch.cat([batch.y for batch in batches]).tolist() == list(range(0, 45, 2))
    assert [batch.number for batch in batches] == list(range(len(batches)))
    assert all(len(batch.y) == batch_size for batch in batches[:-1])
    x = torch.cat([batch.x for batch in batches]).permute(0, 2, 3, 1).numpy()
    np.testing.assert_allclose(x, dataset.train.x[::2], atol=1e-3)


def test_the_stream_of_a_run_leaves_the_validation_share_out(digits, small_config) -> None:
    config = small_config(data={"validation": 0.3})
    dataset = make_dataset(digits, config)
    batches = BatchStream(dataset, config.batch_size, False, Draws(0, "data"))
    assert batches.batches_per_epoch == (1437 - 431) // 128
    held_out = {dataset.normalise(digits.train_x[row]).tobytes() for row in dataset.validation.rows}
    used = {x.permute(1, 2, 0).numpy().tobytes() for n in range(7) for x in batches.get(n).x}
    # Two digits of 1,797 may be the same picture, hence not quite disjoint as pictures.
    assert len(held_out & used) <= 2
