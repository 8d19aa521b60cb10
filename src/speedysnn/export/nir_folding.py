"""Thresholds folded into weights: the graph as layers between neurons of threshold one that emit 0 or 1."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from speedysnn.errors import ConversionError
from speedysnn.graph.ir import Node
from speedysnn.graph.operators import OPERATORS
from speedysnn.network import SpikingNetwork

WEIGHTED = ("conv2d", "linear")


@dataclass(frozen=True)
class Signal:
    """A value: the sum of what `sources` emit, times `scale`; `shape` and `scale` have no batch dimension."""

    sources: tuple[str, ...]
    scale: Tensor
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Layer:
    """One folded layer: its kind, the shape it reads, and its constants."""

    kind: str
    shape: tuple[int, ...]
    constants: Mapping[str, Any] = field(default_factory=dict)


class Folded:
    """The network's layers by name and their edges; several edges into one layer add.

    A neuron's amplitude leaves through the weights after it (columns times it), its drive arrives in units of theta
    (rows and bias over theta); where no weight layer stands between, a layer "scale" does it. Folded in float64.
    """

    def __init__(self, snn: SpikingNetwork) -> None:
        self.snn = snn
        self.layers: dict[str, Layer] = {}
        self.edges: list[tuple[str, str]] = []
        self._signals: dict[str, Signal] = {}
        self._names = {node.name: plain(node.name) for node in snn.graph.nodes}
        self._uses = Counter([name for node in snn.graph.nodes for name in node.inputs] + [*snn.graph.output_names])
        self._units = self._wanted()
        self._currents = currents(snn)
        for node in snn.graph.nodes:
            self._signals[node.name] = self._fold(node)
        last = self._signals[snn.graph.output_names[0]]
        self.add("output", "output", self.scaled(last, torch.ones((), dtype=torch.float64)), {}, last.shape)

    def _wanted(self) -> dict[str, Tensor]:
        """The best unit of the output of each weight layer and sum: theta of the neuron that alone reads it."""
        units: dict[str, Tensor] = {}
        for node in reversed(self.snn.graph.nodes):
            unit = self._per_channel(node, "threshold") if node.op == "neuron" else units.get(node.name)
            if unit is not None and node.op in ("neuron", "add", "identity"):
                units.update({name: unit for name in node.inputs if self._uses[name] == 1})
        return units

    def _per_channel(self, node: Node, name: str) -> Tensor:
        """A neuron's "threshold" or "amplitude", shaped to broadcast against its values without the batch dimension."""
        neuron, ndim = self.snn.neurons[node.name], len(node.attrs["shape"]) + 1
        value: Tensor = getattr(neuron, name).detach().double().cpu()
        return neuron.per_channel(value, ndim)[0] if value.ndim else value

    def add(self, name: str, kind: str, signal: Signal, constants: Mapping[str, Any], shape: tuple[int, ...]) -> Signal:
        """Append a layer that reads `signal`; returns its output, whose scale is one."""
        while name in self.layers:
            name += "_"
        self.layers[name] = Layer(kind, signal.shape, constants)
        self.edges += [(source, name) for source in signal.sources]
        return Signal((name,), torch.ones((), dtype=torch.float64), shape)

    def scaled(self, signal: Signal, unit: Tensor) -> Signal:
        """Express a value as `unit` times what its sources emit; where it is not yet, a layer "scale" is added."""
        ratio = signal.scale / unit
        if bool((ratio == 1).all()):
            return Signal(signal.sources, unit, signal.shape)
        name = "_and_".join(signal.sources) + "_scale"
        factors = {"scale": ratio.expand(signal.shape).float()}
        return Signal(self.add(name, "scale", signal, factors, signal.shape).sources, unit, signal.shape)

    def _fold(self, node: Node) -> Signal:
        name, one = self._names[node.name], torch.ones((), dtype=torch.float64)
        if node.op == "input":
            self.layers[name] = Layer("input", self.snn.input_shapes[0])
            return Signal((name,), one, self.snn.input_shapes[0])
        inputs = [self._signals[each] for each in node.inputs]
        if node.op == "neuron":
            v_init = self.snn.neurons[node.name].v_init.detach().cpu()
            drive = self._with_current(node, self.scaled(inputs[0], self._per_channel(node, "threshold")))
            fired = self.add(name, "neuron", drive, {"v_init": v_init}, drive.shape)
            return Signal(fired.sources, self._per_channel(node, "amplitude"), drive.shape)
        if node.op == "add":
            return self._sum(inputs, self._units.get(node.name, one))
        if node.op == "identity":
            return inputs[0]
        shape = self._shape(node, inputs[0].shape)
        if node.op in WEIGHTED:
            return self._weights(node, inputs[0], shape)
        return self._pass(node, inputs[0], shape)

    def _sum(self, inputs: list[Signal], unit: Tensor) -> Signal:
        first, second = (self.scaled(each, unit) for each in inputs)
        if set(first.sources) & set(second.sources):
            twice = {"scale": torch.ones(second.shape)}
            copy = self.add("_and_".join(second.sources) + "_again", "scale", second, twice, second.shape)
            second = Signal(copy.sources, unit, second.shape)
        return Signal(first.sources + second.sources, unit, first.shape)

    def _shape(self, node: Node, shape: tuple[int, ...]) -> tuple[int, ...]:
        with torch.no_grad():
            tensors = {key: value.detach().cpu() for key, value in self.snn.tensors(node.name).items()}
            return tuple(OPERATORS[node.op].run([torch.zeros(1, *shape)], node.attrs, tensors).shape[1:])

    def _weights(self, node: Node, signal: Signal, shape: tuple[int, ...]) -> Signal:
        own = {key: value.detach().double().cpu() for key, value in self.snn.tensors(node.name).items()}
        weight, unit = own["weight"], self._units.get(node.name, torch.ones((), dtype=torch.float64))
        bias = own.get("bias", weight.new_zeros(weight.shape[0])) + self._offset(node)
        constants = dict(node.attrs)
        columns = signal.scale.expand(signal.shape[0], *signal.scale.shape[1:]).reshape(-1)
        if node.op == "conv2d":
            weight, constants["groups"] = dense(weight, node.attrs["groups"]), 1
        rows = unit.expand(shape[0], *unit.shape[1:]).reshape(-1)
        tail = (1,) * (weight.ndim - 2)
        weight = weight * columns.view(1, -1, *tail) / rows.view(-1, 1, *tail)
        constants |= {"weight": weight.float(), "bias": (bias / rows).float()}
        out = self.add(self._names[node.name], node.op, signal, constants, shape)
        return Signal(out.sources, unit, shape)

    def _offset(self, node: Node) -> Tensor:
        """The correction's constant current of the neuron behind this layer, 0 where it carries none."""
        for name, carrier in self._currents.items():
            offset = self.snn.neurons[name].offset
            if carrier == node.name and offset is not None:
                return offset.detach().double().cpu()
        return torch.zeros((), dtype=torch.float64)

    def _with_current(self, node: Node, drive: Signal) -> Signal:
        """Append a layer that passes the drive on, one to one, with a bias, where no weight layer before can take it.

        It is a convolution of one pixel for images and a linear layer for features; the drive comes in units of theta.
        """
        offset = self.snn.neurons[node.name].offset
        if offset is None or self._currents[node.name] is not None:
            return drive
        count, channels = drive.shape[0], torch.eye(drive.shape[0])
        bias = (offset.detach().double().cpu() / self.snn.neurons[node.name].threshold.detach().double().cpu()).float()
        constants: dict[str, Any] = {"weight": channels, "bias": bias.expand(count).contiguous()}
        if len(drive.shape) == 3:
            place = {"stride": 1, "padding": 0, "dilation": 1, "groups": 1}
            constants |= {"weight": channels.view(count, count, 1, 1), **place}
        kind = "conv2d" if len(drive.shape) == 3 else "linear"
        out = self.add(f"{self._names[node.name]}_current", kind, drive, constants, drive.shape)
        return Signal(out.sources, drive.scale, drive.shape)

    def _pass(self, node: Node, signal: Signal, shape: tuple[int, ...]) -> Signal:
        """Append pooling, which keeps the scale of each channel, or flattening, which repeats it for every pixel."""
        if node.op in ("flatten", "reshape"):
            out = self.add(self._names[node.name], "flatten", signal, {}, shape)
            scale = signal.scale.expand(signal.shape).reshape(shape) if signal.scale.ndim else signal.scale
            return Signal(out.sources, scale, shape)
        window = pooling(node, signal.shape, shape)
        out = self.add(self._names[node.name], "avg_pool2d", signal, window, shape)
        return Signal(out.sources, signal.scale, shape)


