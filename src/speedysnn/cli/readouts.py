"""The read-out options of `speedysnn evaluate`: encoders, skipped steps, early exit, and the tables they print."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from speedysnn import analysis
from speedysnn.analysis.exits import MEASURES
from speedysnn.cli.common import several
from speedysnn.cli.show import cell, note, percent, table
from speedysnn.data import ImageData
from speedysnn.encoders import EncodedImages, encoder_of
from speedysnn.errors import InputError
from speedysnn.network import SpikingNetwork

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
        """The figures as JSON data, keys only for what was asked for."""
        out: dict[str, Any] = {}
        if self.skip:
            out["readout"] = _records(analysis.delayed_readout(snn, images, self.skip, source=source))
        exits = self.exits
        if self.loss is not None:
            chosen = analysis.choose_confidence(snn, validation, self.loss, measure=self.measure)
            out["chosen_exit"] = chosen.to_json()
            exits = (*exits, chosen.confidence)
            note(f"chose confidence {chosen.confidence:.4g} on {chosen.images} other images: loss {chosen.loss:.4f}")
        if exits:
            frame = analysis.early_exit(snn, images, exits, measure=self.measure, source=source)
            out["early_exit"] = _records(frame)
        return out


def _records(frame: Any) -> list[dict[str, Any]]:
    return [{str(name): value for name, value in row.items()} for row in frame.to_dict("records")]


def readouts_of(
    skip: str | None, exits: str | None, measure: str, loss: float | None, steps: Sequence[int]
) -> Readouts:
    """The options as values; `validation` is added by the caller.

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
    """The images as the network receives them at T: static, encoded, or events put into T steps."""
    if images.timesteps:
        if images.timesteps != timesteps:
            note(f"events of {images.timesteps} steps are averaged to {timesteps}")
        return images.in_steps(timesteps)
    static = encoder is None or encoder == "constant"
    return images if static else EncodedImages(images, timesteps, str(encoder), seed)


def show(rows: Sequence[dict[str, Any]]) -> None:
    """The tables of what was measured; nothing where nothing was."""
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
