"""Parts of one's own in the working folder: found by the command line, its children and Ray's processes, and last."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

PARTS = """
import numpy as np
from torch import nn

from asyncdgl.data.base import Decoded, Source


def blocks(input_shape, classes):
    first = nn.Sequential(nn.Flatten(), nn.Linear(4, 8))
    return [first, nn.Linear(8, 8)]


def newest(entries, uniform):
    return entries[-1]


def decode(request):
    x, y = np.eye(4, dtype=np.float32).repeat(32, 0), np.arange(4).repeat(32)
    return Decoded(x, y, x, y, list("abcd"))


points = Source(decode, {"optim": {"lr": 0.1}})
"""
SETTINGS = """
stages: 2
epochs: 1
batch_size: 32
model: {name: "our_parts:blocks"}
buffer: {sampler: "our_parts:newest"}
data: {dataset: "our_parts:points"}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "our_parts.py").write_text(PARTS)
    (tmp_path / "settings.yaml").write_text(SETTINGS)
    # Files that people have, with names that libraries have too: in front they would break whatever starts here.
    for name in ("queue", "random", "torch"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('a stray file was imported')")
    return tmp_path


def asyncdgl(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    script = Path(sys.executable).parent / "asyncdgl"
    return subprocess.run(
        [script, *arguments], cwd=folder, capture_output=True, text=True, timeout=170, check=False, env=os.environ
    )


@pytest.mark.parametrize("runtime", ["sim", pytest.param("ray", marks=pytest.mark.ray)])
def test_a_run_finds_them(folder, runtime) -> None:
    done = asyncdgl(folder, "run", "--config", "settings.yaml", "--runtime", runtime, "--out", "run")
    assert done.returncode == 0, done.stderr
    assert (folder / "run" / "summary.json").is_file()
    assert "bit-exact: 2 of 2" in asyncdgl(folder, "replay", "run").stdout


def test_a_sweeps_runs_find_them(folder) -> None:
    (folder / "sweep.yaml").write_text("config: {runtime: sim}\nseeds: 1\ngrid: {stages: [2]}\n")
    done = asyncdgl(folder, "sweep", "sweep.yaml", *(f"--set={s}" for s in ASSIGNMENTS))
    assert done.returncode == 0, done.stdout + done.stderr
    assert (folder / "sweeps" / "sweep" / "table.csv").is_file()


ASSIGNMENTS = [
    "epochs=1",
    "batch_size=32",
    "model.name=our_parts:blocks",
    "buffer.sampler=our_parts:newest",
    "data.dataset=our_parts:points",
]


@pytest.mark.ray
def test_objects_made_of_a_module_beside_the_script_reach_rays_processes(folder) -> None:
    (folder / "script").mkdir()
    (folder / "script" / "train.py").write_text(
        "import sys; sys.path.append('.'); import asyncdgl, our_layers\n"
        "from torch import nn\n"
        "import numpy as np\n"
        "pair = [(np.eye(4, dtype=np.float32)[n % 4], n % 4) for n in range(64)]\n"
        "net = nn.Sequential(our_layers.Ours(), our_layers.Ours())\n"
        "run = asyncdgl.run(net=net, data=(pair, pair), stages=2, epochs=1, batch_size=32, out='run')\n"
        "print(run.summary.status)\n"
    )
    (folder / "our_layers.py").write_text(
        "from torch import nn\n\n\nclass Ours(nn.Linear):\n    def __init__(self):\n        super().__init__(4, 4)\n"
    )
    done = subprocess.run(
        [sys.executable, "script/train.py"], cwd=folder, capture_output=True, text=True, timeout=170, check=False
    )
    assert "completed" in done.stdout, done.stderr
