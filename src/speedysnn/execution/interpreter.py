"""Run a graph: one loop over its nodes, and what each reading makes of a node.

A value is static (B, ...) as long as no spike has touched it, and time-batched (T*B, ...) time-major after the first
neuron. What comes after the last neuron is affine, so it runs once on the mean over time unless every step is wanted.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import reduce
from typing import NamedTuple, Protocol, Self, TypeVar

import torch
from torch import Tensor, nn

from speedysnn.execution.module import NetworkModule, is_hooked, is_plain, own_tensors
from speedysnn.execution.observers import LayerRecord, Observer, input_needed
from speedysnn.execution.sparse_conv import SparseConvContext
from speedysnn.graph.ir import Graph, GraphInfo, Node
from speedysnn.graph.operators import OPERATORS, Operator
from speedysnn.neurons.layer import IFNeuron
from speedysnn.neurons.parameters import Reading

_NOTHING = torch.empty(0)  # the drive that an observer gets which reads none
_V = TypeVar("_V")


class Handler(Protocol[_V]):
    """What one kind of run makes of a node; values are of whatever kind the run needs."""

    def neuron(self, node: Node, drive: _V) -> _V:
        """What a neuron layer emits."""

    def operator(self, node: Node, args: list[_V]) -> _V:
        """What any other node gives."""


def run_nodes(
    nodes: Sequence[Node],
    values: dict[str, _V],
    feed: Iterator[_V],
    handler: Handler[_V],
    release: Mapping[int, Sequence[str]] | None = None,
    start: int = 0,
    stop: int | None = None,
) -> None:
    """Run nodes `start` to `stop` of a graph in order: the one loop of all readings, streams, trials and simulators.

    Args:
        nodes: of the graph, in execution order.
        values: by node name, those of earlier nodes, and of inputs that are there already; results are added to it.
        feed: values of the other input nodes, in order.
        handler: says what a node gives.
        release: position -> names of values that nothing later reads, which are dropped there; None keeps all.
        start: position of the first node to run.
        stop: position of the first node not to run, None for the end.
    """
    release = {} if release is None else release
    for position in range(start, len(nodes) if stop is None else stop):
        node = nodes[position]
        if node.op == "input":
            if node.name not in values:
                values[node.name] = next(feed)
        elif node.op == "neuron":
            values[node.name] = handler.neuron(node, values[node.inputs[0]])
        else:
            values[node.name] = handler.operator(node, [values[name] for name in node.inputs])
        for name in release.get(position, ()):
            values.pop(name, None)


def run_graph(
    graph: Graph, inputs: Iterable[_V], handler: Handler[_V], release: Mapping[int, Sequence[str]] | None = None
) -> dict[str, _V]:
    """The values of a graph after a whole run: the outputs', and what `release` does not drop; see `run_nodes`."""
    values: dict[str, _V] = {}
    run_nodes(graph.nodes, values, iter(inputs), handler, release)
    return values


def run_node(node: Node, module: nn.Module | None, args: Sequence[Tensor]) -> Tensor:
    """The result of a node that is no neuron: its module is called, so that hooks and wrappers have their say."""
    if module is None:
        return OPERATORS[node.op].run(args, node.attrs, {})
    out: Tensor = module(*args)
    return out


class Value(NamedTuple):
    """A tensor and whether it has a time axis folded into its first dimension."""

    tensor: Tensor
    dynamic: bool = False


