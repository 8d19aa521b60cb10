"""The table of functions and tensor methods, and handlers of clamps, ReLU, reductions and interpolation."""

import operator
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from speedysnn.convert.builder import Ref
from speedysnn.convert.call import Call
from speedysnn.convert.ops import indexing, layers, shapes
from speedysnn.convert.ops.layers import Handler


def relu(call: Call) -> Ref:
    """ReLU as a function or a method."""
    return call.neuron(call.ref())


def relu6(call: Call) -> Ref:
    """ReLU6 as a function."""
    return call.neuron(call.ref(), ceiling=6.0)


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
        attrs["size"] = layers.as_list(attrs["size"], len(call.ref().shape) - 2)
    if attrs["scale"] is not None:
        attrs["scale"] = layers.as_list(attrs["scale"], len(call.ref().shape) - 2)
    return call.emit("interpolate", (call.ref(),), attrs)


FUNCTIONS: dict[Callable[..., Any], Handler] = {
    **dict.fromkeys((F.conv1d, F.conv2d, F.conv3d), layers.conv),
    F.linear: layers.linear,
    F.batch_norm: layers.batch_norm,
    **dict.fromkeys((F.avg_pool1d, F.avg_pool2d, F.avg_pool3d), layers.avg_pool),
    **dict.fromkeys((F.max_pool1d, F.max_pool2d, F.max_pool3d), layers.max_pool),
    **dict.fromkeys((torch.max_pool1d, torch.max_pool2d, torch.max_pool3d), layers.max_pool),
    **dict.fromkeys((F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d), layers.adaptive_pool("avg")),
    **dict.fromkeys((F.adaptive_max_pool1d, F.adaptive_max_pool2d, F.adaptive_max_pool3d), layers.adaptive_pool("max")),
    **dict.fromkeys((F.relu, torch.relu, torch.relu_, F.relu_), relu),
    F.relu6: relu6,
    F.hardtanh: hardtanh,
    **dict.fromkeys((torch.clamp, torch.clip), clamp),
    torch.clamp_min: clamp_min,
    **dict.fromkeys((torch.cat, torch.concat), shapes.cat),
    torch.stack: shapes.stack,
    torch.flatten: shapes.flatten,
    torch.reshape: shapes.reshape,
    **dict.fromkeys((torch.permute,), shapes.permute),
    **dict.fromkeys((torch.transpose, torch.swapaxes), shapes.transpose),
    torch.squeeze: shapes.squeeze,
    torch.unsqueeze: shapes.unsqueeze,
    **dict.fromkeys((torch.chunk, torch.split), indexing.split),
    operator.getitem: indexing.getitem,
    F.pad: shapes.pad,
    torch.mean: reduce("mean"),
    torch.sum: reduce("sum"),
    F.interpolate: interpolate,
    **dict.fromkeys((F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout), shapes.same),
    **dict.fromkeys((torch.clone, torch.detach), shapes.same),
}

METHODS: dict[str, Handler] = {
    **dict.fromkeys(("relu", "relu_"), relu),
    **dict.fromkeys(("clamp", "clamp_", "clip", "clip_"), clamp),
    **dict.fromkeys(("clamp_min", "clamp_min_"), clamp_min),
    **dict.fromkeys(("view", "reshape", "unflatten"), shapes.reshape),
    "flatten": shapes.flatten,
    "permute": shapes.permute,
    **dict.fromkeys(("transpose", "swapaxes"), shapes.transpose),
    "squeeze": shapes.squeeze,
    "unsqueeze": shapes.unsqueeze,
    **dict.fromkeys(("chunk", "split"), indexing.split),
    "mean": reduce("mean"),
    "sum": reduce("sum"),
    **dict.fromkeys(("contiguous", "clone", "detach", "float", "to", "type_as"), shapes.same),
}
