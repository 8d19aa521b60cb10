"""Handlers that move values about without changing them: reshape, pad, cat, permute, squeeze."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from speedysnn.convert.builder import Ref, Unsupported
from speedysnn.convert.call import Call, Handler, Key


def reshape(call: Call) -> Ref:
    """view, reshape, unflatten: the traced shape with the batch left open, which must stay outermost."""
    x = call.ref()
    out = tuple(call.result)
    if not out or not getattr(call.result, "leads", True):
        raise Unsupported(
            f"it turns {x.shape} into {out}: the batch is no longer outermost", "keep it first"
        )
    if out[0] == x.shape[0]:
        return call.emit("reshape", (x,), {"shape": [0, -1] if len(out) == 2 else [0, *out[1:]]})
    return call.emit("reshape", (x,), {"shape": [-1, *out[1:]]})


def flatten(call: Call) -> Ref:
    """torch.flatten and Tensor.flatten, batch kept."""
    x = call.ref()
    start, end = call.number(1, "start_dim", 0), call.number(2, "end_dim", -1)
    dims = call.dims([start, end], len(x.shape))
    return call.emit("flatten", (x,), {"start": dims[0], "end": dims[1]})


def _tensors(call: Call) -> tuple[Ref, ...]:
    items = call.get(0, "tensors")
    if not isinstance(items, list | tuple) or not all(isinstance(item, Ref) for item in items):
        raise Unsupported("it joins something that is not computed from the input", "join tensors only")
    return tuple(items)


def cat(call: Call) -> Ref:
    """Concatenation along any dimension but the batch."""
    refs = _tensors(call)
    dim = call.dims(call.number(1, "dim", 0), len(refs[0].shape))[0]
    return call.emit("cat", refs, {"dim": dim})


def stack(call: Call) -> Ref:
    """Stacking along any dimension but the batch."""
    refs = _tensors(call)
    return call.emit("stack", refs, {"dim": call.dims(call.number(1, "dim", 0), len(refs[0].shape) + 1)[0]})


def permute(call: Call) -> Ref:
    """Permutation; one that moves the batch is put off until the batch is first again."""
    x = call.args[0]
    if not isinstance(x, Ref):
        return call.ref()
    dims = call.args[1] if isinstance(call.get(1, "dims"), list | tuple) else call.args[1:]
    return call.permuted(x, [int(d) % len(x.shape) for d in (dims or call.kwargs["dims"])])


def transpose(call: Call) -> Ref:
    """Two dimensions swapped."""
    x = call.args[0]
    if not isinstance(x, Ref):
        return call.ref()
    order = list(range(len(x.shape)))
    first, second = (int(call.number(i, f"dim{i - 1}")) % len(order) for i in (1, 2))
    order[first], order[second] = second, first
    return call.permuted(x, order)


def squeeze(call: Call) -> Ref:
    """One dimension of size 1 removed."""
    x, dim = call.ref(), call.number(1, "dim")
    if dim is None:
        raise Unsupported("squeeze without a dimension also removes a batch of one", "name the dimension")
    return call.emit("squeeze", (x,), {"dim": call.dims(dim, len(x.shape))[0]})


def unsqueeze(call: Call) -> Ref:
    """One dimension of size 1 added."""
    x = call.ref()
    return call.emit("unsqueeze", (x,), {"dim": call.dims(call.number(1, "dim"), len(x.shape) + 1)[0]})


def pad_mode(call: Call, x: Ref, amounts: list[int], mode: str, value: float = 0.0, *, final: bool = False) -> Ref:
    """A pad node; a constant other than zero is added at every step, so its mean is right too."""
    if len(amounts) > 2 * (len(x.shape) - 1):
        raise Unsupported("it pads the batch dimension", "keep the batch as it is")
    kind = "constant" if mode == "zeros" else mode
    attrs = {"pad": amounts, "mode": kind, "value": float(value or 0) if kind == "constant" else None}
    shape = list(x.shape)
    for i in range(len(amounts) // 2):
        shape[-1 - i] += amounts[2 * i] + amounts[2 * i + 1]
    return call.emit("pad", (x,), attrs, shape=tuple(call.result) if final else tuple(shape))


def pad(call: Call) -> Ref:
    """torch.nn.functional.pad."""
    mode, value = call.number(2, "mode", "constant"), call.number(3, "value", 0.0)
    return pad_mode(call, call.ref(), list(call.number(1, "pad")), mode, value, final=True)


def pad_aten(call: Call) -> Ref:
    """aten.pad (x, amounts, mode, value) and aten.constant_pad_nd (x, amounts, value)."""
    mode = call.get(2, "mode", "constant")
    if not isinstance(mode, str):
        return pad_mode(call, call.ref(), list(call.number(1, "pad")), "constant", mode, final=True)
    return pad_mode(call, call.ref(), list(call.number(1, "pad")), mode, call.get(3, "value", 0.0), final=True)


def same(call: Call) -> Any:
    """contiguous, clone, detach, dropout in evaluation mode: the value itself."""
    value = call.args[0] if call.args else call.kwargs.get("input")
    if isinstance(value, Tensor):
        return value
    return call.ref()


SHAPE_ROWS: dict[Key, Handler] = {
    **dict.fromkeys((torch.cat, torch.concat), cat),
    torch.stack: stack,
    torch.flatten: flatten,
    torch.reshape: reshape,
    **dict.fromkeys((torch.permute,), permute),
    **dict.fromkeys((torch.transpose, torch.swapaxes), transpose),
    torch.squeeze: squeeze,
    torch.unsqueeze: unsqueeze,
    F.pad: pad,
    **dict.fromkeys((F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout), same),
    **dict.fromkeys((torch.clone, torch.detach), same),
    **dict.fromkeys(("view", "reshape", "unflatten"), reshape),
    "flatten": flatten,
    "permute": permute,
    **dict.fromkeys(("transpose", "swapaxes"), transpose),
    "squeeze": squeeze,
    "unsqueeze": unsqueeze,
    **dict.fromkeys(("contiguous", "clone", "detach", "float", "to", "type_as"), same),
    "torchvision.ops.stochastic_depth.stochastic_depth": same,  # by name: torchvision need not be imported
}