class Execution:
    """One pass over a graph; made for each call, so that nothing of a run stays behind.

    Args:
        graph: its nodes.
        neurons: by name.
        layers: the module of a node that owns tensors, by name, else None; see `NetworkModule.layer`.
        timesteps: T.
        observer: handed a `LayerRecord` of every neuron.
        drives: what neurons receive instead of what reaches them, by name.
        sparse_conv: convolutions that may run event-driven.
        graph_info: of the graph.
    """

    def __init__(
        self,
        graph: Graph,
        neurons: Mapping[str, IFNeuron],
        layers: Callable[[str], nn.Module | None],
        timesteps: int,
        observer: Observer | None = None,
        drives: Mapping[str, Tensor] | None = None,
        sparse_conv: SparseConvContext | None = None,
        graph_info: GraphInfo | None = None,
    ) -> None:
        self.graph, self.neurons, self.layers = graph, neurons, layers
        self.timesteps, self.observer = timesteps, observer
        self.drives = drives
        self.sparse_conv = sparse_conv
        self.graph_info = graph_info or GraphInfo.of(graph)

    @classmethod
    def of(cls, snn: NetworkModule) -> Self:
        """A pass over a network's graph, with torch's own convolutions and nothing that watches."""
        return cls(snn.graph, snn.neurons, snn.layer, snn.timesteps, graph_info=snn.graph_info)

    def static(self, inputs: Sequence[Tensor], reading: Reading) -> dict[str, Tensor]:
        """Every neuron read as its activation or its quantizer; returns the outputs' values, (B, ...)."""
        return run_graph(self.graph, inputs, _Static(self, reading), self.graph_info.last_uses)

    def quantized_neuron(self, node: Node, drive: Tensor) -> Tensor:
        """A layer's answer in the quantized reading, (B, ...)."""
        out: Tensor = self.neurons[node.name](drive, reading="quantized")
        return out

    def spiking_neuron(self, node: Node, drive: Tensor, *, constant: bool, inplace: bool) -> Tensor:
        """A layer's spikes times their amplitude, (T*B, ...)."""
        out: Tensor = self.neurons[node.name](drive, reading="spiking", constant=constant, inplace=inplace)
        return out

    def spiking(self, inputs: Sequence[Value], per_step: bool) -> dict[str, Value]:
        """Spikes through time; returns the outputs' values, static ones being means over time."""
        return run_graph(self.graph, inputs, _Spiking(self, per_step), self.graph_info.last_uses)

    def part(
        self, values: Mapping[str, Value], reading: Reading, start: int, stop: int, *, keep: bool = False
    ) -> dict[str, Value]:
        """Values after a part of the graph has run.

        Args:
            values: of earlier nodes that it reads, by node name; they stay as they are.
            reading: of its neurons; values without time in the analog and quantized readings.
            start: position of its first node.
            stop: position after its last node.
            keep: also give values that no later node reads.

        Returns:
            The given values and its own, by node name, without those that no later node reads.
        """
        nodes, release = self.graph.nodes, {} if keep else self.graph_info.last_uses
        if reading == "spiking":
            timed = dict(values)
            run_nodes(nodes, timed, iter(()), _Spiking(self, False, frozenset(values)), release, start, stop)
            return timed
        static = {name: value.tensor for name, value in values.items()}
        run_nodes(nodes, static, iter(()), _Static(self, reading), release, start, stop)
        return {name: Value(x) for name, x in static.items()}

    def timed_operator(
        self, node: Node, args: list[Value], may_sum_into: Callable[[str], bool] | None = None
    ) -> Value:
        """The value of a node that is no neuron, where some of its inputs may vary in time.

        Args:
            node: the node.
            args: the values of its inputs.
            may_sum_into: whether an addition may write its sum over the value of the node of this name; None: never.
        """
        dynamic = any(arg.dynamic for arg in args) if len(args) > 1 else args[0].dynamic
        if dynamic and (operator := OPERATORS[node.op]).behaviour != "affine":
            return Value(self._rate(operator, node, args), True)
        aligned = [self.repeat(arg) if dynamic else arg.tensor for arg in args]
        writable = node.op == "add" and may_sum_into is not None and args[0].dynamic and may_sum_into(node.inputs[0])
        if writable and _alike(*aligned):
            return Value(aligned[0].add_(aligned[1]), True)
        return Value(self.affine(node, aligned, dynamic), dynamic)

    def affine(self, node: Node, args: Sequence[Tensor], sparse: bool) -> Tensor:
        """A node's result on tensors alone; `sparse`: they come from spikes, so that zeros may be worth skipping."""
        module = self.layers(node.name)
        if module is not None and sparse and node.op == "conv2d" and self.sparse_conv is not None and is_plain(module):
            out = self.sparse_conv.conv2d(node.name, args[0], node.attrs, own_tensors(module, node.op))
            if out is not None:
                return out
        return run_node(node, module, args)

    def _rate(self, operator: Operator, node: Node, args: list[Value]) -> Tensor:
        """y[t] = t g(mean to t) - (t-1) g(mean to t-1); in whole spikes where the input is a neuron's own output.

        Totals are kept in float32 at least: beyond 256 steps bfloat16 holds not even their spikes.
        """
        unit = self._unit(node, args[0].tensor.ndim)
        inputs = [self.repeat(arg) for arg in args]
        totals = [self._split(self._whole(x, unit)).cumsum(0) for x in inputs]
        if not operator.homogeneous:
            totals = [self._per_step(total).to(x.dtype) for total, x in zip(totals, inputs, strict=True)]
        reached = self._split(self.affine(node, [x.flatten(0, 1) for x in totals], False))
        if not operator.homogeneous:
            reached = wide(reached) * self._steps(reached)
        out = torch.cat([reached[:1], reached.diff(dim=0)]).flatten(0, 1)
        return (out if unit is None else out * unit).to(reduce(torch.promote_types, (x.dtype for x in inputs)))

    @staticmethod
    def _whole(x: Tensor, unit: Tensor | None) -> Tensor:
        return wide(x) if unit is None else torch.round(wide(x) / unit)

    def _steps(self, x: Tensor) -> Tensor:
        """1..T, shaped as the time axis of (T, B, ...)."""
        steps = torch.arange(1, self.timesteps + 1, device=x.device, dtype=wide(x[:0]).dtype)
        return steps.view(-1, *[1] * (x.ndim - 1))

    def _per_step(self, totals: Tensor) -> Tensor:
        return totals / self._steps(totals)

    def _unit(self, node: Node, ndim: int) -> Tensor | None:
        """The amplitude of the neuron that a pooling node reads directly; None if it reads anything else."""
        neuron = self.neurons.get(node.inputs[0])
        if neuron is None or torch.is_grad_enabled() or "max_pool" not in node.op or is_hooked(neuron):
            return None
        unit = neuron.amplitude
        if unit.ndim and neuron.channel_dim != 1:  # the window spans several amplitudes
            return None
        return neuron.per_channel(unit, ndim)

    def _split(self, x: Tensor) -> Tensor:
        return x.view(self.timesteps, -1, *x.shape[1:]) if x.numel() else x.reshape(self.timesteps, 0, *x.shape[1:])

    def repeat(self, value: Value) -> Tensor:
        """The value at every step, (T*B, ...)."""
        if value.dynamic:
            return value.tensor
        return value.tensor.repeat(self.timesteps, *[1] * (value.tensor.ndim - 1))

    def mean(self, value: Value) -> Tensor:
        """The value's mean over time, (B, ...)."""
        return self._split(value.tensor).mean(0) if value.dynamic else value.tensor

    def running_mean(self, value: Value) -> Tensor:
        """Mean of the first t steps for every t, (T, B, ...)."""
        per_step = self._split(self.repeat(value))
        return self._per_step(wide(per_step).cumsum(0)).to(per_step.dtype)


