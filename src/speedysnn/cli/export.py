"""`speedysnn export`: a spiking network in another program's format."""

import warnings
from pathlib import Path
from typing import Annotated

import typer

from speedysnn.cli.options import (
    DelayText,
    Granularity,
    Normalize,
    Overwrite,
    ProfileName,
    Spikes,
    StateBits,
    WeightBits,
    chip_of,
    configure,
    listing,
    network_of,
)
from speedysnn.cli.output import note, say
from speedysnn.errors import InputError
from speedysnn.export import EXPORTERS, Exporter, ExportWarning, export, find_exporter
from speedysnn.integer import is_chip, load
from speedysnn.integer.chip import Chip
from speedysnn.network import SpikingNetwork


def _formats_help() -> str:
    rows = EXPORTERS.items()
    return "The format: " + ", ".join(f"{name} ({row.description})" if row.description else name for name, row in rows)


def _readers_help() -> str:
    rows = [f"{', '.join(row.verify)} for {name}" for name, row in EXPORTERS.items() if row.verify]
    return "Open the result with this reader and compare: " + "; ".join(rows)


def command(
    network: Annotated[Path, typer.Argument(help="A network saved by convert or finetune, or a chip (--to chip).")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The file or folder to write.")],
    to: Annotated[str, listing(_formats_help, "--to")] = "pt2",
    verify: Annotated[
        str | None,
        listing(_readers_help, "--verify"),
    ] = None,
    timesteps: Annotated[int | None, typer.Option("--timesteps", "-T", help="Another T, thresholds kept.")] = None,
    delay: DelayText = None,
    spikes: Spikes = None,
    weight_bits: WeightBits = 8,
    state_bits: StateBits = 32,
    granularity: Granularity = None,
    profile: ProfileName = "generic",
    normalize: Normalize = None,
    events: Annotated[bool, typer.Option("--events", help="c, chip: the input is counts of events a step.")] = False,
    overwrite: Overwrite = False,
) -> None:
    """Write a spiking network for a program that does not know speedysnn.

    For c and chip the network is first brought to whole numbers, in the bits given.

    \b
    Example: speedysnn export digits.snn --to pt2 -o digits.pt2
             speedysnn export digits.snn --to c --weight-bits 8 -o digits_c
    """  # noqa: D301 - \b keeps the lines apart
    if to not in EXPORTERS:
        raise InputError(f"--to: expected one of {', '.join(EXPORTERS)}, got {to!r}")
    exporter = find_exporter(to, verify)
    exporter.check(output, overwrite)
    made: SpikingNetwork | Chip
    if is_chip(network):
        made = load(network)
    else:
        made = network_of(network)
        configure(made, timesteps, delay, spikes)
        if exporter.chips:
            bits = (weight_bits, state_bits, granularity)
            made = chip_of(made, bits, profile, normalize, events)
    _written(made, output, to, overwrite, verify, exporter)


def _written(
    made: SpikingNetwork | Chip, output: Path, to: str, overwrite: bool, verify: str | None, exporter: Exporter
) -> None:
    """Export, and say what a reader must know."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ExportWarning)
        export(made, output, to, overwrite=overwrite)
    found = None if verify is None else exporter.verify[verify](made, output)
    for warning in caught:
        if issubclass(warning.category, ExportWarning):
            note(f"note: {warning.message}")
    latency = made.program.latency if isinstance(made, Chip) else made.latency
    opened = f"; {exporter.read_hint.format(str(output))}" if exporter.read_hint else ""
    say(f"saved {output}: T={made.timesteps}, latency {latency} steps{opened}")
    if found is not None:
        say(str(found))
