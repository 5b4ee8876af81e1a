"""`asyncdgl`: the group of commands. Each lives in its own file."""

from __future__ import annotations

import os
import sys

import click

from asyncdgl import __version__
from asyncdgl.cli.completion import teach_bash
from asyncdgl.cli.profiles import profiles
from asyncdgl.cli.replay import replay
from asyncdgl.cli.report import report
from asyncdgl.cli.run import run
from asyncdgl.cli.schema import schema
from asyncdgl.cli.sweep import sweep
from asyncdgl.errors import AsyncDGLError, ConfigError, DataError

WRONG_INPUT, FAILED = 2, 1


@click.group(no_args_is_help=False, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="asyncdgl")
def cli() -> None:
    """Train a convolutional network by asynchronous Decoupled Greedy Learning (DGL).

    Every stage of the network learns from its own loss, in its own process, at its own speed; replay buffers stand
    between the stages.
    """


cli.add_command(run)
cli.add_command(sweep)
cli.add_command(report)
cli.add_command(replay)
cli.add_command(profiles)
cli.add_command(schema)


def main() -> None:
    """The console script: one message for every error, never a traceback for a user's mistake."""
    if "_ASYNCDGL_COMPLETE" in os.environ:
        teach_bash()
    try:
        code = cli.main(standalone_mode=False)
    except click.ClickException as error:
        message = error.format_message().rstrip()
        if message == "Missing command.":
            message = f"missing command: one of {', '.join(cli.commands)}"
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
