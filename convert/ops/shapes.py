"""Handlers that change the shape of a value or take parts of it: reshape, permute, pad, cat, indexing, split."""

import math
import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from speedysnn.convert.handler_api import Call, Handler, Key, Ref, Unsupported, row_of
from speedysnn.convert.trace import BatchTensor


def reshape(call: Call) -> Ref:
    """view, reshape, unflatten: the traced shape with the batch left open, which must stay outermost."""
    x = call.ref()
    out = tuple(call.read_from_result())
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
    if isinstance(items, list | tuple):
        items = [call.constant(row_of(item)) if isinstance(item, BatchTensor) else item for item in items]
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
    x = call.get(0, "input")
    if not isinstance(x, Ref):
        return call.ref()
    return call.permuted(x, [int(d) % len(x.shape) for d in call.rest(1, "dims")])


def transpose(call: Call) -> Ref:
    """Two dimensions swapped."""
    x = call.get(0, "input")
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
    """contiguous, clone, detach: the value itself."""
    value = call.get(0, "input")
    return value if isinstance(value, Tensor) else call.ref()


def dropout(call: Call) -> Ref:
    """Dropout that does nothing when evaluating."""
    if call.get(2, "training", True) and call.get(1, "p", 0.5):
        raise Unsupported("dropout that also drops when evaluating", "pass training=self.training")
    return call.ref()


def stochastic_depth(call: Call) -> Ref:
    """torchvision's, which does nothing when evaluating."""
    if call.get(3, "training", True) and call.get(1, "p"):
        raise Unsupported("a branch that is also dropped when evaluating", "pass training=self.training")
    call.get(2, "mode")
    return call.ref()


def cast(call: Call) -> Any:
    """to, float, type_as and the like: the value itself, whose type the network's own tensors settle.

    Raises:
        Unsupported: it would become whole numbers.
    """
    call.read_from_result()
    kinds = [item for item in (*call.args, *call.kwargs.values()) if isinstance(item, torch.dtype)]
    if any(not kind.is_floating_point for kind in kinds) and isinstance(call.get(0, "input"), Ref):
        raise Unsupported(f"it turns activations into {kinds[0]}".replace("torch.", ""), "keep them in floating point")
    return same(call)


def getitem(call: Call) -> Any:
    """Indexing: of a tensor it is a slice, of a list an item."""
    value, given = call.get(0, "input"), call.get(1, "index")
    if isinstance(value, list | tuple):
        return value[given]
    items = list(given) if isinstance(given, tuple) else [given]
    if isinstance(value, Ref) and value.order and len(items) == 1 and _is_int(items[0]):
        return picked(call, value, 0, items[0] % value.shape[0])
    return indexed(call, call.ref(), items)


def _is_int(item: Any) -> bool:
    return isinstance(item, int) and not isinstance(item, bool)


def indexed(call: Call, x: Ref, items: list[Any]) -> Ref:
    """Indexing as torch does it: whole numbers, slices, None, an ellipsis, and constant tensors in neighbouring places.

    Raises:
        Unsupported: the batch is not kept whole and first, or an index is computed inside the network.
    """
    items = _expanded(items, len(x.shape))
    if not items or not isinstance(items[0], slice) or items[0] not in _WHOLE:
        raise Unsupported("it indexes the batch dimension", "keep the batch whole: x[:, ...]")
    group = _tensor_places(items)
    plain = [slice(None) if at in group else item for at, item in enumerate(items)]
    sliced = [_index(item) for item in plain if item is not None]
    shape = _sliced(x.shape, sliced)
    made = x if all(item is None for item in sliced) else call.emit("slice", (x,), {"index": sliced}, shape=shape)
    if group:
        start = sum(item is not None for item in items[: group[0]])
        made, width = _gathered(call, made, start, [items[at] for at in group])
    at = 0
    for place, item in enumerate(items):  # a None in the index is a new dimension; an integer has taken one away
        if item is None:
            made = call.emit("unsqueeze", (made,), {"dim": at}, shape=(*made.shape[:at], 1, *made.shape[at:]))
        if place not in group:
            at += not _is_int(item)
        elif place == group[0]:
            at += width
    return Ref(made.name, tuple(call.result))


