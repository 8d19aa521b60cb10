"""ONNX operators that move values: op type -> what it is in torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speedysnn.programs.onnx_node import Node, Numbers, Unsupported

__all__ = ["SHAPES"]

_END = 2**31 - 1  # ends of slices at or above this mean "to the end"


def gather(node: Node) -> Any:
    x, axis = node.input(0), node.attribute("axis", 0)
    index = node.known(1)
    if index is None:
        raise Unsupported("it has no index")
    source = node.input(1)
    scalar = source.scalar if isinstance(source, Numbers) else source.ndim == 0
    if isinstance(x, Numbers):
        return Numbers([x.items[i] for i in index], scalar)
    if scalar:
        return node.apply(torch.select, x, axis, index[0])
    if isinstance(source, Tensor) and source.ndim > 1:
        raise Unsupported("an index of more than one dimension")
    if min(index) < 0:
        raise Unsupported("an index that counts from the end")
    return node.apply(torch.index_select, x, axis, torch.tensor(index))


def concat(node: Node) -> Any:
    if any(isinstance(value, Numbers) for value in node.inputs):
        return Numbers([item for i in range(len(node.inputs)) for item in node.numbers(i) or []])
    return node.apply(_cat, list(node.inputs), node.attribute("axis"))


def _cat(values: list[Tensor], dim: int) -> Tensor:
    return torch.cat(values, dim)


def unsqueeze(node: Node) -> Any:
    x = node.input(0)
    if isinstance(x, Numbers):
        return Numbers(x.items)
    axes = node.known(1, "axes") or []
    rank = node.rank()
    if len(axes) > 1 and min(axes) < 0 and rank is None:
        raise Unsupported("axes that count from the end of an unknown rank")
    for axis in sorted(a if a >= 0 or rank is None else a + rank + len(axes) for a in axes):
        x = node.apply(torch.unsqueeze, x, axis)
    return x


def squeeze(node: Node) -> Any:
    x, axes = node.input(0), node.known(1, "axes")
    if isinstance(x, Numbers):
        return Numbers(x.items, True)
    if axes is None:
        raise Unsupported("it drops every dimension of size 1, the batch too; export it with axes")
    rank = node.rank()
    for axis in sorted((a if a >= 0 or rank is None else a + rank for a in axes), reverse=True):
        x = node.apply(torch.squeeze, x, axis)
    return x


def reshape(node: Node) -> Any:
    sizes = node.numbers(1, "shape")
    if sizes is None:
        raise Unsupported("it has no shape")
    x, reader = node.input(0), node.reader
    if isinstance(x, Tensor | Numbers):
        return x if isinstance(x, Numbers) else node.apply(torch.reshape, x, sizes)
    if not node.attribute("allowzero", 0):
        sizes = [reader.graph.call_method("size", (x, i)) if size == 0 else size for i, size in enumerate(sizes)]
    if reader.batch is not None and sizes[0] == reader.batch:
        sizes[0] = reader.batch_size()
    return node.apply(torch.reshape, x, sizes)


def flatten(node: Node) -> Any:
    axis, rank = node.attribute("axis", 1), node.rank()
    if axis < 0 and rank is not None:
        axis += rank
    if axis != 1:
        raise Unsupported(f"axis {axis} joins the batch with what follows; export it with axis 1")
    return node.layer(nn.Flatten(1))


def slices(node: Node) -> Any:
    """Parts along some axes; ends may be sizes that are known only when the network runs."""
    x = node.input(0)
    starts, ends = node.numbers(1, "starts") or [], node.numbers(2, "ends") or []
    axes = node.known(3, "axes") or list(range(len(starts)))
    steps = node.known(4) or [1] * len(starts)
    rank = node.rank()
    if isinstance(x, Tensor):
        whole = [slice(None)] * x.ndim
        for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
            whole[axis] = slice(start, None if abs(end) >= _END else end, step)
        return torch.from_numpy(x.numpy()[tuple(whole)].copy())
    if any(step < 1 for step in steps):
        raise Unsupported("a step below 1")
    if rank is None:
        raise Unsupported("the rank of its input is unknown")
    ends = [None if isinstance(end, int) and end >= _END else end for end in ends]
    if isinstance(x, Numbers):
        return Numbers(x.items[starts[0] : ends[0] : steps[0]])
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        x = node.apply(_cut, x, axis % rank, start, end, step)
    return x


def _cut(x: Tensor, axis: int, start: int, end: int | None, step: int) -> Tensor:
    return x[(*(slice(None),) * axis, slice(start, end, step))]


def split(node: Node) -> Any:
    sizes, axis = node.known(1, "split"), node.attribute("axis", 0)
    outputs = len(node.proto.output)
    if isinstance(node.input(0), Numbers):
        raise Unsupported("it splits sizes")
    whole = node.apply(torch.split, node.input(0), sizes, axis) if sizes else (
        node.apply(torch.chunk, node.input(0), outputs, axis)
    )  # fmt: skip
    if isinstance(whole, tuple):
        return whole
    return tuple(node.reader.graph.call_function(_item, (whole, i)) for i in range(outputs))


def _item(values: Any, position: int) -> Any:
    return values[position]


def pad(node: Node) -> Any:
    pads = node.known(1, "pads") or []
    mode = {"constant": "constant", "reflect": "reflect", "edge": "replicate"}.get(node.attribute("mode", "constant"))
    if mode is None or node.input(3) is not None:
        raise Unsupported(f"mode {node.attribute('mode')!r} or axes; expected constant, reflect or edge on all axes")
    half = len(pads) // 2
    pairs = list(zip(pads[:half], pads[half:], strict=True))
    if any(side for pair in pairs[:2] for side in pair) and mode != "constant":
        raise Unsupported("it pads the channels")
    kept = pairs[2:] if mode != "constant" or not any(pairs[0] + pairs[1]) else pairs
    flat = [side for pair in reversed(kept) for side in pair]
    if any(pairs[0]):
        raise Unsupported("it pads the batch")
    fill = node.constant(2, "value")
    value = float(node.attribute("value", 0.0)) if fill is None else float(fill)
    if not any(flat):
        return node.input(0)
    return node.apply(F.pad, node.input(0), flat, mode, value if mode == "constant" else None)


def transpose(node: Node) -> Any:
    order = node.attribute("perm")
    if order is None:
        raise Unsupported("it reverses all dimensions; export it with perm")
    return node.apply(torch.permute, node.input(0), order)


def expand(node: Node) -> Any:
    sizes, rank = node.numbers(1) or [], node.rank()
    if rank == len(sizes):
        sizes = [-1 if isinstance(size, int) and size == 1 else size for size in sizes]
    elif any(isinstance(size, int) and size == 1 for size in sizes):
        raise Unsupported("a size of 1 against another rank")
    if node.reader.batch is not None and sizes and sizes[0] == node.reader.batch and rank == len(sizes):
        sizes[0] = node.reader.batch_size()
    return node.apply(_expand, node.input(0), list(sizes))


def _expand(x: Tensor, sizes: list[Any]) -> Tensor:
    return x.expand(*sizes)


def resize(node: Node) -> Any:
    mode, where = node.attribute("mode", "nearest"), node.attribute("coordinate_transformation_mode", "half_pixel")
    old = node.proto.op_type == "Upsample" or node.opset < 11
    scales = node.known(1 if old else 2, "scales")
    sizes = None if old or node.input(3) is None else node.known(3)
    rank = len(sizes or scales or [])
    smooth = {3: "linear", 4: "bilinear", 5: "trilinear"}.get(rank)
    if not sizes and not scales:
        raise Unsupported("neither sizes nor scales")
    target: dict[str, Any] = (
        {"size": list(sizes[2:])} if sizes else {"scale_factor": list(map(float, scales or []))[2:]}
    )
    if mode == "nearest" and (old or (where == "asymmetric" and node.attribute("nearest_mode") == "floor")):
        return node.apply(F.interpolate, node.input(0), mode="nearest", **target)
    corners = {"half_pixel": False, "pytorch_half_pixel": False, "align_corners": True}.get(where)
    if mode == "linear" and smooth and corners is not None and not old:
        return node.apply(F.interpolate, node.input(0), mode=smooth, align_corners=corners, **target)
    raise Unsupported(f"mode {mode!r} with {where!r}; expected nearest (asymmetric, floor) or linear (half_pixel)")


def same(node: Node) -> Any:
    return node.input(0)


SHAPES: dict[str, Callable[[Node], Any]] = {
    "Gather": gather, "Concat": concat, "Unsqueeze": unsqueeze, "Squeeze": squeeze, "Reshape": reshape,
    "Flatten": flatten, "Slice": slices, "Split": split, "Pad": pad, "Transpose": transpose, "Expand": expand,
    "Resize": resize, "Upsample": resize, "Identity": same, "Dropout": same,
}  # fmt: skip
