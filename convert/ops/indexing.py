"""Handlers that take parts of a value: indexing, slices, single entries, chunks."""

import operator
from typing import Any

import torch
from torch import Tensor

from speedysnn.convert.builder import Ref, Unsupported
from speedysnn.convert.call import Call, Handler, Key


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


INDEXING_ROWS: dict[Key, Handler] = {
    **dict.fromkeys((torch.chunk, torch.split), split),
    operator.getitem: getitem,
    **dict.fromkeys(("chunk", "split"), split),
}
