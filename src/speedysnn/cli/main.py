"""Entry point: the commands, and the one place where errors become a line and an exit code."""

import os
import sys
import traceback
from typing import Annotated

import typer

from speedysnn.cli import analyze, convert, demo, evaluate, finetune, inspect
from speedysnn.cli.show import fail
from speedysnn.errors import SpeedySNNError

INTERRUPTED = 130
app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Convert trained networks to spiking networks, measure their noise, tune it away.",
)
for module in (demo, inspect, convert, analyze, finetune, evaluate):
    app.command(module.__name__.rsplit(".", 1)[-1])(module.command)


def _version(wanted: bool) -> None:
    if wanted:
        from speedysnn import __version__

        typer.echo(f"speedysnn {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    """Convert trained networks to spiking networks, measure their noise, tune it away."""


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; the code is 0, 1 (inspect found problems), 2 (a mistake) or 130 (interrupted)."""
    code = run(sys.argv[1:] if arguments is None else arguments)
    if arguments is None:
        sys.exit(code)
    return code


def run(arguments: list[str]) -> int:
    """Run one command and turn whatever happens into an exit code."""
    try:
        result = app(arguments, standalone_mode=False)
    except KeyboardInterrupt:
        return fail("interrupted", INTERRUPTED)
    except SpeedySNNError as err:
        return fail(str(err), 2)
    except OSError as err:
        return fail(f"{err.filename or 'a file'}: {err.strerror or err}", 2)
    except Exception as err:
        return _other(err)
    if result == INTERRUPTED:  # the option parser's own handling, which says nothing
        return fail("interrupted", INTERRUPTED)
    return result if isinstance(result, int) else 0


def _other(err: Exception) -> int:
    """Usage errors of the option parser, an aborted prompt, or a bug."""
    if isinstance(err, typer.Abort):
        return fail("interrupted", INTERRUPTED)
    if isinstance(err, typer.Exit):
        return err.exit_code
    if hasattr(err, "format_message"):
        context = getattr(err, "ctx", None)
        hint = f" (see '{context.command_path} --help')" if context is not None else ""
        message = err.format_message().strip()
        return fail(message + hint, 2) if message else 2
    if os.environ.get("SPEEDYSNN_DEBUG"):
        traceback.print_exc()
    return fail(
        f"{type(err).__name__}: {err}. This is a fault of speedysnn's own; run again with SPEEDYSNN_DEBUG=1 and "
        "report it",
        70,
    )
