"""Handlers that repeat, move or choose values: expand, roll, flip, select, masks, maxima, comparisons, where."""

import operator
from typing import Any

import torch
from torch import Tensor

from speedysnn.convert.handler_api import Call, Handler, Key, Ref, Unsupported
from speedysnn.convert.ops.shapes import indexed, picked, take
from speedysnn.convert.trace import BatchTensor


def _sizes(call: Call, name: str) -> list[Any]:
    return call.rest(1, name)


def expand(call: Call) -> Ref:
    """Expansion to the traced shape, batch kept."""
    x, out = call.ref(), tuple(call.read_from_result())
    if len(out) != len(x.shape) or out[0] != x.shape[0]:
        raise Unsupported("it expands along the batch dimension", "keep the batch as it is")
    return call.emit("expand", (x,), {"shape": [0, *out[1:]]})


def repeat(call: Call) -> Ref:
    """Tensor.repeat along other dimensions than the batch."""
    x, times = call.ref(), _sizes(call, "repeats")
    if len(times) != len(x.shape) or times[0] != 1 or not all(isinstance(n, int) for n in times):
        raise Unsupported("it repeats the batch dimension", "repeat other dimensions only")
    return call.emit("repeat", (x,), {"repeats": times})


def roll(call: Call) -> Ref:
    """torch.roll along other dimensions than the batch."""
    x, shifts = call.ref(), call.number(1, "shifts")
    dims = call.dims(call.number(2, "dims"), len(x.shape))
    return call.emit(
        "roll", (x,), {"shifts": list(shifts) if isinstance(shifts, list | tuple) else [shifts], "dims": dims}
    )


def flip(call: Call) -> Ref:
    """torch.flip along other dimensions than the batch."""
    x = call.ref()
    return call.emit("flip", (x,), {"dims": call.dims(_sizes(call, "dims"), len(x.shape))})


def select(call: Call) -> Ref:
    """One index of one dimension."""
    x = call.get(0, "input")
    if not isinstance(x, Ref):
        return call.ref()
    return picked(call, x, int(call.number(1, "dim")) % len(x.shape), int(call.number(2, "index")))


def narrow(call: Call) -> Ref:
    """A range of one dimension."""
    x = call.ref()
    dim, start, length = (
        call.dims(call.number(1, "dim"), len(x.shape))[0],
        call.number(2, "start"),
        call.number(3, "length"),
    )
    return call.emit("slice", (x,), {"index": [None] * dim + [[start, start + length, None]]})


def slice_dim(call: Call) -> Ref:
    """aten.slice: (x, dim, start, end, step)."""
    x = call.ref()
    dim = int(call.get(1, "dim", 0)) % len(x.shape)
    start, end, step = call.get(2, "start"), call.get(3, "end"), call.get(4, "step", 1)
    if tuple(call.result) == tuple(x.shape):
        return x
    if dim == 0:
        raise Unsupported("it slices the batch dimension", "keep the batch whole: x[:, ...]")
    end = None if end is None or end >= x.shape[dim] else end
    return call.emit("slice", (x,), {"index": [None] * dim + [[start, end, step]]})


def slice_scatter(call: Call) -> Ref:
    """aten.slice_scatter: (x, part, dim, start, end, step), a part of a dimension replaced, as a change in place is."""
    x, part, dim = call.ref(), call.ref(1, "src"), int(call.number(2, "dim", 0)) % len(call.ref().shape)
    size = x.shape[dim]
    start, end, step = slice(call.number(3, "start"), call.number(4, "end"), call.number(5, "step", 1)).indices(size)
    if dim == 0 or step != 1:
        if tuple(part.shape) == tuple(x.shape):
            return part
        raise Unsupported("it replaces a part of the batch, or every other entry", "make a new tensor")
    pieces = [part]
    for low, high in ((0, start), (end, size)):
        if low < high:
            index = [None] * dim + [[low, high, None]]
            shape = (*x.shape[:dim], high - low, *x.shape[dim + 1 :])
            kept = call.emit("slice", (x,), {"index": index}, shape=shape)
            pieces = [kept, *pieces] if low == 0 else [*pieces, kept]
    return call.emit("cat", tuple(pieces), {"dim": dim}) if len(pieces) > 1 else part


def unbind(call: Call) -> tuple[Ref, ...]:
    """Every index of one dimension."""
    x = call.get(0, "input")
    if not isinstance(x, Ref):
        return (call.ref(),)
    dim = int(call.number(1, "dim", 0)) % len(x.shape)
    return tuple(picked(call, x, dim, i) for i in range(len(call.result)))


def movedim(call: Call) -> Ref:
    """torch.movedim, batch kept first."""
    x = call.ref()
    source, target = call.number(1, "source"), call.number(2, "destination")
    moved = list(torch.zeros([i + 2 for i in range(len(x.shape))]).movedim(source, target).shape)
    dims = [size - 2 for size in moved]
    if dims[0] != 0:
        raise Unsupported("it moves the batch dimension", "keep the batch first")
    return call.emit("permute", (x,), {"dims": dims})


def index_select(call: Call) -> Ref:
    """Entries of one dimension by a constant index."""
    x, index = call.ref(), call.get(2, "index")
    dim = call.dims(call.number(1, "dim"), len(x.shape))[0]
    if not isinstance(index, Tensor):
        raise Unsupported("it indexes with a tensor computed inside the network", "use a constant index")
    return take(call, x, dim, index)


def repeat_interleave(call: Call) -> Ref:
    """Every entry of one dimension several times."""
    x, times = call.ref(), call.number(1, "repeats")
    dim = call.dims(call.number(2, "dim"), len(x.shape))[0]
    return take(call, x, dim, torch.arange(x.shape[dim]).repeat_interleave(times))


