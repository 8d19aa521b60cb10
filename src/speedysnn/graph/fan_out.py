"""Exact fan-out: how many weights one event at each position meets, through pooling, shortcuts and reshaping.

With every weight one, every average a sum and every difference a sum, the network between the sources of events and a
layer is linear with whole coefficients. Its gradient is the number of connections from each position to that layer.
`Flow` says where events arise and how far they get, `connection_count` is an operator with every coefficient one, and
`FanOut` takes the gradients.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from speedysnn.graph.ir import Graph, Node
from speedysnn.graph.operators import OPERATORS

Kind = Literal["constant", "events", "analog"]
UNIT = ("batch_norm", "scale")
_MOVES = (
    "flatten", "reshape", "permute", "squeeze", "unsqueeze", "sum", "pad", "slice", "identity", "add", "cat", "stack",
    "pixel_shuffle", "pixel_unshuffle", "channel_shuffle", "expand", "repeat", "roll", "flip", "masked_fill", "take",
    "unfold",
)  # fmt: skip


def routes(node: Node) -> bool:
    """Whether every event that enters comes out as events, so that the next layer takes them one by one."""
    if node.op == "interpolate":
        return str(node.attrs["mode"]).startswith("nearest")
    return node.op in _MOVES or node.op in UNIT or node.op in ("affine", "sub", "mean") or "avg_pool" in node.op


def weighted(node: Node) -> bool:
    """Say whether a node is a convolution or a linear layer."""
    return node.op in OPERATORS and OPERATORS[node.op].weighted


@dataclass(frozen=True)
class Flow:
    """What every node's output is, known from the graph alone.

    Attributes:
        kinds: "constant" (no event lies upstream), "events" (from spikes, moved or added only), or "analog".
        sources: nodes where events arise: neurons, event inputs, and max-pooling of events.
        graded: sources whose events may carry a size, so that a weight is multiplied.
    """

    kinds: Mapping[str, Kind]
    sources: frozenset[str]
    graded: frozenset[str]

    @staticmethod
    def of(graph: Graph, event_inputs: Iterable[str], graded_neurons: Iterable[str]) -> "Flow":
        """Find the flow of events in a graph.

        Args:
            graph: the network.
            event_inputs: inputs that are events.
            graded_neurons: neuron layers whose spikes may carry a size.

        Returns:
            What every node's output is.
        """
        given, graded = frozenset(event_inputs), set(graded_neurons) | set(event_inputs)
        kinds: dict[str, Kind] = {}
        pure: set[str] = set()  # events without a constant added to them
        sources, sized = set(given), set(graded)
        for node in graph.nodes:
            kinds[node.name] = _kind(node, kinds, pure, given)
            if node.op == "neuron" or node.name in given or (node.inputs and all(i in pure for i in node.inputs)):
                pure.add(node.name)
            if node.op != "neuron" and (_sums(node) or any(name in sized for name in node.inputs)):
                sized.add(node.name)
            if kinds[node.name] == "events" and (node.op == "neuron" or "max_pool" in node.op):
                sources.add(node.name)
        return Flow(kinds, frozenset(sources), frozenset(sources & sized))

    def past_pools(self, graph: Graph) -> "Flow":
        """The same flow, in which max-pooling passes events on and is no source of its own.

        Args:
            graph: the network.

        Returns:
            A flow whose sources are neurons and event inputs. `FanOut` then lets one position of a window stand for all
            of it, so that as many connections leave a pooled layer as leave the pooling.
        """
        pools = {node.name for node in graph.nodes if "max_pool" in node.op}
        return replace(self, sources=self.sources - pools, graded=self.graded - pools)


def _sums(node: Node) -> bool:
    return node.op in ("add", "sub", "sum", "mean") or "avg_pool" in node.op


def _kind(node: Node, kinds: Mapping[str, Kind], pure: set[str], event_inputs: frozenset[str]) -> Kind:
    if node.op == "input":
        return "events" if node.name in event_inputs else "constant"
    if node.op == "neuron":
        return "events"
    before = [kinds[name] for name in node.inputs]
    if node.op == "constant" or all(kind == "constant" for kind in before):
        return "constant"
    if "analog" in before:
        return "analog"
    if "max_pool" in node.op:
        return "events" if all(name in pure for name in node.inputs) else "analog"
    return "events" if routes(node) else "analog"


def pool_graph(graph: Graph, flow: Flow) -> Graph:
    """Cut out the part between neurons or event inputs, which become inputs, and max-pooling of events."""
    ends = [node.name for node in graph.nodes if node.name in flow.sources and "max_pool" in node.op]
    wanted, nodes = set(ends), []
    for node in reversed(graph.nodes):
        if node.name in wanted:
            begins = node.op in ("neuron", "input")
            nodes.append(Node(node.name, "input") if begins else node)
            wanted.update(() if begins else node.inputs)
    return Graph(tuple(reversed(nodes)), ends)


def connection_count(node: Node, args: Sequence[Tensor], tensors: Mapping[str, Tensor]) -> Tensor:
    """Run an operator with every coefficient one, so that a gradient through it counts connections."""
    if "avg_pool" in node.op:
        return _sum_pool(node, args[0])
    if node.op in UNIT:
        return args[0]
    if node.op == "affine":
        return args[0] * torch.ones_like(tensors["weight"], device="cpu") if "weight" in tensors else args[0]
    if node.op == "sub":
        return args[0] + args[1]
    if node.op == "mean":
        return args[0].sum(node.attrs["dim"], node.attrs["keepdim"])
    return OPERATORS[node.op].run(args, node.attrs, {name: value.detach().cpu() for name, value in tensors.items()})


def _sum_pool(node: Node, x: Tensor) -> Tensor:
    """Sum over the windows of an average pooling, dimension by dimension."""
    sizes = OPERATORS[node.op].run([x.detach()], node.attrs, {}).shape
    dims = int(node.op.removesuffix("d")[-1])
    for place in range(dims):
        dim = x.ndim - dims + place
        x = (x.movedim(dim, -1) @ _windows(node, place, x.shape[dim], sizes[dim]).T).movedim(-1, dim)
    return x


def _windows(node: Node, place: int, size: int, windows: int) -> Tensor:
    """Make a matrix (windows, size) with 1 where a window covers a position."""
    out = torch.zeros(windows, size, dtype=torch.float64)
    for window in range(windows):
        if node.op.startswith("adaptive"):
            start, stop = window * size // windows, -(-(window + 1) * size // windows)
        else:
            kernel = _at(node.attrs["kernel"], place)
            stride = _at(node.attrs["stride"] or kernel, place)  # torch: no stride given means the kernel's
            start = window * stride - _at(node.attrs["padding"], place)
            stop = start + kernel
        out[window, max(0, start) : max(0, stop)] = 1
    return out


def _at(value: Any, place: int) -> int:
    if isinstance(value, list | tuple):
        return int(value[place] if len(value) > 1 else value[0])
    return int(value)


Tensors = Callable[[str], Mapping[str, Tensor]]
Shape = tuple[int, ...]


class FanOut:
    """Connections of a graph for inputs of one size.

    Args:
        graph: the network.
        flow: where its events are.
        shapes: node -> shape of its output for one image.
        tensors: node -> the tensors it owns.
    """

    def __init__(self, graph: Graph, flow: Flow, shapes: Mapping[str, Shape], tensors: Tensors) -> None:
        self.nodes = {node.name: node for node in graph.nodes}
        self.flow, self.shapes, self._tensors = flow, shapes, tensors

    def own(self, layer: Node) -> Tensor:
        """Weights that meet each position of the layer's input, float64; a padded border meets none."""
        shape = self.shapes[layer.inputs[0]]
        if layer.op == "neuron":
            return torch.ones(shape, dtype=torch.float64)
        weight, attrs = self._tensors(layer.name)["weight"], layer.attrs
        if layer.op == "linear":
            return torch.full(shape, float(weight.shape[0]), dtype=torch.float64)
        transposed = layer.op.startswith("conv_transpose")
        groups = int(attrs["groups"])
        times = weight.shape[1] if transposed else weight.shape[0] // groups  # all outputs of a group alike
        ones = (weight.shape[0], 1, *weight.shape[2:]) if transposed else (groups, *weight.shape[1:])
        with torch.enable_grad():
            x = torch.zeros(shape, dtype=torch.float64, requires_grad=True)
            out = OPERATORS[layer.op].run([x], attrs, {"weight": torch.ones(ones, dtype=torch.float64)})
            return torch.autograd.grad(out.sum(), x)[0] * times

    def of(self, layer: Node, *, arrivals: bool = False) -> dict[str, Tensor]:
        """Leaf -> connections from each of its positions to the layer, float64, shape of one image.

        With `arrivals`, the positions of the layer's input that it reaches, not the weights behind them.
        The leaves of a weight layer are sources of events, constants, and analog values where those are summed up; of
        a neuron layer those sources of events that reach it without a weight between (shortcuts).
        """
        end, neuron = layer.inputs[0], layer.op == "neuron"
        leaves, between = self._upstream(end, through_analog=neuron)
        if neuron and not any(name in self.flow.sources for name in leaves):
            return {}
        with torch.enable_grad():
            values = {name: torch.zeros(self.shapes[name], dtype=torch.float64, requires_grad=True) for name in leaves}
            counted = list(values.values())
            for node in between:
                args = [values[name] for name in node.inputs]
                values[node.name] = connection_count(node, args, self._tensors(node.name))
            reaching = values[end] if arrivals else values[end] * self.own(layer)
            maps = torch.autograd.grad(reaching.sum(), counted, allow_unused=True)
        reached = {name: found for name, found in zip(leaves, maps, strict=True) if found is not None}
        return {name: found for name, found in reached.items() if not neuron or name in self.flow.sources}

    def _upstream(self, end: str, *, through_analog: bool) -> tuple[list[str], list[Node]]:
        """Find the leaves that a value is made of, and the nodes between in execution order."""
        leaves: dict[str, None] = {}
        wanted = {end}
        between: list[Node] = []
        for name, node in reversed(self.nodes.items()):
            if name not in wanted:
                continue
            kind = self.flow.kinds[name]
            inner = kind == "events" or (through_analog and kind == "analog" and routes(node))
            if name in self.flow.sources or not inner:
                leaves[name] = None
            else:
                between.insert(0, node)
                wanted.update(node.inputs)
        return list(leaves), between


