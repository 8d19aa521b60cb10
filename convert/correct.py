"""Corrections after the thresholds: per channel, what the spiking reading emits too much or too little on average.

Both walk the graph once, layer by layer, so that a layer is corrected for what the corrected layers before it emit:

    bias:       offset <- offset - g            a constant current, seen by the quantized and spiking readings only
    potential:  v_init <- clip(v_init - T g / theta, 0, 1)

with g the channel's gap, mean spiking output - mean analog activation, over the first images of the calibration data.
The analog reading knows neither, so it stays the source network. No layer is skipped: the offset sits at the neuron's
own input, hence it needs no bias in the layer before and is right where that layer has several readers or a shortcut
joins; where a weight layer feeds this neuron alone an export may add it to that layer's bias.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from speedysnn.data.batches import Batch, iter_batches
from speedysnn.errors import InputError
from speedysnn.execution.interpreter import Execution, Value
from speedysnn.execution.observers import LayerRecord
from speedysnn.graph.ir import Node
from speedysnn.network import SpikingNetwork
from speedysnn.neurons.layer import IFNeuron
from speedysnn.settings import repeatable

KINDS = ("none", "bias", "potential", "bias+potential")
MAX_IMAGES = 256
MAX_VALUES = 2**26  # T times images times the largest layer: 256 MB of one activation


@repeatable
def apply_correction(snn: SpikingNetwork, calibration: object, kind: str) -> SpikingNetwork:
    """Correct a network in place for its present T, delay and spikes; an earlier correction is taken back first.

    A channel's gap g is its mean spiking output less its mean analog activation. "bias" moves the input's offset by -g,
    "potential" moves v_init by -T g / theta, within 0 and 1. A channel whose gap a correction would not shrink is left
    as it was. What was done stands in `snn.provenance["correction"]`, gaps in each activation's unit; `recalibrate`
    takes it back.

    Args:
        snn: the network, changed in place.
        calibration: a loader, a dataset, a tensor (N, ...) or an iterable of batches; labels are ignored. The first 256
            images are used, and fewer where T x images x the largest layer exceeds 2^26 values.
        kind: "bias", "potential", "bias+potential" (one pass each, in this order) or "none".

    Returns:
        The same network.

    Raises:
        InputError: another kind.
        DataError: no data, NaN, or the wrong shape.

    Reference: li2021

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from speedysnn import convert
        >>> _ = torch.manual_seed(0)
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> images = torch.rand(64, 4)
        >>> snn = convert.apply_correction(convert.to_spiking(net, images, timesteps=4), images, "bias")
        >>> done = snn.provenance["correction"]
        >>> done["kind"], done["images"]
        ('bias', 64)
        >>> layer = done["passes"]["bias"]["1"]
        >>> layer["gap_after"] <= layer["gap_before"]
        True
    """
    check_kind(kind)
    kept = FirstImages(images_for(snn))
    batches = kept.passing(iter_batches(calibration))
    for _ in islice(batches, MAX_IMAGES):
        if kept.left <= 0:
            break
    return correct_on(snn, kept.inputs(), kind)


def correct_on(snn: SpikingNetwork, inputs: Sequence[Tensor], kind: str) -> SpikingNetwork:
    """`apply_correction` on given images, one tensor (B, ...) an input."""
    snn.uncorrect()
    if kind == "none":
        return snn
    device = next(snn.parameters()).device
    images = [_laid_out(x.to(device)) for x in inputs]
    starts = {name: neuron.v_init.detach().tolist() for name, neuron in snn.neurons.items()}
    passes: dict[str, Any] = {}
    with torch.no_grad():
        targets = _analog_means(snn, images)
        for change in kind.split("+"):
            layers = {name: _Correction(neuron, targets[name], change) for name, neuron in snn.neurons.items()}
            _walk(snn, images, layers)
            passes[change] = {name: layer.record for name, layer in layers.items()}
    snn.provenance["correction"] = {
        "kind": kind,
        "images": images[0].shape[0],
        "timesteps": snn.timesteps,
        "v_init": starts,
        "passes": passes,
    }
    snn.reset()
    return snn


def check_kind(kind: str) -> None:
    """Refuse a kind of correction that is not in `KINDS`.

    Raises:
        InputError: it is another.
    """
    if kind not in KINDS:
        raise InputError(f"correct: expected one of {', '.join(map(repr, KINDS))}, got {kind!r}")


def images_for(snn: SpikingNetwork) -> int:
    """How many images a correction takes: 256, and fewer where T x images x the largest layer exceeds 2^26 values."""
    largest = max(int(node.attrs.get("features") or 1) for node in snn.graph.neurons)
    return max(1, min(MAX_IMAGES, MAX_VALUES // (snn.timesteps * largest)))


class FirstImages:
    """The first images of the calibration data, kept while they pass by."""

    def __init__(self, max_count: int) -> None:
        self.left, self.parts = max_count, list[tuple[Tensor, ...]]()

    def passing(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """Yield the batches as they are and remember their first images."""
        for batch in batches:
            if self.left > 0:
                self.parts.append(tuple(x[: self.left] for x in batch.inputs))
                self.left -= self.parts[-1][0].shape[0]
            yield batch

    def inputs(self) -> list[Tensor]:
        """The remembered images: one tensor (B, ...) for each input of the network."""
        return [torch.cat(pieces) for pieces in zip(*self.parts, strict=True)]


def _laid_out(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x


class _CorrectingPass(Execution):
    """A pass in which every layer is corrected when its input arrives, before the next one runs."""

    def __init__(self, snn: SpikingNetwork, layers: Mapping[str, "_Correction"]) -> None:
        super().__init__(snn.graph, snn.neurons, snn.layer, snn.timesteps, graph_info=snn.graph_info)
        self._corrections = layers

    def quantized_neuron(self, node: Node, drive: Tensor) -> Tensor:
        """The quantized output Q(z) after the layer's correction."""
        return self._corrections[node.name].correct_for(partial(super().quantized_neuron, node, drive))

    def spiking_neuron(self, node: Node, drive: Tensor, *, constant: bool, inplace: bool) -> Tensor:
        """The spikes after the layer's correction; the input is read several times, so it is never overwritten."""
        spikes = partial(super().spiking_neuron, node, drive, constant=constant, inplace=False)
        return self._corrections[node.name].correct_for(spikes)


