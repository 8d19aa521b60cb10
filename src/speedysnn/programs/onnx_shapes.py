"""ONNX operators that shape, pad and resize values: op type -> what it is in torch."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speedysnn.programs.onnx_node import Node, Numbers, Row, Unsupported

__all__ = ["SHAPES"]


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


SHAPES: dict[str, Row] = {
    "Unsqueeze": unsqueeze, "Squeeze": squeeze, "Reshape": reshape, "Flatten": flatten, "Pad": pad,
    "Transpose": transpose, "Expand": expand, "Resize": resize, "Upsample": resize, "Identity": same, "Dropout": same,
}  # fmt: skip
