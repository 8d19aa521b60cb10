"""measure_noise: three readings of every image, layer by layer."""

from collections.abc import Mapping
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
from speedysnn.analysis.processes import gathered
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
    sums = NoiseSums(snn, source, detail=detail)
    return sums.add(data, batch_size=batch_size, limit=limit, progress=progress).report()


class NoiseSums:
    """The running sums behind `measure_noise`, over some of the images; sums of several processes add up.

    `sums = NoiseSums(snn).add(shard)`, then `sums.gather()` in every process of torch.distributed (accelerate), or
    `sums.add_state(other.state())` however the tensors travelled; `sums.report()` is that of all images. Memory does
    not grow with the images.

    Args:
        snn, source, detail: as in `measure_noise`; the same network in every process.

    Raises:
        InputError: an option out of range, or a source that does not fit.
    """

    def __init__(self, snn: SpikingNetwork, source: nn.Module | None = None, *, detail: str = "standard") -> None:
        if detail not in DETAILS:
            raise InputError(f"detail: expected one of {', '.join(map(repr, DETAILS))}, got {detail!r}")
        self.snn, self.reference = snn, Reference.of(snn, source)
        self._full = detail == "full"
        self._clear()

    def _clear(self) -> None:
        self.layers = {name: LayerSums(name, neuron, self._full) for name, neuron in self.snn.neurons.items()}
        self.outputs = OutputSums()

    def add(
        self, data: Any, *, batch_size: int = 32, limit: int | None = None, progress: bool = False
    ) -> "NoiseSums":
        """Measure these images too; arguments and errors as in `measure_noise`."""
        chunks = passes(self.snn, data, pass_size(self.snn), batch_size=batch_size, limit=limit)
        with torch.no_grad():
            for batch in track(chunks, "measuring noise", enabled=progress):
                _measure(self.snn, self.reference, batch, self.layers, self.outputs)
        return self

    def state(self) -> dict[str, Tensor]:
        """All sums as tensors by "output/name" and "layer/name"; counts are whole numbers, the rest float64."""
        out = {f"/{name}": value for name, value in self.outputs.state().items()}
        for layer, sums in self.layers.items():
            out.update({f"{layer}/{name}": value for name, value in sums.state().items()})
        return out

    def add_state(self, state: Mapping[str, Tensor]) -> None:
        """Add what another process summed over other images.

        Raises:
            InputError: those sums are of another network.
        """
        given: dict[str, dict[str, Tensor]] = {}
        for key, value in state.items():
            layer, _, name = key.rpartition("/")
            given.setdefault(layer, {})[name] = value
        if unknown := given.keys() - self.layers.keys() - {""}:
            raise InputError(f"add_state: expected sums of the same network, got a layer {min(unknown)!r}")
        self.outputs.add_state(given[""])
        for layer, own in self.layers.items():
            own.add_state(given.get(layer, {}))

    def gather(self) -> "NoiseSums":
        """Put together the sums of all processes, in each of them; the figures are those of one process.

        Raises:
            InputError: torch.distributed is not initialised.
        """
        states = gathered(self.state())
        self._clear()
        for state in states:
            self.add_state(state)
        return self

    def report(self) -> NoiseReport:
        """What the images so far show."""
        reads = direct_inputs(self.snn.graph)
        found = {name: layer.found() for name, layer in self.layers.items()}
        rows = [{**row_of(layer), "reads": ", ".join(reads[name])} for name, layer in found.items()]
        layers = pd.DataFrame(rows, columns=list(COLUMNS))
        figures = {
            "reference": self.reference.outputs,
            "layer_reference": self.reference.layers,
            **settings(self.snn),
            **self.outputs.figures(),
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
