"""What a node costs in one step for one image: neurons, operations, and values kept from step to step."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from speedysnn.graph import Node
from speedysnn.operators import OPERATORS


@dataclass(frozen=True)
class Cost:
    """Counts for one image: neurons, operations a step, values kept."""

    neurons: int = 0
    operations: int = 0
    state: int = 0

    def __add__(self, other: "Cost") -> "Cost":
        """Both together."""
        return Cost(self.neurons + other.neurons, self.operations + other.operations, self.state + other.state)


def cost_of(
    node: Node, shapes: Mapping[str, tuple[int, ...]], tensors: Mapping[str, Mapping[str, Tensor]], images: int
) -> Cost:
    """Multiply-accumulates of a weight layer, one evaluation a value of an analog unit, membranes and running totals.

    A rate operator keeps the totals of its inputs and what it reached last; a neuron its membrane.
    """
    out = math.prod(shapes.get(node.name, ())) // images
    if node.op == "neuron":
        return Cost(neurons=out, state=out)
    operator = OPERATORS.get(node.op)
    if operator is None:
        return Cost()
    if operator.weighted:
        return Cost(operations=_multiplications(node, shapes, tensors, out, images))
    if operator.behaviour != "rate":
        return Cost()
    entries = sum(math.prod(shapes[name]) // images for name in node.inputs)
    summed = {"matmul": shapes[node.inputs[0]][-1], "einsum": _summed(node, shapes)}
    work = out * summed.get(node.op, 1)
    return Cost(operations=work, state=entries + out)


def _summed(node: Node, shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Product of the sizes that an einsum sums over."""
    if node.op != "einsum":
        return 1
    left, _, right = node.attrs["equation"].partition("->")
    pairs = zip(left.split(","), node.inputs, strict=True)
    sizes = {letter: size for term, name in pairs for letter, size in zip(term, shapes[name], strict=True)}
    return math.prod(size for letter, size in sizes.items() if letter not in right)


def _multiplications(
    node: Node,
    shapes: Mapping[str, tuple[int, ...]],
    tensors: Mapping[str, Mapping[str, Tensor]],
    out: int,
    images: int,
) -> int:
    weight = tensors[node.name]["weight"]
    if node.op.startswith("conv_transpose"):
        return math.prod(shapes[node.inputs[0]]) // images * (weight.numel() // weight.shape[0])
    return out * (weight.numel() // weight.shape[0])
