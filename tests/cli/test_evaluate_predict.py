"""`asyncdgl evaluate` and `asyncdgl predict` on runs that the command line made."""

from __future__ import annotations

import contextlib
import gzip
import io
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import asyncdgl
from asyncdgl.cli.main import main
from asyncdgl.data.cache import prepare
from asyncdgl.data.store import open_cached

SMALL = ("--runtime", "sim", "--threads", "1", "--device", "cpu", "--precision", "float32", "--width", "8")
COLOURS = {"blue": (30, 40, 200), "green": (20, 180, 60), "red": (220, 30, 30)}


@dataclass(frozen=True)
class Answer:
    """What `asyncdgl` said and how it ended."""

    code: int | str | None
    stdout: str
    stderr: str

    @property
    def rows(self) -> list[list[str]]:
        """The lines that begin with a head's number, as numbers."""
        lines = [line.split() for line in self.stdout.splitlines()]
        return [line for line in lines if len(line) == 4 and line[0].isdigit()]


def ask(*arguments: Any) -> Answer:
    """Call `asyncdgl` in this process."""
    out, err = io.StringIO(), io.StringIO()
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        pytest.raises(SystemExit) as end,
    ):
        patch.setattr(sys, "argv", ["asyncdgl", *map(str, arguments)])
        main()
    return Answer(end.value.code, out.getvalue(), err.getvalue())


