"""CIFAR-10: the original files, cut-down ones, and what is not its Python version."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from asyncdgl.config.sections import DataConfig
from asyncdgl.data import cifar10
from asyncdgl.data.base import Request
from asyncdgl.data.cache import prepare
from asyncdgl.errors import DataError

pytestmark = pytest.mark.usefixtures("no_network")

NAMES = [*(f"data_batch_{k}" for k in range(1, 6)), "test_batch"]


def config_of(folder: Path) -> DataConfig:
    return DataConfig(dataset="cifar10", data_dir=str(folder), image_size=32)


def write(folder: Path, place: str = "cifar-10-batches-py", key: Any = str, protocol: int = 2) -> np.ndarray:
    """Files of CIFAR-10's form with one image a batch."""
    (folder / place).mkdir(parents=True, exist_ok=True)
    x = np.random.default_rng(0).integers(0, 256, (6, 32, 32, 3), np.uint8)
    for label, name in enumerate(NAMES):
        content = {key("data"): x[label].transpose(2, 0, 1).reshape(1, -1), key("labels"): [label]}
        (folder / place / name).write_bytes(pickle.dumps(content, protocol))
    names = {key("label_names"): [key(f"class{k}") for k in range(10)]}
    (folder / place / "batches.meta").write_bytes(pickle.dumps(names, protocol))
    return x


@pytest.mark.parametrize("place", ["cifar-10-batches-py", ""])
@pytest.mark.parametrize("key", [str, str.encode], ids=["text", "bytes"])
@pytest.mark.parametrize("protocol", [2, 4])
def test_files_with_fewer_images_are_read_and_told(tmp_path, place, key, protocol) -> None:
    x, told = write(tmp_path, place, key, protocol), []
    cached = cifar10.decode(Request(32, tmp_path, cifar10.files(tmp_path), on_notice=told.append))
    np.testing.assert_array_equal(cached.train_x, x[:5])
    np.testing.assert_array_equal(cached.test_x, x[5:])
    assert cached.train_y.tolist() == [0, 1, 2, 3, 4]
    assert cached.test_y.tolist() == [5]
    assert cached.classes[9] == "class9"
    assert len(told) == 1
    assert "holds 5 training and 1 test images, where CIFAR-10 has 50000 and 10000" in told[0]


def test_what_was_cut_down_is_told_in_every_run(tmp_path, empty_cache) -> None:
    write(tmp_path)
    told: list[str] = []
    folders = {prepare(config_of(tmp_path), on_notice=told.append) for _ in range(2)}
    assert len(folders) == 1
    assert len(told) == 2
    assert len(set(told)) == 1


def test_pickles_of_python_2_are_read(tmp_path) -> None:
    """The original files: protocol 2, with the module names of an older numpy, and text as bytes."""
    x = write(tmp_path)
    folder = tmp_path / "cifar-10-batches-py"
    for name in NAMES:
        old = (folder / name).read_bytes().replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
        (folder / name).write_bytes(old)
    decoded = cifar10.decode(Request(32, tmp_path, cifar10.files(tmp_path)))
    np.testing.assert_array_equal(decoded.train_x, x[:5])


def test_names_of_classes_are_known_without_their_file(tmp_path) -> None:
    write(tmp_path)
    (tmp_path / "cifar-10-batches-py" / "batches.meta").unlink()
    decoded = cifar10.decode(Request(32, tmp_path, cifar10.files(tmp_path)))
    assert decoded.classes[:3] == ["airplane", "automobile", "bird"]


def test_whole_files_that_were_altered_are_told(tmp_path, monkeypatch) -> None:
    write(tmp_path)
    monkeypatch.setattr(cifar10, "ORIGINAL", 1)
    monkeypatch.setattr(cifar10, "_altered", lambda paths: [paths["data_batch_2"]])
    told: list[str] = []
    cifar10.decode(Request(32, tmp_path, cifar10.files(tmp_path), on_notice=told.append))
    assert told == [f"not as CIFAR-10's authors published them: {tmp_path}/cifar-10-batches-py/data_batch_2"]


def run_code(path: Path) -> bytes:
    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(path),)

    return pickle.dumps({"data": Evil(), "labels": [0]})


@pytest.mark.parametrize(
    ("content", "says"),
    [
        pytest.param(lambda whole, tmp: whole[:-400], "is corrupt (", id="cut"),
        pytest.param(lambda whole, tmp: b"", "is corrupt (", id="empty"),
        pytest.param(lambda whole, tmp: b"<html>", "is corrupt (", id="a-web-page"),
        pytest.param(lambda whole, tmp: pickle.dumps([1]), "holds no dictionary", id="a-list"),
        pytest.param(lambda whole, tmp: pickle.dumps({}), "its images are no [N, 3072] bytes", id="nothing"),
        pytest.param(
            lambda whole, tmp: pickle.dumps({"data": np.zeros((1, 3072), np.uint8), "labels": [1, 2]}),
            "it has 1 images and 2 labels",
            id="more-labels",
        ),
        pytest.param(
            lambda whole, tmp: pickle.dumps({"data": np.zeros((1, 3072), np.uint8), "labels": [99]}),
            "has the label 99, and CIFAR-10's are 0 to 9",
            id="cifar-100",
        ),
        pytest.param(lambda whole, tmp: run_code(tmp / "made"), "posix.mkdir, which no data file needs", id="code"),
    ],
)
def test_wrong_files_are_named(tmp_path, content, says) -> None:
    write(tmp_path / "c")
    path = tmp_path / "c" / "cifar-10-batches-py" / "data_batch_3"
    path.write_bytes(content(path.read_bytes(), tmp_path))
    with pytest.raises(DataError) as error:
        cifar10.decode(Request(32, tmp_path / "c", cifar10.files(tmp_path / "c")))
    assert str(error.value).startswith(str(path))
    assert says in str(error.value)
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    ("made", "says"),
    [
        (["cifar-10-python.tar.gz"], "unpack the archive that lies there (tar -xzf "),
        (["cifar-10-batches-bin/data_batch_1.bin"], "the Python version is needed"),
        (["cifar-10-binary.tar.gz"], "cifar-10-binary.tar.gz is the binary version"),
        (["cifar-10-batches-py/data_batch_1", "cifar-10-batches-py/test_batch"], "data_batch_2, data_batch_3"),
    ],
)
def test_what_lies_there_instead_is_told_and_stays(tmp_path, empty_cache, made, says) -> None:
    for name in made:
        (tmp_path / "c" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "c" / name).write_bytes(b"mine")
    with pytest.raises(DataError) as error:
        prepare(config_of(tmp_path / "c"))
    assert says in str(error.value)
    assert "can't be downloaded" not in str(error.value)
    left = [path for path in (tmp_path / "c").rglob("*") if path.is_file()]
    assert sorted(str(path.relative_to(tmp_path / "c")) for path in left) == made
    assert {path.read_bytes() for path in left} == {b"mine"}


def test_missing_files_say_how_to_bring_them(tmp_path) -> None:
    with pytest.raises(DataError) as error:
        cifar10.decode(Request(32, tmp_path, cifar10.files(tmp_path / "nowhere")))
    message = str(error.value)
    assert str(tmp_path) in message
    assert "cifar-10-batches-py" in message
    assert "--data-dir" in message
