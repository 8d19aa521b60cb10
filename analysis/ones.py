"""Operators with every coefficient one, so that a gradient through them counts connections."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from speedysnn.analysis.flow import UNIT
from speedysnn.graph import Node
from speedysnn.operators import OPERATORS


def count(node: Node, args: Sequence[Tensor], tensors: Mapping[str, Tensor]) -> Tensor:
    """The operator with every coefficient one."""
    if "avg_pool" in node.op:
        return _sum_pool(node, args[0])
    if node.op in UNIT:
        return args[0]
    if node.op == "affine":
        return args[0] * torch.ones_like(tensors["weight"], device="cpu") if "weight" in tensors else args[0]
    if node.op == "sub":
        return args[0] + args[1]
    if node.op == "mean":
        return args[0].sum(node.attrs["dim"], node.attrs["keepdim"])
    return OPERATORS[node.op].run(args, node.attrs, {name: value.detach().cpu() for name, value in tensors.items()})


def _sum_pool(node: Node, x: Tensor) -> Tensor:
    """Sum over the windows of an average pooling, dimension by dimension."""
    sizes = OPERATORS[node.op].run([x.detach()], node.attrs, {}).shape
    dims = int(node.op.removesuffix("d")[-1])
    for place in range(dims):
        dim = x.ndim - dims + place
        x = (x.movedim(dim, -1) @ _windows(node, place, x.shape[dim], sizes[dim]).T).movedim(-1, dim)
    return x


def _windows(node: Node, place: int, size: int, windows: int) -> Tensor:
    """(windows, size): 1 where a window covers a position."""
    out = torch.zeros(windows, size, dtype=torch.float64)
    for window in range(windows):
        if node.op.startswith("adaptive"):
            start, stop = window * size // windows, -(-(window + 1) * size // windows)
        else:
            kernel = _at(node.attrs["kernel"], place)
            stride = _at(node.attrs["stride"] or kernel, place)  # torch: no stride given means the kernel's
            start = window * stride - _at(node.attrs["padding"], place)
            stop = start + kernel
        out[window, max(0, start) : max(0, stop)] = 1
    return out


def _at(value: Any, place: int) -> int:
    if isinstance(value, list | tuple):
        return int(value[place] if len(value) > 1 else value[0])
    return int(value)
