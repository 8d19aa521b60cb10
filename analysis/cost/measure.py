"""measure_cost: what an inference costs, in events, operations, updates, state and energy under named tables.

One pass over the images counts the events of every source (a neuron layer, an event input, a max-pooling) by position.
The exact fan-out of each position, from `graph/fan_out.py`, turns events into synaptic operations. The quantized
reading of the same images gives the values that a quantized network, which skips its zeros, would multiply: the rival.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from speedysnn.analysis.cost import COUNTS, SIZES, CostReport, energies, with_memory
from speedysnn.analysis.output_metrics import settings
from speedysnn.analysis.reference import batch_dims, images_in, part, pass_size, passes
from speedysnn.analysis.sensitivity import checked
from speedysnn.display import track
from speedysnn.execution.interpreter import Execution, Value
from speedysnn.execution.observers import LayerRecord
from speedysnn.graph.fan_out import FanOut, Flow, Shape, pool_graph, weighted
from speedysnn.graph.ir import Graph, Node, readout_nodes
from speedysnn.graph.operators import OPERATORS
from speedysnn.kernels import bits_per_spike
from speedysnn.network import SpikingNetwork
from speedysnn.settings import repeatable

_STATE = 4  # bytes of one state variable


class EventCounter:
    """Counts the events of every source by position, summed over steps and images."""

    def __init__(self, snn: SpikingNetwork, flow: Flow, shapes: Mapping[str, Shape]) -> None:
        self.snn, self.shapes = snn, shapes
        self.counts: dict[str, Tensor] = {}
        self._trains: dict[str, Tensor] = {}
        self._pools = pool_graph(snn.graph, flow)
        self._kept = {node.name for node in self._pools.inputs}
        units = [float(n.amplitude.min()) for name, n in snn.neurons.items() if name in self._kept]
        self._smallest = 1e-4 * min(units, default=1.0)  # rounding of an amplitude's multiples is far below this

    def observe(self, tap: LayerRecord) -> None:
        """Count the spikes of a layer; this is the observer of the spiking pass."""
        self._add(tap.name, tap.output != 0)
        if tap.name in self._kept:
            self._trains[tap.name] = tap.output

    def finish(self, inputs: Mapping[str, Tensor]) -> None:
        """Count the event inputs of the pass, (T*B, ...), and what max-pooling let through."""
        for name, train in inputs.items():
            self._add(name, train != 0)
        trains = [Value({**self._trains, **inputs}[node.name], True) for node in self._pools.inputs]
        run = Execution(self._pools, self.snn.neurons, self.snn.layer, self.snn.timesteps)
        for name, value in run.spiking(trains, per_step=True).items():
            self._add(name, value.tensor.abs() > self._smallest)
        self._trains.clear()

    def _add(self, name: str, fired: Tensor) -> None:
        found = fired.reshape(-1, *self.shapes[name]).count_nonzero(0).cpu()
        self.counts[name] = self.counts.get(name, torch.zeros_like(found)) + found


class Counter:
    """Running counts of every source of events and of the rival's values, and the connections they meet."""

    def __init__(self, snn: SpikingNetwork, one: Sequence[Tensor]) -> None:
        self.snn, self.images = snn, 0
        self.timed = batch_dims(snn, one)
        given = [node.name for node, timed in zip(snn.graph.inputs, self.timed, strict=True) if timed]
        graded = [name for name, neuron in snn.neurons.items() if neuron.levels_per_step > 1]
        flow = Flow.of(snn.graph, given, graded)
        shifted = {name for name in graded if snn.neurons[name].rule.powers}  # their size is no multiplication
        self.flow = replace(flow, graded=flow.graded - shifted)
        shapes = {name: tuple(x.shape) for name, x in self._static(one, [n.name for n in snn.graph.nodes]).items()}
        self.fan_out = FanOut(snn.graph, self.flow, shapes, snn.tensors)
        self.event_counter = EventCounter(snn, self.flow, shapes)
        self.rows = [node for node in snn.graph.nodes if node.op == "neuron" or weighted(node)]
        self.reached = {node.name: self.fan_out.of(node) for node in self.rows}
        self.arriving = {node.name: self.fan_out.of(node, arrivals=True) for node in self.rows}
        self.nonzero: dict[str, Tensor] = {}

    def _static(self, inputs: Sequence[Tensor], wanted: Sequence[str]) -> Mapping[str, Tensor]:
        """Values of the quantized reading at the wanted nodes."""
        graph = Graph(self.snn.graph.nodes, list(wanted))
        run = Execution(graph, self.snn.neurons, self.snn.layer, self.snn.timesteps)
        means = [x.mean(0) if timed else x for x, timed in zip(inputs, self.timed, strict=True)]
        return checked(lambda: run.static(means, "quantized"), inputs)

    def add(self, inputs: Sequence[Tensor]) -> None:
        """Count the events and the rival's values of one pass."""
        count = images_in(self.snn, inputs)
        self.images += count
        checked(lambda: self.snn.read("spiking", *inputs, per_step=True, observer=self.event_counter.observe), inputs)
        self.event_counter.finish(self._trains(inputs))
        read = [node.inputs[0] for node in self.rows if weighted(node) and self._sparse(node)]
        for name, value in self._static(inputs, list(dict.fromkeys(read))).items():
            found = value.reshape(count, *self.fan_out.shapes[name]).count_nonzero(0).cpu()
            self.nonzero[name] = self.nonzero.get(name, torch.zeros_like(found)) + found

    def _trains(self, inputs: Sequence[Tensor]) -> dict[str, Tensor]:
        given = zip(self.snn.graph.inputs, inputs, self.timed, strict=True)
        return {node.name: x.flatten(0, 1) for node, x, timed in given if timed}

    def _sparse(self, node: Node) -> bool:
        return self.flow.kinds[node.inputs[0]] == "events"

    def report(self) -> CostReport:
        """Give the counts as a table; each is the mean over the images."""
        rows = [self._row(node) for node in self.rows]
        layers = pd.DataFrame(rows, columns=["layer", "op", "receives", *SIZES, *COUNTS])
        total = {name: float(layers[name].sum()) for name in COUNTS}
        uncounted = tuple(
            f"{node.name} ({node.op})"
            for node in self.snn.graph.nodes
            if node.op in OPERATORS and OPERATORS[node.op].hybrid
        )
        energy = pd.concat([energies(total), pd.DataFrame([with_memory(rows)])], ignore_index=True)
        return CostReport(layers, total, energy, self._bits(), self.images, dict(settings(self.snn)), uncounted)

    def _row(self, node: Node) -> dict[str, Any]:
        kind = self.flow.kinds[node.inputs[0]]
        row: dict[str, Any] = {"layer": node.name, "op": node.op, "receives": kind, **self._sizes(node),
                               **dict.fromkeys(COUNTS, 0.0)}  # fmt: skip
        for leaf, fan_out in self.reached[node.name].items():
            if leaf in self.flow.sources:
                self._add_events(row, node, leaf, fan_out)
            else:
                macs = float(fan_out.sum())
                every = self.flow.kinds[leaf] == "analog" and node.name not in readout_nodes(self.snn.graph)
                row["macs"] += macs * (self.snn.timesteps if every else 1)
                row["macs_every_step"] += macs * self.snn.timesteps
        own = self.fan_out.own(node)
        if node.op == "neuron":
            return self._neuron_row(row, node, own)
        row["analog_macs"] = float(own.sum())
        found = self.nonzero.get(node.inputs[0])
        row["rival_macs"] = row["analog_macs"] if found is None else float((found * own).sum()) / self.images
        return row

    def _add_events(self, row: dict[str, Any], node: Node, leaf: str, fan_out: Tensor) -> None:
        """Events of one source at one layer: each arrives once for every weight row or path that takes it."""
        fired = self.event_counter.counts[leaf]
        synops = float((fired * fan_out).sum()) / self.images
        row["events"] += float((fired * self.arriving[node.name][leaf]).sum()) / self.images
        row["synops"] += synops
        row["graded_synops"] += synops if leaf in self.flow.graded else 0.0
        if node.op == "neuron":
            row["analog_adds"] += float(fan_out.sum())

    def _sizes(self, node: Node) -> dict[str, int]:
        """Values that the layer's buffers hold."""
        shapes, own = self.fan_out.shapes, self.snn.tensors(node.name) if node.op != "neuron" else {}
        held = {"weights": own.get("weight"), "biases": own.get("bias")}
        return {"inputs": math.prod(shapes[node.inputs[0]][1:]), "outputs": math.prod(shapes[node.name][1:]),
                **{name: 0 if x is None else x.numel() for name, x in held.items()}}  # fmt: skip

    def _neuron_row(self, row: dict[str, Any], node: Node, own: Tensor) -> dict[str, Any]:
        neuron, size = self.snn.neurons[node.name], own.numel()
        ternary = neuron.rule.min_spikes < 0
        row["neurons"] = float(size)
        row["spikes"] = float(self.event_counter.counts[node.name].sum()) / self.images
        row["spike_bits"] = row["spikes"] * bits_per_spike(neuron.spikes, neuron.signed)
        row["updates"] = float(size * self.snn.timesteps)
        row["state_bytes"] = float(size * _STATE * (2 if neuron.lookahead or ternary else 1))
        return row

    def _bits(self) -> int:
        levels = [
            neuron.levels_per_step * self.snn.timesteps * (2 if neuron.signed else 1) + 1
            for neuron in self.snn.neurons.values()
        ]
        return math.ceil(math.log2(max(levels, default=2)))


