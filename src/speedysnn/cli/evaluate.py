"""`speedysnn evaluate`: accuracy beside T, look-ahead, latency and spikes, for one or many settings."""

from pathlib import Path
from typing import Annotated, Any

import typer

from speedysnn import analysis
from speedysnn.cli.common import (
    Data,
    JsonFile,
    Limit,
    Network,
    Normalize,
    Seed,
    Spikes,
    Split,
    data_of,
    delay_of,
    network_of,
    normalize_of,
    seeded,
    several,
    steps_of,
)
from speedysnn.cli.show import cell, check_json, note, percent, table, write_json
from speedysnn.data import ImageData
from speedysnn.network import SpikingNetwork, weights_tuned
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
    source: Annotated[
        Path | None, typer.Option("--source", help="Compare with this network's analog reading: the one before tuning.")
    ] = None,
    normalize: Normalize = None,
    limit: Limit = None,
    seed: Seed = 0,
    json: JsonFile = None,
) -> None:
    """Accuracy of a network, with T, look-ahead, latency and spikes beside it.

    Example: speedysnn evaluate net.snn -d npz:images.npz -T 2,4,8 --delay 0,1,full
    """
    check_json(json)
    seeded(seed)
    snn = network_of(network)
    steps = [snn.timesteps] if timesteps is None else several(timesteps, "-T", steps_of)
    delays: list[Delay | None] = [None] if delay is None else [*several(delay, "--delay", delay_of)]
    if spikes is not None:
        snn.set_spikes(spikes)
    images = data_of(data, split, normalize_of(snn, normalize), limit, seed)
    reference = None if source is None else network_of(source)
    if reference is None and weights_tuned(snn):
        note("its weights were tuned: without --source it is compared with its own analog reading, not with the source")
    rows = [row for t in steps for row in _rows(snn, images, t, delays, recalibrate, reference)]
    write_json(json, {"schema": "speedysnn-evaluate/1", "network": str(network), "data": data, "split": split,
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
    snn: SpikingNetwork, images: ImageData, timesteps: int, delays: list[Delay | None], recalibrate: bool,
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
        note(f"T={timesteps} delay={result.delay}: {percent(result.accuracy)} %")
    return rows
