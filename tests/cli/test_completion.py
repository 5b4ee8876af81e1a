"""Completion, asked as the shells ask: words in the environment, items in the answer. And `asyncdgl schema`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from asyncdgl.config.docs import json_schema, markdown_of_keys

LOADED = "import sys\nfrom asyncdgl.cli.main import main\nsys.argv[0] = 'asyncdgl'\ntry:\n    main()\nfinally:\n"
LOADED += "    print(*sorted({'torch', 'ray'} & set(sys.modules)), file=sys.stderr)"


def complete(shell: str, *words: str, cwd: Path | None = None) -> list[str]:
    """What a shell is told when the last of the words is being typed."""
    environment = {**os.environ, "_ASYNCDGL_COMPLETE": f"{shell}_complete", "COMP_CWORD": str(len(words) - 1)}
    environment["COMP_WORDS"] = " ".join(words) if words[-1] else " ".join(words[:-1]) + " "
    done = subprocess.run(
        [sys.executable, "-c", LOADED], env=environment, capture_output=True, text=True, timeout=60, cwd=cwd, check=True
    )
    assert done.stderr.strip() == "", "completion needs neither torch nor ray"
    return done.stdout.splitlines()


def words(*typed: str) -> list[str]:
    """The plain words that bash is offered."""
    return [line.removeprefix("plain,") for line in complete("bash", "asyncdgl", *typed) if line.startswith("plain,")]


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        (["r"], ["run", "resume", "report", "replay"]),
        (["run", "--algorithm", ""], ["async-dgl", "sync-dgl", "sequential-dgl", "backprop"]),
        (["run", "--algorithm", "as"], ["async-dgl"]),
        (["run", "--algorithm", "=", "as"], ["async-dgl"]),
        (["run", "--runtime", ""], ["ray", "sim", "virtual"]),
        (["run", "--dataset", ""], ["digits", "fashion-mnist", "cifar10", "image-folder", "synthetic"]),
        (["run", "--sampler", "l"], ["lifo"]),
        (["run", "--codec", ""], ["none", "bf16", "int8"]),
        (["run", "--aux", "mlp"], ["mlp", "mlp-sr"]),
        (["run", "--device", "c"], ["cpu", "cuda"]),
        (["run", "--pace", "f"], ["free"]),
        (["run", "--threads", ""], ["auto"]),
        (["run", "--delay-profile", "s"], [*(f"slow_stage{n}" for n in range(1, 7)), "straggler"]),
        (["profiles", "w"], ["wan"]),
        (["run", "--delay-pro"], ["--delay-profile"]),
        (["run", "--set", "buffer.s"], ["buffer.size=", "buffer.sampler="]),
        (["run", "--set", "opt"], [f"optim.{key}=" for key in
            ("name", "lr", "momentum", "weight_decay", "betas", "eps", "schedule", "lr_decay_every", "lr_milestones",
             "lr_decay_factor")]),
        (["run", "--set", "buffer.sampler", "="], ["priority_lifo", "lifo", "fifo", "uniform"]),
        (["run", "--set", "buffer.sampler", "=", "f"], ["fifo"]),
        (["run", "--set", "data.augment", "=", "t"], ["true"]),
        (["run", "--set", "delays.profile", "=", "w"], ["wan"]),
        (["run", "--set", "no.such", "=", ""], []),
        (["run", "--epochs", ""], []),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, list) else None,
)  # fmt: skip
def test_bash_is_offered(typed: list[str], offered: list[str]) -> None:
    assert words(*typed) == offered


@pytest.mark.parametrize(
    ("typed", "kind"),
    [
        (["run", "--config", ""], "file"),
        (["run", "--delay-profile", "mine.y"], "file"),
        (["run", "--out", ""], "dir"),
        (["run", "--data-dir", ""], "dir"),
    ],
    ids=lambda value: value[1] if isinstance(value, list) else None,
)
def test_files_and_folders_are_left_to_the_shell(typed: list[str], kind: str) -> None:
    assert [line.partition(",")[0] for line in complete("bash", "asyncdgl", *typed)] == [kind]


def test_zsh_and_fish_do_not_split_at_the_sign() -> None:
    assert complete("zsh", "asyncdgl", "run", "--set", "buffer.sampler=f") == ["plain", "buffer.sampler=fifo", "_"]
    zsh = complete("zsh", "asyncdgl", "run", "--set", "buffer.si")
    assert zsh == ["plain", "buffer.size=", "mini-batches M that each buffer holds"]


def test_the_script_for_a_shell() -> None:
    environment = {**os.environ, "_ASYNCDGL_COMPLETE": "bash_source"}
    done = subprocess.run([sys.executable, "-c", LOADED], env=environment, capture_output=True, text=True, timeout=60)
    assert "complete -o nosort -F _asyncdgl_completion asyncdgl" in done.stdout


def test_bash_itself_completes(tmp_path: Path) -> None:
    """With the line that docs/configuration.md gives, and bash's own splitting of words."""
    program = tmp_path / "asyncdgl"
    program.write_text(f"#!{sys.executable}\nfrom asyncdgl.cli.main import main\nmain()\n")
    program.chmod(0o755)
    script = """
        eval "$(_ASYNCDGL_COMPLETE=bash_source asyncdgl)"
        COMP_WORDS=(asyncdgl run --set buffer.sampler = fi) COMP_CWORD=5
        _asyncdgl_completion asyncdgl
        echo "${COMPREPLY[@]}"
    """
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(["bash", "-c", script], env=environment, capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["fifo"], done.stderr


# --- The schema -------------------------------------------------------------------------------------------------------


def asyncdgl(*arguments: str) -> str:
    command = [sys.executable, "-m", "asyncdgl", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout


def test_schema_prints_the_schema() -> None:
    assert json.loads(asyncdgl("schema")) == json_schema()


def test_schema_prints_the_page_of_all_keys() -> None:
    assert asyncdgl("schema", "--markdown") == markdown_of_keys() + "\n"
