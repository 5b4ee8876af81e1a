"""Image folders: what is listed, what is read of it, and what is said of the rest."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from asyncdgl.config.sections import DataConfig
from asyncdgl.data.base import Request
from asyncdgl.data.cache import data_shape, prepare
from asyncdgl.data.image_folder import decode, files
from asyncdgl.data.store import open_cached
from asyncdgl.errors import DataError


def decoded(folder: Path, size: int = 8):
    """The arrays, and what was said."""
    told: list[str] = []
    return decode(Request(size, folder, files(folder), on_notice=told.append)), told


def test_images_of_the_right_size_are_kept_as_they_are(image_folder, empty_cache, folder_config, colours) -> None:
    config = folder_config(image_folder)
    assert data_shape(config) == ((3, 8, 8), 2)
    assert not empty_cache.exists()
    cached = open_cached(prepare(config))
    np.testing.assert_array_equal(cached.train_x, [colours(8, 8, seed) for seed in range(4)])
    np.testing.assert_array_equal(cached.test_x, [colours(8, 8, 10 + seed) for seed in range(4)])
    assert cached.train_y.tolist() == cached.test_y.tolist() == [0, 0, 1, 1]
    assert cached.classes == ("cat", "dog")
    assert cached.notices == ()


@pytest.mark.parametrize("place", ["train/cat/0.png", "train/dog/deep/er/0.png", "test/cat/deep/0.png"])
def test_a_changed_file_is_decoded_again_however_deep_it_lies(
    image_folder, empty_cache, folder_config, colours, place
) -> None:
    path = image_folder / place
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(colours(8, 8, 76)).save(path)
    first = prepare(folder_config(image_folder))
    assert prepare(folder_config(image_folder)) == first
    Image.fromarray(colours(8, 8, 77)).save(path)
    os.utime(path, ns=(1, 1))
    second = prepare(folder_config(image_folder))
    assert second != first

    def has(folder: Path, seed: int) -> bool:
        cached = open_cached(folder)
        return any(np.array_equal(x, colours(8, 8, seed)) for x in (*cached.train_x, *cached.test_x))

    assert [has(first, 76), has(first, 77), has(second, 76), has(second, 77)] == [True, False, False, True]


def test_another_name_and_another_size_are_other_data(image_folder, empty_cache, folder_config) -> None:
    folders = [prepare(folder_config(image_folder)), prepare(folder_config(image_folder, size=4))]
    path = image_folder / "train" / "cat" / "0.png"
    path.rename(path.with_name("renamed.png"))
    folders.append(prepare(folder_config(image_folder)))
    assert len(set(folders)) == 3


def test_the_order_is_that_of_torchvision(image_folder, colours) -> None:
    """Decoded sets keep their bits: folders in order of their paths, files in order of their names."""
    places = ["cat/b/1.png", "cat/a b/2.png", "cat/a/3.png", "dog/Z.png", "cat/a/c/0.png", "cat/é.png"]
    for number, place in enumerate(places):
        path = image_folder / "train" / place
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(colours(8, 8, 100 + number)).save(path)
    theirs = [
        os.path.join(root, name)
        for kind in ("cat", "dog")
        for root, _, names in sorted(os.walk(image_folder / "train" / kind))
        for name in sorted(names)
    ]
    ours = [str(image_folder / file.path) for file in files(image_folder) if file.path.startswith("train/")]
    assert ours == theirs
    arrays, _ = decoded(image_folder)
    np.testing.assert_array_equal(arrays.train_x, [np.asarray(Image.open(path)) for path in theirs])
    assert arrays.train_y.tolist() == ["/dog/" in path for path in theirs]


# --- Nobody's data, and what is no image ------------------------------------------------------------------------------


def test_hidden_names_and_those_of_a_mac_are_nobodys_data(image_folder) -> None:
    before, _ = decoded(image_folder)
    for place in (
        "train/.ipynb_checkpoints/0.png",
        "test/.hidden/0.png",
        "train/__MACOSX/dog/._0.png",
        "train/dog/._0.png",
        "train/dog/.cache/0.png",
        "test/cat/__MACOSX/0.png",
        ".git/0.png",
        "train/dog/.DS_Store",
    ):
        path = image_folder / place
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), "red").save(path, "PNG")
    after, told = decoded(image_folder)
    assert after.classes == ["cat", "dog"]
    np.testing.assert_array_equal(after.train_x, before.train_x)
    np.testing.assert_array_equal(after.test_x, before.test_x)
    assert told == []


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *[("a.jfif", "JPEG"), ("a.gif", "GIF"), ("a.avif", "AVIF"), ("a.webp", "WEBP"), ("a.BMP", "BMP")],
        *[("a.ppm", "PPM"), ("a.tga", "TGA"), ("a.jp2", "JPEG2000")],
        *[("a", "PNG"), ("a.img", "JPEG"), ("a.png", "JPEG"), ("n.0815", "TIFF")],
    ],
)
def test_whatever_pillow_opens_is_read(image_folder, name, kind) -> None:
    Image.new("RGB", (8, 8), (255, 0, 0)).save(image_folder / "train" / "dog" / name, kind)
    arrays, told = decoded(image_folder)
    assert arrays.train_y.tolist() == [0, 0, 1, 1, 1]
    assert sum(bool((abs(x.astype(int) - [255, 0, 0]) < 8).all()) for x in arrays.train_x) == 1
    assert told == []


def test_what_is_no_image_is_counted_aloud_in_every_run(image_folder, empty_cache, folder_config) -> None:
    for number in range(3):
        (image_folder / "train" / "cat" / f"{number}.txt").write_text("a label of this image")
    (image_folder / "test" / "dog" / "film.MP4").write_bytes(bytes(range(256)))
    (image_folder / "test" / "dog" / "film.mpg").write_bytes(b"\x00\x00\x01\xb3" + bytes(99))
    (image_folder / "test" / "dog" / "README").write_text("")
    (image_folder / "test" / "dog" / "plot.eps").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    told: list[str] = []
    for _ in range(2):  # the second one finds the first one's
        prepare(folder_config(image_folder), on_notice=told.append)
    assert told[0] == told[1]
    first, rest = told[0][: len("7 files skipped: .txt 3")], told[0][len("7 files skipped: .txt 3") :]
    assert first == "7 files skipped: .txt 3"
    assert sorted(rest.split(", ")) == ["", ".eps 1", ".mp4 1", ".mpg 1", "without an ending 1"]


def test_a_class_without_images_is_named_with_what_is_there(image_folder) -> None:
    for path in (image_folder / "train" / "dog").iterdir():
        path.rename(path.with_suffix(".txt"))
        path.with_suffix(".txt").write_text("no image")
    with pytest.raises(DataError, match=r"train/dog: no images there \(2 files skipped: .txt 2\)"):
        decoded(image_folder)


def test_images_that_are_all_dark_are_told(image_folder) -> None:
    for path in image_folder.rglob("*.png"):
        Image.fromarray(np.linspace(0, 4095, 64).astype(np.uint16).reshape(8, 8)).save(path)
    arrays, told = decoded(image_folder)
    assert arrays.train_x.max() == 16
    assert len(told) == 1
    assert told[0].startswith("the brightest pixel of all images is 16 of 255")


# --- Damaged ones -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda path: path.write_bytes(path.read_bytes()[:60]), id="cut-short"),
        pytest.param(lambda path: path.write_bytes(b""), id="no-bytes"),
        pytest.param(lambda path: path.write_text("<html>not found</html>"), id="a-web-page"),
        pytest.param(lambda path: (path.unlink(), path.symlink_to("nowhere")), id="broken-link"),
        pytest.param(lambda path: (path.unlink(), os.mkfifo(path)), id="a-fifo"),
    ],
)
@pytest.mark.parametrize("split", ["train", "test"])
def test_a_damaged_image_is_named_and_nothing_is_left(image_folder, empty_cache, folder_config, damage, split) -> None:
    path = image_folder / split / "cat" / "1.png"
    damage(path)
    with pytest.raises(DataError, match="can't be read as an image") as error:
        prepare(folder_config(image_folder))
    assert str(path) in str(error.value)
    assert not empty_cache.exists() or list(empty_cache.iterdir()) == []


@pytest.mark.parametrize("links", [False, True])
def test_all_damaged_files_are_counted_and_the_first_few_named(image_folder, links) -> None:
    for number in range(9):
        path = image_folder / "train" / "cat" / f"bad{number}.jpg"
        path.symlink_to("nowhere") if links else path.write_bytes(b"no image")
    with pytest.raises(DataError) as error:
        decoded(image_folder)
    message = str(error.value)
    assert message.startswith("9 files can't be read as images: ")
    assert message.count("bad") == 5
    assert message.endswith("; and 4 more")


# --- Names and links --------------------------------------------------------------------------------------------------


def test_names_of_all_kinds(tmp_path, empty_cache, folder_config) -> None:
    names = ["müll eimer", "<b>&\"'", "two\nlines", "🐈"]
    for split in ("train", "test"):
        for k, name in enumerate(names):
            (tmp_path / "i" / split / name).mkdir(parents=True)
            Image.new("RGB", (8, 8), (60 * k, 9, 9)).save(tmp_path / "i" / split / name / f"{name} %s.png")
        latin = os.fsencode(tmp_path / "i" / split / "caf") + b"\xe9"
        os.mkdir(latin)
        Image.new("RGB", (8, 8), (250, 9, 9)).save(os.fsdecode(latin + b"/\xe9.png"))
    cached = open_cached(prepare(folder_config(tmp_path / "i")))
    assert sorted(cached.classes) == sorted([*names, "caf\\xe9"])
    by_name = {cached.classes[k]: int(x[0, 0, 0]) for k, x in zip(cached.train_y, cached.train_x, strict=True)}
    assert by_name == {**{name: 60 * k for k, name in enumerate(names)}, "caf\\xe9": 250}


def test_a_damaged_file_of_any_name_is_shown_on_one_line(image_folder, empty_cache, folder_config) -> None:
    bad = os.fsencode(image_folder / "train" / "cat") + b"/a\n\x1b[31m\xe9.png"
    with open(bad, "wb"):  # noqa: PTH123 - a path of bytes
        pass
    with pytest.raises(DataError) as error:
        prepare(folder_config(image_folder))
    assert r"train/cat/a\n\x1b[31m\xe9.png can't be read as an image" in str(error.value)
    str(error.value).encode()


def test_links_are_followed_and_circles_end(image_folder, tmp_path) -> None:
    (image_folder / "train" / "dog").rename(tmp_path / "elsewhere")
    (image_folder / "train" / "dog").symlink_to(tmp_path / "elsewhere")
    before, _ = decoded(image_folder)
    (tmp_path / "elsewhere" / "again").symlink_to(".")
    (tmp_path / "elsewhere" / "up").symlink_to(image_folder / "train")
    (image_folder / "test" / "cat" / "top").symlink_to(image_folder)
    after, told = decoded(image_folder)
    np.testing.assert_array_equal(after.train_x, before.train_x)
    np.testing.assert_array_equal(after.test_x, before.test_x)
    assert told == []


# --- Folders of another form ------------------------------------------------------------------------------------------


def remove_all(folder: Path) -> None:
    for path in sorted(folder.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()


@pytest.mark.parametrize(
    ("damage", "named", "problem"),
    [
        pytest.param(lambda top: (remove_all(top), top.rmdir()), "train", "is no folder", id="missing"),
        pytest.param(lambda top: remove_all(top / "test"), "test", "has no class folders", id="no-classes"),
        pytest.param(lambda top: remove_all(top / "train" / "dog"), "train/dog", "is empty", id="empty-class"),
        pytest.param(
            lambda top: (top / "test" / "dog").rename(top / "test" / "wolf"),
            "",
            "only in one of them: dog (train); wolf (test)",
            id="other-classes",
        ),
        pytest.param(
            lambda top: (remove_all(top / "test" / "dog"), (top / "test" / "dog").rmdir()),
            "",
            "only in one of them: dog (train)",
            id="missing-class",
        ),
        pytest.param(
            lambda top: (top / "test").rename(top / "val"), "test", "there is val/: rename it", id="val-for-test"
        ),
    ],
)
def test_a_folder_of_another_form(image_folder, empty_cache, folder_config, damage, named, problem) -> None:
    damage(image_folder)
    for ask in (data_shape, prepare):  # found by the dry run too
        with pytest.raises(DataError) as error:
            ask(folder_config(image_folder))
        assert str(image_folder / named) in str(error.value)
        assert problem in str(error.value)
    assert not empty_cache.exists()


def test_many_odd_classes_make_a_short_message(image_folder) -> None:
    for number in range(500):
        (image_folder / "train" / f"class{number:03}").mkdir()
        os.link(image_folder / "train" / "cat" / "0.png", image_folder / "train" / f"class{number:03}" / "0.png")
    with pytest.raises(DataError, match=r"class004 \(train\); and 495 more$"):
        files(image_folder)


def test_no_folder_at_all(empty_cache) -> None:
    config = DataConfig(dataset="image-folder", image_size=8)
    with pytest.raises(Exception, match="needs --data-dir DIR with train/<class>/"):
        prepare(config)
