"""ONNX operators that are functions: arithmetic and activations (`FUNCTIONS`), shapes (`SHAPES`), and sizes (`SIZES`).

Sizes are `Numbers`: whole numbers as far as the file fixes them, and calls in the new graph where they follow the
input, as the batch always does.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from speedysnn.graph.activations import ACTIVATIONS, Activation
from speedysnn.sources.onnx_node import Node, Numbers, Row, Unsupported

__all__ = ["FUNCTIONS", "SHAPES", "SIZES"]

# Why sizes are not left to onnx's own ReferenceEvaluator, or to onnxslim (both tried): they fold what is constant, but
# the batch stays open, and often height and width, so that Shape, Gather, Slice, Concat, Equal and Where remain and
# need all functions below. And the evaluator takes whatever memory a file claims: a ConstantOfShape of a few bytes
# took 4 GB.


def unsqueeze(node: Node) -> Any:
    x, axes = node.input(0), node.known(1, "axes") or []
    if isinstance(x, Numbers):
        return Numbers(x.items)
    rank = node.rank()
    if len(axes) > 1 and min(axes) < 0 and rank is None:
        raise Unsupported("axes that count from the end of an unknown rank")
    for axis in sorted(a if a >= 0 or rank is None else a + rank + len(axes) for a in axes):
        x = node.apply(torch.unsqueeze, x, axis)
    return x


def squeeze(node: Node) -> Any:
    x, axes = node.input(0), node.known(1, "axes")
    if isinstance(x, Numbers):
        return Numbers(x.items, True)
    if axes is None:
        raise Unsupported("it drops every dimension of size 1, the batch too; export it with axes")
    rank = node.rank()
    for axis in sorted((a if a >= 0 or rank is None else a + rank for a in axes), reverse=True):
        x = node.apply(torch.squeeze, x, axis)
    return x


def reshape(node: Node) -> Any:
    sizes = node.numbers(1, "shape")
    if sizes is None:
        raise Unsupported("it has no shape")
    x, reader, zeros = node.input(0), node.reader, node.attribute("allowzero", 0)
    if isinstance(x, Tensor | Numbers):
        return x if isinstance(x, Numbers) else node.apply(torch.reshape, x, sizes)
    if not zeros:
        sizes = [reader.graph.call_method("size", (x, i)) if size == 0 else size for i, size in enumerate(sizes)]
    if reader.batch is not None and sizes[0] == reader.batch:
        sizes[0] = reader.batch_size()
    return node.apply(torch.reshape, x, sizes)


def flatten(node: Node) -> Any:
    axis, rank = node.attribute("axis", 1), node.rank()
    if axis < 0 and rank is not None:
        axis += rank
    if axis != 1:
        raise Unsupported(f"axis {axis} joins the batch with what follows; export it with axis 1")
    return node.layer(nn.Flatten(1))


def pad(node: Node) -> Any:
    pads = node.known(1, "pads") or []
    mode = {"constant": "constant", "reflect": "reflect", "edge": "replicate"}.get(node.attribute("mode", "constant"))
    if mode is None or node.input(3) is not None:
        raise Unsupported(f"mode {node.attribute('mode')!r} or axes; expected constant, reflect or edge on all axes")
    half = len(pads) // 2
    pairs = list(zip(pads[:half], pads[half:], strict=True))
    if any(side for pair in pairs[:2] for side in pair) and mode != "constant":
        raise Unsupported("it pads the channels")
    kept = pairs[2:] if mode != "constant" or not any(pairs[0] + pairs[1]) else pairs
    flat = [side for pair in reversed(kept) for side in pair]
    if any(pairs[0]):
        raise Unsupported("it pads the batch")
    fill = node.constant(2, "value")
    value = float(node.attribute("value", 0.0)) if fill is None else float(fill)
    if not any(flat):
        return node.input(0)
    return node.apply(F.pad, node.input(0), flat, mode, value if mode == "constant" else None)


def transpose(node: Node) -> Any:
    order = node.attribute("perm")
    if order is None:
        raise Unsupported("it reverses all dimensions; export it with perm")
    return node.apply(torch.permute, node.input(0), order)


def expand(node: Node) -> Any:
    sizes, rank = node.numbers(1) or [], node.rank()
    if rank == len(sizes):
        sizes = [-1 if isinstance(size, int) and size == 1 else size for size in sizes]
    elif any(isinstance(size, int) and size == 1 for size in sizes):
        raise Unsupported("a size of 1 against another rank")
    if node.reader.batch is not None and sizes and sizes[0] == node.reader.batch and rank == len(sizes):
        sizes[0] = node.reader.batch_size()
    return node.apply(_expand, node.input(0), list(sizes))


def _expand(x: Tensor, sizes: list[Any]) -> Tensor:
    return x.expand(*sizes)


def same(node: Node) -> Any:
    return node.input(0)


def dropout(node: Node) -> Any:
    training = node.constant(2, "training_mode")
    if training is not None and bool(training):
        raise Unsupported("it also drops values when evaluating: call .eval() and export it again")
    return node.input(0)


SHAPES: dict[str, Row] = {
    "Unsqueeze": unsqueeze, "Squeeze": squeeze, "Reshape": reshape, "Flatten": flatten, "Pad": pad,
    "Transpose": transpose, "Expand": expand, "Identity": same, "Dropout": dropout,
}  # fmt: skip


def arithmetic(node: Node, function: Callable[[Any, Any], Any]) -> Numbers:
    """Arithmetic on two lists of sizes, element by element; one known only at run time becomes a call in the graph."""
    left, right = node.numbers(0) or [], node.numbers(1) or []
    length = max(len(left), len(right))
    left, right = (values * length if len(values) == 1 else values for values in (left, right))
    items = [
        node.reader.graph.call_function(function, (a, b)) if isinstance(a, fx.Node) or isinstance(b, fx.Node)
        else function(a, b)
        for a, b in zip(left, right, strict=True)
    ]  # fmt: skip
    return Numbers(items, all(_is_scalar(value) for value in node.inputs))


def _is_scalar(value: Any) -> bool:
    return value.scalar if isinstance(value, Numbers) else isinstance(value, Tensor) and value.ndim == 0


def shape(node: Node) -> Numbers:
    """The sizes of a value: numbers where the file fixes them, except for the batch, which stays open."""
    x, sizes = node.input(0), node.reader.shape(node.proto.input[0])
    if sizes is None:
        raise Unsupported("the rank of its input is unknown")
    start, end = node.attribute("start", 0), node.attribute("end", len(sizes))
    if isinstance(x, Tensor):
        return Numbers(list(sizes)[start:end])
    call = node.reader.graph.call_method
    items = [call("size", (x, i)) if size is None or i == 0 else size for i, size in enumerate(sizes)]
    return Numbers(items[start:end])


def constant(node: Node) -> Any:
    from onnx import numpy_helper

    for name in ("value_float", "value_int", "value_floats", "value_ints"):
        value = node.attribute(name)
        if value is not None:
            return torch.tensor(value)
    value = torch.from_numpy(numpy_helper.to_array(node.attribute("value")).copy())
    return value.float() if value.dtype in (torch.float16, torch.bfloat16) else value


def constant_of_shape(node: Node) -> Any:
    from onnx import numpy_helper

    sizes = node.known(0) or []
    given = node.attribute("value")
    value = 0.0 if given is None else numpy_helper.to_array(given).item()
    count = 1
    for size in sizes:
        count *= size
    if count > 2**20:
        raise Unsupported(f"a constant of {count} elements")
    return torch.full(sizes, value)


def equal(node: Node) -> Any:
    """Compare sizes; one that is known only at run time equals no negative number."""
    if not any(isinstance(value, Numbers) for value in node.inputs):
        return node.apply(torch.eq, *node.inputs)
    pairs = zip(node.numbers(0) or [], node.numbers(1) or [], strict=True)
    out = []
    for left, right in pairs:
        known = [value for value in (left, right) if isinstance(value, int)]
        if len(known) < 2 and not (known and known[0] < 0):
            raise Unsupported("it compares sizes that are known only at run time")
        out.append(len(known) == 2 and left == right)
    return torch.tensor(out)


def where(node: Node) -> Any:
    condition = node.input(0)
    if any(isinstance(value, Numbers) for value in node.inputs[1:]) and isinstance(condition, Tensor):
        rows = zip(condition.tolist(), node.numbers(1) or [], node.numbers(2) or [], strict=True)
        return Numbers([left if yes else right for yes, left, right in rows])
    return node.apply(torch.where, *node.inputs)


def cast(node: Node) -> Any:
    """Cast between number types; sizes stay numbers, and tensors that carry activations stay in float32."""
    x, wanted = node.input(0), node.attribute("to")
    if isinstance(x, Tensor):
        to = {1: torch.float32, 6: torch.int32, 7: torch.int64, 9: torch.bool, 10: torch.float32, 11: torch.float64,
              16: torch.float32}.get(wanted)  # fmt: skip
        if to is None:
            raise Unsupported(f"a cast to the type {wanted}")
        return x.to(to)
    if isinstance(x, Numbers):
        return x
    if wanted in (1, 10, 11, 16):
        return node.apply(_as_float, x)
    raise Unsupported("it turns activations into whole numbers")


def _as_float(x: Tensor) -> Tensor:
    """Truth values as 0 and 1; activations stay in float32."""
    return x.float()


SIZES: dict[str, Row] = {
    "Shape": shape, "Constant": constant, "ConstantOfShape": constant_of_shape, "Equal": equal, "Where": where,
    "Cast": cast,
}  # fmt: skip




def clip(node: Node) -> Any:
    low, high = (
        node.attribute(name) if node.opset < 11 else None if node.input(i) is None else _number(node, i)
        for i, name in ((1, "min"), (2, "max"))
    )
    return node.input(0) if low is None and high is None else node.apply(torch.clamp, node.input(0), low, high)


def _number(node: Node, position: int) -> float:
    value = node.constant(position, "limit")
    if value is None or value.numel() != 1:
        raise Unsupported("a limit that is not one number")
    return float(value)


def softmax(function: Callable[..., Any]) -> Row:
    def row(node: Node) -> Any:
        axis = node.attribute("axis", -1 if node.opset >= 13 else 1)
        if node.opset < 13 and axis not in (-1, (node.rank() or 0) - 1):
            raise Unsupported(f"axis {axis} before opset 13 flattens what follows; export it with opset 13")
        return node.apply(function, node.input(0), axis)

    return row


def prelu(node: Node) -> Any:
    """Slopes of the channels are torch's; others spread along the last dimensions, as ONNX has it."""
    slope, rank = node.constant(1, "slope"), node.rank()
    if slope is None:
        raise Unsupported("it has no slope")
    places = [rank - slope.ndim + at for at, size in enumerate(slope.shape) if size > 1] if rank is not None else []
    if slope.numel() > 1 and places != [1]:
        if rank is None or slope.ndim > rank or 0 in places:
            raise Unsupported("slopes along a dimension that is not known, or along the batch")
        return node.apply(_leaky, node.input(0), slope)
    with torch.device("meta"):
        module = nn.PReLU(slope.numel())
    module.weight = nn.Parameter(slope.flatten().clone())
    return node.layer(module)


