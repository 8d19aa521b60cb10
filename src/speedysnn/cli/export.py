"""`speedysnn export`: a spiking network in another program's format."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from speedysnn.cli.console import note, say
from speedysnn.cli.options import DelayText, Overwrite, Spikes, configure, network_of
from speedysnn.errors import InputError
from speedysnn.export.nir import NIRWarning, check_nir, to_nir
from speedysnn.export.pt2 import check_pt2, to_pt2

FORMATS: dict[str, tuple[Callable[[Path, bool], None], Callable[..., Any], str]] = {
    "pt2": (check_pt2, to_pt2, "torch.export.load({!r}).module()"),
    "nir": (check_nir, to_nir, "nir.read({!r})"),
}


def command(
    network: Annotated[Path, typer.Argument(help="A network saved by convert or finetune.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The file to write.")],
    to: Annotated[str, typer.Option("--to", help="The format: pt2 (torch.export) or nir.")] = "pt2",
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
    check, write, read = FORMATS[to]
    check(output, overwrite)
    snn = network_of(network)
    configure(snn, timesteps, delay, spikes)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", NIRWarning)
        write(snn, output, overwrite=overwrite)
    for warning in caught:
        if issubclass(warning.category, NIRWarning):
            note(f"note: {warning.message}")
    say(f"saved {output}: T={snn.timesteps}, latency {snn.latency} steps; {read.format(str(output))}")
