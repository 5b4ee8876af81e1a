"""Fashion-MNIST: its files in all their spellings, and what is no such file."""

from __future__ import annotations

import gzip
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from asyncdgl.config.sections import DataConfig
from asyncdgl.data import fashion_mnist
from asyncdgl.data.base import Decoded, Request
from asyncdgl.data.cache import prepare
from asyncdgl.data.store import Cached, open_cached
from asyncdgl.errors import DataError

pytestmark = pytest.mark.usefixtures("no_network")

FASHION = [f"{part}-{what}-ubyte" for part in ("train", "t10k") for what in ("images-idx3", "labels-idx1")]


def images_of(count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 28, 28), np.uint8)


def idx(magic: int, x: np.ndarray) -> bytes:
    return b"".join(n.to_bytes(4, "big") for n in (magic, *x.shape)) + x.astype(np.uint8).tobytes()


def whole() -> dict[str, bytes]:
    """The four files of the data set, with 6 training and 4 test images."""
    labels = np.array([0, 1, 2, 3, 4, 9]), np.array([9, 8, 7, 6])
    parts = [idx(2051, images_of(6, 0)), idx(2049, labels[0]), idx(2051, images_of(4, 1)), idx(2049, labels[1])]
    return dict(zip(FASHION, parts, strict=True))


def write(folder: Path, name: Callable[[str], str] = str, change: Callable[[bytes], bytes] = bytes) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for plain, content in whole().items():
        (folder / name(plain)).write_bytes(change(content))


def config_of(folder: Path) -> DataConfig:
    return DataConfig(dataset="fashion-mnist", data_dir=str(folder), image_size=28)


def decoded(folder: Path) -> Decoded:
    """In this process: what a test of the cache and of the decoding process starts takes longer."""
    return fashion_mnist.decode(Request(28, folder, fashion_mnist.files(folder)))


def check(cached: Decoded | Cached) -> None:
    np.testing.assert_array_equal(cached.train_x, images_of(6, 0)[..., None])
    np.testing.assert_array_equal(cached.test_x, images_of(4, 1)[..., None])
    assert cached.train_y.tolist() == [0, 1, 2, 3, 4, 9]
    assert cached.test_y.tolist() == [9, 8, 7, 6]
    assert cached.classes[0] == "T-shirt/top"
    assert len(cached.classes) == 10


@pytest.mark.parametrize("place", ["", "FashionMNIST/raw", "raw"])
@pytest.mark.parametrize(
    ("name", "change"),
    [
        pytest.param(str, bytes, id="plain"),
        pytest.param(lambda name: name + ".gz", gzip.compress, id="gz"),
        pytest.param(lambda name: name.replace("-idx", ".idx"), bytes, id="dotted"),
        pytest.param(lambda name: name.replace("-idx", ".idx") + ".gz", gzip.compress, id="dotted-gz"),
        pytest.param(lambda name: name + ".gz", bytes, id="unpacked-but-called-gz"),
        pytest.param(str, gzip.compress, id="packed-but-not-called-gz"),
        pytest.param(lambda name: name + ".gz" * ("images" in name), bytes, id="mixed"),
    ],
)
def test_all_spellings_are_read(tmp_path, place, name, change) -> None:
    write(tmp_path / "files" / place, name, change)
    check(decoded(tmp_path / "files"))


def test_files_that_change_are_decoded_again(tmp_path, empty_cache) -> None:
    write(tmp_path)
    first = prepare(config_of(tmp_path))
    assert prepare(config_of(tmp_path)) == first
    os.utime(tmp_path / FASHION[1], ns=(1, 1))
    assert prepare(config_of(tmp_path)) != first


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        pytest.param(FASHION[0], lambda whole: whole[:-5], "its header says 6, and it holds 5 whole", id="cut-short"),
        pytest.param(FASHION[0], lambda whole: whole[:-784], "says 6, and it holds 5", id="cut-at-a-round-place"),
        pytest.param(FASHION[0], lambda whole: whole + b"x", "says 6, and it holds more than that", id="too-long"),
        pytest.param(FASHION[0], lambda whole: whole[:10], "no file of images", id="header-cut-short"),
        pytest.param(FASHION[1], lambda whole: b"", "no file of labels: it has no header", id="empty"),
        pytest.param(FASHION[1], lambda whole: idx(2049, np.arange(5)), "5 labels for 6 images", id="fewer-labels"),
        pytest.param(FASHION[1], lambda whole: idx(2049, np.arange(7)), "7 labels for 6 images", id="more-labels"),
        pytest.param(FASHION[0], lambda whole: idx(2049, np.arange(6)), "begins with 2049, not with 2051", id="labels"),
        pytest.param(
            FASHION[0], lambda whole: whole[:4] + b"\xff" * 4 + whole[8:], "says 4294967295, and it holds 6", id="count"
        ),
        pytest.param(
            FASHION[2] + ".gz",
            lambda whole: gzip.compress(whole)[:-20],
            "is corrupt (Compressed file",
            id="gz-cut-short",
        ),
        pytest.param(FASHION[2] + ".gz", lambda whole: b"<html>" + whole, "no file of images", id="a-web-page"),
        pytest.param(
            FASHION[2] + ".gz",
            lambda whole: (z := gzip.compress(whole))[:10] + b"\xff" * 9 + z[19:],
            "is corrupt (Error",
            id="gz-damaged",
        ),
    ],
)
def test_corrupt_files_are_named(tmp_path, name, content, says) -> None:
    write(tmp_path / "files")
    path = tmp_path / "files" / name
    plain = path.with_name(name.removesuffix(".gz"))
    whole = plain.read_bytes()
    plain.unlink()
    path.write_bytes(content(whole))
    with pytest.raises(DataError, match="corrupt") as error:
        decoded(tmp_path / "files")
    assert str(path) in str(error.value)
    assert says in str(error.value)