def _expanded(items: list[Any], ndim: int) -> list[Any]:
    """An item for every dimension: without ellipsis, lists and masks as index tensors, tensors of one number as it."""
    out: list[Any] = []
    for item in items:
        item = torch.tensor(item) if isinstance(item, list | tuple) else item
        if isinstance(item, bool) or (isinstance(item, Tensor) and item.dtype == torch.bool and not item.ndim):
            raise Unsupported("it indexes with a truth value", "use whole numbers and slices")
        if isinstance(item, Tensor) and item.dtype == torch.bool:
            out.extend(item.nonzero(as_tuple=True))
        else:
            out.append(int(item) if isinstance(item, Tensor) and not item.ndim else item)
    dots = [at for at, item in enumerate(out) if item is Ellipsis]
    rest = [slice(None)] * (ndim - sum(item is not None and item is not Ellipsis for item in out))
    return out + rest if not dots else out[: dots[0]] + rest + out[dots[0] + 1 :]


def _tensor_places(items: list[Any]) -> list[int]:
    """Places of index tensors and, beside them, of whole numbers, which then are indices too."""
    if not any(isinstance(item, Tensor) for item in items):
        return []
    group = [at for at, item in enumerate(items) if isinstance(item, Tensor) or _is_int(item)]
    if group != list(range(group[0], group[-1] + 1)):
        raise Unsupported("its index tensors are not side by side, so that the batch moves", "index in two steps")
    return group


def _gathered(call: Call, x: Ref, start: int, given: list[Any]) -> tuple[Ref, int]:
    """Entries of the dimensions from `start` on, one constant index each, and the rank of what takes their place."""
    sizes = x.shape[start : start + len(given)]
    before, after = x.shape[:start], x.shape[start + len(given) :]
    index = torch.zeros((), dtype=torch.int64)
    for item, size in zip(given, sizes, strict=True):
        own = torch.as_tensor(item)
        index = index * size + torch.where(own < 0, own + size, own)
    if len(given) > 1:
        dims = {"start": start, "end": start + len(given) - 1}
        x = call.emit("flatten", (x,), dims, shape=(*before, math.prod(sizes), *after))
    out = call.emit("take", (x,), {"dim": start}, {"index": index}, shape=(*before, *index.shape, *after))
    return out, index.ndim


def _sliced(shape: tuple[int, ...], index: list[Any]) -> tuple[int, ...]:
    """The shape that slices leave; a whole number takes its dimension away."""
    kept = ((size, item) for size, item in zip(shape, index, strict=True) if not isinstance(item, int))
    return tuple(size if item is None else len(range(*slice(*item).indices(size))) for size, item in kept)


def take(call: Call, x: Ref, dim: int, index: Tensor) -> Ref:
    """Entries of one dimension by a constant index tensor."""
    positions = torch.nonzero(index).flatten() if index.dtype == torch.bool else index
    positions = torch.where(positions < 0, positions + x.shape[dim], positions)
    return call.emit("take", (x,), {"dim": dim}, {"index": positions})


_WHOLE = (slice(None), slice(0, None), slice(None, None, 1), slice(0, None, 1))


def _index(item: Any) -> Any:
    if item == slice(None):
        return None
    if _is_int(item):
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
    for shape in call.read_from_result():
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
    **dict.fromkeys((F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, torch.dropout), dropout),
    **dict.fromkeys((torch.clone, torch.detach), same),
    **dict.fromkeys(("view", "reshape", "unflatten"), reshape),
    "flatten": flatten,
    "permute": permute,
    **dict.fromkeys(("transpose", "swapaxes"), transpose),
    "squeeze": squeeze,
    "unsqueeze": unsqueeze,
    **dict.fromkeys(("contiguous", "clone", "detach"), same),
    **dict.fromkeys(("float", "to", "type", "type_as"), cast),
    "torchvision.ops.stochastic_depth.stochastic_depth": stochastic_depth,  # by name: torchvision need not be imported
    **dict.fromkeys((torch.chunk, torch.split), split),
    operator.getitem: getitem,
    **dict.fromkeys(("chunk", "split"), split),
}
