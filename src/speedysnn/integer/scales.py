"""Scales and rounding: what an integer stands for, one a channel, and which whole number each weight becomes.

A scale is shared by all layers whose outputs meet in one sum. A neuron is homogeneous: weights, bias, threshold and
start of a channel times one factor change no spike. So the threshold of a channel is an integer TH, one of the drive
stands for theta/TH, and a weight W that meets spikes of amplitude A is round(W A TH / (2^f theta)): only this rounding
costs accuracy. TH is the largest one with which no weight is clipped, or a larger one where that leaves a smaller
squared error.

Rounding by reconstruction takes, of the whole numbers beside each weight, those that keep the layer's drive on images.
With X the inputs that a layer sees on calibration images and H = X X^T, weights are rounded one after the other, and
what one gets wrong is given to those that are still to be rounded, so that |(W - W_int) X| stays small.

Reference: frantar2023
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from speedysnn.graph.ir import Graph, Node
from speedysnn.graph.operators import OPERATORS
from speedysnn.integer.program import Conv, Floats, Linear, Operation, Program, Timing
from speedysnn.integer.signals import SAME, Signal, along, node_shapes, placed
from speedysnn.integer.simulate import run
from speedysnn.network import SpikingNetwork
from speedysnn.torch_utils import windows

SUMS = ("add", "sub")
FINE = 64  # a threshold in integers below which a start of half of it, and a bias, round too coarsely
FINER = 256  # the same where states have room for it
FINEST = 2**14  # a threshold above which weights of 8 bits or fewer no longer gain, for inputs of size one
MOST_SHIFT = 14
DAMPING = 0.01  # of the mean of H's diagonal, added to it
_WIDER = tuple(1 + 0.05 * step for step in range(21))  # thresholds tried, in units of the one that clips no weight


@dataclass(frozen=True)
class Options:
    """What `to_integer` was asked for.

    Attributes:
        weight_bits: of a weight, sign included.
        state_bits: of a state.
        granularity: one scale a "channel" or "layer".
        shifts: whether weights may have a common exponent.
        products: of `input_products`, for rounding by reconstruction; empty for the nearest whole numbers.
    """

    weight_bits: int
    state_bits: int
    granularity: str = "channel"
    shifts: bool = True
    products: Mapping[str, Floats] = field(default_factory=dict)

    @property
    def fine(self) -> int:
        """The threshold in integers that is wanted at least."""
        return FINER if self.state_bits > 16 else FINE

    @property
    def largest(self) -> int:
        """The largest weight."""
        return (1 << (self.weight_bits - 1)) - 1


@dataclass(frozen=True)
class Scale:
    """What 1 of a sum stands for (broadcasts against its shape), and the exponent of the weights that feed it."""

    unit: Floats
    shift: int


@dataclass(frozen=True)
class _Leaf:
    """Something that is added: its weights as they would reach the sum, (channels, weights of a channel)."""

    rows: Floats
    bias: Floats | None
    timing: Timing


def weighted(node: Node) -> bool:
    """Whether a node multiplies by trained weights."""
    return node.op in OPERATORS and OPERATORS[node.op].weighted


class Scales:
    """The scale of every sum of a network, found when it is first asked for.

    Args:
        snn: the network.
        options: of `to_integer`.
        predicted: the signal that a node will give, where it depends on no scale that is not known yet.
    """

    def __init__(self, snn: SpikingNetwork, options: Options, predicted: Callable[[str], Signal]) -> None:
        self.snn, self.options, self.predicted = snn, options, predicted
        self.nodes = {node.name: node for node in snn.graph.nodes}
        self.clusters = _clusters(snn.graph)
        self.shapes = node_shapes(snn)
        self._known: dict[tuple[str, ...], Scale] = {}

    def of(self, name: str) -> Scale:
        """The scale of a weight layer's output, or of a sum."""
        members = self.clusters[name]
        if members not in self._known:
            self._known[members] = self._found(members)
        return self._known[members]

    def _found(self, members: tuple[str, ...]) -> Scale:
        shape = self.shapes[members[-1]]
        axes = {self.axis(self.nodes[name]) for name in members if weighted(self.nodes[name])}
        axis = axes.pop() if len(axes) == 1 else None if axes else 0
        theta = self._threshold(members, shape, axis)
        leaves = [leaf for name in members for leaf in self._leaves(name, members, axis)]
        per = np.ones(1 if axis is None else shape[axis]) if theta is None else theta
        unit, shift = self._chosen(leaves, per, theta is not None)
        return Scale(placed(unit, len(shape), 0 if axis is None else axis) if shape else unit.reshape(()), shift)

    def _apart(self, name: str, members: tuple[str, ...]) -> bool:
        return self._resolved(name) not in members

    def _resolved(self, name: str) -> str:
        while self.nodes[name].op == "identity":
            name = self.nodes[name].inputs[0]
        return name

    def axis(self, node: Node) -> int:
        """The axis of a weight layer's channels, in the shape without the batch."""
        return -1 if node.op == "linear" else 0

    def _threshold(self, members: tuple[str, ...], shape: tuple[int, ...], axis: int | None) -> Floats | None:
        """Theta of the neurons that read a member, one a channel; None where none does or it does not fit."""
        reached = set(members)
        for node in self.snn.graph.nodes:
            if not node.inputs or node.inputs[0] not in reached:
                continue
            if node.op == "identity" or "max_pool" in node.op:
                reached.add(node.name)
            if node.op == "neuron":
                theta = neuron_values(self.snn, node, "threshold", len(shape))
                if axis is None:
                    return theta.reshape(1) if theta.size == 1 else None
                if theta.ndim and theta.size not in (1, shape[axis]):
                    return None
                return along(theta, tuple(shape[i] if i == axis % len(shape) else 1 for i in range(len(shape))), axis)
        return None

    def _leaves(self, name: str, members: tuple[str, ...], axis: int | None) -> list[_Leaf]:
        node = self.nodes[name]
        if weighted(node):
            return [self._weights(node, axis)]
        apart = [self.predicted(each) for each in node.inputs if self._apart(each, members)]
        return [self._fixed(signal, axis) for signal in apart if signal.source is not None]

    def _weights(self, node: Node, axis: int | None) -> _Leaf:
        signal, own = self.predicted(node.inputs[0]), self.snn.tensors(node.name)
        rows = weight_rows(node, own["weight"].detach().double().cpu().numpy(), signal)
        bias = own.get("bias")
        known = None if bias is None or axis is None else np.abs(bias.detach().double().cpu().numpy())
        return _Leaf(rows.reshape(1, -1) if axis is None else rows, known, signal.timing)

    def _fixed(self, signal: Signal, axis: int | None) -> _Leaf:
        full = np.abs(signal.full_unit())
        rows = full.reshape(1, -1) if axis is None else np.moveaxis(full, axis, 0).reshape(full.shape[axis], -1)
        return _Leaf(rows.max(1, keepdims=True), None, signal.timing)

    def _chosen(self, leaves: list[_Leaf], theta: Floats, fires: bool) -> tuple[Floats, int]:
        """The unit of each channel, and the shift."""
        rows = np.concatenate([np.broadcast_to(leaf.rows, (len(theta), leaf.rows.shape[1])) for leaf in leaves], 1)
        rows = rows / theta[:, None]
        largest = np.abs(rows).max(1)
        if not fires:
            units = _least_error(rows, np.maximum(largest, 1e-30) / self.options.largest, self.options)
            return units * theta, 0
        cap = self._cap(leaves, theta)
        reach = (1 + SAME) * self.options.largest / np.maximum(largest, 1e-30)  # 64 is not to become 63.999...
        shift = 0
        if self.options.shifts:
            coarsest = min(float(reach.min()), float(cap.min()))
            fine = self.options.fine
            while shift < MOST_SHIFT and coarsest * 2**shift < fine <= float(cap.min()):
                shift += 1
        base = np.clip(np.floor(2.0**shift * reach), 1, cap)
        exact = 1 / _least_error(rows, 2.0**shift / base, self.options, shift)
        threshold = np.clip(np.floor(exact * 2.0**shift + 1e-9), 1, cap)
        return theta / threshold, shift

    def _cap(self, leaves: list[_Leaf], theta: Floats) -> Floats:
        """The largest threshold whose state, start and bias fit, and beyond which weights need not be finer."""
        bias = sum((leaf.bias for leaf in leaves if leaf.bias is not None), start=np.zeros(len(theta)))
        fits = np.floor((2.0 ** (self.options.state_bits - 1) - 1) / (2 * np.maximum(1.0, bias / theta)))
        constant = any(leaf.timing == "constant" for leaf in leaves)
        cap = np.maximum(fits if constant else np.minimum(fits, max(FINEST, 2 ** (self.options.weight_bits + 6))), 1.0)
        return cap if self.options.granularity == "channel" else np.full_like(cap, cap.min())


