"""Handlers of what takes one of several values: maximum, comparison, where; and a constant as a tensor of the graph."""

import operator
from typing import Any

import torch
from torch import Tensor

from speedysnn.convert.builder import Ref, Unsupported
from speedysnn.convert.call import Call, Handler, Key


def operand(call: Call, value: Any, like: Ref) -> Ref:
    """A tensor of the graph, also for a number or a tensor of the model's own."""
    if isinstance(value, Ref):
        return value
    if isinstance(value, int | float):
        return call.emit("scale", (like,), {"factor": 0.0, "offset": float(value)}, shape=like.shape)
    if isinstance(value, Tensor):
        return constant(call, value)
    raise Unsupported(f"a {type(value).__name__} beside a tensor", "use a number or a tensor")


def constant(call: Call, value: Tensor, shape: tuple[int, ...] | None = None) -> Ref:
    """A tensor of the model's own, the same for every image; given a first dimension of 1 where it has none."""
    first = next((node for node in call.builder.nodes if node.op == "input"), None)
    if first is None:
        raise Unsupported("a constant before the network's input", "let the network read its input first")
    anchor = Ref(first.name, call.builder.shapes[first.name])
    kept = value if value.ndim and value.shape[0] == 1 else value.unsqueeze(0)
    return call.emit("constant", (anchor,), None, {"value": kept}, shape=shape or (anchor.shape[0], *kept.shape[1:]))


def pairwise(op: str) -> Handler:
    """Maximum and minimum of two branches, or of a branch and a constant."""

    def handle(call: Call) -> Ref:
        a, b = call.args[0], call.get(1, "other")
        like = a if isinstance(a, Ref) else call.ref(1, "other")
        return call.emit(op, (operand(call, a, like), operand(call, b, like)))

    return handle


def compare(op: str) -> Handler:
    """A comparison, 1 where it holds: with a number, or between two branches by their difference."""

    def handle(call: Call) -> Ref:
        x, other = call.ref(), call.get(1, "other")
        if isinstance(other, Ref):
            x, other = call.emit("sub", (x, other)), 0
        if not isinstance(other, int | float):
            raise Unsupported("a comparison with a tensor", "compare with a number")
        return call.emit(op, (x,), {"value": other})

    return handle


def where(call: Call) -> Ref:
    """torch.where(condition computed from the input, a, b)."""
    condition = call.ref(0, "condition")
    branches = [operand(call, call.get(i, name), condition) for i, name in ((1, "input"), (2, "other"))]
    return call.emit("where", (condition, *branches))


def reduce(op: str) -> Handler:
    """amax, amin, and max or min along a dimension, of which the values are kept."""

    def handle(call: Call) -> Any:
        x = call.ref()
        dims = call.dims(call.number(1, "dim"), len(x.shape))
        pair = not isinstance(call.result, tuple) or any(isinstance(item, tuple) for item in call.result)
        shape = call.result[0] if pair else call.result
        out = call.emit(op, (x,), {"dim": dims, "keepdim": bool(call.number(2, "keepdim", False))}, shape=shape)
        return (out, None) if pair else out

    return handle


CHOICE_ROWS: dict[Key, Handler] = {
    torch.maximum: pairwise("maximum"),
    torch.minimum: pairwise("minimum"),
    **{getattr(torch, op): compare(op) for op in ("gt", "ge", "lt", "le")},
    **{getattr(operator, op): compare(op) for op in ("gt", "ge", "lt", "le")},
    torch.where: where,
    **dict.fromkeys((torch.amax, torch.max), reduce("amax")),
    **dict.fromkeys((torch.amin, torch.min), reduce("amin")),
    "maximum": pairwise("maximum"),
    "minimum": pairwise("minimum"),
    **{op: compare(op) for op in ("gt", "ge", "lt", "le")},
    **dict.fromkeys(("amax", "max"), reduce("amax")),
    **dict.fromkeys(("amin", "min"), reduce("amin")),
}
