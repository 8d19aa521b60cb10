"""`speedysnn export`: a spiking network in another program's format."""

import warnings
from pathlib import Path
from typing import Annotated

import typer

from speedysnn.cli.options import DelayText, Overwrite, Spikes, configure, listing, network_of
from speedysnn.cli.output import note, say
from speedysnn.errors import InputError
from speedysnn.export import EXPORTERS, ExportWarning, export, find_exporter


def _formats_help() -> str:
    rows = EXPORTERS.items()
    return "The format: " + ", ".join(f"{name} ({row.description})" if row.description else name for name, row in rows)


def command(
    network: Annotated[Path, typer.Argument(help="A network saved by convert or finetune.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The file to write.")],
    to: Annotated[str, listing(_formats_help, "--to")] = "pt2",
    verify: Annotated[
        str | None, typer.Option("--verify", help="Open the result with this reader and compare; torch for pt2.")
    ] = None,
    timesteps: Annotated[int | None, typer.Option("--timesteps", "-T", help="Another T, thresholds kept.")] = None,
    delay: DelayText = None,
    spikes: Spikes = None,
    overwrite: Overwrite = False,
) -> None:
    """Write a spiking network for a program that does not know speedysnn.

    Example: speedysnn export digits.snn --to pt2 -o digits.pt2
    """
    if to not in EXPORTERS:
        raise InputError(f"--to: expected one of {', '.join(EXPORTERS)}, got {to!r}")
    exporter = find_exporter(to, verify)
    exporter.check(output, overwrite)
    snn = network_of(network)
    configure(snn, timesteps, delay, spikes)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ExportWarning)
        export(snn, output, to, overwrite=overwrite, verify=verify)
    for warning in caught:
        if issubclass(warning.category, ExportWarning):
            note(f"note: {warning.message}")
    opened = f"; {exporter.read_hint.format(str(output))}" if exporter.read_hint else ""
    say(f"saved {output}: T={snn.timesteps}, latency {snn.latency} steps{opened}")