def weight_rows(node: Node, weight: Floats, signal: Signal) -> Floats:
    """Weights times the unit of what they meet, (out channels, weights of a channel)."""
    if node.op == "linear":
        unit = along(signal.unit, signal.shape, -1)
        return weight * (np.abs(signal.unit).max() if unit is None else unit)
    unit = along(signal.unit, signal.shape, 0)
    units = np.full(signal.shape[0], np.abs(signal.unit).max()) if unit is None else unit
    groups = int(node.attrs["groups"])
    if "transpose" in node.op:
        scaled = weight * units.reshape(-1, *[1] * (weight.ndim - 1))
        split = scaled.reshape(groups, -1, *weight.shape[1:])
        return np.moveaxis(split, 2, 1).reshape(groups * weight.shape[1], -1)
    columns = units.reshape(groups, 1, -1, *[1] * (weight.ndim - 2))
    return (weight.reshape(groups, -1, *weight.shape[1:]) * columns).reshape(len(weight), -1)


def neuron_values(snn: SpikingNetwork, node: Node, name: str, ndim: int) -> Floats:
    """A neuron's "threshold", "amplitude", "v_init" or "offset", so that it broadcasts against `ndim` axes."""
    neuron = snn.neurons[node.name]
    value = getattr(neuron, name)
    if value is None:
        return np.zeros((1,) * ndim)
    value = value.detach().double().cpu()
    return np.asarray((neuron.per_channel(value, ndim + 1)[0] if value.ndim else value.reshape((1,) * ndim)).numpy())


