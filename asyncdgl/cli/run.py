"""`asyncdgl run`: from flags, --set and a file to a checked configuration; `session.py` runs it."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import click

from asyncdgl.cli.completion import assignments_of, folders, values_of
from asyncdgl.config.defaults import merged
from asyncdgl.config.model import RunConfig
from asyncdgl.config.setting import Key, keys
from asyncdgl.config.yaml import load_yaml, parse_assignment, parse_config, set_key
from asyncdgl.errors import ConfigError

KEYS = {key.setting.flag: key for key in keys(RunConfig).values() if key.setting.flag is not None}
"""What each flag sets."""


def _help(key: Key) -> str:
    """Description, choices and default (of the digits) of a key."""
    words = f" [{', '.join(key.choices)}]" if key.choices else ""
    default = key.field.default
    shown = "made from the settings" if key.name == "name" else "null" if default is None else default
    return f"{key.field.description}{words} (default: {shown})"


class _GroupedCommand(click.Command):
    """Shows the options in the groups of the configuration, with their defaults."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        groups: dict[str, list[tuple[str, str]]] = {}
        for flag, key in KEYS.items():
            groups.setdefault(key.section.title, []).append((f"{flag} VALUE", _help(key)))
        for title, rows in groups.items():
            with formatter.section(title):
                formatter.write_dl(rows)
        with formatter.section("Files and the rest"):
            others = (p.get_help_record(ctx) for p in self.get_params(ctx) if p.opts[0] not in KEYS)
            formatter.write_dl([record for record in others if record])


def _flags(command: Callable[..., Any]) -> Callable[..., Any]:
    for flag, key in reversed(KEYS.items()):
        option = click.option(flag, key.name.replace(".", "__"), metavar="VALUE", shell_complete=values_of(key))
        command = option(command)
    return command


@click.command(cls=_GroupedCommand)
@_flags
@click.option(
    "--config",
    "config_file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="YAML file with any keys of the configuration.",
)
@click.option(
    "--set",
    "assignments",
    multiple=True,
    metavar="KEY=VALUE",
    shell_complete=assignments_of,
    help="Set any key, for example buffer.min_size=5.",
)
@click.option(
    "--out",
    metavar="DIR",
    shell_complete=folders,
    help="The run directory itself (default: runs/<time>-<name>).",
)
@click.option(
    "--dry-run", is_flag=True, help="Print the configuration, the stages' cost and the memory needed, and end."
)
def run(
    config_file: Path | None, assignments: tuple[str, ...], out: str | None, dry_run: bool, **flags: str | None
) -> int:
    """Train one network, and leave a run directory with its numbers and figures.

    Defaults are those of the digits data set; other data sets have their own (see docs/configuration.md, or --dry-run).
    A flag beats --set, which beats --config.
    """
    asked = _configure(config_file, assignments, {k.replace("__", "."): v for k, v in flags.items() if v is not None})
    if out == "":
        raise ConfigError("--out needs the name of a folder")
    folder = None if out is None else Path(out)
    if folder is not None:
        from asyncdgl.rundir.writer import check_out

        check_out(folder)
    if dry_run:
        from asyncdgl.cli.dry_run import show_dry_run

        show_dry_run(asked)
        return 0
    from asyncdgl.cli.session import run_and_show
    from asyncdgl.session import Session

    return run_and_show(lambda supervisor: Session(asked, folder, supervisor))


def _configure(config_file: Path | None, assignments: Collection[str], flags: dict[str, str]) -> RunConfig:
    tree = {} if config_file is None else load_yaml(config_file)
    if sweep := [key for key in ("grid", "seeds", "also") if key in tree]:
        raise ConfigError(
            f"config file {config_file}: this is the file of a sweep (it has {', '.join(sweep)}): use "
            f"`asyncdgl sweep {config_file}`"
        )
    typed: dict[str, Any] = {}
    given = set(flags)
    for assignment in assignments:
        key, value = parse_assignment(assignment)
        set_key(typed, key, value)
        given.add(key)
    _refuse_parts_of_named_profile(flags.get("delays.profile"), tree, given)
    for key, text in flags.items():
        set_key(typed, key, text)
    return parse_config(merged(tree, typed), given)


def _refuse_parts_of_named_profile(flag: str | None, tree: dict[str, Any], given: Collection[str]) -> None:
    """A profile's name and a ``--set`` of one of its parts: one of them would get lost."""
    delays = tree.get("delays")
    name = flag or (delays.get("profile") if isinstance(delays, dict) else None)
    part = next((key for key in given if key.startswith("delays.profile.")), None)
    if part is not None and isinstance(name, str):
        raise ConfigError(
            f"{part} can't be set beside the profile {name}: write `asyncdgl profiles {name}` to a .yaml file, "
            "change it there, and name that file"
        )
