"""One ONNX node while its file is read: its inputs, attributes, and the module it becomes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, fx, nn

__all__ = ["Function", "Node", "Numbers", "Reader", "Row", "Unsupported"]

_INTEGERS = frozenset({2, 3, 4, 5, 6, 7, 12, 13})  # TensorProto.UINT8 and so on
_LARGEST = 2**24  # elements of a constant that is computed while reading


class Unsupported(Exception):  # noqa: N818
    """An operator in a form that is not read; says which, and what to do."""


@dataclass(frozen=True)
class Numbers:
    """Sizes computed in the graph: numbers, some of which are known only when it runs."""

    items: list[Any]  # int or fx.Node
    scalar: bool = False


class Function(nn.Module):
    """A function with its constants, so that it stands at a path of its own."""

    def __init__(self, function: Callable[..., Any], template: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        super().__init__()
        self.function, self.kwargs, self.template = function, dict(kwargs), template
        for name, value in _flat(template):
            if isinstance(value, Tensor):
                self.register_buffer(name, value)

    def forward(self, *inputs: Any) -> Any:
        """Call the function with the arguments that were left open, in order."""
        values = iter(inputs)

        def fill(name: str, value: Any) -> Any:
            if value is _OPEN:
                return next(values)
            if isinstance(value, list):
                return [fill(f"{name}_{i}", item) for i, item in enumerate(value)]
            return getattr(self, name) if isinstance(value, Tensor) else value

        return self.function(*(fill(f"constant_{i}", v) for i, v in enumerate(self.template)), **self.kwargs)


# Attributes that change nothing of a network's values when it evaluates, or that its tensors say again.
_WITHOUT_EFFECT = frozenset({
    "kernel_shape", "momentum", "ratio", "seed", "is_test", "consumed_inputs", "spatial", "storage_order", "saturate",
    "stash_type",
})  # fmt: skip


def _given(attribute: Any) -> bool:
    """Whether an attribute's schema has a default."""
    return bool(attribute.default_value.name)


_OPEN = object()  # an argument that comes when the module is called


def _flat(template: Sequence[Any], prefix: str = "constant") -> list[tuple[str, Any]]:
    out: list[tuple[str, Any]] = []
    for i, value in enumerate(template):
        name = f"{prefix}_{i}"
        out.extend(_flat(value, name) if isinstance(value, list) else [(name, value)])
    return out


class Reader(Protocol):
    """What a node needs of the reader of its file.

    Attributes:
        opset: version of the operators.
        graph: the graph that is built.
        scope: what each ONNX name stands for: a graph node, a tensor, numbers, or None.
        batch: the batch size where the file fixes it.
        types: ONNX's number for the type of a value, where it is known.
    """

    types: dict[str, int]
    opset: int
    graph: fx.Graph
    scope: dict[str, Any]
    batch: int | None

    def call(self, path: str, module: nn.Module, inputs: Sequence[Any]) -> fx.Node:
        """Set a module into the tree and call it; returns the call."""
        ...

    def path(self, node: Any, *, layer: bool) -> str:
        """The path at which a node's module stands."""
        ...

    def shape(self, name: str) -> list[int | None] | None:
        """The sizes of a value as far as they are known, None where not even its rank is."""
        ...

    def batch_size(self) -> fx.Node:
        """The number of samples, as a number in the graph."""
        ...


