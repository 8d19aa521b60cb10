"""Signals: a value of the source network as whole numbers, what one of them stands for, and a constant beside them.

Shapes of a graph's values, windows of pooling axis by axis, and moves of values as tables of positions.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from speedysnn.errors import ConversionError
from speedysnn.execution.interpreter import run_graph
from speedysnn.graph.ir import Node
from speedysnn.graph.operators import OPERATORS
from speedysnn.integer.program import Floats, Ints, Timing, Windows
from speedysnn.network import SpikingNetwork

SAME = 1e-9  # relative difference of two scales that are one


class UnfitError(ConversionError):
    """What a node cannot be in integers, and what to do."""


@dataclass(frozen=True)
class Signal:
    """value = unit * integer + offset, element by element; of a sum over the steps where its timing is "total".

    Attributes:
        source: the buffer of the integers, None for a value that is the offset alone.
        unit: broadcasts against the shape and has as many axes.
        offset: likewise.
        shape: without the batch.
        timing: as in `Operation`.
    """

    source: str | None
    unit: Floats
    offset: Floats
    shape: tuple[int, ...]
    timing: Timing

    def at(self, unit: Floats) -> "Signal":
        """The same integers in another unit."""
        return replace(self, unit=fitted(unit, self.shape))

    def full_unit(self) -> Floats:
        """The unit of every element."""
        return np.broadcast_to(self.unit, self.shape)

    def full_offset(self) -> Floats:
        """The offset of every element."""
        return np.broadcast_to(self.offset, self.shape)


def fitted(value: Floats | float, shape: tuple[int, ...]) -> Floats:
    """A value that broadcasts against a shape, with as many axes."""
    array = np.asarray(value, dtype=np.float64)
    return array.reshape((1,) * (len(shape) - array.ndim) + array.shape)


def settled(values: Floats) -> Floats:
    """Values of every element with fewer of them: one, or one an axis, where that says the same; NaN fits anything."""
    known = np.isfinite(values)
    if not known.any():
        return np.ones((1,) * values.ndim)
    for axis in (None, *range(values.ndim)):
        others = tuple(i for i in range(values.ndim) if i != axis)
        low = np.where(known, values, np.inf).min(axis=others, keepdims=True)
        high = np.where(known, values, -np.inf).max(axis=others, keepdims=True)
        if bool((high - low <= SAME * np.maximum(np.abs(high), np.abs(low))).all()):  # none known: -inf, which is small
            return np.where(np.isfinite(low), low, 1.0)
    return np.where(known, values, 1.0)


def along(values: Floats, shape: tuple[int, ...], axis: int) -> Floats | None:
    """One value for each position of an axis, None where they differ along others too."""
    moved = np.moveaxis(np.broadcast_to(values, shape), axis, 0).reshape(shape[axis], -1)
    if not bool(np.isclose(moved, moved[:, :1], rtol=SAME, atol=0).all()):
        return None
    return np.array(moved[:, 0])


def placed(values: Floats, ndim: int, axis: int) -> Floats:
    """One value for each position of an axis, so that they broadcast; a single one for all."""
    shape = [1] * ndim
    shape[axis] = -1
    return values.reshape(shape)


def meeting(timings: list[Timing]) -> Timing:
    """When the result of values of these timings is there."""
    return "total" if "total" in timings else "steps" if "steps" in timings else "constant"


class _Shapes:
    """What a node gives on torch's "meta" device: shapes alone."""

    def __init__(self, snn: SpikingNetwork) -> None:
        self.snn = snn

    def neuron(self, node: Node, drive: torch.Tensor) -> torch.Tensor:
        """As it comes."""
        return drive

    def operator(self, node: Node, args: list[torch.Tensor]) -> torch.Tensor:
        """The operator's shape."""
        given = {name: value.detach().to("meta") for name, value in self.snn.tensors(node.name).items()}
        own = {name: value.float() if value.is_floating_point() else value for name, value in given.items()}
        return OPERATORS[node.op].run(args, node.attrs, own)


def node_shapes(snn: SpikingNetwork) -> dict[str, tuple[int, ...]]:
    """The shape of every node's result, without the batch.

    Args:
        snn: the network.
    """
    given = [torch.empty(1, *shape, device="meta") for shape in snn.input_shapes]
    values = run_graph(snn.graph, given, _Shapes(snn))
    return {name: tuple(value.shape[1:]) for name, value in values.items()}


