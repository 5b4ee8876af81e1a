"""`asyncdgl schema`: the keys of the configuration, for editors and for people."""

from __future__ import annotations

import json

import click


@click.command()
@click.option("--markdown", is_flag=True, help="Print docs/configuration.md instead: a table of all keys.")
def schema(markdown: bool) -> None:
    """Print the JSON schema of a configuration file, with which an editor completes and checks it.

    `asyncdgl schema > asyncdgl.schema.json`, and as the first line of a configuration:
    `# yaml-language-server: $schema=asyncdgl.schema.json`.
    """
    from asyncdgl.config.docs import json_schema, markdown_of_keys

    click.echo(markdown_of_keys() if markdown else json.dumps(json_schema(), indent=2, ensure_ascii=False))