def made(config: dict[str, Any], path: Path) -> asyncdgl.Recorder:
    small = {"runtime": "sim", "threads": 1, "device": "cpu", "precision": "float32"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("asyncdgl.report.figures.draw_figures", lambda run: None)
        asyncdgl.run({**small, **config}, out=path)
    return asyncdgl.load_run(path)


@pytest.fixture(scope="module")
def digits(tmp_path_factory) -> Any:
    """A run on the digits that has learned them."""
    config = {"stages": 2, "epochs": 6, "batch_size": 32, "data": {"validation": 0.1}, "model": {"width": 8}}
    return made(config, tmp_path_factory.mktemp("digits") / "run")


def write_digits(folder: Path, classes: range = range(10), size: int = 8) -> Path:
    """The test images of the digits, a folder for each class."""
    from asyncdgl.config.sections import DataConfig

    cached = open_cached(prepare(DataConfig()))
    for number, (image, label) in enumerate(zip(cached.test_x, cached.test_y, strict=True)):
        if label in classes:
            place = folder / str(label)
            place.mkdir(parents=True, exist_ok=True)
            picture = Image.fromarray(np.asarray(image)[..., 0])
            picture = picture if size == 8 else picture.resize((size, size))
            picture.save(place / f"{number}.png")
    return folder


def colours(folder: Path, split: str, count: int = 12) -> None:
    random = np.random.default_rng(count)
    for name, colour in COLOURS.items():
        (folder / split / name).mkdir(parents=True)
        for number in range(count):
            pixels = np.clip(np.asarray(colour) + random.integers(-20, 20, (12, 12, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / split / name / f"{number}.png")


@pytest.fixture(scope="module")
def coloured(tmp_path_factory) -> Any:
    """A run on an image folder."""
    folder = tmp_path_factory.mktemp("colours")
    colours(folder, "train", 12)
    colours(folder, "test", 7)
    config = {
        "stages": 2,
        "epochs": 40,
        "batch_size": 6,
        "data": {"dataset": "image-folder", "data_dir": str(folder), "image_size": 8, "augment": False},
        "model": {"blocks": 2, "width": 8, "downsample": [], "aux": "mlp"},
        "optim": {"lr": 0.02},
    }
    return made(config, tmp_path_factory.mktemp("coloured") / "run"), folder


def measured(rows: list[list[str]]) -> list[tuple[float, float, float]]:
    return [tuple(map(float, row[1:4])) for row in rows]


# --- evaluate ---------------------------------------------------------------------------------------------------------


def test_the_runs_own_data_give_the_final_evaluation_again(digits) -> None:
    answer = ask("evaluate", digits.path)
    assert (answer.code, answer.stderr) == (0, "")
    final = digits.evaluations[-1]
    shown = measured(answer.rows)
    expected = [
        *zip(final.test_accuracy, final.test_ensemble_accuracy, final.test_loss, strict=True),
        *zip(final.validation_accuracy, final.validation_ensemble_accuracy, final.validation_loss, strict=True),
    ]
    assert shown == [tuple(round(value, 4) for value in row) for row in expected]
    assert "test set, 360 images" in answer.stdout
    assert "validation set, 144 images" in answer.stdout
    frame = asyncdgl.evaluate(digits)
    assert list(frame["accuracy"]) == [*final.test_accuracy, *final.validation_accuracy]
    assert list(frame["loss"]) == [*final.test_loss, *final.validation_loss]


@pytest.mark.parametrize("below", ["", "test"])
def test_the_same_images_in_folders_give_the_same_numbers(digits, tmp_path, below) -> None:
    write_digits(tmp_path / "images" / below)
    answer = ask("evaluate", digits.path, "--data-dir", tmp_path / "images")
    assert (answer.code, answer.stderr) == (0, "")
    final = digits.evaluations[-1]
    assert [row[:2] for row in measured(answer.rows)] == [
        (round(one, 4), round(all_of, 4))
        for one, all_of in zip(final.test_accuracy, final.test_ensemble_accuracy, strict=True)
    ]
    frame = asyncdgl.evaluate(digits.path, str(tmp_path / "images"))
    assert list(frame["accuracy"]) == list(final.test_accuracy)
    assert list(frame["images"]) == [360, 360]


def test_fewer_classes_are_fine_and_said(digits, tmp_path) -> None:
    write_digits(tmp_path / "images", range(3, 6))
    (tmp_path / "images" / "4" / "notes.txt").write_text("not an image")
    (tmp_path / "images" / ".hidden").mkdir()
    answer = ask("evaluate", digits.path, "--data-dir", tmp_path / "images")
    assert answer.code == 0, answer.stderr
    assert "1 file skipped: .txt 1" in answer.stdout
    assert "no images of 7 of 10 classes: 0; 1; 2; 6; 7; and 2 more" in answer.stdout
    assert len(measured(answer.rows)) == 2


def test_other_sizes_are_read_as_the_runs_own(digits, tmp_path) -> None:
    write_digits(tmp_path / "large", size=40)
    frame = asyncdgl.evaluate(digits, tmp_path / "large")
    assert frame["accuracy"].iloc[-1] > 0.5


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: (folder / "ten").mkdir(), "does not know the class ten"),
        (lambda folder: shutil.rmtree(folder), "can't be read: No such file"),
        (lambda folder: [shutil.rmtree(child) for child in folder.iterdir()], "has no folders"),
        (lambda folder: [file.unlink() for file in folder.glob("*/*")], "has no images"),
        (lambda folder: (folder / "3" / "odd.png").write_bytes(b"no image"), "odd.png can't be read as an image"),
    ],
    ids=["unknown class", "no folder", "no folders", "no images", "damaged"],
)
def test_wrong_folders_are_one_message(digits, tmp_path, make, message) -> None:
    folder = write_digits(tmp_path / "images", range(3, 5))
    make(folder)
    answer = ask("evaluate", digits.path, "--data-dir", folder)
    assert answer.code == 2
    assert message in answer.stderr
    assert answer.stderr.startswith("Error: ")
    assert answer.stderr.count("\n") == 1
    assert "Traceback" not in answer.stderr
    assert answer.rows == []


def test_an_image_folders_run_on_other_images(coloured, tmp_path) -> None:
    run, _ = coloured
    assert run.summary.test_accuracy > 0.8
    colours(tmp_path / "more", "test", 5)
    frame = asyncdgl.evaluate(run, tmp_path / "more")
    assert list(frame["images"]) == [15, 15]
    assert frame["accuracy"].iloc[-1] > 0.8
    own = asyncdgl.evaluate(run, tmp_path / "more" / "test")
    assert own.equals(frame)


