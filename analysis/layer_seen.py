"""What some images show of each layer: the sums of its source activation and its spikes by channel, and a histogram."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from speedysnn.analysis.mixed import MixedRun
from speedysnn.collecting import Collecting
from speedysnn.data import Batch
from speedysnn.histogram import ActivationHistogram
from speedysnn.network import SpikingNetwork, weights_tuned
from speedysnn.neurons import IFNeuron


@dataclass
class LayerSeen:
    """A layer's sums by channel over images and places, and the histogram of its source activation.

    Attributes:
        target: (C,) sums of the source activation.
        reached: (C,) of the mean spiking output.
        count: values in a channel.
        rows: of the histogram.
        histogram: without rows where the calibration's serves; see `fitting`.
    """

    target: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.float64))
    reached: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.float64))
    count: int = 0
    rows: int = 1
    histogram: ActivationHistogram = field(default_factory=lambda: ActivationHistogram(0))

    def merge(self, other: "LayerSeen") -> None:
        """Add what other images show."""
        self.target, self.reached = self.target + other.target, self.reached + other.reached
        self.count, self.rows = self.count + other.count, other.rows
        known = self.histogram.channels
        if other.histogram.channels:
            self.histogram = self.histogram.plus(other.histogram) if known else other.histogram

    def gap(self) -> Tensor:
        """(C,) mean spiking output - mean source activation."""
        return (self.reached - self.target) / max(1, self.count)


def fitting(snn: SpikingNetwork, name: str, rows: int) -> ActivationHistogram | None:
    """The calibration's histogram of a layer while it fits: as many rows, and weights that were not tuned since."""
    stored = snn.calibration.histograms.get(name)
    return stored if stored is not None and stored.channels == rows and not weights_tuned(snn) else None


def seen(snn: SpikingNetwork, histograms: bool, piece: Batch) -> dict[str, LayerSeen]:
    """All layers on some images; histograms only where they are wanted and the calibration's do not fit."""
    run, out = MixedRun(snn), dict[str, LayerSeen]()
    for fork in run.forks(piece.inputs, "analog"):
        name, values = fork.node.name, fork.emitted.tensor
        neuron = snn.neurons[name]
        total = channel_sums(values, neuron.channel_dim)
        dim = neuron.channel_dim if neuron.granularity == "channel" and values.ndim > 1 else None
        rows = (1 if dim is None else values.shape[dim]) * (2 if neuron.signed else 1)
        out[name] = LayerSeen(total, torch.zeros_like(total), values.numel() // total.numel(), rows)
        if histograms and fitting(snn, name, rows) is None:
            layer = Collecting(neuron.signed)
            layer.add(values, dim)
            out[name].histogram = layer.histogram()
    for name, total in emitted_sums(snn, {}, piece).items():
        out[name].reached = total
    return out


def emitted_sums(snn: SpikingNetwork, moved: dict[str, IFNeuron], piece: Batch) -> dict[str, Tensor]:
    """(C,) sums of every layer's mean spiking output, that of a changed layer alone where it stands in `moved`."""
    run, out = MixedRun(snn), dict[str, Tensor]()
    for fork in run.forks(piece.inputs, "spiking"):
        name, emitted = fork.node.name, fork.emitted
        if name in moved:
            emitted = run.with_neuron(name, moved[name]).emit(name, fork.drive, "spiking")
        out[name] = channel_sums(run.mean(emitted), snn.neurons[name].channel_dim)
    return out


def channel_sums(x: Tensor, channel_dim: int) -> Tensor:
    """(C,) float64 sums of (B, ...) over all else; () where there are no channels."""
    if x.ndim < 2:
        return x.sum(dtype=torch.float64)
    return x.sum([dim for dim in range(x.ndim) if dim != channel_dim], dtype=torch.float64)
