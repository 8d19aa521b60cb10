"""Handlers of functions and tensor methods that clamp, reduce or interpolate."""

from typing import Any

import torch
import torch.nn.functional as F

from speedysnn.convert.builder import Ref
from speedysnn.convert.call import Call, Handler, Key
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
}
