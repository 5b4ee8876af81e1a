"""`asyncdgl`: the group of commands. Each lives in its own file."""

from __future__ import annotations

import contextlib
import importlib
import os
import sys

import click

from asyncdgl import __version__
from asyncdgl.cli.streams import fill_closed_streams
from asyncdgl.errors import AsyncDGLError, ConfigError, DataError

WRONG_INPUT, FAILED = 2, 1


COMMANDS = {
    "run": "Train one network, and leave a run directory with its numbers and figures.",
    "resume": "Go on with the run in RUN_DIR, which was stopped.",
    "sweep": "Run a grid of configurations, each with several seeds, and leave one table.",
    "report": "Write a report into each DIR: the folder of a run, or of a sweep.",
    "replay": "Repeat the run in RUN_DIR from its trace, in one process, and compare it.",
    "evaluate": "Measure the trained network of the run in RUN_DIR, on its own data or on other images.",
    "predict": "Classify images by the trained network of the run in RUN_DIR.",
    "profiles": "List the built-in delay profiles, or print the profile NAME as YAML.",
    "schema": "Print the JSON schema of a configuration file, with which an editor completes and checks it.",
}
"""Each command, in the file of its name, and what the list of commands says of it."""


class _Group(click.Group):
    """Imports a command when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            if not name.startswith("-"):
                raise click.exceptions.NoSuchCommand(name, possibilities=COMMANDS, ctx=ctx)
            return None
        command = getattr(importlib.import_module(f"asyncdgl.cli.{name}"), name)
        return command if isinstance(command, click.Command) else None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(
    cls=_Group,
    no_args_is_help=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, prog_name="asyncdgl")
def cli() -> None:
    """Train a convolutional network by asynchronous Decoupled Greedy Learning (DGL).

    Every stage of the network learns from its own loss, in its own process, at its own speed; replay buffers stand
    between the stages.
    """


def _find_modules_here() -> None:
    """Parts of one's own may lie in the working folder. It comes last: no file there takes a library's place."""
    with contextlib.suppress(OSError):  # the folder was deleted
        sys.path.append(os.getcwd())


def main() -> None:
    """The command: one message for every error, never a traceback for a user's mistake."""
    if "_ASYNCDGL_COMPLETE" in os.environ:
        from asyncdgl.cli.completion import teach_bash

        teach_bash()
    fill_closed_streams()
    _find_modules_here()
    try:
        code = cli.main(standalone_mode=False)
    except click.ClickException as error:
        message = error.format_message().rstrip()
        if message == "Missing command.":
            message = f"missing command: one of {', '.join(COMMANDS)}"
        hint = f"\nSee `{error.ctx.command_path} --help`." if isinstance(error, click.UsageError) and error.ctx else ""
        click.echo(f"Error: {message}{hint}", err=True)
        code = WRONG_INPUT
    except ConfigError as error:
        lines = error.lines
        text = lines[0] if len(lines) == 1 else "".join(f"\n  - {line}" for line in lines)
        click.echo(f"Error: {text}", err=True)
        code = WRONG_INPUT
    except DataError as error:
        click.echo(f"Error: {error}", err=True)
        code = WRONG_INPUT
    except AsyncDGLError as error:
        click.echo(f"Error: {error}", err=True)
        code = FAILED
    except click.Abort:
        code = 130
    except BrokenPipeError:  # the reader of our output has gone, as in `asyncdgl profiles | head -1`
        sys.stderr.close()
        code = FAILED
    sys.exit(code if isinstance(code, int) else 0)
