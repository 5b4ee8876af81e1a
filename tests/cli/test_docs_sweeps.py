"""docs/sweeps.md: its file is a sweep, its commands run in their order, and what it shows in Python works."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from asyncdgl.sweeps.grid import FigureConfig, GridPart, SweepConfig
from asyncdgl.sweeps.measures import MEASURES

PAGE = (Path(__file__).parents[2] / "docs" / "sweeps.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)


@pytest.mark.timeout(600)
def test_the_page_works_from_top_to_bottom(tmp_path) -> None:
    (tmp_path / "buffer.yaml").write_text(next(text for kind, text in BLOCKS if kind == "yaml"))
    [commands] = [text for kind, text in BLOCKS if kind == ""]
    [code] = [text for kind, text in BLOCKS if kind == "python"]
    script = Path(sys.executable).parent / "asyncdgl"
    lines = [[str(script), *shlex.split(line, comments=True)[1:]] for line in commands.splitlines()]
    said = []
    for command in [*lines, [sys.executable, "-c", code]]:
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=500, check=False)
        assert done.returncode == 0, done.stderr
        said.append(done.stdout)
    assert len(said) == 4
    assert "5 points and seeds" not in said[0]
    assert "10 points and seeds, 10 different runs, 0 there already; 10 to make" in said[0]
    assert "less_reference_mean" in said[3]
    assert (tmp_path / "sweeps" / "buffer" / "report.html").is_file()


def test_every_key_of_a_sweep_is_on_the_page() -> None:
    keys = {*SweepConfig.model_fields, *FigureConfig.model_fields, *GridPart.model_fields, "measure"}
    assert [key for key in keys if f"`{key}`" not in PAGE and key != "name"] == []
    assert [name for name in MEASURES if f"`{name}`" not in PAGE and not name.startswith("ensemble_")] == []
