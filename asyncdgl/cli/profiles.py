"""`asyncdgl profiles`: the built-in delay profiles, or one of them as YAML to start from."""

from __future__ import annotations

import io

import click

from asyncdgl.cli.completion import profiles_of
from asyncdgl.delays.profiles import DESCRIPTIONS, built_in_profile


@click.command()
@click.argument("name", required=False, shell_complete=profiles_of)
def profiles(name: str | None) -> None:
    """List the built-in delay profiles, or print the profile NAME as YAML.

    Such a file, altered, goes to `asyncdgl run --delay-profile FILE.yaml`.
    """
    if name is None:
        width = max(map(len, DESCRIPTIONS))
        for known, description in DESCRIPTIONS.items():
            click.echo(f"{known:{width}}  {description}")
        return
    from ruamel.yaml import YAML

    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = False
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    out = io.StringIO()
    yaml.dump(built_in_profile(name).model_dump(mode="json"), out)
    click.echo(out.getvalue(), nl=False)
