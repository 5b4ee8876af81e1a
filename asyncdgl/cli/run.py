"""`asyncdgl run`: from flags, --set and a file to a checked configuration; `session.py` runs it."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, cast

import click
from pydantic import BaseModel

from asyncdgl.config.defaults import merged
from asyncdgl.config.model import RunConfig
from asyncdgl.config.yaml import load_yaml, parse_assignment, parse_config, set_key
from asyncdgl.errors import ConfigError

FLAGS: dict[str, dict[str, str]] = {
    "Run": {
        "--name": "name",
        "--algorithm": "algorithm",
        "--runtime": "runtime",
        "--pace": "pace",
        "--stages": "stages",
        "--epochs": "epochs",
        "--batch-size": "batch_size",
        "--seed": "seed",
        "--precision": "precision",
        "--device": "device",
        "--threads": "threads",
    },
    "Data": {"--dataset": "data.dataset", "--data-dir": "data.data_dir"},
    "Model": {"--model": "model.name", "--width": "model.width", "--aux": "model.aux"},
    "Replay buffers": {
        "--buffer-size": "buffer.size",
        "--sampler": "buffer.sampler",
        "--max-reuse": "buffer.max_reuse",
        "--codec": "buffer.codec",
    },
    "Optimizer": {"--lr": "optim.lr"},
    "Delays": {"--delay-profile": "delays.profile", "--slowdown": "delays.slowdown"},
    "Ray": {"--address": "ray.address"},
}
KEYS = {flag: key for flags in FLAGS.values() for flag, key in flags.items()}


def _described(key: str) -> tuple[str, Any]:
    """Description and default (of the digits) of a key."""
    model: type[BaseModel] = RunConfig
    *sections, last = key.split(".")
    value: Any = RunConfig.model_validate({})
    for section in sections:
        model = cast("type[BaseModel]", model.model_fields[section].annotation)
        value = getattr(value, section)
    field = model.model_fields[last]
    choices = getattr(field.annotation, "__args__", ())
    listed = f" [{', '.join(choices)}]" if choices and all(isinstance(c, str) for c in choices) else ""
    return f"{field.description}{listed}", getattr(value, last)


class _GroupedCommand(click.Command):
    """Shows the options in the groups of the configuration, with their defaults."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        by_name = {p.opts[0]: p for p in self.get_params(ctx) if isinstance(p, click.Option)}
        for group, flags in FLAGS.items():
            with formatter.section(group):
                formatter.write_dl([(f"{flag} VALUE", self._help(flag)) for flag in flags])
        with formatter.section("Files and the rest"):
            others = (p.get_help_record(ctx) for name, p in by_name.items() if name not in KEYS)
            formatter.write_dl([record for record in others if record])

    @staticmethod
    def _help(flag: str) -> str:
        description, default = _described(KEYS[flag])
        return f"{description} (default: {'null' if default is None else default})"


def _flags(command: Callable[..., Any]) -> Callable[..., Any]:
    for flag, key in reversed(KEYS.items()):
        command = click.option(flag, key.replace(".", "__"), metavar="VALUE")(command)
    return command


@click.command(cls=_GroupedCommand)
@_flags
@click.option(
    "--config", "config_file", type=Path, metavar="FILE", help="YAML file with any keys of the configuration."
)
@click.option(
    "--set", "assignments", multiple=True, metavar="KEY=VALUE", help="Set any key, for example buffer.min_size=5."
)
@click.option("--out", metavar="DIR", help="The run directory itself (default: runs/<time>-<name>).")
@click.option(
    "--dry-run", is_flag=True, help="Print the configuration, the stages' cost and the memory needed, and end."
)
def run(
    config_file: Path | None, assignments: tuple[str, ...], out: str | None, dry_run: bool, **flags: str | None
) -> int:
    """Train one network, and leave a run directory with its numbers and figures.

    Defaults are those of the digits data set; other data sets have their own (see the README, or --dry-run). A flag
    beats --set, which beats --config.
    """
    asked = _configure(config_file, assignments, {k.replace("__", "."): v for k, v in flags.items() if v is not None})
    from asyncdgl.rundir.writer import check_out

    if out == "":
        raise ConfigError("--out needs the name of a folder")
    folder = None if out is None else Path(out)
    if folder is not None:
        check_out(folder)
    if dry_run:
        from asyncdgl.cli.dry_run import show_dry_run

        show_dry_run(asked)
        return 0
    from asyncdgl.plan.machine import wanted_address
    from asyncdgl.plan.memory import check_memory
    from asyncdgl.plan.resolve import planned

    config = planned(asked)
    address = wanted_address(asked.ray.address) if asked.runtime == "ray" else None
    if address is None:
        check_memory(config)
    else:
        from asyncdgl.on_ray.cluster import check_address

        check_address(address, asked.ray.address)
    from asyncdgl.cli.session import Session

    return Session(asked, folder).execute()


def _configure(config_file: Path | None, assignments: Collection[str], flags: dict[str, str]) -> RunConfig:
    tree = load_yaml(config_file) if config_file is not None else {}
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