@repeatable
def measure_cost(snn: SpikingNetwork, data: Any, *, limit: int | None = None, progress: bool = False) -> CostReport:
    """Count what an inference costs in the spiking reading, beside the source and a quantized rival.

    Synaptic operations are sum over positions of events * fan-out, from one pass over the images. They do not depend
    on how the images are batched.

    Args:
        snn: the network, measured at its present T and look-ahead; it is left as it is.
        data: as in `measure_noise`; labels are ignored.
        limit: stop after this many images.
        progress: show progress.

    Returns:
        The counts by layer and in total, and the energy under each named table, nJ an image.

    Raises:
        InputError: a limit below 1.
        DataError: no data, images of different sizes, or the network does not run on them.

    Example:
        Two layers of eight neurons: 4 * 8 + 8 * 8 + 8 * 2 = 112 multiply-accumulates in the source.

        >>> import torch
        >>> from torch import nn
        >>> from speedysnn import analysis, convert
        >>> _ = torch.manual_seed(0)
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> images = torch.rand(64, 4)
        >>> snn = convert.to_spiking(net, images, timesteps=4)
        >>> cost = analysis.measure_cost(snn, images)
        >>> int(cost.total["analog_macs"]), int(cost.total["macs"]), int(cost.total["updates"])
        (112, 32, 64)
        >>> cost.total["synops"] < 4 * 80  # at most T spikes a neuron, 80 weights behind neurons
        True
        >>> cost.bits  # the rival's activations take one of T + 1 = 5 values
        3
    """
    counter: Counter | None = None
    with torch.no_grad():
        for batch in track(passes(snn, data, pass_size(snn), limit=limit), "counting", enabled=progress):
            if counter is None:
                counter = Counter(snn, part(snn, batch, 0, 1).inputs)
            counter.add(batch.inputs)
    assert counter is not None  # passes refuses data without images
    return counter.report()