class _Static:
    """The analog and quantized readings: one value an image."""

    def __init__(self, run: Execution, reading: Reading) -> None:
        self.run, self.reading = run, reading
        self.sparse = reading == "quantized"  # a neuron that does not fire is a zero there too

    def neuron(self, node: Node, drive: Tensor) -> Tensor:
        """The activation or the quantizer."""
        neuron = self.run.neurons[node.name]
        if self.reading == "analog":
            out: Tensor = neuron(drive, reading="analog")
        else:
            out = self.run.quantized_neuron(node, drive)
        if self.run.observer is not None:
            self.run.observer(LayerRecord(node.name, neuron, drive, out, True, True))
        return out

    def operator(self, node: Node, args: list[Tensor]) -> Tensor:
        """The node as it is."""
        return self.run.affine(node, args, self.sparse)


class _Spiking:
    """The spiking reading: all steps of a layer at once."""

    def __init__(self, run: Execution, per_step: bool, kept: frozenset[str] = frozenset()) -> None:
        self.run, self.kept = run, kept  # values of these names belong to the caller
        self.means: frozenset[str] = frozenset() if per_step else run.graph_info.readout_nodes
        self.input_needed = input_needed(run.observer)
        self.values_kept = torch.is_grad_enabled() or self.input_needed == "steps"

    def _may_be_written_over(self, name: str) -> bool:
        """Whether no later node, hook or other class of layer reads the node's value, nor shares its memory."""
        if name in self.kept or name not in self.run.graph_info.inplace_safe:
            return False
        module = self.run.layers(name)
        return module is None or is_plain(module)

    def _may_be_summed_into(self, name: str) -> bool:
        """The same for an addition, which may also write over values that no gradient reads."""
        return (not self.values_kept or name in self.run.graph_info.sum_safe) and self._may_be_written_over(name)

    def neuron(self, node: Node, drive: Value) -> Value:
        """Spikes times their amplitude; an observer that needs no steps gets its sum before it is written over."""
        run, neuron = self.run, self.run.neurons[node.name]
        inplace = drive.dynamic and not self.values_kept
        inplace = inplace and self._may_be_written_over(node.inputs[0]) and not is_hooked(neuron)
        if run.drives is not None:  # the whole input is known: its mean paces the spikes
            drive, inplace = Value(run.drives[node.name]), False
        seen = self.input_needed if drive.dynamic else "steps"
        if seen == "sum" and inplace:
            out, received = neuron.spiking_and_total(drive.tensor)
        else:
            x = drive.tensor
            received = x if seen == "steps" else neuron.total(x) if seen == "sum" else _NOTHING
            out = run.spiking_neuron(node, x, constant=not drive.dynamic, inplace=inplace)
        if run.observer is not None:
            run.observer(LayerRecord(node.name, neuron, received, out, not drive.dynamic, False, seen == "sum"))
        return Value(out, True)

    def operator(self, node: Node, args: list[Value]) -> Value:
        """Every step, or the mean over time after the last neuron."""
        if node.name in self.means:
            args = [Value(self.run.mean(arg)) if arg.dynamic else arg for arg in args]
        return self.run.timed_operator(node, args, self._may_be_summed_into)


def wide(x: Tensor) -> Tensor:
    """The tensor in float32 at least, for sums over time."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _alike(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype
