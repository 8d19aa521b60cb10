"""ONNX operators of arithmetic and activations: op type -> the torch module or function it is."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speedysnn.graph.activations import ACTIVATIONS, Activation
from speedysnn.sources.onnx_node import Node, Numbers, Row, Unsupported
from speedysnn.sources.onnx_shapes import arithmetic

__all__ = ["FUNCTIONS"]


def clip(node: Node) -> Any:
    low, high = (
        node.attribute(name) if node.opset < 11 else None if node.input(i) is None else _number(node, i)
        for i, name in ((1, "min"), (2, "max"))
    )
    return node.apply(torch.clamp, node.input(0), low, high)


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
    slope = node.constant(1, "slope")
    if slope is None or slope.numel() != max(slope.shape, default=1):
        raise Unsupported("a slope that is not one number a channel")
    rank = node.rank()
    if slope.numel() > 1 and rank is not None and slope.ndim >= rank - 1 and slope.shape[slope.ndim - rank + 1] == 1:
        raise Unsupported("a slope along another dimension than the channels")
    with torch.device("meta"):
        module = nn.PReLU(slope.numel())
    module.weight = nn.Parameter(slope.flatten().clone())
    return node.layer(module)


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
        if len(node.inputs) != 2:
            raise Unsupported(f"{len(node.inputs)} inputs, expected 2")
        return node.apply(function, *node.inputs)

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
        axes = node.known(1, "axes")
        if axes is None:
            rank = node.rank()
            if node.attribute("noop_with_empty_axes", 0):
                return node.input(0)
            if rank is None:
                raise Unsupported("it reduces all dimensions of an unknown rank")
            axes = list(range(rank))
        return node.apply(function, node.input(0), axes, bool(node.attribute("keepdims", 1)))

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
    "Mul": binary(torch.mul, operator.mul), "Div": binary(torch.div, operator.floordiv),
    "Pow": binary(torch.pow, operator.pow), "Sum": total,
    "Greater": compare(torch.gt), "GreaterOrEqual": compare(torch.ge), "Less": compare(torch.lt),
    "LessOrEqual": compare(torch.le),
    "Max": extreme(torch.maximum, "min"), "Min": extreme(torch.minimum, "max"),
    "ReduceMean": reduce(torch.mean), "ReduceSum": reduce(torch.sum), "ReduceMax": reduce(torch.amax),
    "ReduceMin": reduce(torch.amin), "ReduceL2": reduce(_l2),
}  # fmt: skip
