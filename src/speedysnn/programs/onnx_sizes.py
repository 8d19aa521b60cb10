"""ONNX operators on sizes and constants: op type -> numbers, or calls in the graph where they are known only later.

Folding the file first (tried: onnxslim) takes none of this away: where height and width are open, or a batch that is
open is expanded, the folded file still holds Shape, Gather, Slice, Concat, Equal and Where.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx

from speedysnn.programs.onnx_node import Node, Numbers, Row, Unsupported

__all__ = ["SIZES", "arithmetic"]


def arithmetic(node: Node, function: Callable[[Any, Any], Any]) -> Numbers:
    """Element by element on two lists of sizes; a size known only at run time becomes a call in the graph."""
    left, right = node.numbers(0) or [], node.numbers(1) or []
    length = max(len(left), len(right))
    left, right = (values * length if len(values) == 1 else values for values in (left, right))
    items = [
        node.reader.graph.call_function(function, (a, b)) if isinstance(a, fx.Node) or isinstance(b, fx.Node)
        else function(a, b)
        for a, b in zip(left, right, strict=True)
    ]  # fmt: skip
    return Numbers(items, all(_is_scalar(value) for value in node.inputs))


def _is_scalar(value: Any) -> bool:
    return value.scalar if isinstance(value, Numbers) else isinstance(value, Tensor) and value.ndim == 0


def shape(node: Node) -> Numbers:
    """Sizes; those the file fixes are numbers, but for the batch, which stays open."""
    x, sizes = node.input(0), node.reader.shape(node.proto.input[0])
    if sizes is None:
        raise Unsupported("the rank of its input is unknown")
    if isinstance(x, Tensor):
        return Numbers(list(sizes))
    call = node.reader.graph.call_method
    items = [call("size", (x, i)) if size is None or i == 0 else size for i, size in enumerate(sizes)]
    return Numbers(items[node.attribute("start", 0) : node.attribute("end", len(items))])


def constant(node: Node) -> Any:
    from onnx import numpy_helper

    for name in ("value_float", "value_int", "value_floats", "value_ints"):
        value = node.attribute(name)
        if value is not None:
            return torch.tensor(value)
    value = torch.from_numpy(numpy_helper.to_array(node.attribute("value")).copy())
    return value.float() if value.dtype in (torch.float16, torch.bfloat16) else value


def constant_of_shape(node: Node) -> Any:
    from onnx import numpy_helper

    sizes = node.known(0) or []
    given = node.attribute("value")
    value = 0.0 if given is None else numpy_helper.to_array(given).item()
    count = 1
    for size in sizes:
        count *= size
    if count > 2**20:
        raise Unsupported(f"a constant of {count} elements")
    return torch.full(sizes, value)


def equal(node: Node) -> Any:
    """On sizes alone: one known only at run time equals no negative number."""
    if not any(isinstance(value, Numbers) for value in node.inputs):
        return node.apply(torch.eq, *node.inputs)
    pairs = zip(node.numbers(0) or [], node.numbers(1) or [], strict=True)
    out = []
    for left, right in pairs:
        known = [value for value in (left, right) if isinstance(value, int)]
        if len(known) < 2 and not (known and known[0] < 0):
            raise Unsupported("it compares sizes that are known only at run time")
        out.append(len(known) == 2 and left == right)
    return torch.tensor(out)


def where(node: Node) -> Any:
    condition = node.input(0)
    if any(isinstance(value, Numbers) for value in node.inputs[1:]) and isinstance(condition, Tensor):
        rows = zip(condition.tolist(), node.numbers(1) or [], node.numbers(2) or [], strict=True)
        return Numbers([left if yes else right for yes, left, right in rows])
    return node.apply(torch.where, *node.inputs)


def cast(node: Node) -> Any:
    """Between number types: sizes stay numbers, tensors that carry activations stay in float32."""
    x = node.input(0)
    if isinstance(x, Tensor):
        to = {1: torch.float32, 6: torch.int32, 7: torch.int64, 9: torch.bool, 10: torch.float32, 11: torch.float64,
              16: torch.float32}.get(node.attribute("to"))  # fmt: skip
        if to is None:
            raise Unsupported(f"a cast to the type {node.attribute('to')}")
        return x.to(to)
    if isinstance(x, Numbers) or node.attribute("to") in (1, 10, 11, 16):
        return x
    raise Unsupported("it turns activations into whole numbers")


SIZES: dict[str, Row] = {
    "Shape": shape, "Constant": constant, "ConstantOfShape": constant_of_shape, "Equal": equal, "Where": where,
    "Cast": cast,
}  # fmt: skip
