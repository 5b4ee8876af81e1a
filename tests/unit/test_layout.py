"""The layout of the package: sizes, names, who may do what, and rules that stand in one place."""

from __future__ import annotations

import ast
import configparser
import re
import statistics
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "asyncdgl"
FILES = {path.relative_to(PACKAGE).as_posix(): path for path in sorted(PACKAGE.rglob("*.py"))}
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in FILES.items()}
MOST_LINES, MEDIAN_LINES = 350, 120
PROCESSES = {"data/child.py", "on_ray/guardian.py", "supervisor.py"}
"""Processes of their own, which end themselves and leave a terminal's signals to their parent; and who gives the caller
of `run()` back the signals that Ray took."""


def found(kind: type[ast.AST]) -> list[tuple[str, ast.AST]]:
    return [(name, node) for name, tree in TREES.items() for node in ast.walk(tree) if isinstance(node, kind)]


def imports(name: str) -> set[str]:
    modules = set()
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            modules.add(node.module or "")
    return modules


def called(node: ast.AST) -> str:
    return ast.unparse(node.func) if isinstance(node, ast.Call) else ""


def test_files_are_short() -> None:
    lines = {name: len(path.read_text(encoding="utf-8").splitlines()) for name, path in FILES.items()}
    assert {name: count for name, count in lines.items() if count > MOST_LINES} == {}
    assert statistics.median(lines.values()) <= MEDIAN_LINES


def test_ray_is_imported_in_on_ray_alone() -> None:
    users = {name for name in FILES if any(module.partition(".")[0] == "ray" for module in imports(name))}
    assert users
    assert {name for name in users if not name.startswith("on_ray/")} == set()


def test_only_the_command_line_prints_takes_signals_or_exits() -> None:
    forbidden = re.compile(r"print|(sys|os)\._?exit|exit|quit|signal\.(signal|sigwait|set_wakeup_fd)|click\.echo")
    calls = [(name, called(node)) for name, node in found(ast.Call) if forbidden.fullmatch(called(node))]
    calls += [(name, "SystemExit") for name, node in found(ast.Raise) if "SystemExit" in ast.unparse(node)]
    users = {name for name, _ in calls}
    assert any(name.startswith("cli/") for name in users)
    assert {name for name in users if not name.startswith("cli/")} - PROCESSES - {"__main__.py"} == set()
    assert {name for name in FILES if {"click", "rich"} & {m.partition(".")[0] for m in imports(name)}} <= {
        name for name in FILES if name.startswith("cli/")
    }


def test_nothing_that_a_user_can_meet_is_an_assert() -> None:
    assert [(name, node.lineno) for name, node in found(ast.Assert)] == []  # type: ignore[attr-defined]


def test_no_configuration_is_copied_unchecked() -> None:
    assert [name for name, node in found(ast.Attribute) if node.attr == "model_copy"] == []  # type: ignore[attr-defined]


def test_no_work_when_python_forgets_an_object() -> None:
    assert [name for name, node in found(ast.FunctionDef) if node.name == "__del__"] == []  # type: ignore[attr-defined]


def test_no_file_is_called_after_nothing() -> None:
    words = {"util", "utils", "helper", "helpers", "common", "manager", "misc"}
    assert [name for name in FILES if words & set(re.split(r"[/_.]", name))] == []


@pytest.mark.parametrize(
    ("what", "pattern"),
    [
        ("the reasons to wait beside those of a buffer", r"FULL, PACED, SLOWED, PAUSED = "),
        ("the prefetch limit", r"min\(prefetch, 1\)"),
        ("the stretch of pace free", r"\(step - 1\) \* compute_s"),
        ("who still trains", r"self\._training\.discard\(|max\(self\._training"),
        ("what a stage that has done its quota does", r"return FORWARD if "),
    ],
)
def test_a_turn_stands_once(what, pattern) -> None:
    places = {name for name, path in FILES.items() if re.search(pattern, path.read_text(encoding="utf-8"))}
    assert places == {"engine/turn.py"}, what


def test_reasons_to_wait_are_spelt_in_one_place_each() -> None:
    """Engines answer a turn; they do not say why it waits."""
    spelt = {
        (name, node.value)  # type: ignore[attr-defined]
        for name, node in found(ast.Constant)
        if name.startswith(("engine/", "on_ray/")) and node.value in ("slowdown", "pause", "full")  # type: ignore[attr-defined]
    }
    assert spelt == {("engine/turn.py", word) for word in ("slowdown", "pause", "full")}


def test_contributing_lists_the_layers_that_are_held() -> None:
    settings = configparser.ConfigParser()
    settings.read(ROOT / "setup.cfg", encoding="utf-8")
    held = [
        [name.strip() for name in line.split("|")]
        for line in settings["importlinter:contract:layers"]["layers"].strip().splitlines()
    ]
    page = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    listed = [
        re.findall(r"`([a-z_]+)`", line.partition(":")[0]) for line in re.findall(r"^\d+\. (.*)$", page, re.MULTILINE)
    ]
    assert [names for names in listed if names] == held


def test_every_dependency_is_used_and_says_what_for() -> None:
    settings = (ROOT / "setup.cfg").read_text(encoding="utf-8")
    [block] = re.findall(r"^install_requires =\n(.*?)\n\n", settings, re.DOTALL | re.MULTILINE)
    lines = block.splitlines()
    names = {"Pillow": "PIL", "ruamel.yaml": "ruamel", "scikit-learn": "sklearn", "Jinja2": "jinja2"}
    imported = {module.partition(".")[0] for name in FILES for module in imports(name)}
    for before, line in zip(["", *lines], lines, strict=False):
        if line.lstrip().startswith("#"):
            continue
        match = re.fullmatch(r"\s+([\w.-]+)(\[\w+\])?>=[\d.]+", line)
        assert match, line
        assert before.lstrip().startswith("#"), line
        assert names.get(match.group(1), match.group(1)) in imported, line


def test_no_line_is_left_to_do() -> None:
    for name, path in FILES.items():
        with path.open("rb") as file:
            said = [token.string for token in tokenize.tokenize(file.readline) if token.type == tokenize.COMMENT]
        assert [text for text in said if re.search(r"\b(TODO|FIXME|XXX)\b", text)] == [], name
