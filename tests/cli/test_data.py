"""What the command line says of the data."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from asyncdgl.cli.main import main

Run = Callable[..., tuple[int, str, str]]
SMALL = [
    *["run", "--runtime", "sim", "--epochs", "1", "--stages", "2", "--batch-size", "4", "--width", "4"],
    *["--threads", "1", "--set", "model.blocks=2", "--set", "model.downsample=[]"],
]
FOLDER = ["--dataset", "image-folder", "--set", "data.image_size=8"]


@pytest.fixture
def asyncdgl(tmp_path, monkeypatch, capsys) -> Run:
    """``asyncdgl(*arguments)``: exit code, output and errors of a small run in an empty folder, with its own cache."""
    monkeypatch.setenv("ASYNCDGL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["asyncdgl", *SMALL, *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        return int(ended.value.code or 0), *capsys.readouterr()

    return call


@pytest.fixture
def pictures(tmp_path) -> Path:
    for split in ("train", "test"):
        for k, name in enumerate(("cat", "dog")):
            (tmp_path / "pictures" / split / name).mkdir(parents=True)
            for i in range(4):
                x = np.random.default_rng(i).integers(0, 128, (8, 8, 3), np.uint8) + np.uint8(127 * k)
                Image.fromarray(x).save(tmp_path / "pictures" / split / name / f"{i}.png")
    return tmp_path / "pictures"


def test_what_was_left_out_is_said_in_every_run(asyncdgl, pictures) -> None:
    (pictures / "train" / "cat" / "notes.txt").write_text("no image")
    (pictures / "test" / "cat" / "film.mp4").write_bytes(bytes(99))
    for _ in range(2):
        code, out, _ = asyncdgl(*FOLDER, "--data-dir", "~/pictures")
        assert code == 0
        assert "2 files skipped: .txt 1, .mp4 1\n" in out


def test_a_damaged_cache_is_said(asyncdgl, tmp_path) -> None:
    assert asyncdgl()[0] == 0
    (folder,) = (tmp_path / "cache").iterdir()
    (folder / "test_y.npy").unlink()
    code, out, _ = asyncdgl()
    assert code == 0
    assert f"the decoded data in {folder} is damaged (test_y.npy is missing): decoding it again\n" in out
    assert "damaged" not in asyncdgl()[1]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--dataset", "cifar10", "--set", r'data.data_dir="a\0b"'], "data.data_dir must hold no NUL character"),
        ([*FOLDER, "--data-dir", "pictures"], "3 files can't be read as images: "),
    ],
)
def test_one_message_and_nothing_made(asyncdgl, pictures, tmp_path, arguments, says) -> None:
    for i in range(3):
        (pictures / "train" / "dog" / f"{i}.png").write_bytes(b"no image")
    code, out, errors = asyncdgl(*arguments)
    assert code == 2, out + errors
    assert errors.count("Error: ") == 1
    assert says in errors
    assert not (tmp_path / "runs").exists()
    assert not list(tmp_path.glob("cache/*"))