def _least_error(rows: Floats, units: Floats, options: Options, shift: int = 0) -> Floats:
    """The step of each channel's weights, `units` or a smaller one, with the least squared error of rows.

    With one scale a layer the largest step serves all channels.
    """
    if options.granularity == "layer":
        units = np.full_like(units, units.max())
    units = units.astype(np.float64)
    tried = []
    for wider in _WIDER if options.weight_bits < 8 else _WIDER[:1]:
        step = units / wider
        rounded = np.clip(np.round(rows / step[:, None]), -options.largest, options.largest) * step[:, None]
        tried.append(((rounded - rows) ** 2).sum(1))
    errors = np.stack(tried)
    if options.granularity == "layer":
        errors = np.broadcast_to(errors.sum(1, keepdims=True), errors.shape)
    wider = np.asarray(_WIDER, dtype=np.float64)[errors.argmin(0)]
    return np.asarray(units / wider)


def _clusters(graph: Graph) -> dict[str, tuple[str, ...]]:
    """Weight layers and sums by name -> all that share its scale, in execution order: what is added needs one."""
    nodes = {node.name: node for node in graph.nodes}
    parent: dict[str, str] = {node.name: node.name for node in graph.nodes if weighted(node) or node.op in SUMS}

    def root(name: str) -> str:
        while parent[name] != name:
            name = parent[name]
        return name

    for node in graph.nodes:
        for name in node.inputs if node.op in SUMS else ():
            while nodes[name].op == "identity":
                name = nodes[name].inputs[0]
            if name in parent:
                parent[root(name)] = root(node.name)
    groups: dict[str, list[str]] = {}
    for name in parent:
        groups.setdefault(root(name), []).append(name)
    return {name: tuple(members) for members in groups.values() for name in members}