def test_another_data_set_of_the_same_form(tmp_path) -> None:
    write(tmp_path)
    (tmp_path / FASHION[3]).write_bytes(idx(2049, np.array([1, 46, 2, 3])))
    with pytest.raises(DataError, match=r"t10k-labels-idx1-ubyte has the label 46, and Fashion-MNIST's are 0 to 9"):
        decoded(tmp_path)
    (tmp_path / FASHION[2]).write_bytes(idx(2051, np.zeros((4, 32, 32))))
    with pytest.raises(DataError, match=r"t10k-images-idx3-ubyte has images of 32x32 pixels, not 28x28"):
        decoded(tmp_path)


# --- Downloads --------------------------------------------------------------------------------------------------------


def test_missing_files_say_what_to_bring(tmp_path, empty_cache) -> None:
    """In the real decoding process, after a real attempt to download them: what it raises must arrive whole."""
    (tmp_path / "files").mkdir()
    with pytest.raises(DataError) as error:
        prepare(config_of(tmp_path / "files"))
    message = str(error.value)
    assert str(tmp_path / "files") in message
    assert all(name in message for name in FASHION)
    assert "--data-dir" in message
    assert "can't be downloaded" in message
    assert list((tmp_path / "files").iterdir()) == []
    assert not empty_cache.exists() or list(empty_cache.iterdir()) == []


@pytest.mark.parametrize("left", [FASHION[0], "notes.txt"])
def test_nothing_is_downloaded_beside_a_users_files(tmp_path, empty_cache, left) -> None:
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / left).write_bytes(whole().get(left, b"mine"))
    with pytest.raises(DataError) as error:
        prepare(config_of(tmp_path / "files"))
    assert "can't be downloaded" not in str(error.value)
    assert FASHION[1] in str(error.value)
    assert (f"(there is {left})" in str(error.value)) == (left in FASHION)
    assert [path.name for path in (tmp_path / "files").iterdir()] == [left]


@pytest.fixture
def mirror(monkeypatch):
    """``mirror(function)``: a download that calls this function, in this process; lists the folders."""
    from asyncdgl.data import child

    def install(download: Callable[[Path], None]) -> None:
        run = child.run_in_child

        def here(dataset, request, target, download=False):
            if download:
                child._download(dataset, request, target)
            else:
                run(dataset, request, target)

        monkeypatch.setattr(child, "run_in_child", here)
        monkeypatch.setattr(fashion_mnist, "SOURCE", replace(fashion_mnist.SOURCE, download=download))

    return install


def test_a_download_is_found_again(empty_cache, mirror) -> None:
    """Without --data-dir the files go to the cache."""
    mirror(lambda folder: write(folder / "FashionMNIST" / "raw"))
    config = DataConfig(dataset="fashion-mnist", image_size=28)
    first = prepare(config)
    check(open_cached(first))
    assert (empty_cache / "downloads" / "FashionMNIST" / "raw" / FASHION[0]).is_file()
    mirror(None)
    assert prepare(config) == first
    assert sorted(path.name for path in empty_cache.iterdir()) == sorted(["downloads", first.name])
    assert [path.name for path in (empty_cache / "downloads").iterdir()] == ["FashionMNIST"]


def test_half_a_download_leaves_nothing(empty_cache, tmp_path, mirror) -> None:
    def broken(folder: Path) -> None:
        write(folder / "FashionMNIST" / "raw")
        (folder / "FashionMNIST" / "raw" / FASHION[3]).unlink()
        raise RuntimeError("the line broke")

    mirror(broken)
    with pytest.raises(DataError, match=r"--data-dir \(it can't be downloaded from here: the line broke\)"):
        prepare(config_of(tmp_path / "new" / "folder"))
    assert not (tmp_path / "new" / "folder").exists()
