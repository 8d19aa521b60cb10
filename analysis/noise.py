"""measure_noise: three readings of every image, layer by layer."""

from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from speedysnn import plan
from speedysnn.analysis.columns import COLUMNS
from speedysnn.analysis.details import detail_of
from speedysnn.analysis.images import device_of, images_in, part, pass_size, passes
from speedysnn.analysis.layers import LayerSums
from speedysnn.analysis.outputs import OutputSums, settings
from speedysnn.analysis.readings import Reference, run
from speedysnn.analysis.result import NoiseReport
from speedysnn.analysis.rows import row_of
from speedysnn.analysis.verdict import verdict
from speedysnn.data import Batch
from speedysnn.errors import InputError
from speedysnn.executor import Tap
from speedysnn.graph import Graph
from speedysnn.network import SpikingNetwork
from speedysnn.progress import track

DETAILS = ("standard", "full")
_LEAST = 16  # images a pass: two of its three readings run them once, not T times


def measure_noise(
    snn: SpikingNetwork,
    data: Any,
    source: nn.Module | None = None,
    *,
    batch_size: int = 32,
    limit: int | None = None,
    progress: bool = False,
    detail: str = "standard",
) -> NoiseReport:
    """Measure how far every layer's spikes are from the source's activations, and why; one pass over the data.

    Each image is read three times, analog, quantized and spiking, and every element's error e = r - a is split into

        clip        clamp(z, 0, N theta) - a           the range is too small
        round       Q(z) - clamp(z, 0, N theta)        the step is too coarse
        propagated  Q(z') - Q(z)                       the input is off already
        temporal    r - Q(z')                          the input's spikes came unevenly

    with a, z the source's activation and pre-activation, z' the mean over time of the spiking layer's input and r that
    of its output. The parts add up to e, and their shares sum(part e) / sum(e^2) to 1; a share may be below 0. The
    order of the parts is a convention. All sums are float64 over all elements of all images, taken in passes of a
    fixed size, so that no figure depends on how the data is batched.

    Args:
        snn: the network, at its present T, thresholds and look-ahead; it is left as it is.
        data: a Dataset, a DataLoader, a tensor (B, ...), a tuple (x, y), or batches; labels give accuracies.
        source: what to compare with: None for the network's own analog reading; a SpikingNetwork with the same
            neurons, as it was before tuning (theta stays this network's own); or the original nn.Module, whose outputs
            alone can be compared, the layers then with the own analog reading.
        batch_size: images read at a time where the data is not in batches yet; no figure depends on it.
        limit: stop after this many images.
        progress: show progress.
        detail: "full" also compares every two channels' errors and steps beside one another.

    Raises:
        InputError: an option out of range, or a source that does not fit.
        DataError: no data, NaN in it, or the wrong shape.

    Example:
        >>> noise = measure_noise(snn, data)                                            # doctest: +SKIP
        >>> noise.layers[["layer", "sqnr_db", "share_temporal"]]                        # doctest: +SKIP
    """
    if detail not in DETAILS:
        raise InputError(f"detail: expected one of {', '.join(map(repr, DETAILS))}, got {detail!r}")
    reference, full = Reference.of(snn, source), detail == "full"
    sums = {name: LayerSums(name, neuron, full) for name, neuron in snn.neurons.items()}
    outputs = OutputSums()
    chunks = passes(snn, data, pass_size(snn), batch_size=batch_size, limit=limit)
    with torch.no_grad():
        for batch in track(chunks, "measuring noise", enabled=progress):
            _measure(snn, reference, batch, sums, outputs)
    reads = direct_inputs(snn.graph)
    found = {name: layer.found() for name, layer in sums.items()}
    rows = [{**row_of(layer), "reads": ", ".join(reads[name])} for name, layer in found.items()]
    layers = pd.DataFrame(rows, columns=list(COLUMNS))
    figures = {
        "reference": reference.outputs,
        "layer_reference": reference.layers,
        **settings(snn),
        **outputs.figures(),
    }
    details = {name: detail_of(layer) for name, layer in found.items()}
    return NoiseReport(layers, figures, verdict(layers, figures), details)


@dataclass(frozen=True)
class _Piece:
    """What a pass over some images gave."""

    sums: dict[str, LayerSums]
    outputs: tuple[Any, Any, Any]
    labels: Tensor | None
    spikes: OutputSums


def _measure(
    snn: SpikingNetwork, reference: Reference, batch: Batch, sums: dict[str, LayerSums], outputs: OutputSums
) -> None:
    """One batch in passes beside one another, added up in the order of the images."""
    images, device = images_in(snn, batch.inputs), device_of(snn)
    full = any(layer.full for layer in sums.values())
    size = snn.images_per_pass or max(_LEAST, plan.images_per_pass(snn.width, snn.timesteps, device))
    sizes = plan.cut(images, size, torch.get_num_threads() if device.type == "cpu" else 1)
    stops = list(accumulate(sizes))
    calls = [
        partial(_one, snn, reference, full, part(snn, batch, stop - size, stop))
        for stop, size in zip(stops, sizes, strict=True)
    ]
    alone = reference.module is None  # a user's module may not run in two threads at once
    pieces: list[_Piece] = plan.run(calls, parallel=device.type == "cpu" and alone)
    for piece in pieces:
        for name, own in piece.sums.items():
            sums[name].merge(own)
        outputs.merge(piece.spikes)
        outputs.update(*piece.outputs, piece.labels)


def _one(snn: SpikingNetwork, reference: Reference, full: bool, batch: Batch) -> _Piece:
    """One pass: what the first two readings leave behind is used up by the third, layer by layer."""
    drives: dict[str, Tensor] = {}
    twins: dict[str, Tensor] = {}
    sources, counted = reference.network.neurons, OutputSums()
    sums = {name: LayerSums(name, neuron, full) for name, neuron in snn.neurons.items()}

    def spiking(tap: Tap) -> None:
        fired = sums[tap.name].update(drives.pop(tap.name), sources[tap.name], twins.pop(tap.name), tap)
        counted.add_spikes(tap, fired)

    analog_out = reference.analog(batch.inputs, lambda tap: drives.update({tap.name: tap.drive}))
    twin_out = run(snn, "quantized", batch.inputs, lambda tap: twins.update({tap.name: tap.output}))
    spiking_out = run(snn, "spiking", batch.inputs, spiking)
    return _Piece(sums, (analog_out, twin_out, spiking_out), batch.labels, counted)


def direct_inputs(graph: Graph) -> dict[str, tuple[str, ...]]:
    """For every neuron layer, the neuron layers that reach it without passing another."""
    reach: dict[str, tuple[str, ...]] = {}
    out: dict[str, tuple[str, ...]] = {}
    for node in graph.nodes:
        before = tuple(dict.fromkeys(name for feed in node.inputs for name in reach[feed]))
        if node.op == "neuron":
            out[node.name] = before
        reach[node.name] = (node.name,) if node.op == "neuron" else before
    return out
