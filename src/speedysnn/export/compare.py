"""A network beside a reader of what was written: the same images, compared spike by spike, layer by layer."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from speedysnn.errors import ArtifactError, InputError
from speedysnn.execution.observers import LayerRecord
from speedysnn.export.nir_folding import plain
from speedysnn.export.nir_readers import Opened
from speedysnn.files import reason
from speedysnn.network import SpikingNetwork

TIE = 1e-5  # of the largest drive of a layer, in thresholds: what float32 may round away
TIES = 1e-4  # share of a layer's decisions that may be as close to the threshold
OUTPUT = 1e-4  # of the output's norm


@dataclass(frozen=True)
class Comparison:
    """What a reader makes of a file beside the network that the file was written from.

    Attributes:
        reader: its name and version.
        file: what it read.
        layers: a row a layer in execution order: `layer`, `neurons`, `spikes` of the network, `spikes_read` of the
            reader, `differ` (steps of neurons where they differ in a run of its own), `rounded` (neurons whose first
            difference, on the network's own input, is a membrane within rounding of its threshold), `wrong` (neurons
            whose first difference is none), `first_step` of a difference (from 1; 0 for none).
        images: how many were shown.
        settings: what was set in the reader after loading, as NIR has no word for it.
        output_error: of the mean over the steps, relative to its norm, on the network's own spikes.
    """

    reader: str
    file: str
    layers: pd.DataFrame
    images: int
    settings: tuple[str, ...]
    output_error: float

    @property
    def same(self) -> bool:
        """Whether spikes and output are the same, but for membranes within rounding of a threshold.

        Where nothing fired, nothing is shown.
        """
        rows = self.layers
        if rows["differ"].eq(0).all() and not rows["spikes"].any():
            return False
        allowed = np.maximum(1, TIES * rows["decisions"])
        return not rows["wrong"].any() and bool((rows["rounded"] <= allowed).all()) and self.output_error <= OUTPUT

    def __str__(self) -> str:
        """One line, and one for each thing that was set."""
        rows = self.layers
        silent = [name for name, spikes in zip(rows["layer"], rows["spikes"], strict=True) if not spikes]
        text = f"{self.reader} reads {self.file}: {self._verdict()}"
        text += "".join(f"\n  set: {line}" for line in self.settings)
        return text + (f"\n  never fired on these images: {', '.join(silent)}" if silent else "")

    def _verdict(self) -> str:
        rows, total = self.layers, int(self.layers["spikes"].sum())
        over = f"{self.images} images, {len(rows)} layers, {total} spikes"
        if not rows["differ"].any() and self.same:
            return f"the same spikes ({over})"
        if self.same:
            rounded = int(rows["rounded"].sum())
            some = f"{rounded} neuron{'s' if rounded > 1 else ''}"
            return f"the same spikes but in {some} whose membrane is within rounding of its threshold ({over})"
        if not total and not rows["differ"].any():
            return f"nothing fired ({over}); give images that the network answers, as compare(..., images=)"
        wrong = rows[rows["wrong"] + rows["rounded"] > 0]
        if not len(wrong):
            return f"its output differs by {self.output_error:.1e} of its norm, though its spikes are the same ({over})"
        first = wrong.iloc[0]
        return (
            f"other spikes, first in layer {first['layer']!r} at step {first['first_step']}: {first['differ']} of "
            f"{first['decisions']} differ, {first['spikes_read']} spikes instead of {first['spikes']}; in all layers "
            f"{int(rows['differ'].sum())} of {int(rows['decisions'].sum())} differ ({over})"
        )


def compare_opened(snn: SpikingNetwork, opened: Opened, reader: str, path: Path, images: Tensor | None) -> Comparison:
    """Show the same images to the network and to a reader's network.

    First the reader runs by itself. Where a spike differs it runs again, and each of its layers is then handed the
    network's own spikes instead of the reader's, so that one layer's difference does not make others.

    Args:
        snn: the network, left as it is.
        opened: what the reader made of the file.
        reader: its name and version.
        path: the file, for messages.
        images: (B, ...) or (T, B, ...); noise by default.

    Raises:
        ArtifactError: the reader's network does not run, or has other layers.
    """
    x = noise(snn) if images is None else images
    ours, answer = _ours(snn, x)
    given = x.to("cpu", torch.float32)
    given = given if given.ndim == len(snn.input_shapes[0]) + 2 else given.expand(snn.timesteps, *given.shape)
    theirs, output = _theirs(opened, given, ours, reader, force=False)
    differ = {name: theirs[name] != spikes for name, spikes in ours.items()}
    wrong = {name: (0, 0) for name in ours}
    first = dict(wrong)
    if any(bool(each.any()) for each in differ.values()):
        forced, output = _theirs(opened, given, ours, reader, force=True)
        first_steps = {name: (forced[name] != spikes) for name, spikes in ours.items()}
        wrong = _judged(snn, x, first_steps)
        first = {name: (_first(first_steps[name]), 0) for name in ours}
    rows = [
        {"layer": name, "neurons": math.prod(spikes.shape[2:]), "decisions": spikes.numel(),
         "spikes": int(spikes.sum()), "spikes_read": int(theirs[name].sum()), "differ": int(differ[name].sum()),
         "rounded": wrong[name][1], "wrong": wrong[name][0], "first_step": first[name][0]}
        for name, spikes in ours.items()
    ]  # fmt: skip
    mean = output.mean(0)
    if mean.numel() != answer.numel():
        raise ArtifactError(f"{reader}: its output is {tuple(mean.shape)}, expected {tuple(answer.shape)}")
    error = float((mean.reshape(answer.shape) - answer).norm() / answer.norm().clamp_min(1e-30))
    return Comparison(reader, path.name, pd.DataFrame(rows), given.shape[1], opened.settings, error)


def noise(snn: SpikingNetwork) -> Tensor:
    """Noise of several strengths, the same at every call: a network has no images of its own."""
    if len(snn.input_shapes) != 1:
        raise InputError(f"compare: expected a network of one input, got {len(snn.input_shapes)}")
    shape = snn.input_shapes[0]
    count = max(2, min(16, 200_000 // math.prod(shape)))
    generator = torch.Generator().manual_seed(0)
    even, normal = (make(count, *shape, generator=generator) for make in (torch.rand, torch.randn))
    strength = torch.linspace(0.5, 2, count).view(-1, *(1,) * len(shape))
    return torch.where((torch.arange(count) % 2 == 0).view_as(strength), even, normal) * strength


def _ours(snn: SpikingNetwork, x: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """Spikes of each layer, (T, B, ...), by their name in the file, and the mean of the output."""
    found: dict[str, Tensor] = {}

    def take(record: LayerRecord) -> None:
        found[plain(record.name)] = record.counts().cpu()

    return found, _read(snn, x, take).cpu()


def _read(snn: SpikingNetwork, x: Tensor, observer: Callable[[LayerRecord], None]) -> Tensor:
    with torch.no_grad():
        answer = snn.read("spiking", x.to(next(snn.parameters()).device), observer=observer, at_once=True)
    out: Tensor = answer
    return out


def _theirs(
    opened: Opened, x: Tensor, ours: Mapping[str, Tensor], reader: str, *, force: bool
) -> tuple[dict[str, Tensor], Tensor]:
    if set(opened.neurons) != set(ours):
        raise ArtifactError(f"{reader}: expected the layers {', '.join(ours)}, it has {', '.join(opened.neurons)}")
    found: dict[str, list[Tensor]] = {name: [] for name in ours}

    def emit(name: str, spikes: Tensor) -> Tensor | None:
        done = sum(map(len, found[name]))
        found[name].append(spikes.detach().float() if opened.all_steps else spikes.detach().float()[None])
        if not force:
            return None
        return (ours[name] if opened.all_steps else ours[name][done]).reshape(spikes.shape)

    try:
        output = opened.run(x, emit)
        spikes = {name: torch.cat(parts).reshape(ours[name].shape) for name, parts in found.items()}
        return spikes, output.float()
    except Exception as err:  # a reader raises whatever it likes
        raise ArtifactError(f"{reader} opens the file, but cannot run it: {reason(err)}") from err


def _judged(snn: SpikingNetwork, x: Tensor, differ: Mapping[str, Tensor]) -> dict[str, tuple[int, int]]:
    """(wrong, rounded) neurons of each layer: whether the first difference is a membrane close to its threshold."""
    found: dict[str, tuple[int, int]] = {}

    def judge(record: LayerRecord) -> None:
        name, neuron = plain(record.name), record.neuron
        if not bool(differ[name].any()):
            found[name] = (0, 0)
            return
        steps = record.drive_steps()
        drive = neuron.corrected(steps.flatten(0, 1)).double().view(steps.shape)
        theta, start = (neuron.per_channel(each, record.drive.ndim) for each in (neuron.threshold, neuron.v_init))
        counts = record.counts()
        membrane = (drive.cumsum(0) / theta + start - counts.cumsum(0) + counts).cpu()
        close = (membrane - 1).abs() <= TIE * (1 + (drive / theta).abs().max().item())
        any_step, first = differ[name].any(0), differ[name].int().argmax(0, keepdim=True)
        excused = close.gather(0, first)[0] & any_step
        found[name] = (int((any_step & ~excused).sum()), int(excused.sum()))

    _read(snn, x, judge)
    return found


def _first(differ: Tensor) -> int:
    steps = differ.flatten(1).any(1)
    return int(steps.int().argmax()) + 1 if bool(steps.any()) else 0
