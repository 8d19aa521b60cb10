"""What a handler is: the call it sees, how it adds nodes for that call, and how it says that it cannot.

A handler gets a `Call` of the source network, in whose arguments tensors computed from the input are `Ref`s, and adds
nodes to a `Builder`, which gives them unique names and remembers their shapes. The contract stands at `Handler`.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from speedysnn.convert.trace import BatchInt, BatchTensor
from speedysnn.graph.ir import Graph, Node
from speedysnn.graph.operators import OPERATORS

WEIGHTED = tuple(name for name, operator in OPERATORS.items() if operator.weighted)

_NO_LIMIT = 2.0**31  # clamps to infinity, or to the largest float, mean "as it is"

Key = Any
"""What a handler is found by: a module class, a function, a method's name, an ATen overload, or the full name
"package.module.name" of a class or function that need not be imported."""


@dataclass(frozen=True)
class Ref:
    """A tensor of the new graph: the node that makes it and its shape, batch dimension included.

    `order` is a permutation not made yet, because it takes the batch from the first place: dimension i of `shape` is
    dimension order[i] of the node's tensor. It is made once the batch is first again.

    Example:
        >>> from speedysnn import convert
        >>> convert.Ref("conv1", (2, 16, 8, 8)).shape
        (2, 16, 8, 8)
    """

    name: str
    shape: tuple[int, ...]
    order: tuple[int, ...] = ()


class Unsupported(Exception):  # noqa: N818 - a verdict on one operator, collected and never shown as it is
    """An operator cannot be converted: why, and what the user can do; a handler raises it.

    Args:
        reason: why not, in words that stand after the layer's path.
        advice: what to change, "" if nothing.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from speedysnn import convert
        >>> class Rounded(nn.Module):
        ...     def forward(self, x):
        ...         return x.round()
        >>> def refuse(call):
        ...     raise convert.Unsupported("it rounds", "leave it out")
        >>> net = nn.Sequential(nn.Linear(4, 8), Rounded())
        >>> report = convert.inspect(net, torch.rand(2, 4), handlers={Rounded: refuse})
        >>> [(row.path, row.why, row.advice) for row in report.problems]
        [('1', 'it rounds', 'leave it out')]
    """

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
        """A name that is free: `wanted`, or the first of wanted_1, wanted_2, ..."""
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


class Settings:
    """A module's attributes; which of them were read is remembered as ".name"."""

    def __init__(self, module: nn.Module | None, read: set[Any]) -> None:
        self._module, self._read = module, read

    def __getattr__(self, name: str) -> Any:
        """The module's own attribute."""
        self._read.add(f".{name}")
        return getattr(self._module, name)


_ALIASES = {"dim": "axis", "keepdim": "keepdims", "dims": "dim"}  # other names that torch takes for an argument


