"""The sources that are made rather than read, those of the user's, and how a name chooses one."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from pydantic import ValidationError

from asyncdgl.config.defaults import defaults_for
from asyncdgl.config.model import RunConfig
from asyncdgl.config.sections import DataConfig
from asyncdgl.data import synthetic
from asyncdgl.data.base import Request, Source
from asyncdgl.data.cache import data_shape, prepare
from asyncdgl.data.sources import find_source
from asyncdgl.data.store import open_cached
from asyncdgl.errors import ConfigError, DataError
from asyncdgl.registry import choices

NAMES = ["digits", "fashion-mnist", "cifar10", "image-folder", "synthetic"]


def test_digits(digits) -> None:
    assert digits.train_x.shape == (1437, 8, 8, 1)
    assert digits.test_x.shape == (360, 8, 8, 1)
    assert digits.train_x.dtype == np.uint8
    assert digits.train_y.dtype == np.int64
    assert digits.classes == tuple("0123456789")
    assert (digits.train_x.min(), digits.train_x.max()) == (0, 255)
    # Equal shares of each class, to within one image.
    train, test = (np.bincount(y, minlength=10) for y in (digits.train_y, digits.test_y))
    assert np.abs(test - 0.2 * (train + test)).max() <= 1


def test_digits_are_those_of_scikit_learn(digits) -> None:
    from sklearn.datasets import load_digits

    shipped = load_digits()
    ours = np.concatenate([digits.train_x, digits.test_x])[..., 0]
    labels = np.concatenate([digits.train_y, digits.test_y])
    expected = np.rint(shipped.images * 255 / 16).astype(np.uint8)

    def rows(x, y):
        return sorted(zip((image.tobytes() for image in x), y.tolist(), strict=True))

    assert rows(ours, labels) == rows(expected, shipped.target)


def test_the_bits_of_the_digits_never_change(digits) -> None:
    """As they were in 0.2.0: results of other versions stay comparable."""
    assert digits.sha256.startswith("3616d13d9b8a0a7a70107bdd")


def test_synthetic_is_the_same_each_time_and_depends_on_its_size(empty_cache) -> None:
    small = synthetic.decode(Request(image_size=8))
    folder = prepare(DataConfig(dataset="synthetic", image_size=8))
    cached = open_cached(folder)
    np.testing.assert_array_equal(cached.train_x, small.train_x)
    np.testing.assert_array_equal(cached.test_y, small.test_y)
    assert cached.train_x.shape == (2048, 8, 8, 3)
    assert cached.test_x.shape == (500, 8, 8, 3)
    assert set(np.bincount(cached.test_y)) == {50}
    assert cached.sha256.startswith("d55bf06221b871ae5b50c3c3")
    assert prepare(DataConfig(dataset="synthetic", image_size=9)) != folder


def test_synthetic_classes_can_be_told_apart() -> None:
    data = synthetic.decode(Request(image_size=8))
    means = np.stack([data.train_x[data.train_y == k].mean(0) for k in range(10)])
    distance = ((data.test_x[:, None] - means) ** 2).sum((2, 3, 4))
    assert (distance.argmin(1) == data.test_y).mean() > 0.9


# --- The door ---------------------------------------------------------------------------------------------------------


def test_every_name_has_a_source_with_defaults() -> None:
    assert sorted(choices("data")) == sorted(NAMES)
    for name in NAMES:
        source = find_source(name)
        assert isinstance(source, Source)
        # Whatever depends on the data set has a default in each of them; the fields' own are those of the digits.
        parts = {"stages", "epochs", "batch_size", "threads", "data", "model", "optim"}
        assert set(source.defaults) == (set() if name == "digits" else parts)
        assert (source.image_size is None) == source.resizes
    assert [name for name in NAMES if find_source(name).reads_files] == ["fashion-mnist", "cifar10", "image-folder"]


@pytest.mark.parametrize(
    ("dataset", "shape"),
    [
        ("digits", ((1, 8, 8), 10)),
        ("synthetic", ((3, 12, 12), 10)),
        ("fashion-mnist", ((1, 28, 28), 10)),
        ("cifar10", ((3, 32, 32), 10)),
    ],
)
def test_shapes_are_known_without_files(empty_cache, dataset, shape) -> None:
    assert data_shape(DataConfig(dataset=dataset, image_size=12)) == shape
    assert not empty_cache.exists()


def test_defaults_are_read_without_anything_large() -> None:
    program = (
        "import sys\n"
        "from asyncdgl.config.defaults import defaults_for\n"
        f"found = [defaults_for({{'data': {{'dataset': name}}}}) for name in {NAMES}]\n"
        "assert [len(f.get('model', ())) for f in found] == [0, 4, 4, 4, 4]\n"
        "large = ('torch', 'torchvision', 'numpy', 'sklearn', 'PIL', 'ray', 'scipy', 'pandas')\n"
        "assert not [name for name in large if name in sys.modules]\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


VECTORS = """
import numpy as np
from asyncdgl.data.base import Decoded, Source

def decode(request):
    random = np.random.default_rng(0)
    y = np.arange(120) % 3
    x = y[:, None] + random.normal(size=(120, 5))
    return Decoded(x[:90], y[:90], x[90:], y[90:], ["a", "b", "c"])

