"""ONNX operators that take parts of values and join them: op type -> what it is in torch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from speedysnn.programs.onnx_node import Node, Numbers, Row, Unsupported

__all__ = ["PARTS"]

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


PARTS: dict[str, Row] = {"Gather": gather, "Concat": concat, "Slice": slices, "Split": split}
