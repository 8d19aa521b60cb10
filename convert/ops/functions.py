"""Handlers of functions and tensor methods: clamps, means and sums, interpolation, and arithmetic.

Arithmetic with a constant is affine; a product or quotient of two branches needs an analog unit.
"""

import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from speedysnn.convert.handler_api import Call, Handler, Key, Ref, Unsupported
from speedysnn.convert.ops.layers import as_list


def clamp(call: Call) -> Ref:
    """A clamp to a range that holds 0 is a neuron, signed where it reaches below 0."""
    return _clamped(call, call.number(1, "min"), call.number(2, "max"))


def clamp_min(call: Call) -> Ref:
    """A clamp_min at 0 is a ReLU."""
    return _clamped(call, call.number(1, "min"), None)


def hardtanh(call: Call) -> Ref:
    """torch.nn.functional.hardtanh; signed neurons where it reaches below 0."""
    return _clamped(call, call.number(1, "min_val", -1.0), call.number(2, "max_val", 1.0))


def _clamped(call: Call, low: Any, high: Any) -> Ref:
    if low is None and high is None:
        return call.ref()
    low, high = (None if value is None else float(value) for value in (low, high))
    if (low is not None and low > 0) or (high is not None and high <= 0):
        return call.emit("clamp", (call.ref(),), {"min": low, "max": high})
    return call.neuron(call.ref(), ceiling=high, floor=low)


def reduce(op: str) -> Handler:
    """Mean or sum over dimensions other than the batch."""

    def handle(call: Call) -> Ref:
        x = call.ref()
        dims = call.dims(call.number(1, "dim"), len(x.shape))
        return call.emit(op, (x,), {"dim": dims, "keepdim": bool(call.number(2, "keepdim", False))})

    return handle


def interpolate(call: Call) -> Ref:
    """torch.nn.functional.interpolate, linear in its input."""
    attrs = {
        "size": call.number(1, "size"),
        "scale": call.number(2, "scale_factor"),
        "mode": call.number(3, "mode", "nearest"),
        "align_corners": call.number(4, "align_corners"),
    }
    if attrs["size"] is not None:
        attrs["size"] = as_list(attrs["size"], len(call.ref().shape) - 2)
    if attrs["scale"] is not None:
        attrs["scale"] = as_list(attrs["scale"], len(call.ref().shape) - 2)
    return call.emit("interpolate", (call.ref(),), attrs)


def add(sign: int) -> Handler:
    """Sum or difference of two branches, or of a branch and a constant."""

    def handle(call: Call) -> Ref:
        a, b = call.args[0], call.get(1, "other")
        if call.kwargs.get("alpha", 1) != 1:
            raise Unsupported("an addition with alpha", "scale the branch first")
        if isinstance(a, Ref) and isinstance(b, Ref):
            return call.emit("add" if sign > 0 else "sub", (a, b))
        if isinstance(a, Ref):
            return _affine(call, a, None, b if not isinstance(b, Tensor) or sign > 0 else -b, sign)
        if sign > 0:
            return _affine(call, call.ref(1, "other"), None, a, 1)
        negated = call.emit("scale", (call.ref(1, "other"),), {"factor": -1.0, "offset": 0.0})
        return _affine(call, negated, None, a, 1)

    return handle


def multiply(call: Call) -> Ref:
    """Product with a constant, which is affine, or of two branches, which is not."""
    a, b = call.args[0], call.get(1, "other")
    if isinstance(a, Ref) and isinstance(b, Ref):
        return call.emit("mul", (a, b))
    return _affine(call, a, b, None) if isinstance(a, Ref) else _affine(call, call.ref(1, "other"), a, None)


def divide(call: Call) -> Ref:
    """Division by a constant, which is affine, or by a branch, which is not."""
    a, b = call.args[0], call.get(1, "other")
    if call.kwargs.get("rounding_mode"):
        raise Unsupported("a division that rounds", "divide without rounding_mode")
    if not isinstance(b, Ref):
        return _affine(call, call.ref(), 1.0 / b, None)
    if isinstance(a, Ref):
        return call.emit("div", (a, b))
    return _affine(call, call.emit("reciprocal", (b,), shape=b.shape), a, None)


def negate(call: Call) -> Ref:
    """Negation."""
    return _affine(call, call.ref(), -1.0, None)


def _affine(call: Call, x: Ref, factor: Any, offset: Any, sign: int = 1) -> Ref:
    for value in (factor, offset):
        if isinstance(value, Tensor) and value.numel() > 1 and value.ndim >= len(x.shape) and value.shape[0] != 1:
            raise Unsupported("a constant with a batch dimension of its own", "give it a first dimension of 1")
        if value is not None and not isinstance(value, Tensor | int | float):
            raise Unsupported(f"a {type(value).__name__} in an arithmetic operation", "use a constant")
    if isinstance(factor, Tensor) or isinstance(offset, Tensor):
        weight = factor if isinstance(factor, Tensor) or factor is None else torch.tensor(float(factor))
        bias = offset if isinstance(offset, Tensor) or offset is None else torch.tensor(float(offset))
        return call.emit("affine", (x,), None, {"weight": weight, "bias": bias})
    attrs = {"factor": 1.0 if factor is None else float(factor), "offset": sign * float(offset or 0.0)}
    return call.emit("scale", (x,), attrs)


FUNCTION_ROWS: dict[Key, Handler] = {
    F.hardtanh: hardtanh,
    **dict.fromkeys((torch.clamp, torch.clip), clamp),
    torch.clamp_min: clamp_min,
    torch.mean: reduce("mean"),
    torch.sum: reduce("sum"),
    F.interpolate: interpolate,
    **dict.fromkeys(("clamp", "clamp_", "clip", "clip_"), clamp),
    **dict.fromkeys(("clamp_min", "clamp_min_"), clamp_min),
    "mean": reduce("mean"),
    "sum": reduce("sum"),
    **dict.fromkeys((operator.add, operator.iadd, torch.add), add(1)),
    **dict.fromkeys((operator.sub, operator.isub, torch.sub), add(-1)),
    **dict.fromkeys((operator.mul, operator.imul, torch.mul), multiply),
    **dict.fromkeys((operator.truediv, operator.itruediv, torch.div), divide),
    **dict.fromkeys((operator.neg, torch.neg), negate),
    **dict.fromkeys(("add", "add_"), add(1)),
    **dict.fromkeys(("sub", "sub_"), add(-1)),
    **dict.fromkeys(("mul", "mul_"), multiply),
    **dict.fromkeys(("div", "div_"), divide),
    "neg": negate,
}