def index(call: Call) -> Ref:
    """aten.index: (x, [None, tensor, ...]), None for a dimension that stays whole."""
    items = [slice(None) if item is None else item for item in call.get(1, "indices")]
    return indexed(call, call.ref(), items)


def new_constant(value: float | None, position: int = 2) -> Handler:
    """new_zeros, zeros_like and the like: a constant that has only its shape from the input."""

    def handle(call: Call) -> Any:
        x, shape = call.ref(), tuple(call.read_from_result())
        filled = call.get(position, "fill_value") if value is None else value
        kind = call.kwargs.get("dtype") or torch.float32
        made = torch.full(shape, filled, dtype=kind)
        return BatchTensor(made) if shape[:1] == x.shape[:1] else made

    return handle


def masked_fill(call: Call) -> Ref:
    """A constant mask's entries replaced by a number."""
    mask, value = call.operand(1, "mask"), call.get(2, "value")
    if not isinstance(mask, Tensor) or isinstance(value, Ref):
        raise Unsupported("a mask computed from the input", "use a constant mask")
    return call.emit("masked_fill", (call.ref(),), {"value": float(value)}, {"mask": mask.to(torch.bool)})


def operand(call: Call, value: Any, like: Ref) -> Ref:
    """A tensor of the graph, also for a number or a tensor of the model's own."""
    if isinstance(value, Ref):
        return value
    if isinstance(value, int | float | Tensor) and not bool(torch.as_tensor(value).isfinite().all()):
        raise Unsupported("infinity beside a branch: its difference from step to step is no number",
                          "use a large number, or masked_fill with a constant mask")  # fmt: skip
    if isinstance(value, int | float):
        return call.emit("scale", (like,), {"factor": 0.0, "offset": float(value)}, shape=like.shape)
    if isinstance(value, Tensor):
        return call.constant(value)
    raise Unsupported(f"a {type(value).__name__} beside a tensor", "use a number or a tensor")


def pairwise(op: str) -> Handler:
    """Maximum and minimum of two branches, or of a branch and a constant."""

    def handle(call: Call) -> Ref:
        a, b = call.get(0, "input"), call.get(1, "other")
        like = a if isinstance(a, Ref) else call.ref(1, "other")
        return call.emit(op, (operand(call, a, like), operand(call, b, like)))

    return handle


def compare(op: str) -> Handler:
    """A comparison, 1 where it holds: with a number, or between two branches by their difference."""

    def handle(call: Call) -> Ref:
        x, other = call.ref(), call.get(1, "other")
        if isinstance(other, Ref):
            x, other = call.emit("sub", (x, other)), 0
        if not isinstance(other, int | float):
            raise Unsupported("a comparison with a tensor", "compare with a number")
        return call.emit(op, (x,), {"value": other})

    return handle


def where(call: Call) -> Ref:
    """torch.where(condition computed from the input, a, b)."""
    condition = call.ref(0, "condition")
    branches = [operand(call, call.get(i, name), condition) for i, name in ((1, "input"), (2, "other"))]
    return call.emit("where", (condition, *branches))


def reduce(op: str) -> Handler:
    """amax, amin, and max or min along a dimension, of which the values are kept."""

    def handle(call: Call) -> Any:
        x = call.ref()
        dims = call.dims(call.number(1, "dim"), len(x.shape))
        pair = not isinstance(call.result, tuple) or any(isinstance(item, tuple) for item in call.result)
        shape = call.result[0] if pair else call.result
        out = call.emit(op, (x,), {"dim": dims, "keepdim": bool(call.number(2, "keepdim", False))}, shape=shape)
        return (out, None) if pair else out

    return handle


_LIKE = {"zeros": 0.0, "ones": 1.0, "full": None}

MOVE_ROWS: dict[Key, Handler] = {
    torch.roll: roll,
    torch.flip: flip,
    torch.select: select,
    torch.narrow: narrow,
    torch.unbind: unbind,
    **dict.fromkeys((torch.movedim, torch.moveaxis), movedim),
    torch.index_select: index_select,
    torch.repeat_interleave: repeat_interleave,
    torch.masked_fill: masked_fill,
    torch.broadcast_to: expand,
    **dict.fromkeys(("expand", "expand_as", "broadcast_to"), expand),
    "repeat": repeat,
    "roll": roll,
    "flip": flip,
    "select": select,
    "narrow": narrow,
    "unbind": unbind,
    **dict.fromkeys(("movedim", "moveaxis"), movedim),
    "index_select": index_select,
    "new_zeros": new_constant(0.0),
    "new_ones": new_constant(1.0),
    "new_full": new_constant(None),
    **{getattr(torch, f"{word}_like"): new_constant(value, 1) for word, value in _LIKE.items()},
    "repeat_interleave": repeat_interleave,
    **dict.fromkeys(("masked_fill", "masked_fill_"), masked_fill),
    torch.maximum: pairwise("maximum"),
    torch.minimum: pairwise("minimum"),
    **{getattr(torch, op): compare(op) for op in ("gt", "ge", "lt", "le")},
    **{getattr(operator, op): compare(op) for op in ("gt", "ge", "lt", "le")},
    torch.where: where,
    **dict.fromkeys((torch.amax, torch.max), reduce("amax")),
    **dict.fromkeys((torch.amin, torch.min), reduce("amin")),
    "maximum": pairwise("maximum"),
    "minimum": pairwise("minimum"),
    **{op: compare(op) for op in ("gt", "ge", "lt", "le")},
    **dict.fromkeys(("amax", "max"), reduce("amax")),
    **dict.fromkeys(("amin", "min"), reduce("amin")),
}
