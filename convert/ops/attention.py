"""Attention and matrix products: multi-head attention taken apart into linear layers, products and a softmax."""

import math
import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speedysnn.convert.handler_api import Call, Handler, Key, Ref, Unsupported


def matmul(call: Call) -> Ref:
    """Matrix product: of two branches (hybrid), or with a matrix of the model's own (a linear layer)."""
    a, b = call.args[0], call.get(1, "other")
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
            scores = call.emit("affine", (scores,), None, {"bias": mask}, shape=shape)
    weights = call.emit("softmax", (scores,), {"dim": len(shape) - 1}, shape=shape)
    return call.emit("matmul", (weights, v), shape=(*q.shape[:-1], v.shape[-1])), weights


def scaled_dot_product(call: Call) -> Ref:
    """torch.nn.functional.scaled_dot_product_attention."""
    q, k, v = call.ref(0, "query"), call.ref(1, "key"), call.ref(2, "value")
    mask = call.get(3, "attn_mask")
    if mask is not None and not isinstance(mask, Tensor):
        raise Unsupported("an attention mask computed from the input", "use a constant mask")
    if call.number(5, "is_causal", False):
        mask = torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool).tril()
    scale = call.kwargs.get("scale")
    return attend(call, q, k, v, mask, 1 / math.sqrt(q.shape[-1]) if scale is None else float(scale))[0]


def multihead(call: Call) -> tuple[Ref, Ref | None]:
    """torch.nn.MultiheadAttention with batch_first=True."""
    m: Any = call.module
    if not m.batch_first:
        raise Unsupported("attention over (L, B, E), batch in the second dimension", "set batch_first=True")
    if m.bias_k is not None or m.add_zero_attn:
        raise Unsupported("add_bias_kv or add_zero_attn", "switch them off")
    if call.get(3, "key_padding_mask") is not None or call.kwargs.get("is_causal", False):
        raise Unsupported("a padding mask or is_causal", "give a constant attn_mask")
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
    equation, operands = str(call.args[0]).replace(" ", ""), call.args[1:]
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