def _leaky(x: Tensor, slope: Tensor) -> Tensor:
    return torch.relu(x) - torch.relu(-x) * slope


def unary(function: Callable[..., Any]) -> Row:
    """A function of one tensor without constants."""
    return lambda node: node.apply(function, node.input(0))


def layer(module: Callable[[Node], nn.Module]) -> Row:
    return lambda node: node.layer(module(node))


def binary(function: Callable[..., Any], numbers: Callable[[Any, Any], Any]) -> Row:
    """Arithmetic on tensors, or on sizes."""

    def row(node: Node) -> Any:
        if any(isinstance(value, Numbers) for value in node.inputs):
            return arithmetic(node, numbers)
        return node.apply(function, *node.inputs)

    return row


def divide(node: Node) -> Any:
    """Division; that of whole numbers drops the rest."""
    if node.is_integer() and not any(isinstance(value, Numbers) for value in node.inputs):
        return node.apply(torch.div, *node.inputs, rounding_mode="trunc")
    return binary(torch.div, operator.floordiv)(node)


def compare(function: Callable[..., Any]) -> Row:
    """A comparison of activations with one another or with a constant."""
    return lambda node: node.apply(function, node.input(0), node.input(1))


def extreme(function: Callable[..., Any], limit: str) -> Row:
    """Largest or smallest of several tensors; against one number it is a clamp."""

    def row(node: Node) -> Any:
        fixed = [v for v in node.inputs if isinstance(v, Tensor)]
        if len(node.inputs) == 2 and fixed and fixed[0].numel() == 1:
            other = next(v for v in node.inputs if not isinstance(v, Tensor))
            return node.apply(torch.clamp, other, **{limit: float(fixed[0])})
        value = node.input(0)
        for other in node.inputs[1:]:
            value = node.apply(function, value, other)
        return value

    return row


