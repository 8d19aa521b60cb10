"""Handlers of torch.nn modules, and of attention, which is taken apart into linear layers, products and a softmax.

A module's handler reads its settings and emits nodes with copies of its tensors. What multi-head attention is made of,
matrix products and scaled dot products, is handled here as functions too.
"""

import math
import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speedysnn.convert.handler_api import Call, Handler, Key, Ref, Unsupported
from speedysnn.convert.ops.functions import clamp_to, masked, norm_input, resized
from speedysnn.convert.ops.shapes import pad_mode


def _tuple(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def conv(call: Call) -> Ref:
    """Convolution; other paddings than zeros become a pad node before it."""
    m = call.settings
    x, dims = call.ref(), m.weight.ndim - 2
    padding = _tuple(m.padding)
    if m.padding_mode != "zeros":
        x = pad_mode(call, x, list(m._reversed_padding_repeated_twice), m.padding_mode)
        padding = [0] * dims
    attrs = {"stride": _tuple(m.stride), "padding": padding, "dilation": _tuple(m.dilation), "groups": m.groups}
    return call.emit(f"conv{dims}d", (x,), attrs, {"weight": m.weight, "bias": m.bias})


def conv_transpose(call: Call) -> Ref:
    """Transposed convolution."""
    m = call.settings
    attrs = {
        "stride": _tuple(m.stride),
        "padding": _tuple(m.padding),
        "output_padding": _tuple(m.output_padding),
        "groups": m.groups,
        "dilation": _tuple(m.dilation),
    }
    if call.get(1, "output_size") is not None:
        attrs["output_padding"] = _rest(call, m)
    if m.padding_mode != "zeros":
        raise Unsupported(f"padding_mode={m.padding_mode!r} in a transposed convolution", "use zeros")
    return call.emit(f"conv_transpose{m.weight.ndim - 2}d", (call.ref(),), attrs, {"weight": m.weight, "bias": m.bias})


def _rest(call: Call, m: Any) -> list[int]:
    """The output padding that gives the traced size, as an output_size asked for it."""
    sizes, wanted = call.ref().shape[2:], call.result[2:]
    parts = zip(sizes, wanted, m.weight.shape[2:], m.stride, m.padding, m.dilation, strict=True)
    return [out - (size - 1) * step + 2 * pad - dilation * (kernel - 1) - 1
            for size, out, kernel, step, pad, dilation in parts]  # fmt: skip


def linear(call: Call) -> Ref:
    """Linear layer."""
    m = call.settings
    return call.emit("linear", (call.ref(),), None, {"weight": m.weight, "bias": m.bias})


def batch_norm(call: Call) -> Ref:
    """Batch-norm in evaluation mode, an affine map a channel; folded later where a layer precedes it."""
    m = call.settings
    if m.running_mean is None:
        raise Unsupported("batch-norm without running statistics works across the batch", "track running statistics")
    tensors = {"mean": m.running_mean, "var": m.running_var, "weight": m.weight, "bias": m.bias}
    return call.emit("batch_norm", (norm_input(call),), {"eps": m.eps}, tensors)


def avg_pool(call: Call) -> Ref:
    """Average pooling."""
    m = call.settings
    x = call.ref()
    attrs = {
        "kernel": _tuple(m.kernel_size),
        "stride": _tuple(m.stride),
        "padding": _tuple(m.padding),
        "ceil_mode": m.ceil_mode,
        "count_include_pad": m.count_include_pad,
        "divisor_override": getattr(m, "divisor_override", None),
    }
    return call.emit(f"avg_pool{len(x.shape) - 2}d", (x,), attrs)


def max_pool(call: Call) -> Ref:
    """Max-pooling, exact in rate."""
    m = call.settings
    x = call.ref()
    if m.return_indices:
        raise Unsupported("max-pooling that returns indices", "use one that returns values only")
    attrs = {
        "kernel": _tuple(m.kernel_size),
        "stride": _tuple(m.stride),
        "padding": _tuple(m.padding),
        "dilation": _tuple(m.dilation),
        "ceil_mode": m.ceil_mode,
    }
    return call.emit(f"max_pool{len(x.shape) - 2}d", (x,), attrs)


def adaptive_avg_pool(call: Call) -> Ref:
    """Adaptive average pooling."""
    m = call.settings
    x = call.ref()
    return call.emit(f"adaptive_avg_pool{len(x.shape) - 2}d", (x,), {"size": _tuple(m.output_size)})


def adaptive_max_pool(call: Call) -> Ref:
    """Adaptive max-pooling, exact in rate."""
    m = call.settings
    x = call.ref()
    if m.return_indices:
        raise Unsupported("max-pooling that returns indices", "use one that returns values only")
    return call.emit(f"adaptive_max_pool{len(x.shape) - 2}d", (x,), {"size": _tuple(m.output_size)})


def hardtanh(call: Call) -> Ref:
    """A clamp to a range that holds 0 becomes a neuron, signed where it reaches below 0."""
    m = call.settings
    return clamp_to(call, float(m.min_val), float(m.max_val))


def same(call: Call) -> Ref:
    """Dropout in evaluation mode and identities disappear."""
    return call.ref()


def flatten(call: Call) -> Ref:
    """Flatten, batch kept."""
    m = call.settings
    x = call.ref()
    start, end = call.dims([m.start_dim, m.end_dim], len(x.shape))
    return call.emit("flatten", (x,), {"start": start, "end": end})


def unflatten(call: Call) -> Ref:
    """Unflatten is a reshape to the traced shape."""
    m = call.settings
    call.ref().shape[m.dim], m.unflattened_size  # the traced result says all of it
    return call.emit("reshape", (call.ref(),), {"shape": [0, *call.result[1:]]})


def pad(call: Call) -> Ref:
    """Padding layers: zeros, constants, reflection, replication, circular."""
    m = call.settings
    kinds = {"Zero": "constant", "Constant": "constant", "Reflection": "reflect", "Replication": "replicate",
             "Circular": "circular"}  # fmt: skip
    mode = next(mode for word, mode in kinds.items() if type(call.module).__name__.startswith(word))
    return pad_mode(call, call.ref(), list(m.padding), mode, getattr(m, "value", 0.0), final=True)


def upsample(call: Call) -> Ref:
    """Upsampling, which is linear in its input; bicubic too."""
    m = call.settings
    attrs = {"size": m.size, "scale": m.scale_factor, "mode": m.mode, "align_corners": m.align_corners}
    return resized(call, {**attrs, "recompute": m.recompute_scale_factor})


def pixel_shuffle(call: Call) -> Ref:
    """Pixel shuffle."""
    m = call.settings
    return call.emit("pixel_shuffle", (call.ref(),), {"factor": m.upscale_factor})


def channel_shuffle(call: Call) -> Ref:
    """Channel shuffle."""
    m = call.settings
    return call.emit("channel_shuffle", (call.ref(),), {"groups": m.groups})


MODULE_ROWS: dict[Key, Handler] = {
    **dict.fromkeys((nn.Conv1d, nn.Conv2d, nn.Conv3d), conv),
    **dict.fromkeys((nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d), conv_transpose),
    nn.Linear: linear,
    **dict.fromkeys((nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm), batch_norm),
    **dict.fromkeys((nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d), avg_pool),
    **dict.fromkeys((nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d), max_pool),
    **dict.fromkeys((nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d), adaptive_avg_pool),
    **dict.fromkeys((nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d), adaptive_max_pool),
    nn.Hardtanh: hardtanh,
    **dict.fromkeys((nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout), same),
    **dict.fromkeys((nn.FeatureAlphaDropout, nn.Identity), same),
    nn.Flatten: flatten,
    nn.Unflatten: unflatten,
    **dict.fromkeys((nn.ZeroPad1d, nn.ZeroPad2d, nn.ZeroPad3d), pad),
    **dict.fromkeys((nn.ConstantPad1d, nn.ConstantPad2d, nn.ConstantPad3d), pad),
    **dict.fromkeys((nn.ReflectionPad1d, nn.ReflectionPad2d, nn.ReflectionPad3d), pad),
    **dict.fromkeys((nn.ReplicationPad1d, nn.ReplicationPad2d, nn.ReplicationPad3d), pad),
    **dict.fromkeys((nn.CircularPad1d, nn.CircularPad2d, nn.CircularPad3d), pad),
    **dict.fromkeys((nn.Upsample, nn.UpsamplingBilinear2d, nn.UpsamplingNearest2d), upsample),
    nn.PixelShuffle: pixel_shuffle,
    nn.ChannelShuffle: channel_shuffle,
}


def matmul(call: Call) -> Ref:
    """Matrix product: of two branches (hybrid), or with a matrix of the model's own (a linear layer)."""
    a, b = call.get(0, "input"), call.get(1, "other")
    if isinstance(a, Ref) and isinstance(b, Ref):
        return call.emit("matmul", (a, b))
    if isinstance(a, Ref) and isinstance(b, Tensor) and b.ndim == 2:
        return call.emit("linear", (a,), None, {"weight": b.t()})
    if isinstance(b, Ref) and isinstance(a, Tensor) and a.ndim == 2 and len(b.shape) > 2:
        out = call.emit(
            "linear", (_swap(call, b),), None, {"weight": a}, shape=(*b.shape[:-2], b.shape[-1], a.shape[0])
        )
        return _swap(call, out)
    raise Unsupported("a matrix product with a stack of matrices", "use one matrix, or a linear layer")


def _swap(call: Call, x: Ref) -> Ref:
    order = list(range(len(x.shape)))
    order[-1], order[-2] = order[-2], order[-1]
    return call.emit("permute", (x,), {"dims": order}, shape=tuple(x.shape[i] for i in order))


def attend(call: Call, q: Ref, k: Ref, v: Ref, mask: Tensor | None, scale: float) -> tuple[Ref, Ref]:
    """softmax(q k^T scale + mask) v, and its weights; q (..., L, E), k (..., S, E), v (..., S, D)."""
    shape = (*q.shape[:-1], k.shape[-2])
    scores = call.emit("matmul", (q, _swap(call, k)), shape=shape)
    scores = call.emit("scale", (scores,), {"factor": scale, "offset": 0.0}, shape=shape)
    if mask is not None:
        if mask.dtype == torch.bool:
            fill = {"value": -math.inf}
            scores = call.emit("masked_fill", (scores,), fill, {"mask": ~mask}, shape=shape)
        else:
            scores = masked(call, scores, mask, shape)
    weights = call.emit("softmax", (scores,), {"dim": len(shape) - 1}, shape=shape)
    return call.emit("matmul", (weights, v), shape=(*q.shape[:-1], v.shape[-1])), weights


def scaled_dot_product(call: Call) -> Ref:
    """torch.nn.functional.scaled_dot_product_attention."""
    q, k, v = call.ref(0, "query"), call.ref(1, "key"), call.ref(2, "value")
    mask = call.operand(3, "attn_mask")
    if mask is not None and not isinstance(mask, Tensor):
        raise Unsupported("an attention mask computed from the input", "use a constant mask")
    if call.number(4, "dropout_p", 0.0):
        raise Unsupported("attention with dropout_p, which also drops when evaluating", "pass 0.0 there")
    if call.number(5, "is_causal", False):
        mask = torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool).tril()
    scale = call.get(6, "scale")
    return attend(call, q, k, v, mask, 1 / math.sqrt(q.shape[-1]) if scale is None else float(scale))[0]


def multihead(call: Call) -> tuple[Ref, Ref | None]:
    """torch.nn.MultiheadAttention with batch_first=True."""
    m = call.settings
    if not m.batch_first:
        raise Unsupported("attention over (L, B, E), batch in the second dimension", "set batch_first=True")
    if m.bias_k is not None or m.add_zero_attn:
        raise Unsupported("add_bias_kv or add_zero_attn", "switch them off")
    if call.get(3, "key_padding_mask") is not None or call.get(7, "is_causal", False):
        raise Unsupported("a padding mask or is_causal", "give a constant attn_mask")
    call.read.update((4, "need_weights", 6, "average_attn_weights", ".num_heads", ".kdim", ".vdim"))  # the result says
    mask = call.get(5, "attn_mask")
    if mask is not None and (not isinstance(mask, Tensor) or mask.ndim != 2):
        raise Unsupported("an attention mask computed from the input, or one a head", "use a constant (L, S) mask")
    if mask is not None and mask.dtype == torch.bool:
        mask = ~mask  # there True means "leave out"
    tensors = _projections(m)
    q, k, v = (
        _head(call, call.ref(i, name), *tensors[i], m.num_heads) for i, name in enumerate(("query", "key", "value"))
    )
    out, weights = attend(call, q, k, v, mask, 1 / math.sqrt(m.head_dim))
    batch, _, length, size = out.shape
    merged = call.emit("permute", (out,), {"dims": [0, 2, 1, 3]}, shape=(batch, length, m.num_heads, size))
    flat = call.emit("flatten", (merged,), {"start": 2, "end": 3}, shape=(batch, length, m.num_heads * size))
    shown = isinstance(call.result, tuple) and call.result[1] is not None
    projected = call.emit("linear", (flat,), None, {"weight": m.out_proj.weight, "bias": m.out_proj.bias},
                          shape=(batch, length, m.embed_dim))  # fmt: skip
    if not shown:
        return projected, None
    if len(call.result[1]) == 3:
        weights = call.emit("mean", (weights,), {"dim": [1], "keepdim": False}, shape=call.result[1])
    return projected, weights


