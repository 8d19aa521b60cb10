"""Run a graph: one static pass for the analog and quantized readings, a time-batched pass for spikes.

A value is static (B, ...) as long as no spike has touched it, and time-batched (T*B, ...) time-major after the first
neuron. What comes after the last neuron is affine, so it runs once on the mean over time unless every step is wanted.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor

from speedysnn.eventwise import Eventwise
from speedysnn.graph import Graph, Node
from speedysnn.neurons import IFNeuron, Reading
from speedysnn.operators import OPERATORS, Operator
from speedysnn.tap import Observer, Tap, seen_by
from speedysnn.wiring import Wires

_UNSAVED = frozenset({"conv1d", "conv2d", "conv3d", "linear"})  # whose gradients do not read what they gave
_NOTHING = torch.empty(0)  # what an observer of no drive is handed


@dataclass(frozen=True)
class Value:
    """A tensor and whether it has a time axis folded into its first dimension."""

    tensor: Tensor
    dynamic: bool = False


class Execution:
    """One pass over a graph; made for each call, so that nothing of a run stays behind."""

    def __init__(
        self,
        graph: Graph,
        neurons: Mapping[str, IFNeuron],
        tensors: Callable[[str], Mapping[str, Tensor]],
        timesteps: int,
        observer: Observer | None = None,
        drives: Mapping[str, Tensor] | None = None,
        eventwise: Eventwise | None = None,
        wires: Wires | None = None,
    ) -> None:
        self.graph, self.neurons, self.tensors = graph, neurons, tensors
        self.timesteps, self.observer = timesteps, observer
        self.drives = drives
        self.eventwise = eventwise
        self.wires = wires or Wires.of(graph)
        self._spent: frozenset[str] = frozenset()
        self._summed: frozenset[str] = frozenset()

    def static(self, inputs: Sequence[Tensor], reading: Reading) -> dict[str, Tensor]:
        """Every neuron read as its activation or its quantizer; returns the outputs' values, (B, ...)."""
        values: dict[str, Tensor] = {}
        feed, release = iter(inputs), self.wires.last_uses
        for position, node in enumerate(self.graph.nodes):
            args = [values[name] for name in node.inputs]
            if node.op == "input":
                values[node.name] = next(feed)
            elif node.op == "neuron":
                neuron = self.neurons[node.name]
                out = neuron.analog(args[0]) if reading == "analog" else self.quantized_neuron(node, args[0])
                values[node.name] = out
                self._observe(Tap(node.name, neuron, args[0], out, True, True))
            else:
                sparse = reading == "quantized"  # a neuron that does not fire is a zero there too
                values[node.name] = self._affine(OPERATORS[node.op], node, args, self.tensors(node.name), sparse)
            for name in release.get(position, ()):
                del values[name]
        return values

    def quantized_neuron(self, node: Node, drive: Tensor) -> Tensor:
        """A layer's answer in the quantized reading, (B, ...)."""
        return self.neurons[node.name].quantized(drive)

    def spiking(self, inputs: Sequence[Value], per_step: bool) -> dict[str, Value]:
        """Spikes through time; returns the outputs' values, static ones being means over time."""
        means = frozenset() if per_step else self.wires.readout_nodes
        kept, free = torch.is_grad_enabled() or seen_by(self.observer) == "steps", self.wires.spent
        self._spent = frozenset() if kept else free
        self._summed = frozenset(n.name for n in self.graph.nodes if n.op in _UNSAVED) & free if kept else free
        values: dict[str, Value] = {}
        feed, release = iter(inputs), self.wires.last_uses
        for position, node in enumerate(self.graph.nodes):
            if node.op == "input":
                values[node.name] = next(feed)
            else:
                args = [values[name] for name in node.inputs]
                if node.name in means:
                    args = [Value(self.mean(arg)) for arg in args]
                values[node.name] = self._node(node, args)
            for name in release.get(position, ()):
                del values[name]
        return values

    def _node(self, node: Node, args: list[Value]) -> Value:
        if node.op == "neuron":
            neuron, drive = self.neurons[node.name], args[0]
            over = drive.dynamic and node.inputs[0] in self._spent
            if self.drives is not None:  # the whole input is known: its mean paces the spikes
                drive, over = Value(self.drives[node.name]), False
            seen = seen_by(self.observer) if drive.dynamic else "steps"  # before the spikes are written over it
            if seen == "total" and over:
                out, received = neuron.spiking_and_total(drive.tensor)
            else:
                received = self._received(neuron, drive.tensor, seen)
                out = neuron.spiking(drive.tensor, constant=not drive.dynamic, over=over)
            self._observe(Tap(node.name, neuron, received, out, not drive.dynamic, False, seen == "total"))
            return Value(out, True)
        operator, tensors = OPERATORS[node.op], self.tensors(node.name)
        dynamic = any(arg.dynamic for arg in args)
        if not dynamic or operator.behaviour == "affine":
            aligned = [self.repeat(arg) if dynamic else arg.tensor for arg in args]
            if node.op == "add" and args[0].dynamic and node.inputs[0] in self._summed and _alike(*aligned):
                return Value(aligned[0].add_(aligned[1]), True)
            return Value(self._affine(operator, node, aligned, tensors, dynamic), dynamic)
        return Value(self._rate(operator, node, args, tensors), True)

    @staticmethod
    def _received(neuron: IFNeuron, drive: Tensor, seen: str) -> Tensor:
        return drive if seen == "steps" else neuron.total(drive) if seen == "total" else _NOTHING

    def _affine(
        self, operator: Operator, node: Node, args: Sequence[Tensor], tensors: Mapping[str, Tensor], sparse: bool
    ) -> Tensor:
        if node.op == "conv2d" and sparse and self.eventwise is not None:
            out = self.eventwise.conv2d(node.name, args[0], node.attrs, tensors)
            if out is not None:
                return out
        return operator.run(args, node.attrs, tensors)

    def _rate(self, operator: Operator, node: Node, args: list[Value], tensors: Mapping[str, Tensor]) -> Tensor:
        """y[t] = t g(mean to t) - (t-1) g(mean to t-1); in whole spikes where the input is a neuron's own output.

        Totals are kept in float32 at least: beyond 256 steps bfloat16 holds not even their spikes.
        """
        unit = self._unit(node, args[0].tensor.ndim)
        inputs = [self.repeat(arg) for arg in args]
        totals = [self._split(self._whole(x, unit)).cumsum(0) for x in inputs]
        if not operator.homogeneous:
            totals = [self._per_step(total).to(x.dtype) for total, x in zip(totals, inputs, strict=True)]
        reached = self._split(operator.run([x.flatten(0, 1) for x in totals], node.attrs, tensors))
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
        """Theta of the neuron that a pooling node reads directly, detached; None if it reads anything else."""
        neuron = self.neurons.get(node.inputs[0])
        if neuron is None or torch.is_grad_enabled() or "max_pool" not in node.op:
            return None
        if neuron.granularity == "channel" and neuron.channel_dim != 1:  # the window spans several thetas
            return None
        return neuron.per_channel(neuron.threshold, ndim)

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

    def _observe(self, tap: Tap) -> None:
        if self.observer is not None:
            self.observer(tap)


def wide(x: Tensor) -> Tensor:
    """The tensor in float32 at least, for sums over time."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _alike(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype
