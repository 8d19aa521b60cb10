"""Handlers of functions and tensor methods: functional layers, pooling, clamps and ReLU, reductions."""

import operator
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from speedysnn.convert.builder import Ref, Unsupported
from speedysnn.convert.call import Call
from speedysnn.convert.ops import shapes

Handler = Callable[[Call], Any]


def as_list(value: Any, dims: int) -> list[int]:
    """A number for every spatial dimension."""
    return list(value) if isinstance(value, list | tuple) else [int(value)] * dims


def conv(call: Call) -> Ref:
    """torch.nn.functional.conv1d, 2d, 3d with weights of the model's own."""
    weight, bias = call.own(1, "weight"), call.own(2, "bias")
    if weight is None:
        raise Unsupported("a convolution without weight")
    dims = weight.ndim - 2
    padding = call.number(4, "padding", 0)
    attrs = {
        "stride": as_list(call.number(3, "stride", 1), dims),
        "padding": padding if isinstance(padding, str) else as_list(padding, dims),
        "dilation": as_list(call.number(5, "dilation", 1), dims),
        "groups": call.number(6, "groups", 1),
    }
    return call.emit(f"conv{dims}d", (call.ref(),), attrs, {"weight": weight, "bias": bias})


def linear(call: Call) -> Ref:
    """torch.nn.functional.linear with weights of the model's own."""
    return call.emit("linear", (call.ref(),), None, {"weight": call.own(1, "weight"), "bias": call.own(2, "bias")})


def batch_norm(call: Call) -> Ref:
    """torch.nn.functional.batch_norm in evaluation mode."""
    if call.number(5, "training", False):
        raise Unsupported("batch-norm that uses the statistics of the batch", "evaluate it with running statistics")
    tensors = {
        "mean": call.own(1, "running_mean"),
        "var": call.own(2, "running_var"),
        "weight": call.own(3, "weight"),
        "bias": call.own(4, "bias"),
    }
    return call.emit("batch_norm", (call.norm_input(),), {"eps": call.number(7, "eps", 1e-5)}, tensors)


def _stride(call: Call, kernel: Any) -> Any:
    """A pool's stride, by default its kernel; torch writes the default as None or as an empty list."""
    stride = call.number(2, "stride")
    return kernel if stride is None or stride == [] or stride == () else stride


def avg_pool(call: Call) -> Ref:
    """torch.nn.functional.avg_pool1d, 2d, 3d."""
    x = call.ref()
    kernel = call.number(1, "kernel_size")
    attrs = {
        "kernel": kernel,
        "stride": _stride(call, kernel),
        "padding": call.number(3, "padding", 0),
        "ceil_mode": call.number(4, "ceil_mode", False),
        "count_include_pad": call.number(5, "count_include_pad", True),
        "divisor_override": call.number(6, "divisor_override"),
    }
    return call.emit(f"avg_pool{len(x.shape) - 2}d", (x,), attrs)


def max_pool(call: Call) -> Ref:
    """torch.nn.functional.max_pool1d, 2d, 3d, exact in rate."""
    x = call.ref()
    if call.number(6, "return_indices", False):
        raise Unsupported("max-pooling that returns indices", "use one that returns values only")
    kernel = call.number(1, "kernel_size")
    attrs = {
        "kernel": kernel,
        "stride": _stride(call, kernel),
        "padding": call.number(3, "padding", 0),
        "dilation": call.number(4, "dilation", 1),
        "ceil_mode": call.number(5, "ceil_mode", False),
    }
    return call.emit(f"max_pool{len(x.shape) - 2}d", (x,), attrs)


def adaptive_pool(kind: str) -> Handler:
    """torch.nn.functional.adaptive_avg_pool and adaptive_max_pool."""

    def handle(call: Call) -> Ref:
        x = call.ref()
        if call.number(2, "return_indices", False):
            raise Unsupported("max-pooling that returns indices", "use one that returns values only")
        return call.emit(f"adaptive_{kind}_pool{len(x.shape) - 2}d", (x,), {"size": call.number(1, "output_size")})

    return handle


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
        attrs["size"] = as_list(attrs["size"], len(call.ref().shape) - 2)
    if attrs["scale"] is not None:
        attrs["scale"] = as_list(attrs["scale"], len(call.ref().shape) - 2)
    return call.emit("interpolate", (call.ref(),), attrs)


FUNCTIONS: dict[Callable[..., Any], Handler] = {
    **dict.fromkeys((F.conv1d, F.conv2d, F.conv3d), conv),
    F.linear: linear,
    F.batch_norm: batch_norm,
    **dict.fromkeys((F.avg_pool1d, F.avg_pool2d, F.avg_pool3d), avg_pool),
    **dict.fromkeys((F.max_pool1d, F.max_pool2d, F.max_pool3d), max_pool),
    **dict.fromkeys((torch.max_pool1d, torch.max_pool2d, torch.max_pool3d), max_pool),
    **dict.fromkeys((F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d), adaptive_pool("avg")),
    **dict.fromkeys((F.adaptive_max_pool1d, F.adaptive_max_pool2d, F.adaptive_max_pool3d), adaptive_pool("max")),
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
    **dict.fromkeys((torch.chunk, torch.split), shapes.split),
    operator.getitem: shapes.getitem,
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
    **dict.fromkeys(("chunk", "split"), shapes.split),
    "mean": reduce("mean"),
    "sum": reduce("sum"),
    **dict.fromkeys(("contiguous", "clone", "detach", "float", "to", "type_as"), shapes.same),
}