def total(node: Node) -> Any:
    if len(node.inputs) == 1:
        return node.input(0)
    value = node.apply(torch.add, node.input(0), node.input(1))
    for other in node.inputs[2:]:
        value = node.apply(torch.add, value, other)
    return value


def reduce(function: Callable[..., Any]) -> Row:
    def row(node: Node) -> Any:
        axes, keepdims = node.known(1, "axes"), bool(node.attribute("keepdims", 1))
        noop = bool(node.attribute("noop_with_empty_axes", 0))
        if not axes:
            rank = node.rank()
            if noop:
                return node.input(0)
            if rank is None:
                raise Unsupported("it reduces all dimensions of an unknown rank")
            axes = list(range(rank))
        return node.apply(function, node.input(0), axes, keepdims)

    return row


def _l2(x: Tensor, dims: list[int], keepdim: bool) -> Any:
    return torch.linalg.vector_norm(x, 2, dims, keepdim)


def _hard_sigmoid(node: Node) -> Any:
    alpha, beta = node.attribute("alpha", 0.2), node.attribute("beta", 0.5)
    if abs(alpha - 1 / 6) > 1e-4 or beta != 0.5:
        return node.apply(_clipped_line, node.input(0), alpha, beta)
    return node.layer(nn.Hardsigmoid())