source = Source(decode, defaults={"epochs": 3, "model": {"width": 5}})
"""


def test_a_source_of_the_users(own_module, source_config, empty_cache) -> None:
    own_module(VECTORS)
    config = source_config("mine:source")
    cached = open_cached(prepare(config))
    assert cached.train_x.shape == (90, 5)
    assert cached.train_x.dtype == np.float32
    assert cached.classes == ("a", "b", "c")
    assert data_shape(config) == ((5,), 3)
    defaults = RunConfig.model_validate({"data": {"dataset": "mine:source"}, "runtime": "sim"})
    # Its own, and the digits' for what it leaves open.
    assert (defaults.epochs, defaults.model.width, defaults.model.blocks) == (3, 5, 4)


def test_a_source_that_lists_no_files_is_decoded_each_time(own_module, source_config, empty_cache) -> None:
    """What it reads is not known, so that a change of it could not be seen."""
    path = own_module(VECTORS.replace("default_rng(0)", "default_rng(int(open('seed').read()))"))
    (path.parent / "seed").write_text("1")
    config = source_config("mine:source")
    first = prepare(config)
    assert prepare(config) == first
    (path.parent / "seed").write_text("2")
    second = prepare(config)
    assert second != first
    assert open_cached(first).sha256 != open_cached(second).sha256
    assert sorted(empty_cache.iterdir()) == sorted([first, second])


LISTING = """
import numpy as np
from asyncdgl.data.base import Decoded, Source, file_at

def files(folder):
    return (file_at(folder, "x.npy"),)

def decode(request):
    (file,) = request.files
    x = np.load(request.folder / file.path)
    y = np.arange(len(x)) % 2
    print("noise of a library")
    request.on_notice("read one file")
    return Decoded(x, y, x, y, ["a", "b"])

source = Source(decode, files=files)
"""


def test_a_source_that_lists_its_files(own_module, source_config, empty_cache, tmp_path, monkeypatch) -> None:
    path = own_module(LISTING)
    np.save(tmp_path / "x.npy", np.eye(6, 4))
    config, told = source_config("mine:source", tmp_path), []
    first = prepare(config, on_notice=told.append)
    with monkeypatch.context() as patch:
        patch.setattr("asyncdgl.data.child.run_in_child", None)  # a second decoding would fail
        assert prepare(config, on_notice=told.append) == first
    assert told == ["read one file"] * 2
    np.save(tmp_path / "x.npy", np.eye(8, 4))
    second = prepare(config)
    assert len(open_cached(second).train_y) == 8
    path.write_text(LISTING.replace("% 2", "% 2 * 0 + np.arange(len(x)) // 4"))
    third = prepare(config)
    assert open_cached(third).train_y.tolist() == [0] * 4 + [1] * 4
    assert len({first, second, third}) == 3


def test_a_pair_in_a_module(own_module, source_config, empty_cache) -> None:
    own_module("train = [([0, 1], 0), ([1, 0], 1)]\npair = (train, train[:1])")
    with pytest.raises(DataError, match=r"train\[0\].*x must be"):
        prepare(source_config("mine:pair"))
    own_module("import numpy as np\ntrain = [(np.eye(3)[k % 3], k % 3) for k in range(9)]\npair = (train, train[:3])")
    cached = open_cached(prepare(source_config("mine:pair")))
    assert cached.train_y.tolist() == [0, 1, 2] * 3
    np.testing.assert_array_equal(cached.test_x, np.eye(3))


@pytest.mark.parametrize(
    ("text", "name", "says"),
    [
        ("", "mine:source", "has no attribute 'source'"),
        ("1 / 0", "mine:source", "ZeroDivisionError"),
        ("import nowhere_at_all", "mine:source", "nowhere_at_all"),
        ("def source(): pass", "mine:source", "is a function: it must be an asyncdgl.data.base.Source, or a pair"),
        ("", "digts", "did you mean digits"),
    ],
)
def test_what_is_no_source(own_module, source_config, empty_cache, text, name, says) -> None:
    own_module(text)
    with pytest.raises((ConfigError, ValidationError), match=says):
        prepare(source_config(name))
    assert not empty_cache.exists()
    # What the name chooses is said where the name is checked, not where defaults are looked up.
    assert "stages" not in defaults_for({"data": {"dataset": name}})


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        ("x, y[:-1], x, y", r"training set's y must be \[120\] integers, got \[119\]"),
        ("x, y / 2, x, y", r"y must be \[120\] integers, got \[120\] float64"),
        ("x, y, x, y + 1", "test set has the class 3, but the classes are 0 to 2"),
        ("x, y - 1, x, y", "training set has the class -1"),
        ("x, y, x[:, :2], y", r"training set's x are \[5\] float32 each, the test set's \[2\] float32"),
        ("x / 0, y, x, y", "training set has numbers that are infinite"),
        ("x.astype(int), y, x, y", "x must be images"),
        ("x[:0], y[:0], x, y", "training set is empty"),
        ("x * 0, y, x, y", "all 120 of the training set are the same, 0.0 to 0.0"),
        ("*[np.full((120, 4, 4, 1), 255, np.uint8), y] * 2", "the same, 255 to 255"),
    ],
)
def test_arrays_that_cannot_be_learned_from(own_module, source_config, empty_cache, arrays, says) -> None:
    text = VECTORS.replace("x[:90], y[:90], x[90:], y[90:]", arrays)
    own_module(
        "import warnings; warnings.simplefilter('ignore')\n" + text.replace("(decode, ", "(decode, in_process=True, ")
    )
    with pytest.raises(DataError, match=says):
        prepare(source_config("mine:source"))
    assert list(empty_cache.iterdir()) == []


def test_one_class_is_refused(own_module, source_config, empty_cache) -> None:
    own_module(VECTORS.replace('"a", "b", "c"', '"only"'))
    with pytest.raises(DataError, match=r"one class only \(only\)"):
        prepare(source_config("mine:source"))
