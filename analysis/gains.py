"""The changes to a layer whose gain at the output is measured: a bit more, its best threshold, no constant error."""

import copy
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from speedysnn.analysis.change import CHANGES as CHANGES
from speedysnn.analysis.change import Change as Change
from speedysnn.analysis.layer_seen import LayerSeen, emitted_sums, fitting, seen
from speedysnn.analysis.mixed import over
from speedysnn.data import Batch
from speedysnn.network import SpikingNetwork
from speedysnn.neurons import IFNeuron
from speedysnn.thresholds import choose

Pair = tuple[IFNeuron, IFNeuron]  # the layer after a change, and what stands for it in the quantized reading


def changes_of(
    snn: SpikingNetwork, pieces: Sequence[Batch], kinds: Sequence[str] = tuple(CHANGES), progress: bool = False,
    at_once: int | None = None,
) -> list[Change]:  # fmt: skip
    """Every change of these kinds that there is something to do for, found on these images in two passes."""
    found: dict[str, LayerSeen] = {}
    histograms = bool({"threshold", "bit+threshold"} & set(kinds))
    for part in over(snn, pieces, partial(seen, snn, histograms), "reading layers", progress, at_once):
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
    """Every layer with its mean error taken away, in the channels where that error then shrinks."""
    gaps = {name: layer.gap() for name, layer in found.items()}
    moved = {name: _moved(neuron, gaps[name]) for name, neuron in snn.neurons.items()}
    after: dict[str, Tensor] = {}
    for part in over(snn, pieces, partial(emitted_sums, snn, moved), "checking offsets", progress, at_once):
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
    fresh.spikes = f"graded:{2 * neuron.levels_per_step}"
    fresh.set_threshold(neuron.threshold.detach() / 2)
    twin.timesteps = 2 * neuron.timesteps + 1
    return fresh, twin


def _further(neuron: IFNeuron) -> Pair | None:
    """One step more of look-ahead, where there is one to see."""
    if neuron.lookahead >= neuron.timesteps:
        return None
    fresh = copy.deepcopy(neuron)
    fresh.delay = neuron.lookahead + 1
    return fresh, fresh


def _moved(neuron: IFNeuron, gap: Tensor) -> IFNeuron:
    """The layer with offset - gap."""
    fresh = copy.deepcopy(neuron)
    before = torch.zeros_like(gap) if neuron.offset is None else neuron.offset.to(torch.float64)
    fresh.offset = (before - gap).to(neuron.log_threshold.dtype)
    return fresh


def _best(snn: SpikingNetwork, name: str, own: LayerSeen) -> Pair | None:
    return _same(_at_optimum(snn, name, own, copy.deepcopy(snn.neurons[name])))


def _best_bit(snn: SpikingNetwork, name: str, own: LayerSeen) -> Pair | None:
    fresh, twin = (_at_optimum(snn, name, own, made) for made in _bit(snn.neurons[name]))
    return None if fresh is None or twin is None else (fresh, twin)


def _at_optimum(snn: SpikingNetwork, name: str, own: LayerSeen, fresh: IFNeuron) -> IFNeuron | None:
    """The layer at its theta*, from the calibration's histogram while that still fits, else from these images'."""
    stored = fitting(snn, name, own.rows)
    histogram = own.histogram if stored is None else stored
    if not bool((histogram.maximum > 0).any()):
        return None
    theta = choose(
        histogram, "mse", fresh.v_init, fresh.timesteps, fresh.levels_per_step, signed=fresh.signed, layer=name
    )
    fresh.set_threshold(theta if fresh.granularity == "channel" else theta.reshape(-1)[0])
    return fresh
