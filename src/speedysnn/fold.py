"""Fold batch-norm into the convolution or linear layer before it."""

from collections import Counter

import torch
from torch import Tensor

from speedysnn.graph import Graph, Node

_OUT_DIM = {"linear": 0, "conv1d": 0, "conv2d": 0, "conv3d": 0,
            "conv_transpose1d": 1, "conv_transpose2d": 1, "conv_transpose3d": 1}  # fmt: skip

Tensors = dict[str, dict[str, Tensor]]


def fold_batch_norm(graph: Graph, tensors: Tensors) -> Graph:
    """W' = W g/s, b' = (b - m) g/s + beta with s = sqrt(var + eps), computed in float64.

    Only where the batch-norm is the one reader of that layer; the layer keeps its name. `tensors` is changed in place.
    """
    readers = Counter(name for node in graph.nodes for name in node.inputs)
    readers.update(graph.output_names)
    by_name = {node.name: node for node in graph.nodes}
    folded, renamed = tensors, dict[str, str]()
    for node in graph.nodes:
        before = by_name[node.inputs[0]] if node.op == "batch_norm" else None
        if before is None or not _foldable(before, readers, folded, node):
            continue
        folded[before.name] = _merge(before, folded[before.name], folded.pop(node.name), node.attrs["eps"])
        renamed[node.name] = before.name
    nodes = tuple(
        Node(n.name, n.op, tuple(renamed.get(i, i) for i in n.inputs), n.attrs, n.path, n.source)
        for n in graph.nodes
        if n.name not in renamed
    )
    return Graph(nodes, _rename(graph.outputs, renamed))


def _foldable(before: Node, readers: Counter[str], tensors: Tensors, norm: Node) -> bool:
    if before.op not in _OUT_DIM or readers[before.name] != 1:
        return False
    weight, features = tensors[before.name]["weight"], tensors[norm.name]["mean"].numel()
    groups = before.attrs.get("groups", 1)
    if before.op.startswith("conv_transpose"):
        return groups == 1 and weight.shape[1] == features
    return bool(weight.shape[0] == features)


def _merge(layer: Node, own: dict[str, Tensor], norm: dict[str, Tensor], eps: float) -> dict[str, Tensor]:
    weight = own["weight"].to(torch.float64)
    mean, var = norm["mean"].to(torch.float64), norm["var"].to(torch.float64)
    gain = norm.get("weight", torch.ones_like(mean)).to(torch.float64) / torch.sqrt(var + eps)
    shape = [1] * weight.ndim
    shape[_OUT_DIM[layer.op]] = -1
    bias = own.get("bias", torch.zeros_like(mean)).to(torch.float64)
    shifted = (bias - mean) * gain + norm.get("bias", torch.zeros_like(mean)).to(torch.float64)
    dtype = own["weight"].dtype
    return {"weight": (weight * gain.view(shape)).to(dtype), "bias": shifted.to(dtype)}


def _rename(outputs: object, renamed: dict[str, str]) -> object:
    if isinstance(outputs, str):
        return renamed.get(outputs, outputs)
    if isinstance(outputs, dict):
        return {key: _rename(item, renamed) for key, item in outputs.items()}
    assert isinstance(outputs, list)
    return [_rename(item, renamed) for item in outputs]