def currents(snn: SpikingNetwork) -> dict[str, str | None]:
    """Find the weight layer whose bias can take a neuron's constant current.

    It stands before the neuron, or before sums that lead to this neuron alone.

    Args:
        snn: the network.

    Returns:
        Name of each neuron layer with an offset -> name of a weight layer, None where there is none.
    """
    by_name = {node.name: node for node in snn.graph.nodes}
    uses = Counter([name for node in snn.graph.nodes for name in node.inputs] + [*snn.graph.output_names])
    return {node.name: _carrier(snn, node, by_name, uses) for node in snn.graph.neurons
            if snn.neurons[node.name].offset is not None}  # fmt: skip


def _carrier(snn: SpikingNetwork, neuron: Node, by_name: Mapping[str, Node], uses: Mapping[str, int]) -> str | None:
    waiting, offset = [neuron.inputs[0]], snn.neurons[neuron.name].offset
    while waiting:
        node = by_name[waiting.pop()]
        if uses[node.name] == 1 and node.op in ("add", "identity"):
            waiting.extend(node.inputs)
        elif uses[node.name] == 1 and _takes(snn, node, offset):
            return node.name
    return None


def _takes(snn: SpikingNetwork, node: Node, offset: Tensor | None) -> bool:
    """Whether a weight layer has one row for each value of the current."""
    return node.op in WEIGHTED and offset is not None and offset.numel() in (1, len(snn.tensors(node.name)["weight"]))