def output_shape(node: Node, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape that a node without tensors gives, without the batch.

    Args:
        node: of the graph.
        shape: of its input, without the batch.
    """
    return tuple(OPERATORS[node.op].run([torch.empty(1, *shape, device="meta")], node.attrs, {}).shape[1:])


def pool_windows(node: Node, shape: tuple[int, ...]) -> Windows:
    """First and last + 1 position of every window of a pooling node, None for axes that stay.

    Args:
        node: an average or max pooling, a mean or a sum.
        shape: of its input, without the batch.
    """
    if node.op in ("mean", "sum"):
        axes = reduced_axes(node, len(shape))
        return tuple(((0, size),) if axis in axes else None for axis, size in enumerate(shape))
    dims = int(node.op[-2])
    whole, spatial = len(shape) - dims, shape[-dims:]
    out = output_shape(node, shape)[-dims:]
    if node.op.startswith("adaptive"):
        found = [tuple((o * size // n, -(-(o + 1) * size // n)) for o in range(n))
                 for size, n in zip(spatial, out, strict=True)]  # fmt: skip
    else:
        found = [_regular(node.attrs, axis, dims, size, n)
                 for axis, (size, n) in enumerate(zip(spatial, out, strict=True))]  # fmt: skip
    return (*[None] * whole, *found)


def reduced_axes(node: Node, ndim: int) -> set[int]:
    """The axes that a mean or sum runs over, in the shape without the batch; -1 stands for the batch."""
    dims = node.attrs["dim"]
    given = range(1, ndim + 1) if dims is None else [dims] if isinstance(dims, int) else dims
    return {int(dim) % (ndim + 1) - 1 for dim in given}


def per_axis(value: Any, axis: int) -> int:
    """The number of an axis, of one for all or one an axis."""
    if isinstance(value, Sequence):
        return int(value[axis] if len(value) > 1 else value[0])
    return int(value)


def dilations(node: Node, ndim: int) -> tuple[int, ...]:
    """Distance of the positions in a window, for every axis of the shape."""
    if "dilation" not in node.attrs:
        return (1,) * ndim
    dims = int(node.op[-2])
    return (*[1] * (ndim - dims), *(per_axis(node.attrs["dilation"], axis) for axis in range(dims)))


def _regular(attrs: Mapping[str, Any], axis: int, dims: int, size: int, n: int) -> tuple[tuple[int, int], ...]:
    kernel = per_axis(attrs["kernel"], axis)
    stride = kernel if attrs["stride"] in (None, []) else per_axis(attrs["stride"], axis)
    padding = per_axis(attrs["padding"], axis)
    step = per_axis(attrs.get("dilation", 1), axis)
    out = []
    for o in range(n):
        first = o * stride - padding
        skipped = -(-max(0, -first) // step)  # positions of the window that lie before the first element
        out.append((first + skipped * step, min(first + (kernel - 1) * step + 1, size)))
    return tuple(out)


def moved(node: Node, shape: tuple[int, ...]) -> tuple[Ints, tuple[int, ...]]:
    """Where each value of a node comes from that only moves values.

    Args:
        node: of the graph.
        shape: of its input, without the batch.

    Returns:
        The flat positions, -1 for a value that is put in, and the shape of the result.
    """
    count = int(np.prod(shape))
    numbers = torch.arange(1, count + 1, dtype=torch.float64).reshape(1, *shape)
    attrs = dict(node.attrs)
    if node.op == "pad" and attrs["mode"] == "constant":
        attrs["value"] = 0.0
    out = OPERATORS[node.op].run([numbers], attrs, {})
    return out.reshape(-1).numpy().astype(np.int64) - 1, tuple(out.shape[1:])


def weight_rows(node: Node, weight: Floats, signal: Signal) -> Floats:
    """Weights times the unit of what they meet, (out channels, weights of a channel)."""
    if node.op == "linear":
        unit = along(signal.unit, signal.shape, -1)
        return weight * (np.abs(signal.unit).max() if unit is None else unit)
    unit = along(signal.unit, signal.shape, 0)
    units = np.full(signal.shape[0], np.abs(signal.unit).max()) if unit is None else unit
    groups = int(node.attrs["groups"])
    if "transpose" in node.op:
        scaled = weight * units.reshape(-1, *[1] * (weight.ndim - 1))
        split = scaled.reshape(groups, -1, *weight.shape[1:])
        return np.moveaxis(split, 2, 1).reshape(groups * weight.shape[1], -1)
    columns = units.reshape(groups, 1, -1, *[1] * (weight.ndim - 2))
    return (weight.reshape(groups, -1, *weight.shape[1:]) * columns).reshape(len(weight), -1)


def neuron_values(snn: SpikingNetwork, node: Node, name: str, ndim: int) -> Floats:
    """A neuron's "threshold", "amplitude", "v_init" or "offset", so that it broadcasts against `ndim` axes."""
    neuron = snn.neurons[node.name]
    value = getattr(neuron, name)
    if value is None:
        return np.zeros((1,) * ndim)
    value = value.detach().double().cpu()
    return np.asarray((neuron.per_channel(value, ndim + 1)[0] if value.ndim else value.reshape((1,) * ndim)).numpy())