def test_changed_data_are_not_taken_for_the_runs_own(coloured, tmp_path) -> None:
    run, folder = coloured
    kept = tmp_path / "kept"
    shutil.copytree(folder, kept)
    try:
        Image.new("RGB", (12, 12), (1, 2, 3)).save(folder / "test" / "red" / "0.png")
        answer = ask("evaluate", run.path)
        assert answer.code == 2
        assert "is not what" in answer.stderr
        assert "--data-dir" in answer.stderr
        assert asyncdgl.evaluate(run, folder)["accuracy"].iloc[-1] > 0.7
    finally:
        shutil.rmtree(folder)
        shutil.copytree(kept, folder)


def write_fashion(folder: Path, seed: int) -> None:
    """The four files of Fashion-MNIST, few and bright or dark by class."""
    random = np.random.default_rng(seed)
    folder.mkdir()
    for name, count in (("train", 200), ("t10k", 60)):
        y = np.arange(count, dtype=np.uint8) % 10
        x = np.clip(random.integers(0, 25, (count, 28, 28)) + 22 * y[:, None, None], 0, 255).astype(np.uint8)
        for kind, array, magic, sides in (("images-idx3", x, 2051, (28, 28)), ("labels-idx1", y, 2049, ())):
            head = b"".join(number.to_bytes(4, "big") for number in (magic, count, *sides))
            (folder / f"{name}-{kind}-ubyte.gz").write_bytes(gzip.compress(head + array.tobytes()))


@pytest.fixture(scope="module")
def fashion(tmp_path_factory) -> Any:
    folder = tmp_path_factory.mktemp("fashion")
    write_fashion(folder / "own", 0)
    config = {
        "stages": 2,
        "epochs": 2,
        "batch_size": 20,
        "data": {"dataset": "fashion-mnist", "data_dir": str(folder / "own")},
        "model": {"blocks": 2, "width": 4, "downsample": [1, 2], "aux": "mlp"},
    }
    return made(config, folder / "run")


def test_a_folder_in_the_sources_own_form(fashion, tmp_path) -> None:
    write_fashion(tmp_path / "other", 1)
    other = asyncdgl.evaluate(fashion, tmp_path / "other")
    own = asyncdgl.evaluate(fashion, fashion.config.data.data_dir)
    assert list(own["accuracy"]) == list(fashion.evaluations[-1].test_accuracy)
    assert list(other["images"]) == [60, 60]
    assert list(own["loss"]) != list(other["loss"])


def test_the_same_images_in_class_folders_where_the_source_has_files(fashion, tmp_path) -> None:
    cached = open_cached(prepare(fashion.config.data))
    for number, (image, label) in enumerate(zip(cached.test_x, cached.test_y, strict=True)):
        place = tmp_path / "images" / cached.classes[label].replace("/", "_")
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.asarray(image)[..., 0]).save(place / f"{number}.png")
    frame = asyncdgl.evaluate(fashion, tmp_path / "images")
    assert list(frame["accuracy"]) == list(fashion.evaluations[-1].test_accuracy)


# --- predict ----------------------------------------------------------------------------------------------------------


def test_images_are_classified_as_the_model_does(digits, tmp_path) -> None:
    import torch

    from asyncdgl.data.dataset import open_dataset
    from asyncdgl.data.stream import in_order

    folder = write_digits(tmp_path / "images")
    files = sorted(folder.glob("*/*.png"), key=lambda path: int(path.stem))[:7]
    dataset = open_dataset(digits.config, prepare(digits.config.data))
    batch = next(iter(in_order(dataset, dataset.test, 7)))
    with torch.no_grad():
        expected = digits.model()(batch.x).softmax(1)
    frame = asyncdgl.predict(digits, files)
    assert frame.index.tolist() == [str(path) for path in files]
    assert frame.columns.tolist() == [str(name) for name in range(10)]
    np.testing.assert_allclose(frame.to_numpy(), expected.numpy(), atol=1e-5)
    answer = ask("predict", digits.path, *files)
    assert (answer.code, answer.stderr) == (0, "")
    for path, row in zip(files, expected, strict=True):
        [line] = [line for line in answer.stdout.splitlines() if path.name in line]
        best = row.topk(3)
        shown = line.split(path.name)[1].split()
        assert shown == [
            text
            for name, share in zip(best.indices, best.values, strict=True)
            for text in (str(int(name)), f"{share:.1%}")
        ]
    alone = asyncdgl.predict(str(digits.path), files[0])  # in a batch of its own: the last bits may differ
    np.testing.assert_allclose(alone, frame.iloc[:1], atol=1e-5)