def pooling(node: Node, shape: tuple[int, ...], out: tuple[int, ...]) -> dict[str, Any]:
    """Kernel, stride and padding of an average pooling, (height, width) each.

    Raises:
        ConversionError: windows of unequal size.
    """
    if node.op == "avg_pool2d":
        stride = node.attrs["kernel"] if node.attrs["stride"] is None else node.attrs["stride"]
        return {"kernel": pair(node.attrs["kernel"]), "stride": pair(stride), "padding": pair(node.attrs["padding"])}
    if shape[1] % out[1] or shape[2] % out[2]:
        raise ConversionError(
            f"NIR: {node.name!r} pools {shape[1:]} to {out[1:]} with windows of unequal size; expected a divisor"
        )
    kernel = (shape[1] // out[1], shape[2] // out[2])
    return {"kernel": kernel, "stride": kernel, "padding": (0, 0)}


def pair(value: Any) -> tuple[int, int]:
    """One number or two as (height, width)."""
    return (int(value), int(value)) if isinstance(value, int) else (int(value[0]), int(value[1]))


def dense(weight: Tensor, groups: int) -> Tensor:
    """A grouped convolution's weight (O, I/groups, h, w) as (O, I, h, w) with zeros between the groups."""
    if groups == 1:
        return weight
    each, width = weight.shape[0] // groups, weight.shape[1]
    out = weight.new_zeros(weight.shape[0], width * groups, *weight.shape[2:])
    for g in range(groups):
        out[g * each : (g + 1) * each, g * width : (g + 1) * width] = weight[g * each : (g + 1) * each]
    return out


def plain(name: str) -> str:
    """A node name without dots and slashes, which readers of NIR forbid."""
    return name.replace(".", "_").replace("/", "_")