def spike_fan_out(snn: SpikingNetwork, example: Sequence[Tensor] | None = None) -> dict[str, float]:
    """Compute the mean fan-out of each neuron layer, in synapses a spike.

    The figure is exact for strides, padding, groups, pooling and joins of branches; for max-pooling it is exact where
    the neurons of a window fire alike, else a lower bound, since the pooling follows the one that fires most.

    f_l = (synapses that leave layer l, those of max-pooled spikes included) / (its neurons). For
    `finetune.fit(..., fan_out=)` with `budget_of="synops"`.

    Args:
        snn: the network.
        example: one tensor an input, (1, ...); zeros if left out.

    Returns:
        Layer -> synapses that one of its spikes reaches on average.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from speedysnn import analysis, convert
        >>> _ = torch.manual_seed(0)
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> images = torch.rand(64, 4)
        >>> snn = convert.to_spiking(net, images, timesteps=4)
        >>> analysis.spike_fan_out(snn)  # eight weights behind a neuron of the first layer, two behind the second
        {'1': 8.0, '3': 2.0}
    """
    one = example or [torch.zeros(1, *shape) for shape in snn.input_shapes]
    with torch.no_grad():
        counter = Counter(snn, one)
    flow = counter.flow.past_pools(snn.graph)
    through_pools = FanOut(snn.graph, flow, counter.fan_out.shapes, snn.tensors)
    out = dict.fromkeys(snn.neurons, 0.0)
    for node in counter.rows:
        for leaf, fan_out in through_pools.of(node).items():
            if leaf in out:
                out[leaf] += float(fan_out.sum()) / max(1, fan_out.numel())
    return out