@dataclass(frozen=True)
class Call:
    """One traced call, as a handler sees it.

    Attributes:
        builder: where nodes go.
        module: the called module, None for functions and methods.
        args: positional arguments; tensors as `Ref`, constants as they are, `torch.Tensor` for the model's own.
        kwargs: keyword arguments, likewise.
        result: shape of the result for the traced batch, or a tuple of shapes for several.
        read: what was read of arguments and settings so far, by position and name.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from speedysnn import convert
        >>> class Shifted(nn.Module):
        ...     def forward(self, x):
        ...         return (x - 0.5).relu()
        >>> def shifted(call):
        ...     x = call.ref()
        ...     moved = call.emit("scale", (x,), {"factor": 1.0, "offset": -0.5}, shape=x.shape)
        ...     return call.neuron(moved)
        >>> net = nn.Sequential(nn.Linear(4, 8), Shifted(), nn.Linear(8, 2))
        >>> snn = convert.to_spiking(net, torch.rand(32, 4), handlers={Shifted: shifted})
        >>> [node.op for node in snn.graph.nodes]
        ['input', 'linear', 'scale', 'neuron', 'linear']
    """

    builder: Builder
    module: nn.Module | None
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    result: Any
    read: set[Any] = field(default_factory=set, repr=False, compare=False)

    def get(self, position: int, name: str, default: Any = None) -> Any:
        """An argument of the call by its position or name; what was made for the batch is a constant operand."""
        value = self._argument(position, name, default)
        return self.constant(row_of(value)) if isinstance(value, BatchTensor) else value

    def operand(self, position: int, name: str) -> Any:
        """The same, where a tensor of the model's own may stand that is the same for every image."""
        value = self._argument(position, name, None)
        return row_of(value) if isinstance(value, BatchTensor) else value

    def constant(self, value: Tensor, shape: tuple[int, ...] | None = None) -> Ref:
        """A tensor of the model's own as an operand; given a first dimension of 1 where it has none."""
        first = next((node for node in self.builder.nodes if node.op == "input"), None)
        if first is None:
            raise Unsupported("a constant before the network's input", "let the network read its input first")
        anchor = Ref(first.name, self.builder.shapes[first.name])
        kept = {"value": value if value.ndim and value.shape[0] == 1 else value.unsqueeze(0)}
        return self.emit("constant", (anchor,), None, kept, shape=shape or (anchor.shape[0], *kept["value"].shape[1:]))

    def _argument(self, position: int, name: str, default: Any) -> Any:
        self.read.update((position, name))
        if len(self.args) > position:
            return self.args[position]
        other = _ALIASES.get(name, name)
        if name not in self.kwargs and other in self.kwargs:
            self.read.add(other)
            return self.kwargs[other]
        return self.kwargs.get(name, default)

    def rest(self, position: int, name: str) -> list[Any]:
        """Arguments from a position on, given one by one or as one list under a name."""
        first = self.get(position, name)
        if isinstance(first, list | tuple):
            return list(first)
        self.read.update(range(position, len(self.args)))
        return list(self.args[position:]) or ([] if first is None else [first])

    def read_from_result(self) -> Any:
        """The traced result, where its shape says all that the arguments say."""
        self.read.update((*range(len(self.args)), *self.kwargs))
        return self.result

    @property
    def settings(self) -> Any:
        """The called module, for its settings: a setting that no handler of the package reads is refused by name."""
        return Settings(self.module, self.read)

    def ref(self, position: int = 0, name: str = "input") -> Ref:
        """A tensor argument that comes from the network's input.

        Raises:
            Unsupported: it is something else.
        """
        value = self.get(position, name)
        if isinstance(value, Ref):
            _require_batch_first(value)
        else:
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

    def own(self, position: int, name: str) -> Tensor | None:
        """A tensor of the model's own, from the module or the arguments; None where it has none.

        Raises:
            Unsupported: it is computed inside the network.
        """
        value = getattr(self.settings, name, None) if self.module is not None else self.get(position, name)
        if value is not None and not isinstance(value, Tensor):
            raise Unsupported(f"its {name} is computed inside the network", "make it a parameter or a buffer")
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
        for ref in inputs:
            _require_batch_first(ref)
        names = tuple(ref.name for ref in inputs)
        name = self.builder.emit(op, names, attrs, tensors)
        made = tuple(self.result if shape is None else shape)
        self.builder.track(name, op, names, attrs or {}, made)
        return Ref(name, made)

    def permuted(self, x: Ref, order: list[int]) -> Ref:
        """The tensor with its dimensions in another order; one that moves the batch is put off.

        Args:
            x: the tensor, its own permutation made or put off.
            order: dimension i of the result is dimension order[i] of `x`.

        Returns:
            The permuted tensor; without a node where nothing has moved, or where the batch is not first yet.
        """
        before = x.order or tuple(range(len(x.shape)))
        after = tuple(before[d] for d in order)
        shape = tuple(x.shape[d] for d in order)
        if after == tuple(range(len(after))):
            return Ref(x.name, shape)
        if after[0] != 0:
            return Ref(x.name, shape, after)
        return self.emit("permute", (Ref(x.name, self.builder.shapes[x.name]),), {"dims": list(after)}, shape=shape)

    def neuron(self, x: Ref, ceiling: float | None = None, floor: float | None = 0.0) -> Ref:
        """Put integrate-and-fire neurons in place of min(max(x, floor), ceiling); that clamp itself if kept analog.

        A neuron counts from 0 up, or as far below 0 as above. Any other range, which must hold 0, takes two layers:
        min(max(x, a), b) = min(max(x, 0), b) - min(max(-x, 0), -a). A limit of 2^31 or beyond is none.
        """
        floor, ceiling = limit(floor), limit(ceiling)
        if self.builder.kept_analog():
            return x if floor is ceiling else self.emit("clamp", (x,), {"min": floor, "max": ceiling}, shape=x.shape)
        if floor != 0 and never_negative(self.builder, x.name):
            floor = 0.0
        if floor == 0 or (floor is ceiling) or (floor is not None and ceiling == -floor):
            return self.emit("neuron", (x,), neuron_attrs(self.builder, x, ceiling, floor), shape=x.shape)
        up = self.neuron(x, ceiling)
        negated = self.emit("scale", (x,), {"factor": -1.0, "offset": 0.0}, shape=x.shape)
        return self.emit("sub", (up, self.neuron(negated, None if floor is None else -floor)), shape=x.shape)


