"""Prove in float64 that a network of staircases is its source: in float32 a rounding error at a tie is a whole step."""

import copy
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from speedysnn.convert.check import require_equal
from speedysnn.convert.trace import evaluating
from speedysnn.fold import fold_batch_norm
from speedysnn.graph import Graph
from speedysnn.network import SpikingNetwork
from speedysnn.neurons import IFNeuron

Tensors = Mapping[str, Mapping[str, Tensor]]


def has_staircases(graph: Graph) -> bool:
    """Whether a source activation is a quantizer, so that its output jumps."""
    return any(node.attrs.get("steps") is not None for node in graph.neurons)


def exact_error(
    ann: nn.Module,
    graph: Graph,
    tensors: Tensors,
    neurons: Mapping[str, IFNeuron],
    example: Sequence[Tensor],
    fold_bn: bool,
) -> float | None:
    """Relative error of the analog reading, source and graph both in float64; None if the source runs only in float32.

    Batch-norm moves values by some 1e-7 when it is folded in float32, which takes a few of 1e5 values over a tie: each
    is then a whole step off, in a graph that is right. In float64 no value is that close to one.

    Raises:
        ConversionError: the error is not below 1e-5.
    """
    inputs = [x.double() if x.is_floating_point() else x for x in example]
    try:
        source = copy.deepcopy(ann).double()
        with evaluating(source):
            reference = source(*inputs)
    except (RuntimeError, TypeError, ValueError):  # float32 tensors made in forward, a kernel without float64, no copy
        return None
    wide = {
        name: {key: value.double() if value.is_floating_point() else value.clone() for key, value in own.items()}
        for name, own in tensors.items()
    }
    folded = fold_batch_norm(graph, wide) if fold_bn else graph
    shapes = [x.shape[1:] for x in inputs]
    snn = SpikingNetwork(folded, wide, neurons, 1, shapes).double().to(inputs[0].device)
    with torch.no_grad(), snn.reading("analog"):
        return require_equal(snn(*inputs), reference)
