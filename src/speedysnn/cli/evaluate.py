"""`speedysnn evaluate`: accuracy beside T, look-ahead, latency and spikes, for one or many settings."""

from dataclasses import dataclass, replace
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
from speedysnn.cli.devices import Device
from speedysnn.cli.readouts import Readouts, check_encoder, in_time, readouts_of, show
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
    encoder: Annotated[
        str | None, typer.Option("--encoder", help="Images as events: constant, poisson or latency.")
    ] = None,
    readout_skip: Annotated[
        str | None, typer.Option("--readout-skip", help="Also read out without the first steps, such as 0,1,2.")
    ] = None,
    early_exit: Annotated[
        str | None, typer.Option("--early-exit", help="Also stop at these confidences, such as 0.9,0.99.")
    ] = None,
    exit_loss: Annotated[
        float | None,
        typer.Option("--exit-loss", help="Also stop at the confidence that costs this fraction on the other split."),
    ] = None,
    exit_by: Annotated[
        str, typer.Option("--exit-by", help="Confidence: softmax (probability) or margin (lead in logits).")
    ] = "softmax",
    source: SourceNet = None,
    normalize: NormalizeNet = None,
    precision: Annotated[
        str, typer.Option("--precision", help="float32, or bfloat16, with what that costs beside it.")
    ] = "float32",
    limit: Limit = None,
    device: Device = "cpu",
    seed: Seed = 0,
    overwrite: Overwrite = False,
    json: JsonFile = None,
) -> None:
    """Accuracy of a network, with T, look-ahead, latency and spikes beside it.

    \b
    Example: speedysnn evaluate digits.snn -d digits
             speedysnn evaluate net.snn -d npz:images.npz -T 2,4,8 --delay 0,1,full --json table.json
             speedysnn evaluate tuned.snn --source net.snn -d npz:images.npz --spikes ternary
             speedysnn evaluate digits.snn -d digits --encoder poisson --readout-skip 0,1 --early-exit 0.9,0.99
    """  # noqa: D301 - \b keeps the lines apart
    check_json(json, overwrite)
    seeded(seed)
    snn = network_of(network, device)
    steps = [snn.timesteps] if timesteps is None else several(timesteps, "-T", steps_of)
    delays: list[Delay | None] = [None] if delay is None else [*several(delay, "--delay", delay_of)]
    readouts = readouts_of(readout_skip, early_exit, exit_by, exit_loss, steps)
    if spikes is not None:
        snn.set_spikes(spikes)
    normalize = normalize_of(snn, normalize)
    images = data_of(data, split, normalize, limit, seed)
    check_encoder(encoder, images)
    if exit_loss is not None:
        other = "test" if split == "train" else "train"
        readouts = replace(readouts, validation=data_of(data, other, normalize, limit, seed))
    reference = reference_of(source, snn, device)
    case = _Case(images, encoder, seed, recalibrate, reference, readouts, precision)
    rows = [row for t in steps for row in case.rows(snn, t, delays)]
    write_json(json, {"schema": "speedysnn-evaluate/1", "network": str(network), "data": data, "split": split,
                      "normalize": normalize, "limit": limit, "seed": seed,
                      "encoder": case.encoder, "exit_by": exit_by,
                      "theta": "recalibrated" if recalibrate else "fixed", "rows": rows})  # fmt: skip
    if json != "-":
        shown = [
            (row["spikes"], str(row["timesteps"]), str(row["delay"]), str(row["latency"]), percent(row["accuracy"]),
             percent(row["twin_accuracy"]), percent(row["analog_accuracy"]), percent(row["agreement"]),
             cell(row["logit_error"], 3), cell(row["spikes_per_neuron"]))
            for row in rows
        ]  # fmt: skip
        table(f"{network.name}: {len(images)} {split} images, input {case.encoder}", COLUMNS, shown)
        show(rows)


@dataclass(frozen=True)
class _Case:
    """What is measured at every T and look-ahead."""

    images: ImageData
    given_encoder: str | None
    seed: int
    recalibrate: bool
    reference: SpikingNetwork | None
    readouts: Readouts
    precision: str = "float32"

    @property
    def encoder(self) -> str:
        """How the input comes: an encoder's name, or "events"."""
        return "events" if self.images.timesteps else self.given_encoder or "constant"

    def rows(self, snn: SpikingNetwork, timesteps: int, delays: list[Delay | None]) -> list[dict[str, Any]]:
        """One row a look-ahead."""
        snn.timesteps = timesteps
        if self.recalibrate:
            snn.recalibrate()
        images = in_time(self.images, timesteps, self.given_encoder, self.seed)
        other = self.readouts.validation
        validation = None if other is None else in_time(other, timesteps, self.given_encoder, self.seed)
        rows = []
        for delay in delays:
            if delay is not None:
                snn.set_delay(delay)
            result = analysis.evaluate(snn, images, source=self.reference, precision=self.precision)
            cost = f"latency {result.latency}, {cell(result.spikes_per_neuron)} spikes per neuron"
            right = f"accuracy {percent(result.accuracy)} %{_in_half(result)}"
            note(f"T={timesteps}, delay {result.delay}, {cost}: {right}")
            more = self.readouts.measured(snn, images, validation, self.reference)
            entered = {"encoder": self.encoder} if self.given_encoder or self.images.timesteps else {}
            rows.append({**result.to_json(), **entered, **more})
        return rows


def _in_half(result: analysis.Evaluation) -> str:
    """What bfloat16 changes, in words."""
    if result.precision == "float32":
        return ""
    same = f"the class of float32 on {percent(result.float32_agreement)} % of images"
    return f" in {result.precision}; float32: {percent(result.float32_accuracy)} %, {same}"
