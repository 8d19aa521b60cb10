"""Scales: what an integer stands for, one a channel.

A scale is shared by all layers whose outputs meet in one sum. A neuron is homogeneous: weights, bias, threshold and
start of a channel times one factor change no spike. So the threshold of a channel is an integer TH, one of the drive
stands for theta/TH, and a weight W that meets spikes of amplitude A is round(W A TH / (2^f theta)): only this rounding
costs accuracy. TH is the largest one with which no weight is clipped, or a larger one where that leaves a smaller
squared error.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from speedysnn.graph.ir import Graph, Node
from speedysnn.graph.operators import OPERATORS
from speedysnn.integer.program import Floats, Timing
from speedysnn.integer.signals import SAME, Signal, along, neuron_values, node_shapes, placed, weight_rows
from speedysnn.network import SpikingNetwork

SUMS = ("add", "sub")
FINE = 64  # a threshold in integers below which a start of half of it, and a bias, round too coarsely
FINER = 256  # the same where states have room for it
FINEST = 2**14  # a threshold above which weights of 8 bits or fewer no longer gain, for inputs of size one
MOST_SHIFT = 14
_WIDER = tuple(1 + 0.05 * step for step in range(21))  # thresholds tried, in units of the one that clips no weight


@dataclass(frozen=True)
class Options:
    """What `to_integer` was asked for.

    Attributes:
        weight_bits: of a weight, sign included.
        state_bits: of a state.
        granularity: one scale a "channel" or "layer".
        shifts: whether weights may have a common exponent.
    """

    weight_bits: int
    state_bits: int
    granularity: str = "channel"
    shifts: bool = True

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
    fixed: bool = False


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
        if self.options.shifts and any(weighted(self.nodes[name]) for name in members):
            leaves = [leaf for leaf in leaves if not leaf.fixed]  # shortcuts' factors have bits of their own
        per = np.ones(1 if axis is None else shape[axis]) if theta is None else theta
        ahead = any(self.snn.neurons[node.name].lookahead for node in self._readers(members))
        summed = 2 * self.snn.timesteps if ahead else 1  # with look-ahead the state is the sum of all inputs
        unit, shift = self._chosen(leaves, per, 0 if theta is None else summed)
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
        node = next(self._readers(members), None)
        if node is None:
            return None
        theta = neuron_values(self.snn, node, "threshold", len(shape))
        if axis is None:
            return theta.reshape(1) if theta.size == 1 else None
        if theta.ndim and theta.size not in (1, shape[axis]):
            return None
        return along(theta, tuple(shape[i] if i == axis % len(shape) else 1 for i in range(len(shape))), axis)

    def _readers(self, members: tuple[str, ...]) -> Iterator[Node]:
        """The neuron layers that read a member."""
        reached = set(members)
        for node in self.snn.graph.nodes:
            if node.inputs and node.inputs[0] in reached:
                if node.op == "identity" or "max_pool" in node.op:
                    reached.add(node.name)
                if node.op == "neuron":
                    yield node

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
        return _Leaf(rows.max(1, keepdims=True), None, signal.timing, True)

    def _chosen(self, leaves: list[_Leaf], theta: Floats, summed: int) -> tuple[Floats, int]:
        """The unit of each channel, and the shift; a state holds so many thresholds, 0 where no neurons follow."""
        rows = np.concatenate([np.broadcast_to(leaf.rows, (len(theta), leaf.rows.shape[1])) for leaf in leaves], 1)
        rows = rows / theta[:, None]
        largest = np.abs(rows).max(1)
        if not summed:
            units = _least_error(rows, np.maximum(largest, 1e-30) / self.options.largest, self.options)
            return units * theta, 0
        cap = self._cap(leaves, theta, summed)
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

    def _cap(self, leaves: list[_Leaf], theta: Floats, summed: int) -> Floats:
        """The largest threshold whose state, start and bias fit, and beyond which weights need not be finer."""
        bias = sum((leaf.bias for leaf in leaves if leaf.bias is not None), start=np.zeros(len(theta)))
        top = (2.0 ** (self.options.state_bits - 1) - 1) / (2 * np.maximum(1.0, bias / theta))
        fits = np.maximum(np.floor(top / summed), np.minimum(np.floor(top), FINE))
        constant = any(leaf.timing == "constant" for leaf in leaves)
        cap = np.maximum(fits if constant else np.minimum(fits, max(FINEST, 2 ** (self.options.weight_bits + 6))), 1.0)
        return cap if self.options.granularity == "channel" else np.full_like(cap, cap.min())


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
