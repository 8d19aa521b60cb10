"""Handlers of layers as functions: convolution, linear, batch-norm and pooling."""

from typing import Any

import torch
import torch.nn.functional as F

from speedysnn.convert.builder import Ref, Unsupported
from speedysnn.convert.call import Call, Handler, Key


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


LAYER_ROWS: dict[Key, Handler] = {
    **dict.fromkeys((F.conv1d, F.conv2d, F.conv3d), conv),
    F.linear: linear,
    F.batch_norm: batch_norm,
    **dict.fromkeys((F.avg_pool1d, F.avg_pool2d, F.avg_pool3d), avg_pool),
    **dict.fromkeys((F.max_pool1d, F.max_pool2d, F.max_pool3d), max_pool),
    **dict.fromkeys((torch.max_pool1d, torch.max_pool2d, torch.max_pool3d), max_pool),
    **dict.fromkeys((F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d), adaptive_pool("avg")),
    **dict.fromkeys((F.adaptive_max_pool1d, F.adaptive_max_pool2d, F.adaptive_max_pool3d), adaptive_pool("max")),
}
