"""Build the graph: handlers turn one traced call each into nodes and tensors of the network to be."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from speedysnn.graph import Graph, Node
from speedysnn.operators import OPERATORS


@dataclass(frozen=True)
class Ref:
    """A tensor of the new graph: the node that makes it and its shape, batch dimension included.

    `order` is a permutation not made yet, because it takes the batch from the first place: dimension i of `shape` is
    dimension order[i] of the node's tensor. It is made once the batch is first again.
    """

    name: str
    shape: tuple[int, ...]
    order: tuple[int, ...] = ()


@dataclass(frozen=True)
class BatchInt:
    """A whole number that follows the batch size; only reshaping may use it."""

    value: int


WEIGHTED = tuple(name for name, operator in OPERATORS.items() if operator.weighted)


class Unsupported(Exception):  # noqa: N818 - a verdict on one operator, collected and never shown as it is
    """An operator cannot be converted: why, and what the user can do."""

    def __init__(self, reason: str, advice: str = "") -> None:
        super().__init__(reason)
        self.reason, self.advice = reason, advice


@dataclass
class Builder:
    """Collects nodes and tensors under unique names."""

    nodes: list[Node] = field(default_factory=list)
    tensors: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    path: str = ""
    source: str = ""
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    channels: dict[str, int] = field(default_factory=dict)
    keep_analog: tuple[str, ...] = ()

    def kept_analog(self) -> bool:
        """Whether the present path, or a module above it, is to stay analog."""
        return any(self.path == name or self.path.startswith(f"{name}.") for name in self.keep_analog)

    def track(self, name: str, op: str, inputs: tuple[str, ...], attrs: Mapping[str, Any], shape: Any) -> None:
        """Remember a node's shape, and which of its dimensions holds the channels."""
        self.shapes[name] = tuple(shape)
        first = self.channels.get(inputs[0], 1) if inputs else 1
        if op == "linear":
            first = len(shape) - 1
        elif op in WEIGHTED or op == "batch_norm":
            first = 1
        elif op == "permute":
            first = list(attrs["dims"]).index(first) if first in attrs["dims"] else 1
        elif inputs and len(self.shapes.get(inputs[0], ())) != len(shape):
            first = 1 if self.channels.get(inputs[0], 1) == 1 else len(shape) - 1
        self.channels[name] = min(first, max(len(shape) - 1, 0))

    def name(self, wanted: str) -> str:
        """`wanted`, or the first of wanted_1, wanted_2, ... that is free."""
        taken = {node.name for node in self.nodes}
        name, number = wanted or "node", 0
        while name in taken:
            number += 1
            name = f"{wanted}_{number}"
        return name

    def emit(
        self,
        op: str,
        inputs: tuple[str, ...],
        attrs: Mapping[str, Any] | None = None,
        tensors: Mapping[str, Tensor | None] | None = None,
        name: str | None = None,
    ) -> str:
        """Add a node at the present path; tensors that are None are left out. Returns its name."""
        unique = self.name(name or self.path or op)
        self.nodes.append(Node(unique, op, inputs, dict(attrs or {}), self.path, self.source))
        present = {key: value for key, value in (tensors or {}).items() if value is not None}
        if present:
            self.tensors[unique] = present
        return unique

    def finish(self, outputs: Any) -> Graph:
        """The graph without the nodes that no output needs."""
        graph = Graph(tuple(self.nodes), outputs)
        needed = set(graph.output_names)
        for node in reversed(self.nodes):
            if node.name in needed:
                needed.update(node.inputs)
        kept = tuple(node for node in self.nodes if node.name in needed or node.op == "input")
        self.tensors = {node.name: self.tensors[node.name] for node in kept if node.name in self.tensors}
        return Graph(kept, outputs)
