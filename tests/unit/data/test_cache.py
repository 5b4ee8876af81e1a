"""The cache: where it lies, who can use it, and what happens when it is damaged."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from asyncdgl.config.sections import DataConfig
from asyncdgl.config.yaml import parse_config
from asyncdgl.data import cache, digits
from asyncdgl.data.base import Decoded, Request
from asyncdgl.data.cache import prepare
from asyncdgl.data.scratch import PREFIX, scratch
from asyncdgl.data.store import ARRAYS, open_cached, save
from asyncdgl.errors import ConfigError, DataError


@pytest.fixture
def decoder(monkeypatch):
    """``decoder(function)``: puts a function in the place of the decoder of the digits."""
    from dataclasses import replace

    def install(decode: Any) -> None:
        monkeypatch.setattr(digits, "SOURCE", replace(digits.SOURCE, decode=decode))

    return install


def test_statistics_are_those_of_the_training_images(digits_folder) -> None:
    cached = open_cached(digits_folder)
    x = cached.train_x / 255
    assert cached.mean == pytest.approx([x.mean()])
    assert cached.std == pytest.approx([x.std()])


def test_an_empty_channel_does_not_divide_by_zero(tmp_path) -> None:
    x = np.zeros((4, 2, 2, 3), np.uint8)
    x[:2, ..., 0] = 200
    y = np.arange(4)
    save(Decoded(x, y, x, y, list("abcd")), tmp_path)
    cached = open_cached(tmp_path)
    assert cached.std[0] == pytest.approx(100 / 255)
    assert min(cached.std) > 0


def test_floats_of_the_same_bytes_and_other_shapes_are_other_data(tmp_path) -> None:
    x, y = np.random.default_rng(0).random((4, 6)).astype(np.float32), np.arange(4)
    found = []
    for number, shape in enumerate([(4, 6), (4, 2, 3), (4, 3, 2)]):
        (tmp_path / str(number)).mkdir()
        save(Decoded(x.reshape(shape), y, x.reshape(shape), y, list("abcd")), tmp_path / str(number))
        cached = open_cached(tmp_path / str(number))
        assert cached.mean == cached.std == ()
        found.append(cached.sha256)
    assert len(set(found)) == 3


def test_arrays_are_mapped_read_only(digits_folder) -> None:
    cached = open_cached(digits_folder)
    assert isinstance(cached.train_x, np.memmap)
    assert not cached.train_x.flags.writeable


def test_a_second_call_decodes_nothing(digits_folder, decoder) -> None:
    decoder(None)
    assert prepare(DataConfig()) == digits_folder


def test_another_run_was_quicker(empty_cache, decoder) -> None:
    """Two runs decode at once: the second one to finish uses what the first one left."""
    whole, other = digits.decode, []

    def slow(request: Request) -> Decoded:
        decoder(whole)
        other.append(prepare(DataConfig()))
        return whole(request)

    decoder(slow)
    assert [prepare(DataConfig())] == other
    assert list(empty_cache.iterdir()) == other
    assert len(open_cached(other[0]).train_y) == 1437


@pytest.mark.parametrize(
    ("error", "becomes"),
    [(KeyboardInterrupt, KeyboardInterrupt), (ValueError("odd"), DataError), (OSError(5, "x"), DataError)],
)
def test_a_failed_decode_leaves_nothing(empty_cache, decoder, error, becomes) -> None:
    def broken(request: Request) -> Decoded:
        raise error

    decoder(broken)
    with pytest.raises(becomes) as raised:
        prepare(DataConfig())
    assert list(empty_cache.iterdir()) == []
    if becomes is DataError:
        assert str(raised.value).startswith(f"decoding digits failed: {type(error).__name__}: ")
        assert "test_cache.py, line " in str(raised.value)


def test_processes_that_decode_the_same_at_once(image_folder, empty_cache) -> None:
    program = (
        "import sys\n"
        "from asyncdgl.config.model import DataConfig\n"
        "from asyncdgl.data.cache import prepare\n"
        "print(prepare(DataConfig(dataset='image-folder', data_dir=sys.argv[1], image_size=8)))"
    )
    command = [sys.executable, "-c", program, str(image_folder)]
    runs = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    told = {run.communicate(timeout=60)[0].strip() for run in runs}
    assert [run.returncode for run in runs] == [0] * 4
    assert [str(path) for path in empty_cache.iterdir()] == list(told)


# --- Where it lies, and whose it is -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"ASYNCDGL_CACHE": "/a", "XDG_CACHE_HOME": "/b"}, "/a"),
        ({"ASYNCDGL_CACHE": "", "XDG_CACHE_HOME": "/b"}, "/b/asyncdgl"),
        ({"HOME": "/c"}, "/c/.cache/asyncdgl"),
        ({"HOME": "/c", "ASYNCDGL_CACHE": "~/d"}, "/c/d"),
        ({"ASYNCDGL_CACHE": "d/../e"}, "{cwd}/e"),
    ],
    ids=["own-variable", "users-cache-folder", "home", "tilde", "relative"],
)
@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a user's cache folder has another name")
def test_where_the_cache_lies(monkeypatch, tmp_path, environment, expected) -> None:
    monkeypatch.chdir(tmp_path)
    for variable in ("ASYNCDGL_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(variable, raising=False)
    for variable, value in environment.items():
        monkeypatch.setenv(variable, value)
    assert cache.cache_root() == Path(expected.format(cwd=tmp_path))


def test_a_relative_cache_works_for_what_a_process_decodes(image_folder, folder_config, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(cache.CACHE_VARIABLE, "cache")
    folder = prepare(folder_config("images"))
    assert folder.parent == tmp_path / "cache"
    assert prepare(folder_config(image_folder)) == folder


def test_a_tilde_is_the_home_folder(image_folder, folder_config, empty_cache, monkeypatch) -> None:
    folder = prepare(folder_config(image_folder))
    monkeypatch.setenv("HOME", str(image_folder.parent))
    assert prepare(folder_config("~/images")) == folder


def test_a_null_byte_is_no_name() -> None:
    with pytest.raises(ConfigError, match=r"data.data_dir .*no NUL character"):
        parse_config({"data": {"dataset": "cifar10", "data_dir": "a\0b"}})


def test_a_relative_path_where_the_working_folder_is_gone(tmp_path, empty_cache, folder_config, monkeypatch) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with pytest.raises(DataError, match="images leads nowhere: the working folder was deleted"):
        prepare(folder_config("images"))
    assert prepare(DataConfig(dataset="synthetic", image_size=4)).is_dir()


def test_a_reader_of_the_progress_that_is_gone_is_not_the_caches_matter(own_module, source_config, empty_cache) -> None:
    own_module(
        "import time\nfrom asyncdgl.data.base import Source\n"
        "def decode(request):\n    request.on_progress(1, 2)\n    time.sleep(60)\nsource = Source(decode)"
    )

    def gone(done: int, total: int) -> None:
        raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        prepare(source_config("mine:source"), gone)
    assert list(empty_cache.iterdir()) == []


def test_a_cache_that_cannot_be_written_is_named(tmp_path, monkeypatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(cache.CACHE_VARIABLE, str(tmp_path / "file" / "cache"))
    with pytest.raises(DataError, match="ASYNCDGL_CACHE") as error:
        prepare(DataConfig())
    assert str(tmp_path / "file" / "cache") in str(error.value)


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o755), (0o002, 0o775), (0o077, 0o700)])
def test_a_cache_has_the_rights_that_the_umask_says(image_folder, folder_config, empty_cache, mask, mode) -> None:
    old = os.umask(mask)
    try:
        folders = [prepare(DataConfig()), prepare(folder_config(image_folder))]
    finally:
        os.umask(old)
    for folder in (empty_cache, *folders):
        assert stat.S_IMODE(folder.stat().st_mode) == mode
    for file in (file for folder in folders for file in folder.iterdir()):
        assert stat.S_IMODE(file.stat().st_mode) == mode & 0o666


AS_NOBODY = """
import mmap, os  # what is imported later could not be read
import platformdirs
from asyncdgl.config.sections import DataConfig
from asyncdgl.data import child, store, synthetic
from asyncdgl.data.cache import prepare
from asyncdgl.errors import DataError
os.setgroups([])
os.setresgid(65534, 65534, 65534)
os.setresuid(65534, 65534, 65534)
try:
    print(prepare(DataConfig(dataset="synthetic", image_size=4)))
