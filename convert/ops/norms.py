"""Handlers of norms: layer-norm and its kin, which need an analog unit, and vector norms."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from speedysnn.convert.builder import Ref, Unsupported
from speedysnn.convert.call import Call, Handler, Key


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


NORM_ROWS: dict[Key, Handler] = {
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