def _clipped_line(x: Tensor, alpha: float, beta: float) -> Tensor:
    return torch.clamp(x * alpha + beta, 0.0, 1.0)


def activation(row: Activation) -> Row:
    """The row of an activation: its module with the node's constants, or its function where it has no module."""
    kind: Any = row.module
    if kind is None:
        return unary(row.formula)
    constants = row.onnx_constants.items()
    return layer(lambda node: kind(**{name: node.attribute(name, default) for name, default in constants}))


FUNCTIONS: dict[str, Row] = {
    **{row.onnx: activation(row) for row in ACTIVATIONS if row.onnx},
    "LeakyRelu": layer(lambda n: nn.LeakyReLU(n.attribute("alpha", 0.01))), "PRelu": prelu, "Clip": clip,
    "HardSigmoid": _hard_sigmoid,  # its slope is an attribute that torch's has not
    "Softmax": softmax(F.softmax), "LogSoftmax": softmax(F.log_softmax),
    "Neg": unary(torch.neg),
    "Add": binary(torch.add, operator.add), "Sub": binary(torch.sub, operator.sub),
    "Mul": binary(torch.mul, operator.mul), "Div": divide,
    "Pow": binary(torch.pow, operator.pow), "Sum": total,
    "Greater": compare(torch.gt), "GreaterOrEqual": compare(torch.ge), "Less": compare(torch.lt),
    "LessOrEqual": compare(torch.le),
    "Max": extreme(torch.maximum, "min"), "Min": extreme(torch.minimum, "max"),
    "ReduceMean": reduce(torch.mean), "ReduceSum": reduce(torch.sum), "ReduceMax": reduce(torch.amax),
    "ReduceMin": reduce(torch.amin), "ReduceL2": reduce(_l2),
}  # fmt: skip