except DataError as error:
    print("DataError", error)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_cache_of_another_user() -> None:
    """Readable: used. Not readable: one message that says what to do."""
    with tempfile.TemporaryDirectory() as name:
        top = Path(name)
        top.chmod(0o755)
        environment = {**os.environ, cache.CACHE_VARIABLE: str(top)}

        def as_nobody() -> str:
            done = subprocess.run(
                [sys.executable, "-c", AS_NOBODY], env=environment, capture_output=True, text=True, check=True
            )
            return done.stdout.strip()

        assert "can't be written" in as_nobody()
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv(cache.CACHE_VARIABLE, str(top))
            folder = prepare(DataConfig(dataset="synthetic", image_size=4))
        folder.chmod(0o755)
        for file in folder.iterdir():
            file.chmod(0o644)
        assert as_nobody() == str(folder)
        folder.chmod(0o700)
        message = as_nobody()
        assert message.startswith(f"DataError the decoded data in {folder} can't be read (Permission denied)")
        assert "ASYNCDGL_CACHE" in message


# --- Damage -----------------------------------------------------------------------------------------------------------


def rewrite(path: Path, change: Callable[[bytes], bytes]) -> None:
    path.write_bytes(change(path.read_bytes()))


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        pytest.param(lambda f: (f / "test_y.npy").unlink(), "test_y.npy is missing", id="removed"),
        pytest.param(
            lambda f: rewrite(f / "train_x.npy", lambda whole: whole[:-1]), "train_x.npy is cut short", id="cut"
        ),
        pytest.param(
            lambda f: rewrite(f / "test_x.npy", lambda whole: bytes(len(whole))), "test_x.npy is cut short", id="zeros"
        ),
        pytest.param(lambda f: (f / "meta.json").unlink(), "meta.json is missing", id="no-meta"),
        pytest.param(lambda f: (f / "meta.json").write_text('{"classes"'), "meta.json is cut short", id="half-a-meta"),
        pytest.param(lambda f: (f / "meta.json").write_text("[]"), "meta.json is cut short or alt", id="other-meta"),
        pytest.param(lambda f: [p.unlink() for p in f.iterdir()], "meta.json is missing", id="emptied"),
        pytest.param(lambda f: (shutil.rmtree(f), f.write_text("")), "meta.json is missing", id="a-file"),
    ],
)
def test_a_damaged_data_set_is_made_again_with_a_word(empty_cache, damage, says) -> None:
    folder, told = prepare(DataConfig()), []
    before = open_cached(folder).sha256
    damage(folder)
    with pytest.raises(DataError, match=says):
        open_cached(folder)
    assert prepare(DataConfig(), on_notice=told.append) == folder
    assert len(told) == 1
    assert says in told[0]
    assert open_cached(folder).sha256 == before
    assert list(empty_cache.iterdir()) == [folder]


