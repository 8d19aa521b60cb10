"""`speedysnn export`: a spiking network in another program's format."""

from pathlib import Path
from typing import Annotated

import typer

from speedysnn.cli.common import DelayText, Overwrite, Spikes, configure, network_of
from speedysnn.cli.show import say
from speedysnn.errors import InputError
from speedysnn.export.pt2 import check_pt2, to_pt2

FORMATS = {"pt2": (check_pt2, to_pt2)}


def command(
    network: Annotated[Path, typer.Argument(help="A network saved by convert or finetune.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The file to write.")],
    to: Annotated[str, typer.Option("--to", help="The format: pt2 (torch.export).")] = "pt2",
    timesteps: Annotated[int | None, typer.Option("--timesteps", "-T", help="Another T, thresholds kept.")] = None,
    delay: DelayText = None,
    spikes: Spikes = None,
    overwrite: Overwrite = False,
) -> None:
    """Write a spiking network for a program that does not know speedysnn.

    Example: speedysnn export digits.snn --to pt2 -o digits.pt2
    """
    if to not in FORMATS:
        raise InputError(f"--to: expected one of {', '.join(FORMATS)}, got {to!r}")
    check, write = FORMATS[to]
    check(output, overwrite)
    snn = network_of(network)
    configure(snn, timesteps, delay, spikes)
    write(snn, output, overwrite=overwrite)
    say(f"saved {output}: T={snn.timesteps}, latency {snn.latency} steps; torch.export.load({str(output)!r}).module()")