def input_products(program: Program, images: Tensor) -> dict[str, Floats]:
    """H of every weight layer: the products of its inputs, summed over images, steps and places.

    Args:
        program: an integer network.
        images: as `simulate.run` takes them.

    Returns:
        Name of the layer -> (groups, weights of a channel, weights of a channel).
    """
    found: dict[str, Floats] = {}
    by_name = program.by_name
    readers: dict[str, list[Conv | Linear]] = {}
    for op in program.operations:
        if isinstance(op, Conv | Linear):
            readers.setdefault(op.sources[0], []).append(op)

    def see(op: Operation, value: Tensor) -> None:
        flat = value.flatten(0, 1) if by_name[op.name].timing == "steps" else value
        for layer in readers.get(op.name, ()):
            found[layer.name] = found.get(layer.name, 0.0) + _products(layer, flat.to(torch.float64))

    for part in images.split(50, int(program.input.timing == "steps")):  # type: ignore[no-untyped-call]
        run(program, part, None, see)
    return found


def _products(op: Conv | Linear, x: Tensor) -> Floats:
    rows = x.reshape(1, -1, x.shape[-1]) if isinstance(op, Linear) else _patches(op, x)
    return np.asarray((rows.transpose(1, 2) @ rows).numpy())


def _patches(op: Conv, x: Tensor) -> Tensor:
    """What each output place multiplies, (groups, places, weights of a channel)."""
    pads, taps = [], op.weight.shape[2:]
    for axis, (tap, step, apart) in enumerate(zip(taps, op.stride, op.dilation, strict=True)):
        reach = (op.shape[axis + 1] - 1) * step + apart * (tap - 1) + 1
        pads.append((op.padding[axis], reach - x.shape[axis + 2] - op.padding[axis]))
    seen = windows(x, taps, op.stride, op.dilation, pads)  # images, channels, *places, *taps
    flat = seen.flatten(2, 1 + len(taps)).flatten(3).transpose(1, 2)  # images, places, channels, taps
    grouped = flat.reshape(*flat.shape[:2], op.groups, -1)
    return grouped.flatten(0, 1).transpose(0, 1)


def reconstructed(weights: Floats, products: Mapping[str, Floats], name: str, largest: int) -> Floats:
    """Whole numbers for a layer's weights.

    Args:
        weights: in units of one integer, (out channels, ...).
        products: of `input_products`.
        name: the layer.
        largest: the largest whole number.

    Returns:
        Whole numbers in the same shape.
    """
    if name not in products:
        return np.clip(np.round(weights), -largest, largest)
    groups = products[name]
    rows = weights.reshape(len(groups), -1, groups.shape[1])
    out = [_one_after_another(w, h, largest) for w, h in zip(rows, groups, strict=True)]
    return np.stack(out).reshape(weights.shape)


def _one_after_another(weights: Floats, products: Floats, largest: int) -> Floats:
    """Columns are rounded in order, those of the largest inputs first; the rest takes up what each gets wrong."""
    order = np.argsort(-np.diag(products), kind="stable")
    h = products[np.ix_(order, order)].copy()
    h[np.diag_indices_from(h)] += DAMPING * max(float(np.diag(h).mean()), 1e-12)
    upper = np.linalg.cholesky(np.linalg.inv(h)).T
    left, out = weights[:, order].copy(), np.empty_like(weights)
    for i in range(left.shape[1]):
        rounded = np.clip(np.round(left[:, i]), -largest, largest)
        out[:, order[i]] = rounded
        left[:, i + 1 :] -= np.outer((left[:, i] - rounded) / upper[i, i], upper[i, i + 1 :])
    return out
