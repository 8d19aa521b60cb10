"""Thresholds folded into weights: the graph as layers between neurons of threshold one that emit 0 or 1."""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from speedysnn.errors import ConversionError
from speedysnn.export.nir_layers import CONVOLUTIONS, convolution, dense, merged, pick, placing, pooling
from speedysnn.graph.ir import Node
from speedysnn.graph.operators import OPERATORS
from speedysnn.network import SpikingNetwork
from speedysnn.spike_trains import plain as plain

WEIGHTED = (*CONVOLUTIONS, "linear")
ELEMENTWISE = ("batch_norm", "affine", "scale")
PLACED = ("slice", "pad")
DENSE = 4096  # features that a factor a feature is written for as a matrix, which every reader has


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
        last = self.scaled(self._signals[snn.graph.output_names[0]], torch.ones((), dtype=torch.float64))
        if len(last.sources) > 1:  # readers add up what layers read, not what the output does
            last = self.mix("output_sum", last, torch.eye(last.shape[0], dtype=torch.float64))
        self.add("output", "output", last, {}, last.shape)

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
        self.layers[name] = Layer(kind, merged(signal.shape), constants)
        self.edges += [(source, name) for source in signal.sources]
        return Signal((name,), torch.ones((), dtype=torch.float64), shape)

    def scaled(self, signal: Signal, unit: Tensor) -> Signal:
        """Express a value as `unit` times what its sources emit; where it is not yet, a layer that does so is added."""
        ratio = signal.scale / unit
        if bool((ratio == 1).all()):
            return Signal(signal.sources, unit, signal.shape)
        name = "_and_".join(signal.sources) + "_scale"
        if not _by_channel(ratio, signal.shape) or merged(signal.shape)[0] > DENSE:
            factors = {"scale": ratio.expand(signal.shape).reshape(merged(signal.shape)).float()}
            return Signal(self.add(name, "scale", signal, factors, signal.shape).sources, unit, signal.shape)
        return Signal(self.mix(name, signal, torch.diag(_channels(ratio, signal.shape))).sources, unit, signal.shape)

    def mix(self, name: str, signal: Signal, matrix: Tensor, bias: Tensor | None = None) -> Signal:
        """Append a layer that multiplies what the sources emit by a matrix (channels out, channels in), place by place.

        Every reader has a matrix or a convolution of kernel 1; few have a factor a channel.
        """
        shape = (len(matrix), *signal.shape[1:])
        bias = matrix.new_zeros(len(matrix)) if bias is None else bias
        if len(shape) == 4:
            matrix, bias = torch.kron(matrix, torch.eye(shape[1]).to(matrix)), bias.repeat_interleave(shape[1])
        constants: dict[str, Any] = {"weight": matrix.float(), "bias": bias.float()}
        if len(shape) == 1:
            return self.add(name, "linear", signal, constants, shape)
        dims = min(len(shape) - 1, 2)
        constants |= {"stride": (1,) * dims, "padding": (0,) * dims, "dilation": (1,) * dims}
        constants["weight"] = constants["weight"].view(*matrix.shape, *(1,) * dims)
        return self.add(name, f"conv{dims}d", signal, constants, shape)

    def _fold(self, node: Node) -> Signal:
        name, one = self._names[node.name], torch.ones((), dtype=torch.float64)
        if node.op == "input":
            return self._input(name, self.snn.input_shapes[0])
        inputs = [self._signals[each] for each in node.inputs]
        if node.op == "neuron":
            return self._neuron(node, inputs[0])
        if node.op == "add":
            return self._sum(inputs, self._units.get(node.name, one))
        if node.op == "cat":
            return self._cat(node, inputs)
        if node.op == "identity":
            return inputs[0]
        shape = self._shape(node, inputs[0].shape)
        if node.op in WEIGHTED:
            return self._weights(node, inputs[0], shape)
        if node.op in ELEMENTWISE:
            return self._elementwise(node, inputs[0])
        if node.op in PLACED:
            return self._placed(node, inputs[0], shape)
        if node.op in ("flatten", "reshape"):
            return self._flat(self._names[node.name], inputs[0])
        pooled = self._pool(node, inputs[0], shape)
        return pooled if len(pooled.shape) == len(shape) else self._flat(self._names[node.name] + "_flat", pooled)

    def _input(self, name: str, shape: tuple[int, ...]) -> Signal:
        """The input as it is given; depth goes into the channels, as NIR's layers are 2-d."""
        self.layers[name] = Layer("input", shape)
        given = Signal((name,), torch.ones((), dtype=torch.float64), shape)
        if len(shape) < 4:
            return given
        self.layers[name + "_depth"] = Layer("flatten", shape, {"end": -3})
        self.edges.append((name, name + "_depth"))
        return Signal((name + "_depth",), given.scale, shape)

    def _neuron(self, node: Node, signal: Signal) -> Signal:
        neuron, shape = self.snn.neurons[node.name], signal.shape
        start: Tensor = neuron.v_init.detach().cpu()
        if start.ndim and start.numel() > 1 and (len(shape) == 4 or neuron.channel_dim != 1):
            start = neuron.per_channel(start, len(shape) + 1)[0].expand(shape).reshape(merged(shape))
        drive = self._with_current(node, self.scaled(signal, self._per_channel(node, "threshold")))
        fired = self.add(self._names[node.name], "neuron", drive, {"v_init": start}, shape)
        return Signal(fired.sources, self._per_channel(node, "amplitude"), shape)

    def _sum(self, inputs: list[Signal], unit: Tensor) -> Signal:
        first, second = (self.scaled(each, unit) for each in inputs)
        if set(first.sources) & set(second.sources):
            copy = "_and_".join(second.sources) + "_again"
            one = torch.eye(second.shape[0], dtype=torch.float64)
            second = Signal(self.mix(copy, second, one).sources, unit, second.shape)
        return Signal(first.sources + second.sources, unit, first.shape)

    def _cat(self, node: Node, inputs: list[Signal]) -> Signal:
        """Each part into its place among all channels, with zeros elsewhere: their sum is the concatenation."""
        total, first, sources = sum(each.shape[0] for each in inputs), 0, list[str]()
        for i, each in enumerate(inputs):
            signal = each if _by_channel(each.scale, each.shape) else self.scaled(each, each.scale.new_ones(()))
            place = pick(each.shape[0], total, first, each.scale) * _channels(signal.scale, each.shape)
            sources += self.mix(f"{self._names[node.name]}_{i}", signal, place).sources
            first += each.shape[0]
        return Signal(tuple(sources), torch.ones((), dtype=torch.float64), (total, *inputs[0].shape[1:]))

    def _shape(self, node: Node, shape: tuple[int, ...]) -> tuple[int, ...]:
        with torch.no_grad():
            tensors = {key: value.detach().cpu() for key, value in self.snn.tensors(node.name).items()}
            return tuple(OPERATORS[node.op].run([torch.zeros(1, *shape)], node.attrs, tensors).shape[1:])

    def _weights(self, node: Node, signal: Signal, shape: tuple[int, ...]) -> Signal:
        own = {key: value.detach().double().cpu() for key, value in self.snn.tensors(node.name).items()}
        weight, unit = own["weight"], self._units.get(node.name, torch.ones((), dtype=torch.float64))
        bias = own.get("bias", weight.new_zeros(weight.shape[0])) + self._offset(node)
        if node.op != "linear":
            weight = dense(weight, node.attrs["groups"])
        rows, tail = _channels(unit, shape), (1,) * (weight.ndim - 2)
        weight = weight * _channels(signal.scale, signal.shape).view(1, -1, *tail) / rows.view(-1, 1, *tail)
        constants: dict[str, Any] = {"weight": weight}
        if node.op != "linear":
            constants = convolution(weight, node.attrs, signal.shape)
        bias = (bias / rows).repeat_interleave(len(constants["weight"]) // len(bias))
        constants |= {"weight": constants["weight"].float(), "bias": bias.float()}
        kind = "linear" if node.op == "linear" else f"conv{min(CONVOLUTIONS[node.op], 2)}d"
        out = self.add(self._names[node.name], kind, signal, constants, shape)
        return Signal(out.sources, unit, shape)

    def _placed(self, node: Node, signal: Signal, shape: tuple[int, ...]) -> Signal:
        """A slice or a padding with zeros: what it keeps, put where it goes."""
        if not _by_channel(signal.scale, signal.shape):
            signal = self.scaled(signal, signal.scale.new_ones(()))
        place, name, places = placing(node, signal.shape), self._names[node.name], len(shape) - 1
        matrix = place.matrix * _channels(signal.scale, signal.shape)
        if not places:
            return self.mix(name, signal, matrix)
        window = {"stride": place.stride, "padding": place.padding, "dilation": (1,) * places}
        constants = convolution(matrix.view(*matrix.shape, *(1,) * places), window, signal.shape)
        weight = constants["weight"].float()
        constants |= {"weight": weight, "bias": weight.new_zeros(len(weight))}
        return self.add(name, f"conv{min(places, 2)}d", signal, constants, shape)

    def _elementwise(self, node: Node, signal: Signal) -> Signal:
        """A factor and a term a channel: what the operator makes of 0 is the term, of 1 the sum of both."""
        tensors = {key: value.detach().double().cpu() for key, value in self.snn.tensors(node.name).items()}
        zeros = torch.zeros(1, *signal.shape, dtype=torch.float64)
        term, both = (OPERATORS[node.op].run([zeros + each], node.attrs, tensors)[0] for each in (0, 1))
        if not (_by_channel(term, signal.shape) and _by_channel(both, signal.shape)):
            raise ConversionError(f"NIR: {node.name!r} has factors of its own for every place; expected one a channel")
        gain = _channels((both - term) * signal.scale, signal.shape)
        return self.mix(self._names[node.name], signal, torch.diag(gain), _channels(term, signal.shape))

    def _offset(self, node: Node) -> Tensor:
        """The correction's constant current of the neuron behind this layer, 0 where it carries none."""
        for name, carrier in self._currents.items():
            offset = self.snn.neurons[name].offset
            if carrier == node.name and offset is not None:
                return offset.detach().double().cpu()
        return torch.zeros((), dtype=torch.float64)

    def _with_current(self, node: Node, drive: Signal) -> Signal:
        """Append a layer that passes the drive on with a bias, where no weight layer before the neuron can take it."""
        neuron = self.snn.neurons[node.name]
        if neuron.offset is None or self._currents[node.name] is not None:
            return drive
        bias = (neuron.offset.detach().double().cpu() / neuron.threshold.detach().double().cpu()).expand(drive.shape[0])
        one = torch.eye(drive.shape[0], dtype=torch.float64)
        return Signal(self.mix(f"{self._names[node.name]}_current", drive, one, bias).sources, drive.scale, drive.shape)

    def _flat(self, name: str, signal: Signal) -> Signal:
        if len(signal.shape) == 1:
            return signal
        out = self.add(name, "flatten", signal, {"end": -1}, (math.prod(signal.shape),))
        scale = signal.scale.expand(signal.shape).reshape(out.shape) if signal.scale.ndim else signal.scale
        return Signal(out.sources, scale, out.shape)

    def _pool(self, node: Node, signal: Signal, shape: tuple[int, ...]) -> Signal:
        """Pooling by sums, whose divisor goes into the scale: more readers know sums than means."""
        window, name = pooling(node, signal.shape, shape), self._names[node.name]
        places = shape[1:] if len(shape) == len(signal.shape) else (1,) * (len(signal.shape) - 1)
        shape, scale = (signal.shape[0], *places), signal.scale / math.prod(window["kernel"])
        if len(places) == 2 and not any(window["padding"]):
            return Signal(self.add(name, "sum_pool2d", signal, window, shape).sources, scale, shape)
        each = torch.eye(signal.shape[0]).view(signal.shape[0], -1, *(1,) * len(places))
        each = each.expand(-1, -1, *window["kernel"])
        given = {**window, "dilation": (1,) * len(places)}
        constants = convolution(each, given, signal.shape)
        constants["bias"] = each.new_zeros(len(constants["weight"]))
        out = self.add(name, f"conv{min(len(places), 2)}d", signal, constants, shape)
        return Signal(out.sources, scale, shape)


def _by_channel(value: Tensor, shape: tuple[int, ...]) -> bool:
    """Whether a value that broadcasts against (C, ...) is one a channel."""
    full = value.expand(shape).reshape(shape[0], -1)
    return bool((full == full[:, :1]).all())


def _channels(value: Tensor, shape: tuple[int, ...]) -> Tensor:
    """What `_by_channel` holds for, as (C,)."""
    return value.expand(shape).reshape(shape[0], -1)[:, 0]


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
