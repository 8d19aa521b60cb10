"""Build the graph: handlers turn one traced call each into nodes and tensors of the network to be."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from speedysnn.graph import Graph, Node


@dataclass(frozen=True)
class Ref:
    """A tensor of the new graph: the node that makes it and its shape, batch dimension included."""

    name: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class BatchInt:
    """A whole number that follows the batch size; only reshaping may use it."""

    value: int


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


@dataclass(frozen=True)
class Call:
    """One traced call, as a handler sees it.

    Attributes:
        builder: where nodes go.
        module: the called module, None for functions and methods.
        args: positional arguments; tensors as `Ref`, constants as they are, `torch.Tensor` for the model's own.
        kwargs: keyword arguments, likewise.
        result: shape of the result for the traced batch, or a tuple of shapes for several.
    """

    builder: Builder
    module: nn.Module | None
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    result: Any

    def get(self, position: int, name: str, default: Any = None) -> Any:
        """An argument by position or name."""
        if len(self.args) > position:
            return self.args[position]
        return self.kwargs.get(name, default)

    def ref(self, position: int = 0, name: str = "input") -> Ref:
        """A tensor argument that comes from the network's input.

        Raises:
            Unsupported: it is something else.
        """
        value = self.get(position, name)
        if not isinstance(value, Ref):
            raise Unsupported(
                f"its argument {position} is {_kind(value)}, expected a tensor computed from the input",
                "rewrite the layer so that it works on one tensor",
            )
        return value

    def number(self, position: int, name: str, default: Any = None) -> Any:
        """A constant argument.

        Raises:
            Unsupported: it depends on the input or on the batch size.
        """
        value = self.get(position, name, default)
        for item in value if isinstance(value, list | tuple) else (value,):
            if isinstance(item, Ref | BatchInt | Tensor):
                raise Unsupported(f"its argument {name!r} is {_kind(item)}, expected a constant", "make it a constant")
        return value

    def dims(self, dim: Any, ndim: int) -> list[int]:
        """Dimensions as non-negative numbers that leave the batch alone.

        Raises:
            Unsupported: the batch dimension is among them.
        """
        chosen = range(ndim) if dim is None else dim if isinstance(dim, list | tuple) else [dim]
        out = [int(d) % ndim for d in chosen]
        if 0 in out:
            raise Unsupported("it works across the batch dimension", "keep images apart inside the network")
        return out

    def emit(
        self,
        op: str,
        inputs: tuple[Ref, ...],
        attrs: Mapping[str, Any] | None = None,
        tensors: Mapping[str, Tensor | None] | None = None,
        shape: tuple[int, ...] | None = None,
    ) -> Ref:
        """Add a node; the result has the traced shape unless another is given."""
        name = self.builder.emit(op, tuple(ref.name for ref in inputs), attrs, tensors)
        return Ref(name, tuple(self.result if shape is None else shape))

    def norm_input(self) -> Ref:
        """The input of a batch-norm; a linear layer's sequence (B, L, C) is set apart, since there the norm runs along
        L and not along the layer's outputs, so that it must not be folded.
        """
        x = self.ref()
        made = next(node for node in self.builder.nodes if node.name == x.name)
        if made.op == "linear" and len(x.shape) > 2:
            return self.emit("identity", (x,), shape=x.shape)
        return x

    def neuron(self, x: Ref, ceiling: float | None = None) -> Ref:
        """Add an integrate-and-fire layer in place of an activation."""
        shape = list(x.shape[1:])
        features = 1
        for size in shape:
            features *= size
        return self.emit("neuron", (x,), {"ceiling": ceiling, "shape": shape, "features": features}, shape=x.shape)


def _kind(value: Any) -> str:
    if isinstance(value, Ref):
        return "a tensor computed from the input"
    if isinstance(value, BatchInt):
        return "a number that follows the batch size"
    return f"a {type(value).__name__}" if not torch.is_tensor(value) else "a tensor of the model's own"
