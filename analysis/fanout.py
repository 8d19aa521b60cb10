"""Exact fan-out: how many weights one event at each position meets, through pooling, shortcuts and reshaping.

With every weight one, every average a sum and every difference a sum, the network between the sources of events and a
layer is linear with whole coefficients. Its gradient is the number of connections from each position to that layer.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from speedysnn.analysis.flow import Flow as Flow
from speedysnn.analysis.flow import Kind as Kind
from speedysnn.analysis.flow import pool_graph as pool_graph
from speedysnn.analysis.flow import routes
from speedysnn.analysis.flow import weighted as weighted
from speedysnn.analysis.ones import count
from speedysnn.graph import Graph, Node
from speedysnn.operators import OPERATORS

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
                values[node.name] = count(node, [values[name] for name in node.inputs], self._tensors(node.name))
            reaching = values[end] if arrivals else values[end] * self.own(layer)
            maps = torch.autograd.grad(reaching.sum(), counted, allow_unused=True)
        reached = {name: found for name, found in zip(leaves, maps, strict=True) if found is not None}
        return {name: found for name, found in reached.items() if not neuron or name in self.flow.sources}

    def _upstream(self, end: str, *, through_analog: bool) -> tuple[list[str], list[Node]]:
        """The leaves that a value is made of, and the nodes between in execution order."""
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
