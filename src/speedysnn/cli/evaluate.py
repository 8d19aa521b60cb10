"""`speedysnn evaluate`: accuracy beside T, look-ahead, latency and spikes, for one or many settings."""

from typing import Annotated, Any

import typer

from speedysnn import analysis
from speedysnn.cli.common import (
    Data,
    JsonFile,
    Limit,
    Network,
    NormalizeNet,
    Overwrite,
    Seed,
    SourceNet,
    Spikes,
    Split,
    data_of,
    delay_of,
    network_of,
    normalize_of,
    reference_of,
    seeded,
    several,
    steps_of,
)
from speedysnn.cli.show import cell, note, percent, table, write_json
from speedysnn.cli.targets import check_json
from speedysnn.data import ImageData
from speedysnn.network import SpikingNetwork
from speedysnn.neurons import Delay

COLUMNS = ("spikes", "T", "delay", "latency", "accuracy %", "quantized %", "source %", "agree %", "logit error",
           "spikes per neuron")  # fmt: skip


def command(
    network: Network,
    data: Data,
    split: Split = "test",
    timesteps: Annotated[str | None, typer.Option("--timesteps", "-T", help="One or more T, such as 2,4,8.")] = None,
    delay: Annotated[str | None, typer.Option("--delay", help="One or more look-aheads, such as 0,1,full.")] = None,
    spikes: Spikes = None,
    recalibrate: Annotated[
        bool, typer.Option("--recalibrate", help="Choose the thresholds again for each T (undoes trained ones).")
    ] = False,
    source: SourceNet = None,
    normalize: NormalizeNet = None,
    limit: Limit = None,
    seed: Seed = 0,
    overwrite: Overwrite = False,
    json: JsonFile = None,
) -> None:
    """Accuracy of a network, with T, look-ahead, latency and spikes beside it.

    \b
    Example: speedysnn evaluate digits.snn -d digits
             speedysnn evaluate net.snn -d npz:images.npz -T 2,4,8 --delay 0,1,full --json table.json
             speedysnn evaluate tuned.snn --source net.snn -d npz:images.npz --spikes ternary
    """  # noqa: D301 - \b keeps the lines apart
    check_json(json, overwrite)
    seeded(seed)
    snn = network_of(network)
    steps = [snn.timesteps] if timesteps is None else several(timesteps, "-T", steps_of)
    delays: list[Delay | None] = [None] if delay is None else [*several(delay, "--delay", delay_of)]
    if spikes is not None:
        snn.set_spikes(spikes)
    normalize = normalize_of(snn, normalize)
    images = data_of(data, split, normalize, limit, seed)
    reference = reference_of(source, snn)
    rows = [row for t in steps for row in _rows(snn, images, t, delays, recalibrate, reference)]
    write_json(json, {"schema": "speedysnn-evaluate/1", "network": str(network), "data": data, "split": split,
                      "normalize": normalize, "limit": limit, "seed": seed,
                      "theta": "recalibrated" if recalibrate else "fixed", "rows": rows})  # fmt: skip
    if json != "-":
        shown = [
            (row["spikes"], str(row["timesteps"]), str(row["delay"]), str(row["latency"]), percent(row["accuracy"]),
             percent(row["twin_accuracy"]), percent(row["analog_accuracy"]), percent(row["agreement"]),
             cell(row["logit_error"], 3), cell(row["spikes_per_neuron"]))
            for row in rows
        ]  # fmt: skip
        table(f"{network.name}: {len(images)} {split} images", COLUMNS, shown)


def _rows(
    snn: SpikingNetwork,
    images: ImageData,
    timesteps: int,
    delays: list[Delay | None],
    recalibrate: bool,
    reference: SpikingNetwork | None,
) -> list[dict[str, Any]]:
    snn.timesteps = timesteps
    if recalibrate:
        snn.recalibrate()
    rows = []
    for delay in delays:
        if delay is not None:
            snn.set_delay(delay)
        result = analysis.evaluate(snn, images, source=reference)
        rows.append(result.to_json())
        cost = f"latency {result.latency}, {cell(result.spikes_per_neuron)} spikes per neuron"
        note(f"T={timesteps}, delay {result.delay}, {cost}: accuracy {percent(result.accuracy)} %")
    return rows
