"""Data sets in files, and caches of a test's own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from asyncdgl.config.sections import DataConfig
from asyncdgl.data import cache
from asyncdgl.data.store import Cached, open_cached


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
def digits(digits_folder) -> Cached:
    return open_cached(digits_folder)


@pytest.fixture(scope="session")
def colours() -> Callable[..., np.ndarray]:
    """``colours(height, width, seed)``: an image of random pixels."""

    def make(height: int, width: int, seed: int = 0) -> np.ndarray:
        return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)

    return make


@pytest.fixture
def image_folder(tmp_path, colours) -> Path:
    """Two classes, two images in each split and class: PNG, 8x8, so that they are decoded as they are."""
    folder = tmp_path / "images"
    for split, seed in (("train", 0), ("test", 10)):
        for k, name in enumerate(("cat", "dog")):
            (folder / split / name).mkdir(parents=True)
            for i in range(2):
                Image.fromarray(colours(8, 8, seed + 2 * k + i)).save(folder / split / name / f"{i}.png")
    return folder


@pytest.fixture(scope="session")
def folder_config() -> Callable[..., DataConfig]:
    """``folder_config(folder)``: the configuration of an image folder of 8x8 pixels."""

    def make(folder: Path | str, size: int = 8) -> DataConfig:
        return DataConfig(dataset="image-folder", data_dir=str(folder), image_size=size)

    return make


@pytest.fixture(scope="session")
def source_config() -> Callable[..., DataConfig]:
    """``source_config("module:attribute")``: the configuration of a source of the user's."""

    def make(name: str, folder: Path | None = None, size: int = 8) -> DataConfig:
        return DataConfig(dataset=name, data_dir=None if folder is None else str(folder), image_size=size)

    return make


@pytest.fixture
def own_module(tmp_path, monkeypatch) -> Callable[[str], Path]:
    """``own_module(text)``: a module ``mine`` of the user's, in a folder that the import path names relatively."""
    import sys

    folder = tmp_path / "user"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend("")

    def write(text: str) -> Path:
        monkeypatch.delitem(sys.modules, "mine", raising=False)
        path = folder / "mine.py"
        path.write_text(text)
        return path

    yield write
    sys.modules.pop("mine", None)
