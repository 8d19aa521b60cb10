"""Changes to single layers whose gain at the output is measured: a bit more, the best threshold, no constant error.

`changes_of` looks at some images in two passes (`LayerSeen` holds what they show of a layer) and makes a changed copy
of every layer for every kind of change. `Change.apply` carries one out on a network.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from speedysnn.analysis.sensitivity import MixedRun, map_pieces
from speedysnn.calibration.histogram import ActivationHistogram, HistogramCollector
from speedysnn.calibration.rules import choose
from speedysnn.data.batches import Batch
from speedysnn.errors import InputError
from speedysnn.kernels import MOST_POWERS
from speedysnn.network import SpikingNetwork, weights_tuned
from speedysnn.neurons.layer import IFNeuron

CHANGES = {
    "bit": "one more bit: spikes of up to 2 N at once and half of theta, so that its steps are half as wide",
    "threshold": "theta of least squared error on the histogram of its activations, for the present T and v_init",
    "bit+threshold": "one more bit, and theta of least squared error for it",
    "bias": "a constant current a channel, which takes the mean error of its spiking output away",
    "look-ahead": "the layer sees one step more before it answers; one step of latency, no more spikes",
}


@dataclass(frozen=True, eq=False)
class Change:
    """One change to one layer.

    Attributes:
        layer: its name.
        kind: a key of `CHANGES`.
        neuron: the layer after the change, a copy.
        twin: what stands for it in the quantized reading.
    """

    layer: str
    kind: str
    neuron: IFNeuron
    twin: IFNeuron

    def apply(self, snn: SpikingNetwork) -> None:
        """Carry it out on a network in place; what the change is not about stays, so that two of them add up.

        Raises:
            InputError: the network has no such layer, or one with another number of thresholds.
        """
        if self.layer not in snn.neurons:
            raise InputError(
                f"apply: the network has no neuron layer {self.layer!r}; there are {', '.join(snn.neurons)}"
            )
        neuron, fresh = snn.neurons[self.layer], self.neuron
        if neuron.log_threshold.shape != fresh.log_threshold.shape:
            raise InputError(
                f"apply: layer {self.layer!r} has {neuron.log_threshold.numel()} thresholds, the one that was measured "
                f"{fresh.log_threshold.numel()}; measure this network itself"
            )
        if "bit" in self.kind or self.kind == "threshold":
            neuron.set_threshold(fresh.threshold.detach())
            neuron.set_amplitude(None if fresh.log_amplitude is None else fresh.amplitude.detach())
            neuron.spikes = fresh.spikes
        if self.kind == "look-ahead":
            neuron.delay = fresh.delay
        if self.kind == "bias" and fresh.offset is not None:
            neuron.offset = fresh.offset.detach().clone().to(neuron.log_threshold)
            if snn.provenance.get("correction", {}).get("taken_back", True):  # `uncorrect` finds it
                snn.provenance["correction"] = {"kind": "bias", "timesteps": snn.timesteps}
        made = {"layer": self.layer, "change": self.kind, "timesteps": snn.timesteps}
        snn.provenance = {**snn.provenance, "changed": [*snn.provenance.get("changed", []), made]}
        snn.reset()

    def settings(self) -> dict[str, Any]:
        """Give what the layer is set to, as JSON data.

        Returns:
            "theta", "amplitude" (None where a spike stands for theta), "spikes", "delay" and "offset".
        """
        offset, own = self.neuron.offset, self.neuron.log_amplitude
        return {
            "theta": self.neuron.threshold.detach().tolist(),
            "amplitude": None if own is None else self.neuron.amplitude.detach().tolist(),
            "spikes": self.neuron.spikes,
            "delay": self.neuron.delay,
            "offset": None if offset is None else offset.tolist(),
        }


@dataclass
class LayerSeen:
    """What some images show of a layer: sums by channel, and the histogram of its source activation.

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
        """Compute the mean error of every channel, (C,): mean spiking output - mean source activation."""
        return (self.reached - self.target) / max(1, self.count)


