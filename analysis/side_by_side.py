"""Three readings of a batch beside one another, in passes that fit the memory they were given."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from typing import Any

from torch import Tensor

from speedysnn import plan
from speedysnn.analysis.handing_back import hand_back
from speedysnn.analysis.images import device_of, images_in, part
from speedysnn.analysis.layers import LayerSums
from speedysnn.analysis.memory import Memory
from speedysnn.analysis.outputs import OutputSums
from speedysnn.analysis.readings import Reference, run
from speedysnn.calls import held
from speedysnn.data import Batch
from speedysnn.graph import Graph
from speedysnn.network import SpikingNetwork
from speedysnn.tap import Tap, sees


@dataclass(frozen=True)
class _Piece:
    """What a pass over some images gave."""

    sums: dict[str, LayerSums]
    outputs: tuple[Any, Any, Any]
    labels: Tensor | None
    spikes: OutputSums


def read_batch(
    snn: SpikingNetwork, reference: Reference, batch: Batch, memory: Memory, sums: Mapping[str, LayerSums],
    outputs: OutputSums,
) -> None:
    """One batch in passes, some beside one another, added up in the order of the images."""
    parallel = device_of(snn).type == "cpu" and reference.module is None
    sizes = plan.cut(images_in(snn, batch.inputs), memory.images, memory.at_once)
    stops = list(accumulate(sizes))
    calls = [
        partial(_read, snn, reference, sums, part(snn, batch, stop - size, stop), memory.tight)
        for stop, size in zip(stops, sizes, strict=True)
    ]
    with held(snn, stops[-1]):
        for start in range(0, len(calls), memory.at_once):
            pieces: list[_Piece] = plan.run(calls[start : start + memory.at_once], parallel=parallel)
            while pieces:
                piece = pieces.pop(0)
                for name, own in piece.sums.items():
                    sums[name].merge(own)
                outputs.merge(piece.spikes)
                outputs.update(*piece.outputs, piece.labels)


def _read(
    snn: SpikingNetwork, reference: Reference, like: Mapping[str, LayerSums], batch: Batch, tight: bool
) -> _Piece:
    """One pass: what the first two readings leave behind is used up by the third, layer by layer."""
    drives: dict[str, Tensor] = {}
    twins: dict[str, Tensor] = {}
    sources, counted = reference.network.neurons, OutputSums()
    sums = {name: layer.fresh() for name, layer in like.items()}

    @sees("total")
    def spiking(tap: Tap) -> None:
        fired = sums[tap.name].update(drives.pop(tap.name), sources[tap.name], twins.pop(tap.name), tap)
        counted.add_spikes(tap, fired)
        release()

    release = hand_back if tight else _nothing
    analog_out = reference.analog(batch.inputs, lambda tap: drives.update({tap.name: tap.drive}))
    release()
    twin_out = run(snn, "quantized", batch.inputs, lambda tap: twins.update({tap.name: tap.output}))
    release()
    spiking_out = run(snn, "spiking", batch.inputs, spiking)
    return _Piece(sums, (analog_out, twin_out, spiking_out), batch.labels, counted)


def _nothing() -> None:
    """Where memory is not short freed memory is kept for the next layer, which is faster."""


def layer_shapes(snn: SpikingNetwork, batch: Batch) -> dict[str, tuple[int, ...]]:
    """Every neuron layer's shape for one image of this batch."""
    shapes: dict[str, tuple[int, ...]] = {}
    one = part(snn, batch, 0, 1)
    run(snn, "analog", one.inputs, lambda tap: shapes.update({tap.name: tuple(tap.output.shape[1:])}))
    return shapes


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
