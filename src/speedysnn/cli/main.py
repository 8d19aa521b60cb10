"""Entry point: the commands, and the one place where errors become a line and an exit code."""

import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from typing import Annotated, Any

import typer

from speedysnn import settings
from speedysnn.cli import analyze, bench, convert, demo, evaluate, export, finetune
from speedysnn.cli.options import refresh_listings
from speedysnn.cli.output import fail, release
from speedysnn.cli.process import INTERRUPTED, coming_again, keep_freed_memory, leave_at_once, own_process
from speedysnn.errors import SpeedySNNError

MISTAKE, FAULT = 2, 70
DEBUG = "--debug"
app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Convert trained networks to spiking networks, measure their noise, tune it away.",
)
COMMANDS: dict[str, Callable[..., Any]] = {
    "demo": demo.command,
    "inspect": convert.inspect_command,
    "convert": convert.command,
    "analyze": analyze.command,
    "finetune": finetune.command,
    "train": finetune.train_command,
    "evaluate": evaluate.command,
    "export": export.command,
    "bench": bench.command,
}  # in the order of --help
for name, command in COMMANDS.items():
    app.command(name)(command)


def _version(wanted: bool) -> None:
    if wanted:
        from speedysnn import __version__

        typer.echo(f"speedysnn {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and stop.")
    ] = False,
    debug: Annotated[
        bool, typer.Option(DEBUG, help="Show where an error arose; anywhere on the line, or SPEEDYSNN_DEBUG=1.")
    ] = False,
) -> None:
    """Convert trained networks to spiking networks, measure their noise, tune it away.

    Begin with: speedysnn demo
    """
    if context.invoked_subcommand != "bench":  # which times what a process of the user's own does first
        keep_freed_memory()


def main(arguments: list[str] | None = None) -> int:
    """Run the command line.

    The exit code is 0, 1 (inspect found problems), 2 (a mistake), 70 (a fault of this package) or 130 (interrupted).

    Returns:
        The exit code, where arguments were given; else the process ends with it.
    """
    if arguments is not None:
        with coming_again():
            return run(arguments)
    own_process()
    try:
        with coming_again():
            code = run(sys.argv[1:])
    except KeyboardInterrupt:  # a second one, while the first was being answered
        code = INTERRUPTED
    with suppress(OSError):
        sys.stdout.flush()
    leave_at_once(code)
    sys.exit(code)


def run(arguments: list[str]) -> int:
    """Run one command and turn whatever happens into an exit code.

    Returns:
        The exit code.
    """
    refresh_listings()
    debug = DEBUG in arguments or settings.get("debug")
    try:
        result = app([word for word in arguments if word != DEBUG], standalone_mode=False, prog_name="speedysnn")
    except KeyboardInterrupt:
        return fail("interrupted", INTERRUPTED)
    except Exception as err:  # the one place where any error becomes a line and an exit code
        if debug and not isinstance(err, typer.Exit):
            traceback.print_exc()
        return _code(err)
    finally:
        release()
    if result == INTERRUPTED:  # the option parser's own handling, which says nothing
        return fail("interrupted", INTERRUPTED)
    return result if isinstance(result, int) else 0


def _code(err: Exception) -> int:
    """Say what went wrong: a mistake of the user's, a usage error of the option parser, an aborted prompt, or a bug."""
    if isinstance(err, SpeedySNNError):
        return fail(str(err), MISTAKE)
    if isinstance(err, OSError):
        return fail(f"{err.filename or 'a file'}: {err.strerror or err}", MISTAKE)
    if isinstance(err, typer.Abort):
        return fail("interrupted", INTERRUPTED)
    if isinstance(err, typer.Exit):
        return err.exit_code
    if hasattr(err, "format_message"):
        context = getattr(err, "ctx", None)
        hint = f" (see '{context.command_path} --help')" if context is not None else ""
        message = err.format_message().strip()
        return fail(message + hint, MISTAKE) if message else MISTAKE
    return fail(
        f"{type(err).__name__}: {err}. This is a fault of speedysnn's own; run again with --debug and report it", FAULT
    )
