"""Handlers of functions and tensor methods: layers as functions, clamps, means and sums, and arithmetic.

Convolution, linear, pooling and norms come with weights of the model's own. Batch-norm is affine when evaluating;
layer-norm and its kin need an analog unit. Arithmetic with a constant is affine; a product or quotient of two branches
needs an analog unit.
"""

import math
import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speedysnn.convert.handler_api import Call, Handler, Key, Ref, Unsupported, limit


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
    return call.emit("batch_norm", (norm_input(call),), {"eps": call.number(7, "eps", 1e-5)}, tensors)


def norm_input(call: Call) -> Ref:
    """The input of a batch-norm; a linear layer's sequence (B, L, C) is set apart, since there the norm runs along L
    and not along the layer's outputs, so that it must not be folded.
    """
    x = call.ref()
    made = next(node for node in call.builder.nodes if node.name == x.name)
    return call.emit("identity", (x,), shape=x.shape) if made.op == "linear" and len(x.shape) > 2 else x


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
    m, own = call.settings, call.module is not None
    shape = list(m.normalized_shape if own else call.number(1, "normalized_shape"))
    eps = m.eps if own else call.number(4, "eps", 1e-5)
    tensors = {"weight": call.own(2, "weight"), "bias": call.own(3, "bias")}
    return call.emit("layer_norm", (call.ref(),), {"shape": shape, "eps": eps}, tensors)


def rms_norm(call: Call) -> Ref:
    """RMS-norm over the last dimensions."""
    m, own = call.settings, call.module is not None
    shape = list(m.normalized_shape if own else call.number(1, "normalized_shape"))
    eps = m.eps if own else call.number(3, "eps")
    return call.emit("rms_norm", (call.ref(),), {"shape": shape, "eps": eps}, {"weight": call.own(2, "weight")})


def group_norm(call: Call) -> Ref:
    """Group-norm."""
    m, own = call.settings, call.module is not None
    groups = m.num_groups if own else call.number(1, "num_groups")
    eps = m.eps if own else call.number(4, "eps", 1e-5)
    tensors = {"weight": call.own(2, "weight"), "bias": call.own(3, "bias")}
    return call.emit("group_norm", (call.ref(),), {"groups": groups, "eps": eps}, tensors)


def instance_norm(call: Call) -> Ref:
    """Instance-norm; with running statistics it is a batch-norm."""
    m, own = call.settings, call.module is not None
    if not own:
        if call.get(1, "running_mean") is not None or call.get(2, "running_var") is not None:
            raise Unsupported("functional instance-norm with running statistics", "use the module")
        if not call.number(5, "use_input_stats", True):
            raise Unsupported("instance-norm without the image's own statistics", "use batch-norm")
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


def clamp(call: Call) -> Ref:
    """A clamp to a range that holds 0 is a neuron, signed where it reaches below 0."""
    return clamp_to(call, call.number(1, "min"), call.number(2, "max"))


def clamp_min(call: Call) -> Ref:
    """A clamp_min at 0 is a ReLU."""
    return clamp_to(call, call.number(1, "min"), None)


def hardtanh(call: Call) -> Ref:
    """torch.nn.functional.hardtanh; signed neurons where it reaches below 0."""
    return clamp_to(call, call.number(1, "min_val", -1.0), call.number(2, "max_val", 1.0))


def clamp_max(call: Call) -> Ref:
    """A clamp to a largest value alone."""
    return clamp_to(call, None, call.number(1, "max"))


def clamp_to(call: Call, low: Any, high: Any) -> Ref:
    """Neurons where the range holds 0, else an analog clamp."""
    low, high = limit(low), limit(high)
    if low is None and high is None:
        return call.ref()
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
        "recompute": call.number(5, "recompute_scale_factor"),
        "antialias": call.number(6, "antialias", False),
    }
    return resized(call, attrs)


def resized(call: Call, attrs: dict[str, Any]) -> Ref:
    """An interpolation; its size and scale for every dimension, and only those options that are on."""
    x = call.ref()
    for name in ("size", "scale"):
        value = attrs[name]
        if value is not None:
            attrs[name] = list(value) if isinstance(value, list | tuple) else [value] * (len(x.shape) - 2)
    for name in ("recompute", "antialias"):
        if not attrs.setdefault(name, None):
            del attrs[name]
    return call.emit("interpolate", (x,), attrs)


def add(sign: int) -> Handler:
    """Sum or difference of two branches, or of a branch and a constant."""

    def handle(call: Call) -> Ref:
        a, b = call.operand(0, "input"), call.operand(1, "other")
        if call.get(2, "alpha", 1) != 1:
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
    a, b = call.operand(0, "input"), call.operand(1, "other")
    if isinstance(a, Ref) and isinstance(b, Ref):
        return call.emit("mul", (a, b))
    return _affine(call, a, b, None) if isinstance(a, Ref) else _affine(call, call.ref(1, "other"), a, None)


def divide(call: Call) -> Ref:
    """Division by a constant, which is affine, or by a branch, which is not."""
    a, b = call.operand(0, "input"), call.operand(1, "other")
    if call.get(2, "rounding_mode"):
        raise Unsupported("a division that rounds", "divide without rounding_mode")
    if not isinstance(b, Ref):
        return _affine(call, call.ref(), 1.0 / b, None)
    if isinstance(a, Ref):
        return call.emit("div", (a, b))
    return _affine(call, call.emit("reciprocal", (b,), shape=b.shape), a, None)


def negate(call: Call) -> Ref:
    """Negation."""
    return _affine(call, call.ref(), -1.0, None)


def masked(call: Call, x: Ref, offset: Tensor, shape: tuple[int, ...] | None = None) -> Ref:
    """The sum with a constant whose infinite entries are a mask: they replace values, all others are added.

    Raises:
        Unsupported: it holds NaN.
    """
    if bool(offset.isnan().any()):
        raise Unsupported("a constant that holds NaN", "check the checkpoint")
    finite = torch.where(offset.isfinite(), offset, torch.zeros_like(offset))
    x = call.emit("affine", (x,), None, {"bias": finite}, shape=shape)
    for value in (-math.inf, math.inf):
        if bool((offset == value).any()):
            x = call.emit("masked_fill", (x,), {"value": value}, {"mask": offset == value}, shape=x.shape)
    return x


def _affine(call: Call, x: Ref, factor: Any, offset: Any, sign: int = 1) -> Ref:
    for value in (factor, offset):
        if isinstance(value, Tensor) and value.numel() > 1 and value.ndim >= len(x.shape) and value.shape[0] != 1:
            raise Unsupported("a constant with a batch dimension of its own", "give it a first dimension of 1")
        if value is not None and not isinstance(value, Tensor | int | float):
            raise Unsupported(f"a {type(value).__name__} in an arithmetic operation", "use a constant")
    if isinstance(factor, Tensor) and not bool(factor.isfinite().all()):
        raise Unsupported("a product with a constant that holds NaN or infinity", "use masked_fill")
    if isinstance(offset, Tensor) and factor is None and not bool(offset.isfinite().all()):
        return masked(call, x, offset)
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
    torch.clamp_max: clamp_max,
    torch.mean: reduce("mean"),
    torch.sum: reduce("sum"),
    F.interpolate: interpolate,
    **dict.fromkeys(("clamp", "clamp_", "clip", "clip_"), clamp),
    **dict.fromkeys(("clamp_min", "clamp_min_"), clamp_min),
    **dict.fromkeys(("clamp_max", "clamp_max_"), clamp_max),
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