KILLED = """
import sys
from pathlib import Path
from asyncdgl.data.scratch import scratch
with scratch(Path(sys.argv[1])) as folder:
    (folder / "new").mkdir()
    print(folder, flush=True)
    sys.stdin.read()
"""


def test_what_a_killed_process_left_is_removed_and_what_a_living_one_needs_is_not(tmp_path) -> None:
    def start() -> tuple[subprocess.Popen, Path]:
        command = [sys.executable, "-c", KILLED, str(tmp_path)]
        child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        return child, Path(child.stdout.readline().strip())

    (dead, left), (alive, used) = start(), start()
    with dead, alive:
        try:
            dead.send_signal(signal.SIGKILL)
            dead.wait()
            assert left.is_dir()
            with scratch(tmp_path) as mine:
                assert mine.name.startswith(PREFIX)
                assert sorted(tmp_path.iterdir()) == sorted([mine, used])
            assert list(tmp_path.iterdir()) == [used]
            assert (used / "new").is_dir()
        finally:
            alive.kill()


def test_without_locks_nothing_is_taken_for_a_leftover(tmp_path, monkeypatch) -> None:
    def no_locks(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr("fcntl.flock", no_locks)
    with scratch(tmp_path) as one:
        with scratch(tmp_path) as other:
            assert sorted(tmp_path.iterdir()) == sorted([one, other])
        assert list(tmp_path.iterdir()) == [one]
    assert list(tmp_path.iterdir()) == []


def test_every_array_is_named_once_in_what_is_kept(digits_folder) -> None:
    meta = json.loads((digits_folder / "meta.json").read_text())
    assert sorted(meta["bytes"]) == sorted(f"{name}.npy" for name in ARRAYS)
    assert sorted(p.name for p in digits_folder.iterdir()) == sorted([*meta["bytes"], "meta.json"])
