"""A data set on another machine: an outline is enough for most stages, and what is fetched is whole or refused."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from asyncdgl.data.cache import cache_root
from asyncdgl.data.dataset import make_dataset, open_dataset
from asyncdgl.data.store import ARRAYS, META, content_sha256, mapped
from asyncdgl.data.travel import Outline, bring, outline_of
from asyncdgl.errors import DataError


class Sender:
    """Has a copy of a data set, and gives its files away in small pieces."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.asked: list[str] = []

    def fetch(self, name: str) -> Iterator[bytes]:
        self.asked.append(name)
        content = (self.folder / name).read_bytes()
        yield from (content[start : start + 1000] for start in range(0, len(content), 1000))


@pytest.fixture
def elsewhere(digits_folder, tmp_path, monkeypatch) -> tuple[Outline, Sender]:
    """What another machine has, at a path that leads nowhere here; and a cache of this machine's own."""
    sender = Sender(Path(shutil.copytree(digits_folder, tmp_path / "copy")))
    monkeypatch.setenv("ASYNCDGL_CACHE", str(tmp_path / "cache"))
    outline = outline_of(digits_folder)
    return Outline(tmp_path / "not here", outline.meta, outline.arrays), sender


def test_an_outline_has_the_shapes_of_what_it_stands_for(digits_folder, small_config) -> None:
    config = small_config(data={"validation": 0.1})
    whole, outline = open_dataset(config, digits_folder), outline_of(digits_folder).without_content()
    empty = make_dataset(outline, config)
    for split in ("train", "validation", "test"):
        own, other = getattr(whole, split), getattr(empty, split)
        assert (other.x.shape, other.x.dtype, other.y.shape) == (own.x.shape, own.x.dtype, own.y.shape)
        assert np.array_equal(other.rows, own.rows)
    assert (empty.input_shape, empty.classes) == (whole.input_shape, whole.classes)
    assert (empty.mean, empty.std, empty.sha256) == (whole.mean, whole.std, whole.sha256)
    assert sum(array.strides == (0,) * array.ndim for array in (outline.train_x, outline.test_x)) == 2, "no memory"


def test_what_lies_here_is_not_fetched(digits_folder) -> None:
    sender = Sender(digits_folder)
    assert bring(outline_of(digits_folder), sender.fetch) == digits_folder
    assert sender.asked == []


def test_what_is_fetched_is_the_same_and_is_fetched_once(elsewhere) -> None:
    outline, sender = elsewhere
    folder = bring(outline, sender.fetch)
    assert folder.parent == cache_root()
    for name in (*(f"{name}.npy" for name in ARRAYS), META):
        assert (folder / name).read_bytes() == (sender.folder / name).read_bytes()
    assert sender.asked == [f"{name}.npy" for name in ARRAYS]
    assert bring(outline, sender.fetch) == folder
    assert len(sender.asked) == len(ARRAYS)


def test_two_that_need_it_at_once_fetch_it_once(elsewhere) -> None:
    outline, sender = elsewhere
    with ThreadPoolExecutor(4) as pool:
        folders = list(pool.map(lambda _: bring(outline, sender.fetch), range(4)))
    assert len(set(folders)) == 1
    assert sorted(sender.asked) == sorted(f"{name}.npy" for name in ARRAYS)
    assert list(cache_root().iterdir()) == folders[:1], "no lock is left"


def test_another_data_set_at_the_same_path_is_not_taken(elsewhere) -> None:
    outline, sender = elsewhere
    other = Path(shutil.copytree(sender.folder, outline.folder))
    meta = (other / META).read_text()
    (other / META).write_text(meta.replace('"sha256": "', '"sha256": "0'))
    folder = bring(outline, sender.fetch)
    assert folder != outline.folder
    assert content_sha256(mapped(folder)) in meta


def test_what_comes_damaged_is_refused_and_leaves_nothing(elsewhere) -> None:
    outline, sender = elsewhere
    for damage in (b"", b"\1\1\1"):
        content = (sender.folder / "train_y.npy").read_bytes()
        (sender.folder / "train_y.npy").write_bytes(content[:-3] + damage)
        with pytest.raises(DataError, match="did not come whole"):
            bring(outline, sender.fetch)
        (sender.folder / "train_y.npy").write_bytes(content)
    assert list(cache_root().iterdir()) == []


def test_a_cache_that_can_not_be_written_is_named(elsewhere, tmp_path) -> None:
    outline, sender = elsewhere
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(DataError, match="ASYNCDGL_CACHE"):
        bring(outline, sender.fetch)
