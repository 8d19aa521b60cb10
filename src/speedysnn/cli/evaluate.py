"""`speedysnn evaluate`: accuracy beside T, look-ahead, latency and spikes, for one or many settings."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any

import typer

from speedysnn import analysis
from speedysnn.analysis.early_exit import MEASURES
from speedysnn.cli.options import (
    Data,
    Device,
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
from speedysnn.cli.output import cell, check_json, note, percent, table, write_json
from speedysnn.data.images import ImageData
from speedysnn.encoders import EncodedImages, encoder_of
from speedysnn.errors import InputError
from speedysnn.network import SpikingNetwork, correction_note
from speedysnn.neurons.parameters import Delay

SKIP = ("T", "delay", "skipped steps", "accuracy %", "agree %", "logit error", "spikes per neuron")
EXIT = ("T", "delay", "confidence", "accuracy %", "agree %", "unchanged %", "mean steps", "90 % of images",
        "mean latency", "spikes per neuron")  # fmt: skip


@dataclass(frozen=True)
class Readouts:
    """What else to measure beside the mean of all steps.

    Attributes:
        skip: leading steps to leave out of the mean.
        exits: confidences at which to stop early.
        measure: what they are confidences of.
        loss: allowed loss by which to choose one more confidence on `validation`, or None.
        validation: the images to choose it on.
    """

    skip: tuple[int, ...] = ()
    exits: tuple[float, ...] = ()
    measure: str = "softmax"
    loss: float | None = None
    validation: ImageData | None = None

    def measured(
        self, snn: SpikingNetwork, images: Any, validation: Any, source: SpikingNetwork | None
    ) -> dict[str, Any]:
        """Measure what was asked for beside the mean of all steps.

        Returns:
            JSON data with keys only for what was asked for.
        """
        out: dict[str, Any] = {}
        if self.skip:
            out["readout"] = _records(analysis.delayed_readout(snn, images, self.skip, source=source, progress=True))
        exits = self.exits
        if self.loss is not None:
            chosen = analysis.choose_confidence(snn, validation, self.loss, measure=self.measure, progress=True)
            out["chosen_exit"] = chosen.to_json()
            exits = (*exits, chosen.confidence)
            note(f"chose confidence {chosen.confidence:.4g} on {chosen.images} other images: loss {chosen.loss:.4f}")
        if exits:
            frame = analysis.early_exit(snn, images, exits, measure=self.measure, source=source, progress=True)
            out["early_exit"] = _records(frame)
        return out


def _records(frame: Any) -> list[dict[str, Any]]:
    return [{str(name): value for name, value in row.items()} for row in frame.to_dict("records")]


def readouts_of(
    skip: str | None, exits: str | None, measure: str, loss: float | None, steps: Sequence[int]
) -> Readouts:
    """Read the options as values; the caller adds `validation`.

    Returns:
        What else is measured.

    Raises:
        InputError: one that is not understood or out of range for one of the T.
    """
    chosen = tuple(several(skip, "--readout-skip", _skip_of)) if skip is not None else ()
    for timesteps in steps:
        if chosen and max(chosen) >= timesteps:
            raise InputError(
                f"--readout-skip: expected fewer steps than T={timesteps}, to leave one to read; got {max(chosen)}"
            )
    if measure not in MEASURES:
        raise InputError(f"--exit-by: expected one of {', '.join(sorted(MEASURES))}, got {measure!r}")
    if loss is not None and not 0 <= loss <= 1:
        raise InputError(f"--exit-loss: expected a fraction in 0..1, got {loss}")
    confidences = tuple(several(exits, "--early-exit", _confidence_of)) if exits is not None else ()
    return Readouts(chosen, confidences, measure, loss)


def _skip_of(text: str) -> int:
    if text.isdecimal():
        return int(text)
    raise InputError(f"--readout-skip: expected whole numbers of steps of at least 0, such as 0,1,2, got {text!r}")


def _confidence_of(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if value != value:
        raise InputError(f"--early-exit: expected numbers such as 0.9,0.99, got {text!r}")
    return value


def check_encoder(encoder: str | None, images: ImageData) -> None:
    """Refuse an unknown encoder, or one for data that are events already.

    Raises:
        InputError: either of these.
    """
    if encoder is None:
        return
    encoder_of(encoder)
    if images.timesteps:
        raise InputError(f"--encoder {encoder}: the data are events of {images.timesteps} steps already; leave it out")


def in_time(images: ImageData, timesteps: int, encoder: str | None, seed: int) -> Any:
    """Make of the images what the network receives at T: static images, encoded ones, or events put into T steps.

    Returns:
        What the network takes.
    """
    if images.timesteps:
        if images.timesteps != timesteps:
            note(f"events of {images.timesteps} steps are averaged to {timesteps}")
        return images.in_steps(timesteps)
    static = encoder is None or encoder == "constant"
    return images if static else EncodedImages(images, timesteps, str(encoder), seed)


def show_readouts(rows: Sequence[dict[str, Any]]) -> None:
    """Print the tables of what was measured beside the mean of all steps; nothing where nothing was."""
    skipped = [
        (str(row["timesteps"]), str(row["delay"]), str(row["skip"]), percent(row["accuracy"]),
         percent(row["agreement"]), cell(row["logit_error"], 3), cell(row["spikes_per_neuron"]))
        for outer in rows for row in outer.get("readout", ())
    ]  # fmt: skip
    exits = [
        (str(row["timesteps"]), str(row["delay"]), f"{row['confidence']:.4g}", percent(row["accuracy"]),
         percent(row["agreement"]), percent(row["unchanged"]), cell(row["mean_steps"]), cell(row["p90_steps"], 0),
         cell(row["mean_latency"]), cell(row["spikes_per_neuron"]))
        for outer in rows for row in outer.get("early_exit", ())
    ]  # fmt: skip
    if skipped:
        table("delayed read-out: mean of the steps after the skipped ones", SKIP, skipped, left=0)
    if exits:
        table("early exit: the first step that is sure enough", EXIT, exits, left=0)


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
        bool, typer.Option("--recalibrate", help="Choose thresholds again for each T (undoes training, corrections).")
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
        show(f"{network.name}: {len(images)} {split} images, input {case.encoder}", rows)
        show_readouts(rows)


def show(title: str, rows: Sequence[dict[str, Any]]) -> None:
    """Print the table of every T and look-ahead."""
    shown = [
        (row["spikes"], str(row["timesteps"]), str(row["delay"]), str(row["latency"]), percent(row["accuracy"]),
         percent(row["twin_accuracy"]), percent(row["analog_accuracy"]), percent(row["agreement"]),
         cell(row["logit_error"], 3), cell(row["spikes_per_neuron"]))
        for row in rows
    ]  # fmt: skip
    table(title, COLUMNS, shown)


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
        """Name of the encoder that makes the input, or "events"."""
        return "events" if self.images.timesteps else self.given_encoder or "constant"

    def rows(self, snn: SpikingNetwork, timesteps: int, delays: list[Delay | None]) -> list[dict[str, Any]]:
        """Measure every look-ahead at one T.

        Returns:
            The figures of each look-ahead as JSON data.
        """
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
            if (said := correction_note(snn)) is not None:
                note(said)
            result = analysis.evaluate(snn, images, source=self.reference, precision=self.precision, progress=True)
            cost = f"latency {result.latency}, {cell(result.spikes_per_neuron)} spikes per neuron"
            right = f"accuracy {percent(result.accuracy)} %{_in_half(result)}"
            note(f"T={timesteps}, delay {result.delay}, {cost}: {right}")
            more = self.readouts.measured(snn, images, validation, self.reference)
            entered = {"encoder": self.encoder} if self.given_encoder or self.images.timesteps else {}
            rows.append({**result.to_json(), **entered, **more})
        return rows


def _in_half(result: analysis.Evaluation) -> str:
    """Say what bfloat16 changes."""
    if result.precision == "float32":
        return ""
    same = f"the class of float32 on {percent(result.float32_agreement)} % of images"
    return f" in {result.precision}; float32: {percent(result.float32_accuracy)} %, {same}"