def fitting(snn: SpikingNetwork, name: str, rows: int) -> ActivationHistogram | None:
    """Get the calibration's histogram of a layer while it fits: as many rows, and weights that were not tuned since."""
    stored = snn.calibration.histograms.get(name)
    return stored if stored is not None and stored.channels == rows and not weights_tuned(snn) else None


def seen(snn: SpikingNetwork, histograms: bool, piece: Batch) -> dict[str, LayerSeen]:
    """Look at all layers on some images; make histograms only where wanted and where the calibration's do not fit."""
    run, out = MixedRun(snn), dict[str, LayerSeen]()
    for fork in run.forks(piece.inputs, "analog"):
        name, values = fork.node.name, fork.emitted.tensor
        neuron = snn.neurons[name]
        total = channel_sums(values, neuron.channel_dim)
        dim = neuron.channel_dim if neuron.granularity == "channel" and values.ndim > 1 else None
        rows = (1 if dim is None else values.shape[dim]) * (2 if neuron.signed else 1)
        out[name] = LayerSeen(total, torch.zeros_like(total), values.numel() // total.numel(), rows)
        if histograms and fitting(snn, name, rows) is None:
            layer = HistogramCollector(neuron.signed)
            layer.add(values, dim)
            out[name].histogram = layer.histogram()
    for name, total in emitted_sums(snn, {}, piece).items():
        out[name].reached = total
    return out


def emitted_sums(snn: SpikingNetwork, moved: dict[str, IFNeuron], piece: Batch) -> dict[str, Tensor]:
    """Sum every layer's mean spiking output by channel, (C,); a layer in `moved` is changed for its own sum only."""
    run, out = MixedRun(snn), dict[str, Tensor]()
    for fork in run.forks(piece.inputs, "spiking"):
        name, emitted = fork.node.name, fork.emitted
        if name in moved:
            emitted = run.with_neuron(name, moved[name]).emit(name, fork.drive, "spiking")
        out[name] = channel_sums(run.mean(emitted), snn.neurons[name].channel_dim)
    return out


def channel_sums(x: Tensor, channel_dim: int) -> Tensor:
    """Sum (B, ...) by channel in float64, (C,); () where there are no channels."""
    if x.ndim < 2:
        return x.sum(dtype=torch.float64)
    return x.sum([dim for dim in range(x.ndim) if dim != channel_dim], dtype=torch.float64)


Pair = tuple[IFNeuron, IFNeuron]  # the layer after a change, and what stands for it in the quantized reading


def changes_of(
    snn: SpikingNetwork, pieces: Sequence[Batch], kinds: Sequence[str] = tuple(CHANGES), progress: bool = False,
    at_once: int | None = None,
) -> list[Change]:  # fmt: skip
    """Find every change of these kinds that changes something, on these images in two passes."""
    found: dict[str, LayerSeen] = {}
    histograms = bool({"threshold", "bit+threshold"} & set(kinds))
    for part in map_pieces(snn, pieces, partial(seen, snn, histograms), "reading layers", progress, at_once):
        for name, layer in part.items():
            found.setdefault(name, LayerSeen()).merge(layer)
    offsets = _offsets(snn, pieces, found, progress, at_once) if "bias" in kinds else {}
    out = []
    for name, neuron in snn.neurons.items():
        makers: dict[str, Callable[[], Pair | None]] = {
            "bit": partial(_bit, neuron),
            "threshold": partial(_best, snn, name, found[name]),
            "bit+threshold": partial(_best_bit, snn, name, found[name]),
            "bias": partial(_same, offsets.get(name)),
            "look-ahead": partial(_further, neuron),
        }
        made = {kind: makers[kind]() for kind in CHANGES if kind in kinds}
        out += [Change(name, kind, *pair) for kind, pair in made.items() if pair is not None]
    return out


def _offsets(
    snn: SpikingNetwork, pieces: Sequence[Batch], found: Mapping[str, LayerSeen], progress: bool, at_once: int | None
) -> dict[str, IFNeuron]:
    """Copy every layer with its mean error taken away, in the channels where that error then shrinks."""
    gaps = {name: layer.gap() for name, layer in found.items()}
    moved = {name: _moved(neuron, gaps[name]) for name, neuron in snn.neurons.items()}
    after: dict[str, Tensor] = {}
    for part in map_pieces(snn, pieces, partial(emitted_sums, snn, moved), "checking offsets", progress, at_once):
        for name, total in part.items():
            after[name] = after[name] + total if name in after else total
    out = {}
    for name, neuron in snn.neurons.items():
        better = (after[name] - found[name].target).abs() < (found[name].reached - found[name].target).abs()
        out[name] = _moved(neuron, torch.where(better, gaps[name], torch.zeros_like(gaps[name])))
    return out


def _same(fresh: IFNeuron | None) -> Pair | None:
    return None if fresh is None else (fresh, fresh)


def _bit(neuron: IFNeuron) -> Pair:
    """T -> 2 T + 1 steps in the quantized reading; in spikes, which all share T, twice the grade at half of theta."""
    fresh, twin = copy.deepcopy(neuron), copy.deepcopy(neuron)
    fresh.spikes = _doubled(neuron)
    fresh.scale(0.5)
    twin.timesteps = 2 * neuron.timesteps + 1
    return fresh, twin


def _doubled(neuron: IFNeuron) -> str:
    """Name the spikes of twice the most a step: one more power of two where some are missed already, else graded."""
    number = neuron.rule.max_spikes.bit_length() + 1
    if neuron.rule.most_missed and number <= MOST_POWERS:
        return f"power2:{number}"
    return f"graded:{2 * neuron.levels_per_step}"


def _further(neuron: IFNeuron) -> Pair | None:
    """Copy the layer with one step more of look-ahead, where there is one to see."""
    if neuron.lookahead >= neuron.timesteps:
        return None
    fresh = copy.deepcopy(neuron)
    fresh.delay = neuron.lookahead + 1
    return fresh, fresh


def _moved(neuron: IFNeuron, gap: Tensor) -> IFNeuron:
    """Copy the layer with `gap` taken from its offset."""
    fresh = copy.deepcopy(neuron)
    before = torch.zeros_like(gap) if neuron.offset is None else neuron.offset.to(torch.float64)
    gain = (neuron.amplitude / neuron.threshold).detach().to(gap)  # of the output by the drive
    fresh.offset = (before - gap / gain).to(neuron.log_threshold.dtype)
    return fresh


def _best(snn: SpikingNetwork, name: str, own: LayerSeen) -> Pair | None:
    return _same(_at_optimum(snn, name, own, copy.deepcopy(snn.neurons[name])))


def _best_bit(snn: SpikingNetwork, name: str, own: LayerSeen) -> Pair | None:
    fresh, twin = (_at_optimum(snn, name, own, made) for made in _bit(snn.neurons[name]))
    return None if fresh is None or twin is None else (fresh, twin)


def _at_optimum(snn: SpikingNetwork, name: str, own: LayerSeen, fresh: IFNeuron) -> IFNeuron | None:
    """Set the layer to its theta*, from the calibration's histogram while that still fits, else from these images'."""
    stored = fitting(snn, name, own.rows)
    histogram = own.histogram if stored is None else stored
    if not bool((histogram.maximum > 0).any()):
        return None
    theta = choose(
        histogram, "mse", fresh.v_init, fresh.timesteps, fresh.levels_per_step, signed=fresh.signed, layer=name
    )
    fresh.set_threshold(theta if fresh.granularity == "channel" else theta.reshape(-1)[0])
    fresh.set_amplitude(None)  # it belonged to the threshold before
    return fresh
