"""Handlers that change the shape of a value or take parts of it: reshape, permute, pad, cat, indexing, split."""

import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from speedysnn.convert.handler_api import Call, Handler, Key, Ref, Unsupported


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


def getitem(call: Call) -> Any:
    """Indexing: of a tensor it is a slice, of a list an item."""
    value, index = call.args[0], call.args[1]
    if isinstance(value, list | tuple):
        return value[index]
    items = list(index) if isinstance(index, tuple) else [index]
    if isinstance(value, Ref) and value.order and len(items) == 1 and isinstance(items[0], int):
        return picked(call, value, 0, items[0] % value.shape[0])
    x = call.ref()
    if Ellipsis in items:
        at = items.index(Ellipsis)
        rest = len(x.shape) - (len(items) - 1)
        items = items[:at] + [slice(None)] * rest + items[at + 1 :]
    first = items[0] if items else None
    if not (isinstance(first, slice) and first in (slice(None), slice(0, None), slice(None, None, 1))):
        raise Unsupported("it indexes the batch dimension", "keep the batch whole: x[:, ...]")
    for position, item in enumerate(items):
        if isinstance(item, Tensor) and all(rest == slice(None) for rest in items[:position] + items[position + 1 :]):
            return take(call, x, position, item)
    plain = [item for item in items if item is not None]
    made = x if len(plain) == 1 else call.emit("slice", (x,), {"index": [None, *map(_index, plain[1:])]})
    at = 0
    for item in items:  # a None in the index is a new dimension; an integer has taken one away
        if item is None:
            made = call.emit("unsqueeze", (made,), {"dim": at}, shape=(*made.shape[:at], 1, *made.shape[at:]))
        at += not isinstance(item, int)
    return Ref(made.name, tuple(call.result))


def take(call: Call, x: Ref, dim: int, index: Tensor) -> Ref:
    """Entries of one dimension by a constant index tensor."""
    positions = torch.nonzero(index).flatten() if index.dtype == torch.bool else index
    positions = torch.where(positions < 0, positions + x.shape[dim], positions)
    return call.emit("take", (x,), {"dim": dim}, {"index": positions})


def _index(item: Any) -> Any:
    if item == slice(None):
        return None
    if isinstance(item, int):
        return item
    if isinstance(item, slice) and all(part is None or isinstance(part, int) for part in _parts(item)):
        return list(_parts(item))
    raise Unsupported(f"it indexes with {item!r}", "use whole numbers and slices")


def _parts(item: slice) -> tuple[Any, Any, Any]:
    return item.start, item.stop, item.step


def picked(call: Call, x: Ref, dim: int, index: int) -> Ref:
    """One index of one dimension, which goes; of a tensor whose permutation was put off too."""
    order = x.order or tuple(range(len(x.shape)))
    stored, at = call.builder.shapes[x.name], order[dim]
    if at == 0:
        raise Unsupported("it works across the batch dimension", "keep images apart inside the network")
    slim = call.emit("slice", (Ref(x.name, stored),), {"index": [None] * at + [int(index)]},
                     shape=(*stored[:at], *stored[at + 1 :]))  # fmt: skip
    rest = [d - (d > at) for i, d in enumerate(order) if i != dim]
    return call.permuted(slim, rest)


def split(call: Call) -> tuple[Ref, ...]:
    """Chunk and split become slices."""
    x = call.ref()
    dim = call.dims(call.number(2, "dim", 0), len(x.shape))[0]
    out, start = [], 0
    for shape in call.result:
        index: list[Any] = [None] * dim + [[start, start + shape[dim], None]]
        out.append(call.emit("slice", (x,), {"index": index}, shape=shape))
        start += shape[dim]
    return tuple(out)


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
    **dict.fromkeys((torch.chunk, torch.split), split),
    operator.getitem: getitem,
    **dict.fromkeys(("chunk", "split"), split),
}
