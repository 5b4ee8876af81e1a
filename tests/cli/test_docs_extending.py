"""docs/extending.md: every example is short, whole, and runs on `sim` and on `ray` by the settings under it."""

from __future__ import annotations

import itertools
import re
import subprocess
import sys
from pathlib import Path

import pytest

from asyncdgl.registry import BUILT_IN

PAGE = (Path(__file__).parents[2] / "docs" / "extending.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^## ([^\n]+)\n(.*?)(?=^## |\Z)", PAGE, re.DOTALL | re.MULTILINE))
EXAMPLES = re.findall(r"^```python\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
TITLES = {
    "network": "Network",
    "auxiliary": "Auxiliary network",
    "loss": "Loss of a stage",
    "optimizer": "Optimizer",
    "schedule": "Schedule",
    "sampler": "Sampler",
    "codec": "Codec",
    "law": "Delay law",
    "data": "Data source",
    "algorithm": "Algorithm",
}
SMALL = ["stages=3", "epochs=1", "threads=1", "seed=3"]


def asked_by(text: str) -> list[str]:
    """The settings of a section, as they stand there: one more run for each time that a key is said again."""
    spans = re.findall(r"`(--set [^`]*)`", text.replace("\n", " "))
    return [assignment for span in spans for assignment in re.split(r"(?:^| )--set ", span) if assignment]


def rounds(titles) -> list[dict[str, str]]:
    """Runs that together use every setting of these sections: all first ones together, all second ones, …"""
    by_key: dict[str, list[str]] = {}
    for title in titles:
        for assignment in asked_by(SECTIONS[title]):
            key, _, value = assignment.partition("=")
            by_key.setdefault(key, []).append(value)
    longest = max(len(values) for values in by_key.values())
    found: list[dict[str, str]] = [{} for _ in range(longest)]
    for (number, settings), (key, values) in itertools.product(enumerate(found), by_key.items()):
        settings[key] = values[min(number, len(values) - 1)]
    return found


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for example in EXAMPLES:
        name = re.match(r"# (\w+\.py)\n", example)
        assert name is not None, example
        (tmp_path / name.group(1)).write_text(example, encoding="utf-8")
    return tmp_path


def run(folder: Path, runtime: str, settings: dict[str, str], out: str) -> None:
    script = Path(sys.executable).parent / "asyncdgl"
    given = [*SMALL, *(f"{key}={value}" for key, value in settings.items())]
    command = [str(script), "run", "--runtime", runtime, "--out", out, *(f"--set={text}" for text in given)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, f"{settings}: {done.stderr}"
    assert (folder / out / "model.safetensors").is_file()


def test_every_door_is_there_and_every_example_is_short() -> None:
    assert set(TITLES) == set(BUILT_IN)
    assert list(SECTIONS) == list(TITLES.values())
    assert all("```python" in text and asked_by(text) for text in SECTIONS.values())
    assert {f"my_{kind}" for kind in TITLES} <= {example[2:].partition(".py")[0] for example in EXAMPLES}
    assert [example for example in EXAMPLES if len(example.splitlines()) > 15] == []
    for example in EXAMPLES:  # none is shown without being chosen by what stands beside it
        module = example[2:].partition(".py")[0]
        assert f"{module}:" in "".join(value for text in SECTIONS.values() for value in asked_by(text)), module


@pytest.mark.timeout(600)
@pytest.mark.parametrize("title", SECTIONS)
def test_each_door_alone_in_sim(folder, title) -> None:
    for number, settings in enumerate(rounds([title])):
        run(folder, "sim", settings, f"run-{number}")


@pytest.mark.ray
@pytest.mark.timeout(900)
def test_all_doors_together_on_ray(folder) -> None:
    """Every setting of the page has an effect there, or the run would refuse it."""
    made = rounds(SECTIONS)
    used = {f"{key}={value}" for settings in made for key, value in settings.items()}
    assert used == {assignment for text in SECTIONS.values() for assignment in asked_by(text)}
    for number, settings in enumerate(made):
        run(folder, "ray", settings, f"run-{number}")