def mean_fan_out(graph: Graph, shapes: Mapping[str, Shape], tensors: Tensors) -> dict[str, float]:
    """Compute how many connections an event of each neuron layer meets, on average over its positions.

    An event that a max-pooling takes in counts as one that comes out of it, which is an upper bound.

    Args:
        graph: the network, with static inputs.
        shapes: node -> shape of its output for one image, (1, ...).
        tensors: node -> the tensors it owns.

    Returns:
        Neuron layer -> synapses that one of its spikes reaches.

    Example:
        >>> import torch
        >>> from speedysnn.graph.fan_out import mean_fan_out
        >>> from speedysnn.graph.ir import Graph, Node
        >>> nodes = (Node("x", "input"), Node("a", "neuron", ("x",)), Node("last", "linear", ("a",)))
        >>> shapes = {"x": (1, 4), "a": (1, 4), "last": (1, 2)}
        >>> mean_fan_out(Graph(nodes, "last"), shapes, lambda _: {"weight": torch.ones(2, 4)})
        {'a': 2.0}
    """
    flow = Flow.of(graph, (), ())
    fan_out, nodes = FanOut(graph, flow, shapes, tensors), {node.name: node for node in graph.nodes}
    out = {node.name: 0.0 for node in graph.neurons}
    for node in graph.nodes:
        if node.op != "neuron" and not weighted(node):
            continue
        for leaf, found in fan_out.of(node).items():
            if leaf in flow.sources:
                for name in _origins(nodes, leaf):
                    out[name] += float(found.mean())
    return out


def _origins(nodes: Mapping[str, Node], source: str) -> list[str]:
    """Find the neuron layers whose events a source passes on: itself, or those before a max-pooling."""
    if nodes[source].op == "neuron":
        return [source]
    return [name for given in nodes[source].inputs for name in _origins(nodes, given)]
