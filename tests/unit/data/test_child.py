"""The decoding process: real ones, that work, fail, crash, are interrupted, and lose their parent."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from typing import Any

import psutil
import pytest

from asyncdgl.data import child
from asyncdgl.data.cache import prepare
from asyncdgl.errors import DataError

SOURCE = """
import os, signal, sys, time
import numpy as np
from asyncdgl.data.base import Decoded, Source
from asyncdgl.errors import DataError

def decode(request):
    x, y = np.eye(4, dtype=np.float32), np.arange(4)
    BODY
    return Decoded(x, y, x, y, list("abcd"))

source = Source(decode)
"""

PREPARE_TWICE = """
import json, sys
from asyncdgl.config.sections import DataConfig
from asyncdgl.data import cache, child
config = DataConfig(dataset="image-folder", data_dir=sys.argv[1], image_size=8)
progress = []
folder = cache.prepare(config, lambda done, total: progress.append((done, total)))
child.subprocess.Popen = None  # a second decoding process would fail
again = cache.prepare(config)
print(json.dumps({
    "folders": [str(folder), str(again)],
    "progress": progress,
    "imported": [name for name in ("torchvision", "torch", "PIL") if name in sys.modules],
}))
"""


def test_only_the_decoding_process_imports_what_decodes(image_folder, empty_cache) -> None:
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
    assert told["progress"] == [[1000, 1005]]
    assert [str(path) for path in empty_cache.iterdir()] == told["folders"][:1]


@pytest.mark.parametrize(
    ("body", "says"),
    [
        pytest.param('raise DataError("the data are wrong")', "the data are wrong", id="expected"),
        pytest.param('x["a"]', "decoding mine:source failed: IndexError: only integers", id="unexpected"),
        pytest.param("{}[1, 2]", "decoding mine:source failed: KeyError: (1, 2) (mine.py, line 9)", id="its-own-line"),
        pytest.param("raise ValueError('x' * 10**6)", f"failed: ValueError: {'x' * 400}", id="a-long-one"),
        pytest.param("import nowhere", "failed: ModuleNotFoundError: No module named 'nowhere' (mine.py", id="import"),
        pytest.param('raise OSError(28, "No space left")', "failed: OSError: [Errno 28] No space left", id="no-space"),
        pytest.param("sys.exit(0)", "decoding mine:source failed: SystemExit: 0", id="exit"),
        pytest.param("sys.stdout.write('x' * 99); os._exit(7)", "failed: its process ended with code 7", id="dies"),
        pytest.param(
            "os.kill(os.getpid(), signal.SIGKILL)", "ended by SIGKILL, which the system sends where memory", id="killed"
        ),
        pytest.param("os.kill(os.getpid(), signal.SIGSEGV)", "ended by SIGSEGV", id="crashes"),
    ],
)
def test_what_a_failing_decoding_process_said(own_module, source_config, empty_cache, body, says) -> None:
    own_module(SOURCE.replace("BODY", body))
    with pytest.raises(DataError) as error:
        prepare(source_config("mine:source"))
    assert says in str(error.value)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 1000
    assert list(empty_cache.iterdir()) == []


def test_an_interrupt_of_the_terminal_is_for_the_parent(own_module, source_config, empty_cache) -> None:
    """Both processes get it; the parent decides, and may finish what it does first."""
    own_module(SOURCE.replace("BODY", "signal.raise_signal(signal.SIGINT)"))
    assert (prepare(source_config("mine:source")) / "meta.json").is_file()


def test_progress_is_told_and_what_libraries_print_is_not(own_module, source_config, empty_cache) -> None:
    body = (
        "print('1 2'); print('{\"done\": 5, \"total\": 6}'); os.system('echo 3 4'); "
        "request.on_progress(1000, 2005); sys.stderr.write('noise'); request.on_progress(2000, 2005)"
    )
    own_module(SOURCE.replace("BODY", body))
    told = []
    prepare(source_config("mine:source"), lambda done, total: told.append((done, total)))
    assert told == [(1000, 2005), (2000, 2005)]


def test_an_interrupt_ends_the_decoding_process(own_module, source_config, empty_cache, monkeypatch) -> None:
    children = []

    class Watched(subprocess.Popen):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            children.append(self)

    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(child.subprocess, "Popen", Watched)
    own_module(SOURCE.replace("BODY", "request.on_progress(1, 2); time.sleep(600)"))
    with pytest.raises(KeyboardInterrupt):
        prepare(source_config("mine:source"), interrupt)
    assert [process.poll() for process in children] == [-9]
    assert list(empty_cache.iterdir()) == []


def test_the_decoding_process_dies_with_its_parent(own_module, empty_cache, tmp_path) -> None:
    said, decodes = tmp_path / "pid", tmp_path / "decodes"
    os.mkfifo(decodes)
    body = f"open({str(said)!r}, 'w').write(str(os.getpid())); open({str(decodes)!r}, 'w').close(); time.sleep(600)"
    path = own_module(SOURCE.replace("BODY", body))
    program = (
        "import threading, os, signal\n"
        "from asyncdgl.config.sections import DataConfig\n"
        "from asyncdgl.data.cache import prepare\n"
        "def die():\n"
        f"    open({str(decodes)!r}).read()\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "threading.Thread(target=die, daemon=True).start()\n"
        "prepare(DataConfig.model_construct(dataset='mine:source', data_dir=None, image_size=8))\n"
    )
    parent = subprocess.run([sys.executable, "-c", program], cwd=path.parent, check=False, timeout=60)
    assert parent.returncode == -9
    try:
        orphan = psutil.Process(int(said.read_text()))
        while orphan.status() != psutil.STATUS_ZOMBIE:  # dead, where its new parent does not ask for it
            time.sleep(0.02)
    except psutil.NoSuchProcess:
        pass


def test_a_decoding_process_finds_a_module_that_only_the_import_path_names(
    tmp_path, source_config, empty_cache, monkeypatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "theirs.py").write_text(SOURCE.replace("BODY", ""))
    monkeypatch.syspath_prepend(str(tmp_path / "elsewhere"))
    assert (prepare(source_config("theirs:source")) / "meta.json").is_file()
    sys.modules.pop("theirs")


def test_a_full_disk_is_the_caches_matter(own_module, source_config, empty_cache) -> None:
    own_module(SOURCE.replace("BODY", "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (99, 99))"))
    with pytest.raises(DataError, match=f"the cache folder {empty_cache} can't be written .*: set ASYNCDGL_CACHE"):
        prepare(source_config("mine:source"))
    assert list(empty_cache.iterdir()) == []