def test_what_was_done_to_an_image_is_said(digits, tmp_path) -> None:
    Image.new("RGB", (40, 20), (200, 10, 10)).save(tmp_path / "wide.jpg")
    Image.new("L", (8, 8), 100).save(tmp_path / "as-it-is.png")
    answer = ask("predict", digits.path, tmp_path / "wide.jpg", tmp_path / "as-it-is.png")
    assert (answer.code, answer.stderr) == (0, "")
    assert "wide.jpg: resized from 40x20 to 8x8, its middle taken, made grey" in answer.stdout
    assert answer.stdout.count("as-it-is.png") == 1
    heard = asyncdgl.Recorder()
    asyncdgl.predict(digits, [tmp_path / "as-it-is.png"], observer=heard)
    assert heard.notices == []


def test_names_and_colours_of_an_image_folder(coloured, tmp_path) -> None:
    run, _ = coloured
    colours(tmp_path, "test", 1)
    paths = [tmp_path / "test" / name / "0.png" for name in COLOURS]
    assert asyncdgl.predict(run, paths).idxmax(axis=1).tolist() == list(COLOURS)


def test_all_unreadable_images_are_in_one_message(digits, tmp_path) -> None:
    Image.new("L", (8, 8)).save(tmp_path / "good.png")
    (tmp_path / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\n and nothing more")
    (tmp_path / "text.txt").write_text("text")
    names = ("good.png", "bad.png", "text.txt", "missing.png")
    answer = ask("predict", digits.path, *(tmp_path / name for name in names), tmp_path)
    assert answer.code == 2
    assert answer.stderr.startswith("Error: 4 files can't be read as images: ")
    for name, reason in (("bad.png", ""), ("text.txt", "no image"), ("missing.png", "No such file"), ("", "directory")):
        assert name in answer.stderr
        assert reason in answer.stderr
    assert "good.png" not in answer.stderr + answer.stdout


def test_a_run_without_a_model_and_one_that_reads_no_images(digits, tmp_path) -> None:
    Image.new("L", (8, 8)).save(tmp_path / "image.png")
    asyncdgl.run(runtime="virtual", virtual={"train": False, "batches": 3}, out=tmp_path / "nothing")
    for command in (("evaluate", tmp_path / "nothing"), ("predict", tmp_path / "nothing", tmp_path / "image.png")):
        answer = ask(*command)
        assert answer.code == 2
        assert "has no model.safetensors" in answer.stderr
    for command in (("evaluate", tmp_path), ("predict", tmp_path, tmp_path / "image.png")):
        answer = ask(*command)
        assert answer.code == 2
        assert "is no run directory" in answer.stderr
    assert ask("predict", digits.path).code == 2


def test_vectors_and_floats_are_no_images(tmp_path) -> None:
    from torch import nn

    random = np.random.default_rng(0)
    Image.new("L", (8, 8)).save(tmp_path / "image.png")
    for name, shape in (("vectors", (6,)), ("floats", (1, 8, 8))):
        data = [(random.normal(size=shape).astype(np.float32), number % 2) for number in range(64)]
        net = nn.Sequential(nn.Sequential(nn.Flatten(), nn.Linear(int(np.prod(shape)), 4)), nn.Linear(4, 4))
        config = {"runtime": "sim", "stages": 2, "epochs": 1, "batch_size": 16, "threads": 1, "model": {"aux": "mlp"}}
        run = asyncdgl.run(config, net=net, data=(data, data), out=tmp_path / name)
        with pytest.raises(asyncdgl.errors.DataError, match="use its model from Python"):
            asyncdgl.predict(run, tmp_path / "image.png")
        with pytest.raises(asyncdgl.errors.DataError, match="use its model from Python"):
            asyncdgl.evaluate(run, tmp_path)