def _projections(m: Any) -> list[tuple[Tensor, Tensor | None]]:
    biases = (None, None, None) if m.in_proj_bias is None else m.in_proj_bias.chunk(3)
    if m.in_proj_weight is not None:
        return list(zip(m.in_proj_weight.chunk(3), biases, strict=True))
    return list(zip((m.q_proj_weight, m.k_proj_weight, m.v_proj_weight), biases, strict=True))


def _head(call: Call, x: Ref, weight: Tensor, bias: Tensor | None, heads: int) -> Ref:
    batch, length, _ = x.shape
    size = weight.shape[0] // heads
    made = call.emit("linear", (x,), None, {"weight": weight, "bias": bias}, shape=(batch, length, weight.shape[0]))
    made = call.emit("reshape", (made,), {"shape": [0, length, heads, size]}, shape=(batch, length, heads, size))
    return call.emit("permute", (made,), {"dims": [0, 2, 1, 3]}, shape=(batch, heads, length, size))


def einsum(call: Call) -> Ref:
    """torch.einsum of two branches whose first index, the batch, is the result's first too."""
    equation, operands = str(call.get(0, "equation")).replace(" ", ""), call.rest(1, "operands")
    items = operands[0] if len(operands) == 1 and isinstance(operands[0], list | tuple) else operands
    refs = tuple(item for item in items if isinstance(item, Ref))
    left, _, right = equation.partition("->")
    terms = left.split(",")
    if len(refs) != 2 or len(items) != 2 or "." in equation or not right:
        raise Unsupported(f"einsum {equation!r}: expected two branches and named indices", "use matmul")
    if any(term[0] != right[0] for term in terms):
        raise Unsupported(f"einsum {equation!r} does not keep the batch first", "put the batch index first")
    return call.emit("einsum", refs, {"equation": equation})


ATTENTION_ROWS: dict[Key, Handler] = {
    nn.MultiheadAttention: multihead,
    **dict.fromkeys((torch.matmul, torch.bmm, operator.matmul), matmul),
    torch.einsum: einsum,
    F.scaled_dot_product_attention: scaled_dot_product,
    **dict.fromkeys(("matmul", "bmm"), matmul),
}