Handler = Callable[[Call], Any]
"""What turns one call of the source network into nodes: the one contract of every entry of `convert.HANDLERS`.

A handler reads the call's module or arguments, adds nodes with `call.emit` or `call.neuron`, and returns what the call
returns, with `Ref` in the place of tensors: a `Ref`, or a tuple where the call gives several. A tensor of the model's
own may be returned as it is. A handler changes nothing else. Where it cannot convert the call it raises `Unsupported`
with a reason and advice, which the report shows beside the layer's path and its line in the source.
"""


def never_negative(builder: Builder, name: str) -> bool:
    """Whether a value is seen not to be negative: spikes of a neuron that is not signed, through what keeps signs."""
    node = next(node for node in builder.nodes if node.name == name)
    if node.op == "neuron":
        return bool(node.attrs["floor"] == 0)
    if node.op not in OPERATORS or node.op == "constant" or OPERATORS[node.op].sign == "any":
        return False
    return OPERATORS[node.op].sign == "positive" or all(never_negative(builder, other) for other in node.inputs)


def row_of(made: BatchTensor) -> Tensor:
    """The row (1, ...) that all images share of a tensor made for the batch, which is refused where they do not."""
    value = made.value
    if not value.ndim or not len(value) or bool((value != value[:1]).any()):
        raise Unsupported("a tensor made for the batch size inside the network", "make it with a batch of 1")
    return value[:1]


def limit(value: float | None) -> float | None:
    """A limit of a clamp; None where it is so large that no activation reaches it."""
    return None if value is None or abs(value) >= _NO_LIMIT else float(value)


def _require_batch_first(ref: Ref) -> None:
    if ref.order:
        raise Unsupported("its input has the batch in another place than the first", "keep the batch first")


def neuron_attrs(builder: Builder, x: Ref, ceiling: float | None, floor: float | None) -> dict[str, Any]:
    """Constants of a neuron node; `features` are neurons an image, which may be folded into the batch dimension."""
    images = max(1, next((builder.shapes[n.name][0] for n in builder.nodes if n.op == "input"), 1))
    return {
        "ceiling": ceiling,
        "floor": floor,
        "shape": list(x.shape[1:]),
        "features": math.prod(x.shape) // images,
        "channel_dim": builder.channels.get(x.name, 1),
    }


def _kind(value: Any) -> str:
    if isinstance(value, Ref):
        return "a tensor computed from the input"
    if isinstance(value, BatchInt):
        return "a number that follows the batch size"
    return f"a {type(value).__name__}" if not torch.is_tensor(value) else "a tensor of the model's own"
