"""Handlers that move values about without changing them: reshape, slice, pad, cat, permute, split."""

from typing import Any

from torch import Tensor

from speedysnn.convert.builder import Call, Ref, Unsupported


def reshape(call: Call) -> Ref:
    """view, reshape, unflatten: the traced shape with the batch left open."""
    x = call.ref()
    out = tuple(call.result)
    batch = x.shape[0]
    if out and out[0] == batch:
        return call.emit("reshape", (x,), {"shape": [0, -1] if len(out) == 2 else [0, *out[1:]]})
    if out and out[0] % batch == 0:
        return call.emit("reshape", (x,), {"shape": [-1, *out[1:]]})
    raise Unsupported(f"it turns {x.shape} into {out}, which mixes the batch with other dimensions", "keep it first")


def flatten(call: Call) -> Ref:
    """torch.flatten and Tensor.flatten, batch kept."""
    x = call.ref()
    start, end = call.number(1, "start_dim", 0), call.number(2, "end_dim", -1)
    dims = call.dims([start, end], len(x.shape))
    return call.emit("flatten", (x,), {"start": dims[0], "end": dims[1]})


def getitem(call: Call) -> Any:
    """Indexing: of a tensor it is a slice, of a list an item."""
    value, index = call.args[0], call.args[1]
    if isinstance(value, list | tuple):
        return value[index]
    x, items = call.ref(), list(index) if isinstance(index, tuple) else [index]
    if Ellipsis in items:
        at = items.index(Ellipsis)
        rest = len(x.shape) - (len(items) - 1)
        items = items[:at] + [slice(None)] * rest + items[at + 1 :]
    if not items or items[0] != slice(None):
        raise Unsupported("it indexes the batch dimension", "keep the batch whole: x[:, ...]")
    return call.emit("slice", (x,), {"index": [_index(item) for item in items]})


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
    """Permutation, batch kept first."""
    x = call.ref()
    dims = call.args[1] if isinstance(call.get(1, "dims"), list | tuple) else call.args[1:]
    order = [int(d) % len(x.shape) for d in (dims or call.kwargs["dims"])]
    if order[0] != 0:
        raise Unsupported("it moves the batch dimension", "keep the batch first")
    return call.emit("permute", (x,), {"dims": order})


def transpose(call: Call) -> Ref:
    """Two dimensions swapped."""
    x = call.ref()
    first, second = call.dims([call.number(1, "dim0"), call.number(2, "dim1")], len(x.shape))
    order = list(range(len(x.shape)))
    order[first], order[second] = second, first
    return call.emit("permute", (x,), {"dims": order})


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


def pad_mode(
    call: Call, x: Ref, amounts: list[int], mode: str, value: float = 0.0, *, final: bool = False
) -> Ref:
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


def same(call: Call) -> Any:
    """contiguous, clone, detach, dropout in evaluation mode: the value itself."""
    value = call.args[0] if call.args else call.kwargs.get("input")
    if isinstance(value, Tensor):
        return value
    return call.ref()
