"""Completion of values in a shell: words that a key takes, keys for `--set`, delay profiles, files."""

from __future__ import annotations

from collections.abc import Callable

import click
from click.shell_completion import BashComplete, CompletionItem, add_completion_class

from asyncdgl.config.model import RunConfig
from asyncdgl.config.setting import Key, keys
from asyncdgl.delays.profiles import DESCRIPTIONS

Complete = Callable[[click.Context, click.Parameter, str], list[CompletionItem]]

SUGGESTED_STAGES = 6
"""`slow_stage<N>` is suggested for so many stages."""


def values_of(key: Key) -> Complete:
    """Completes the values of one key."""

    def complete(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        return _values(key, incomplete)

    return complete


def assignments_of(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Completes KEY=VALUE of `--set`: first the key, then the words that it takes."""
    name, equals, value = incomplete.partition("=")
    known = keys(RunConfig)
    if not equals:
        found = [key for key in known if key.startswith(incomplete)]
        return [CompletionItem(f"{key}=", help=known[key].field.description) for key in found]
    key = known.get(name)
    items = [] if key is None else _values(key, value)
    return [CompletionItem(f"{name}={item.value}", item.type, item.help) for item in items if item.type == "plain"]


def profiles_of(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Completes the name of a built-in delay profile."""
    return [CompletionItem(name, help=text) for name, text in _profiles().items() if name.startswith(incomplete)]


def folders(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Leaves the completion of a folder to the shell."""
    return [CompletionItem(incomplete, type="dir")]


def _values(key: Key, incomplete: str) -> list[CompletionItem]:
    if key.name == "delays.profile":
        found = [CompletionItem(name, help=text) for name, text in _profiles().items() if name.startswith(incomplete)]
        return found or [CompletionItem(incomplete, type="file")]
    if key.name == "data.data_dir":
        return [CompletionItem(incomplete, type="dir")]
    return [CompletionItem(word) for word in key.choices if word.startswith(incomplete)]


def _profiles() -> dict[str, str]:
    """Name and description; those of single stages one by one."""
    found: dict[str, str] = {}
    for name, text in DESCRIPTIONS.items():
        numbers = range(1, SUGGESTED_STAGES + 1) if "<N>" in name else [None]
        found |= {name.replace("<N>", str(n)): text.replace("stage N", f"stage {n}") for n in numbers}
    return found


class _Bash(BashComplete):
    """Bash splits words at `=` and replaces only what follows it: KEY=VALUE is put together, and its key left away."""

    _typed = ""

    def get_completion_args(self) -> tuple[list[str], str]:
        args, incomplete = super().get_completion_args()
        if incomplete == "=":
            args, incomplete = [*args, "="], ""
        if len(args) >= 3 and args[-1] == "=" and args[-3] == "--set":
            self._typed = f"{args[-2]}="
            return args[:-2], self._typed + incomplete
        if len(args) >= 2 and args[-1] == "=" and args[-2].startswith("--"):
            return args[:-1], incomplete
        return args, incomplete

    def format_completion(self, item: CompletionItem) -> str:
        return f"{item.type},{item.value.removeprefix(self._typed)}"


def teach_bash() -> None:
    """Let click ask our class where bash wants completions."""
    add_completion_class(_Bash, "bash")