def _walk(snn: SpikingNetwork, images: Sequence[Tensor], layers: Mapping[str, "_Correction"]) -> None:
    """Run one pass in which every layer is corrected before the next one runs.

    With full look-ahead the counts are those of the quantized reading, which is faster.
    """
    run = _CorrectingPass(snn, layers)
    if all(neuron.lookahead == snn.timesteps for neuron in snn.neurons.values()):
        run.static(images, "quantized")
    else:
        run.spiking([Value(x) for x in images], per_step=False)


def _analog_means(snn: SpikingNetwork, images: Sequence[Tensor]) -> dict[str, Tensor]:
    means: dict[str, Tensor] = {}

    def observe(tap: LayerRecord) -> None:
        means[tap.name] = channel_means(tap.output, tap.neuron.channel_dim)

    run = Execution(snn.graph, snn.neurons, snn.layer, snn.timesteps, observe, graph_info=snn.graph_info)
    run.static(images, "analog")
    return means


def channel_means(x: Tensor, channel_dim: int) -> Tensor:
    """(C,) float64 means over all images, steps and places; () where there are no channels."""
    if x.ndim < 2:
        return x.mean(dtype=torch.float64)
    return x.mean([dim for dim in range(x.ndim) if dim != channel_dim], dtype=torch.float64)


class _Correction:
    """The correction of one neuron layer: the mean it should emit, what is changed, and a record of the result."""

    def __init__(self, neuron: IFNeuron, target: Tensor, change: str) -> None:
        self.neuron, self.target, self.change = neuron, target, change
        self.record: dict[str, Any] = {}

    def _gap(self, out: Tensor) -> Tensor:
        return channel_means(out, self.neuron.channel_dim) - self.target

    def correct_for(self, emit: Callable[[], Tensor]) -> Tensor:
        """Correct the neuron for an input.

        Args:
            emit: what the neuron makes of the input, as it stands.

        Returns:
            What it makes of the input after the correction.
        """
        out = emit()
        before, gap = self._value(), self._gap(out)
        self._set(before, gap, torch.ones_like(gap, dtype=torch.bool))
        out = emit()
        better = self._gap(out).abs() < gap.abs()
        if not bool(better.all()):
            self._set(before, gap, better)
            out = emit()
        self.record = {
            "gap_before": float(gap.abs().mean()),
            "gap_after": float(self._gap(out).abs().mean()),
            "channels": gap.numel(),
            "left_alone": int((~better).sum()),
        }
        return out

    def _value(self) -> Tensor:
        """The value that is corrected, as it is now: the offset or v_init, float64."""
        neuron = self.neuron
        if self.change == "potential":
            return neuron.v_init.detach().to(torch.float64)
        return torch.zeros_like(self.target) if neuron.offset is None else neuron.offset.to(torch.float64)

    def _set(self, before: Tensor, gap: Tensor, where: Tensor) -> None:
        neuron = self.neuron
        if self.change == "potential":
            unit = neuron.amplitude.detach().to(torch.float64)
            moved = (before - neuron.timesteps * gap / unit).clamp(0, 1)
            neuron.v_init.data = torch.where(where, moved, before).to(neuron.v_init.dtype)
        else:
            gain = (neuron.amplitude / neuron.threshold).detach().to(gap)  # of the output by the drive
            neuron.offset = torch.where(where, before - gap / gain, before).to(neuron.log_threshold.dtype)
