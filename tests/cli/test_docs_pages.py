"""README and docs/: every command that stands on a line of its own is run as it stands, and every piece of Python."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = {path.name: path.read_text(encoding="utf-8") for path in (ROOT / "README.md", *(ROOT / "docs").glob("*.md"))}
BLOCKS = [
    (name, kind, text)
    for name, page in PAGES.items()
    for kind, text in re.findall(r"^```([\w-]*)\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
]
TESTED_ELSEWHERE = {"sweeps.md": "test_docs_sweeps", "extending.md": "test_docs_extending"}
NOT_RUN = {
    "asyncdgl run --dataset cifar10 --stages 6 --dry-run": "CIFAR-10 is not here",
    "asyncdgl run --address 10.0.0.5:6379": "a cluster is needed",
    "asyncdgl sweep sweep.yaml --address 10.0.0.5:6379": "a cluster is needed",
    "python3 -m venv .venv && . .venv/bin/activate && pip install . && asyncdgl run --delay-profile slow_stage2": (
        "experiments/first_run does it"
    ),
    "python3 -m venv .venv && . .venv/bin/activate && pip install '.[test]' && pytest": ".ci/run does it",
}


def commands() -> list[tuple[str, str]]:
    """The page and the command, in the order in which they stand."""
    return [
        (page, re.split(r"\s+# ", line)[0])
        for page, kind, text in BLOCKS
        for line in text.splitlines()
        if kind == "" and page not in TESTED_ELSEWHERE and re.match(r"asyncdgl |python3? |pip ", line)
    ]


def on_ray(command: str) -> bool:
    return command.startswith("asyncdgl run") and not re.search(r"--runtime|backprop|sequential-dgl", command)


RUN = [(page, command) for page, command in commands() if command not in NOT_RUN]


def ran(command: list[str], folder: Path) -> str:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout


def asyncdgl(command: str, folder: Path) -> str:
    return ran([str(Path(sys.executable).parent / "asyncdgl"), *shlex.split(command)[1:]], folder)


def test_what_is_not_run_stands_on_a_page() -> None:
    assert set(NOT_RUN) <= {command for _, command in commands()}
    assert len(RUN) >= 8


@pytest.mark.timeout(600)
@pytest.mark.parametrize("page", dict.fromkeys(page for page, _ in RUN))
def test_commands_in_one_process(tmp_path, page) -> None:
    for name, command in RUN:
        if name == page and not on_ray(command):
            asyncdgl(command, tmp_path)


@pytest.mark.ray
@pytest.mark.timeout(320)
@pytest.mark.parametrize("command", dict.fromkeys(command for _, command in RUN if on_ray(command)))
def test_commands_on_ray(tmp_path, command) -> None:
    asyncdgl(command, tmp_path)
    assert len(list((tmp_path / "runs").glob("*/summary.json"))) == 1


@pytest.mark.timeout(300)
@pytest.mark.parametrize("page", ["README.md", "python.md"])
def test_python(tmp_path, page) -> None:
    pieces = [text for name, kind, text in BLOCKS if name == page and kind == "python"]
    assert pieces
    for piece in pieces:
        ran([sys.executable, "-c", piece], tmp_path)


def test_links_lead_somewhere() -> None:
    pages = {path: path.read_text(encoding="utf-8") for path in (*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"))}
    links = [(path, link) for path, text in pages.items() for link in re.findall(r"\]\(([^)#]+)", text)]
    assert len(links) > 20
    assert [f"{p.name}: {link}" for p, link in links if "://" not in link and not (p.parent / link).exists()] == []


def test_the_readme_fits_on_five_screens() -> None:
    lines = PAGES["README.md"].splitlines()
    assert len(lines) <= 120
    assert [line for line in lines if len(line) > 125 and not line.startswith("|") and "venv" not in line] == []
