"""Handlers of layers as functions: convolution, linear, pooling and norms, with weights of the model's own.

Batch-norm is affine when evaluating; layer-norm and its kin need an analog unit.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from speedysnn.convert.handler_api import Call, Handler, Key, Ref, Unsupported


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


def layer_norm(call: Call) -> Ref:
    """Layer-norm and RMS-norm over the last dimensions."""
    m: Any = call.module
    shape = list(m.normalized_shape if m is not None else call.number(1, "normalized_shape"))
    eps = m.eps if m is not None else call.number(4, "eps", 1e-5)
    tensors = {"weight": call.own(2, "weight"), "bias": call.own(3, "bias")}
    return call.emit("layer_norm", (call.ref(),), {"shape": shape, "eps": eps}, tensors)


def rms_norm(call: Call) -> Ref:
    """RMS-norm over the last dimensions."""
    m: Any = call.module
    shape = list(m.normalized_shape if m is not None else call.number(1, "normalized_shape"))
    eps = m.eps if m is not None else call.number(3, "eps")
    return call.emit("rms_norm", (call.ref(),), {"shape": shape, "eps": eps}, {"weight": call.own(2, "weight")})


def group_norm(call: Call) -> Ref:
    """Group-norm."""
    m: Any = call.module
    groups = m.num_groups if m is not None else call.number(1, "num_groups")
    eps = m.eps if m is not None else call.number(4, "eps", 1e-5)
    tensors = {"weight": call.own(2, "weight"), "bias": call.own(3, "bias")}
    return call.emit("group_norm", (call.ref(),), {"groups": groups, "eps": eps}, tensors)


def instance_norm(call: Call) -> Ref:
    """Instance-norm; with running statistics it is a batch-norm."""
    m: Any = call.module
    if m is None:
        if call.get(1, "running_mean") is not None:
            raise Unsupported("functional instance-norm with running statistics", "use the module")
        tensors, eps = {"weight": call.own(3, "weight"), "bias": call.own(4, "bias")}, call.number(7, "eps", 1e-5)
        return call.emit("instance_norm", (call.ref(),), {"eps": eps}, tensors)
    tensors = {"weight": m.weight, "bias": m.bias}
    if m.running_mean is not None:
        return call.emit(
            "batch_norm", (call.ref(),), {"eps": m.eps}, {"mean": m.running_mean, "var": m.running_var, **tensors}
        )
    return call.emit("instance_norm", (call.ref(),), {"eps": m.eps}, tensors)


def vector_norm(call: Call) -> Ref:
    """torch.linalg.vector_norm along dimensions other than the batch."""
    x = call.ref()
    dims = call.dims(call.number(2, "dim"), len(x.shape))
    attrs = {"p": float(call.number(1, "ord", 2.0)), "dim": dims, "keepdim": bool(call.number(3, "keepdim", False))}
    return call.emit("vector_norm", (x,), attrs)


def normalize(call: Call) -> Ref:
    """torch.nn.functional.normalize: x / max(norm, eps)."""
    x = call.ref()
    dims = call.dims(call.number(2, "dim", 1), len(x.shape))
    shape = tuple(1 if i in dims else size for i, size in enumerate(x.shape))
    attrs = {"p": float(call.number(1, "p", 2.0)), "dim": dims, "keepdim": True}
    norm = call.emit("vector_norm", (x,), attrs, shape=shape)
    floor = call.emit("clamp", (norm,), {"min": float(call.number(3, "eps", 1e-12)), "max": None}, shape=shape)
    return call.emit("div", (x, floor))


LAYER_ROWS: dict[Key, Handler] = {
    **dict.fromkeys((F.conv1d, F.conv2d, F.conv3d), conv),
    F.linear: linear,
    F.batch_norm: batch_norm,
    **dict.fromkeys((F.avg_pool1d, F.avg_pool2d, F.avg_pool3d), avg_pool),
    **dict.fromkeys((F.max_pool1d, F.max_pool2d, F.max_pool3d), max_pool),
    **dict.fromkeys((torch.max_pool1d, torch.max_pool2d, torch.max_pool3d), max_pool),
    **dict.fromkeys((F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d), adaptive_pool("avg")),
    **dict.fromkeys((F.adaptive_max_pool1d, F.adaptive_max_pool2d, F.adaptive_max_pool3d), adaptive_pool("max")),
    nn.LayerNorm: layer_norm,
    nn.RMSNorm: rms_norm,
    nn.GroupNorm: group_norm,
    **dict.fromkeys((nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d), instance_norm),
    **dict.fromkeys((F.layer_norm, torch.layer_norm), layer_norm),
    **dict.fromkeys((F.rms_norm, torch.rms_norm), rms_norm),
    **dict.fromkeys((F.group_norm,), group_norm),
    F.instance_norm: instance_norm,
    F.normalize: normalize,
    torch.linalg.vector_norm: vector_norm,
}
