"""Shapes of an ONNX graph's values, from onnx's own inference, kept from what it does not survive."""

from __future__ import annotations

import math
from typing import Any

__all__ = ["with_shapes"]

_SMALL = 1024  # values of a constant that shapes may be computed from


def with_shapes(model: Any) -> Any:
    """The model with the sizes of its values as far as they follow from the graph.

    A Slice of a value with a negative size, as a window larger than its image leaves it, ends the whole process in
    onnx. So the graph is inferred up to the first Slices, checked, then up to the next.

    Raises:
        ValueError: a size is negative, or nothing is left to slice.
    """
    from onnx import shape_inference

    depths = _depths(model.graph)
    light, nodes = _without_weights(model), list(model.graph.node)
    for depth in range(max(depths, default=0) + 1):
        del light.graph.node[:]
        light.graph.node.extend(node for node, own in zip(nodes, depths, strict=True) if own <= depth)
        light = shape_inference.infer_shapes(light, data_prop=True)
        after = [node for node, own in zip(nodes, depths, strict=True) if own > depth]
        _require_sizes(light.graph, {node.input[0] for node in after if node.op_type == "Slice"})
    for field in ("value_info", "output"):
        entries = getattr(model.graph, field)
        del entries[:]
        entries.extend(getattr(light.graph, field))
    return model


def _depths(graph: Any) -> list[int]:
    """Slices on the longest way to each node, itself included; nodes come after what they take."""
    reached: dict[str, int] = {}
    depths = []
    for node in graph.node:
        depth = max((reached.get(name, 0) for name in node.input), default=0) + (node.op_type == "Slice")
        reached.update(dict.fromkeys(node.output, depth))
        depths.append(depth)
    return depths


def _without_weights(model: Any) -> Any:
    """The graph's inputs, outputs and small constants; large ones as inputs of the same type and sizes."""
    from onnx import ModelProto, helper

    light, declared = ModelProto(), {entry.name for entry in model.graph.input}
    light.ir_version = model.ir_version
    light.opset_import.extend(model.opset_import)
    light.graph.name = model.graph.name
    for field in ("input", "output", "value_info"):
        getattr(light.graph, field).extend(getattr(model.graph, field))
    for entry in model.graph.initializer:
        if math.prod(entry.dims) <= _SMALL:
            light.graph.initializer.append(entry)
        elif entry.name not in declared:
            light.graph.input.append(helper.make_tensor_value_info(entry.name, entry.data_type, list(entry.dims)))
    return light


def _require_sizes(graph: Any, sliced: set[str]) -> None:
    for entry in (*graph.input, *graph.value_info, *graph.output):
        dims = entry.type.tensor_type.shape.dim
        sizes = [dim.dim_value if dim.HasField("dim_value") else None for dim in dims]
        if any(size is not None and size < (entry.name in sliced) for size in sizes):
            raise ValueError(
                f"the value {entry.name!r} has the sizes {sizes}: a window is larger than what it slides over"
            )