class Node:
    """What a row of the operator table sees of one ONNX node."""

    def __init__(self, proto: Any, reader: Reader) -> None:
        self.proto, self.reader, self.opset = proto, reader, reader.opset
        lost = [name for name in proto.input if name not in reader.scope]
        if lost:
            raise Unsupported(f"it takes {lost[0]!r}, an output that is not read from the node before")
        self._inputs = [reader.scope[name] for name in proto.input]
        self._read: set[int | str] = set()
        self._attributes = {entry.name: entry for entry in proto.attribute}

    @property
    def inputs(self) -> list[Any]:
        """All that the node takes; see `input`."""
        self._read.update(range(len(self._inputs)))
        return self._inputs

    def require_read(self) -> None:
        """Refuse an attribute or an input that its row did not read and that is not at its default.

        Raises:
            Unsupported: names it.
        """
        from onnx import defs, helper

        known = defs.get_schema(self.proto.op_type, self.opset, "").attributes
        for name, entry in self._attributes.items():
            value = helper.get_attribute_value(entry)
            row = known.get(name)
            default = helper.get_attribute_value(row.default_value) if row is not None and _given(row) else None
            if name not in self._read and name not in _WITHOUT_EFFECT and value != default:
                shown = value.decode() if isinstance(value, bytes) else value
                raise Unsupported(f"its attribute {name}={shown} is not read")
        for position, value in enumerate(self._inputs):
            if value is not None and position not in self._read and self.proto.op_type != "Dropout":
                raise Unsupported(f"its input {position} is not read")

    def attribute(self, name: str, default: Any = None) -> Any:
        """A setting of the node as plain data."""
        from onnx import helper

        self._read.add(name)
        if name not in self._attributes:
            return default
        value = helper.get_attribute_value(self._attributes[name])
        return value.decode() if isinstance(value, bytes) else list(value) if _is_sequence(value) else value

    def input(self, position: int) -> Any:
        """What stands at a position: a graph node, a tensor, numbers, or None where it is left out."""
        self._read.add(position)
        return self._inputs[position] if position < len(self._inputs) else None

    def rank(self, position: int = 0) -> int | None:
        """The number of dimensions of an input, None where the file does not tell."""
        shape = self.reader.shape(self.proto.input[position])
        return None if shape is None else len(shape)

    def is_integer(self) -> bool:
        """Whether the first input is known to be of whole numbers."""
        return self.reader.types.get(self.proto.input[0], 1) in _INTEGERS

    def constant(self, position: int, name: str) -> Tensor | None:
        """A tensor stored in the file, None where it is left out."""
        value = self.input(position)
        if value is not None and not isinstance(value, Tensor):
            raise Unsupported(f"its {name} is computed inside the network; expected one stored in the file")
        return value

    def numbers(self, position: int, attribute: str = "") -> list[Any] | None:
        """Integers that older opsets give as an attribute and newer ones as an input."""
        if attribute and attribute in self._attributes:
            value = self.attribute(attribute)
            return value if isinstance(value, list) else [value]
        value = self.input(position)
        if value is None:
            return None
        if isinstance(value, Numbers):
            return list(value.items)
        if isinstance(value, Tensor):
            return [item if isinstance(item, int) else float(item) for item in value.flatten().tolist()]
        raise Unsupported("its sizes are computed from the data")

    def known(self, position: int, attribute: str = "") -> list[int] | None:
        """As `numbers`, but refuse numbers that are known only when the network runs."""
        values = self.numbers(position, attribute)
        if values is not None and any(isinstance(value, fx.Node) for value in values):
            raise Unsupported("its sizes depend on the input's")
        return values

    def layer(self, module: nn.Module, *inputs: Any) -> Any:
        """The node as a module of torch.nn."""
        given = inputs or (self.input(0),)
        if not any(isinstance(value, fx.Node) for value in given):
            raise Unsupported("its input is a constant")
        return self.reader.call(self.reader.path(self.proto, layer=True), module.eval(), given)

    def apply(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """The node as a function of graph nodes and constants; computed at once where all are constants."""
        plain = [_plain(value) for value in args]
        open_values: list[fx.Node] = []

        def template(value: Any) -> Any:
            if isinstance(value, fx.Node):
                open_values.append(value)
                return _OPEN
            return [template(item) for item in value] if isinstance(value, list) else value

        shape = tuple(template(value) for value in plain)
        if open_values:
            path = self.reader.path(self.proto, layer=False)
            return self.reader.call(path, Function(function, shape, kwargs), open_values)
        value = function(*plain, **kwargs)
        if isinstance(value, Tensor) and value.numel() > _LARGEST:
            raise Unsupported(f"a constant of {value.numel()} elements")
        return value


Row = Callable[[Node], Any]
"""What reads one ONNX operator: it gives the call in the new graph, a tensor or `Numbers` computed at once, or a tuple
of those where the node has several outputs. It raises `Unsupported` for a form that is not read."""


def _plain(value: Any) -> Any:
    """A stored number as a number, so that it scales or shifts and is no tensor."""
    if isinstance(value, Tensor) and value.numel() == 1 and value.ndim <= 1 and value.dtype.is_floating_point:
        return float(value)
    if isinstance(value, Numbers):
        return value.items[0] if value.scalar else list(value.items)
    return value


def _is_sequence(value: Any) -> bool:
    return not isinstance(value, str | bytes | int | float) and hasattr(value, "__iter__") and hasattr(value, "__len__")
