"""One table of handlers: an operator of the graph -> integer operations, or why there is none.

A handler is called with the lowering, the node and the signals that it reads, and returns the node's signal.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

import numpy as np
import torch

from speedysnn.graph.ir import Node
from speedysnn.graph.operators import OPERATORS
from speedysnn.integer.program import Add as AddOperation
from speedysnn.integer.program import Concat, Conv, Floats, Gain, Linear, MaxPool, Move, Neuron, Operation, SumPool
from speedysnn.integer.rounding import Follower
from speedysnn.integer.scales import Scales
from speedysnn.integer.signals import (
    Signal,
    UnfitError,
    along,
    dilations,
    fitted,
    meeting,
    moved,
    neuron_values,
    output_shape,
    per_axis,
    placed,
    pool_windows,
    settled,
)
from speedysnn.network import SpikingNetwork


class Lowering(Protocol):
    """What a handler may use."""

    snn: SpikingNetwork
    scales: Scales
    dry: bool  # only signals are wanted, no operations
    follower: Follower | None  # images for rounding by reconstruction; None rounds to the nearest
    rounded: dict[str, torch.Tensor]  # by layer: its weights as they are after rounding, in the network's own unit

    def emit(self, operation: Operation) -> None:
        """Append an operation."""

    def fresh(self, name: str) -> str:
        """A buffer's name that is not taken, beginning with `name`."""

    def counted(self, node: Node, signal: Signal) -> Signal:
        """The signal as the node reads it: summed over the steps, where the node comes after the last neuron."""


MOST_FACTOR = 2**15 - 1  # of a shortcut
Handler = Callable[[Lowering, Node, list[Signal]], Signal]


def weight_layer(low: Lowering, node: Node, inputs: list[Signal]) -> Signal:
    """Round weights times the input's unit; the constant of the input passes through the rounded weights."""
    x = even(low, node, low.counted(node, inputs[0]), node.op)
    own = {name: value.detach().double().cpu() for name, value in low.snn.tensors(node.name).items()}
    scale = low.scales.of(node.name)
    columns = _columns(node, x, own["weight"].shape)
    rows = placed(scale.unit.reshape(-1), own["weight"].ndim, 0) if scale.unit.size > 1 else scale.unit.reshape(())
    step, largest = rows * 2.0**scale.shift, low.scales.options.largest
    weight = own["weight"].numpy() * columns / step
    whole = np.clip(np.round(weight), -largest, largest)
    constant = torch.from_numpy(np.array(x.full_offset()))[None]
    shape = tuple(OPERATORS[node.op].run([constant], node.attrs, own).shape[1:])
    fields = {"name": node.name, "sources": (str(x.source),), "shape": shape, "timing": x.timing, "shift": scale.shift}
    made = Linear(weight=whole, **fields) if node.op == "linear" else _conv(node, whole, x.shape, fields)  # type: ignore[arg-type]
    if low.follower is not None and not low.dry and x.source is not None:
        whole, bias = low.follower.rounded(node, made, x, weight, step)
        own |= {} if bias is None else {"bias": torch.from_numpy(bias)}
    own["weight"] = torch.from_numpy(
        np.where(columns == 0, own["weight"].numpy(), whole * step / np.where(columns == 0, 1, columns))
    )
    low.rounded[node.name] = own["weight"]
    if x.timing == "total" and "bias" in own:
        own["bias"] = own["bias"] * low.snn.timesteps
    offset = settled(OPERATORS[node.op].run([constant], node.attrs, own)[0].numpy())
    if x.source is not None:
        low.emit(replace(made, weight=whole.astype(np.int16)))
    return Signal(None if x.source is None else node.name, fitted(scale.unit, shape), offset, shape, x.timing)


def _columns(node: Node, x: Signal, shape: torch.Size) -> Floats:
    """The unit of what each weight meets."""
    if node.op == "linear":
        unit = along(x.unit, x.shape, -1)
        assert unit is not None
        return unit[None]
    unit = along(x.unit, x.shape, 0)
    assert unit is not None
    groups = int(node.attrs["groups"])
    each = unit.reshape(groups, 1, shape[1])
    rows = np.broadcast_to(each, (groups, shape[0] // groups, shape[1])).reshape(shape[0], shape[1])
    return rows.reshape(*rows.shape, *[1] * (len(shape) - 2))


def _conv(node: Node, weight: np.ndarray, shape: tuple[int, ...], fields: dict[str, object]) -> Conv:
    dims, attrs = weight.ndim - 2, node.attrs
    dilation = tuple(per_axis(attrs["dilation"], axis) for axis in range(dims))
    stride = tuple(per_axis(attrs["stride"], axis) for axis in range(dims))
    if attrs["padding"] == "same":
        padding = tuple(d * (k - 1) // 2 for d, k in zip(dilation, weight.shape[2:], strict=True))
    elif attrs["padding"] == "valid":
        padding = (0,) * dims
    else:
        padding = tuple(per_axis(attrs["padding"], axis) for axis in range(dims))
    return Conv(weight=weight, stride=stride, padding=padding, dilation=dilation, groups=int(attrs["groups"]), **fields)  # type: ignore[arg-type]


def even(low: Lowering, node: Node, x: Signal, op: str) -> Signal:
    """The signal with one unit a channel: where windows were of several sizes, with whole factors that make it so."""
    axis = -1 if op == "linear" else 0
    if along(x.unit, x.shape, axis) is not None:
        return x
    full = np.moveaxis(x.full_unit(), axis, 0)
    flat = full.reshape(len(full), -1)
    least = np.abs(flat).min(1, keepdims=True)
    for times in range(1, 65):
        factor = flat / least * times
        if bool(np.isclose(factor, np.round(factor), rtol=0, atol=1e-6).all()):
            whole = np.moveaxis(np.round(factor).reshape(full.shape), 0, axis)
            return gained(low, node, x, whole, placed(least[:, 0] / times, len(x.shape), axis))
    raise UnfitError(
        "what it reads has one scale an element, not one a channel (as after values of unlike thresholds were mixed); "
        'convert with granularity="layer"'
    )


def gained(low: Lowering, node: Node, x: Signal, factor: Floats, unit: Floats, shift: int = 0) -> Signal:
    """The signal times whole factors, in the unit that its integers then have."""
    if x.source is None:
        return x.at(unit)
    name = low.fresh(f"{node.name}:gain")
    low.emit(Gain(name=name, sources=(x.source,), shape=x.shape, timing=x.timing,
                  factor=settled(np.round(factor)).astype(np.int64), shift=shift))  # fmt: skip
    return replace(x, source=name, unit=fitted(unit, x.shape))


def positive(low: Lowering, node: Node, x: Signal) -> Signal:
    """The signal with units above 0."""
    if bool((x.unit > 0).all()):
        return x
    return gained(low, node, x, np.sign(x.unit), np.where(x.unit == 0, 1.0, np.abs(x.unit)))


def add(low: Lowering, node: Node, inputs: list[Signal]) -> Signal:
    """Both in the sum's own unit; a value in another one gets whole factors, a shortcut's weights."""
    read = [low.counted(node, x) for x in inputs]
    signs = (1, -1 if node.op == "sub" else 1)
    for x, other, sign in ((read[0], read[1], signs[1]), (read[1], read[0], 1)):
        if other.source is None and x.source is not None and (x is read[0] or signs[1] == 1):
            shape = tuple(np.broadcast_shapes(x.shape, other.shape))
            if shape == x.shape:
                return replace(x, offset=settled(np.asarray(np.broadcast_to(x.offset + sign * other.offset, shape))))
    scale = low.scales.of(node.name)
    brought = [_in_unit(low, node, x, scale.unit, scale.shift) for x in read]
    shape = tuple(np.broadcast_shapes(*(x.shape for x in read)))
    offset = sum((sign * x.offset for sign, x in zip(signs, brought, strict=True)), start=np.zeros(()))
    timing = meeting([x.timing for x in brought if x.source is not None] or [x.timing for x in brought])
    there = [(x, sign) for x, sign in zip(brought, signs, strict=True) if x.source is not None]
    out = Signal(node.name, fitted(scale.unit, shape), fitted(settled(fitted(offset, shape)), shape), shape, timing)
    if not there:
        return replace(out, source=None)
    if len(there) == 1 and there[0][1] == 1 and there[0][0].shape == shape:
        return replace(out, source=there[0][0].source, unit=there[0][0].unit)
    if any(x.shape != shape for x, _ in there):
        raise UnfitError(f"it adds values of unlike shapes, {[x.shape for x in read]}; expand them first")
    low.emit(AddOperation(name=node.name, sources=tuple(str(x.source) for x, _ in there), shape=shape, timing=timing,
                          signs=tuple(sign for _, sign in there)))  # fmt: skip
    return out


def _in_unit(low: Lowering, node: Node, x: Signal, unit: Floats, shift: int) -> Signal:
    ratio = x.unit / unit
    if x.source is None or bool(np.isclose(ratio, 1, rtol=1e-9, atol=0).all()):
        return x
    options, largest = low.scales.options, low.scales.options.largest
    if options.shifts:  # a factor a channel takes no room, so it need not be as coarse as the weights
        largest, shift = MOST_FACTOR, max(0, math.ceil(math.log2(max(np.abs(ratio).max(), 1) / MOST_FACTOR)))
    factor = np.clip(np.round(ratio / 2.0**shift), -largest, largest)
    return gained(low, node, x, factor, np.broadcast_to(unit, ratio.shape), shift)


def neuron(low: Lowering, node: Node, inputs: list[Signal]) -> Signal:
    """Threshold, start and bias in the drive's unit; a drive of coarse unit first gets whole factors."""
    layer, x = low.snn.neurons[node.name], positive(low, node, inputs[0])
    ndim = len(x.shape)
    theta = neuron_values(low.snn, node, "threshold", ndim)
    if bool((theta / x.unit).min() < low.scales.options.fine / 2) and not _whole(theta / x.unit):
        x = _refined(low, node, x, theta)
    threshold = np.maximum(np.round(theta / x.unit), 1)
    start = np.round(neuron_values(low.snn, node, "v_init", ndim) * threshold)
    bias = np.round((x.offset + neuron_values(low.snn, node, "offset", ndim)) / x.unit)
    limit = 2.0**31 - 1
    if not bool((np.abs(bias) <= limit).all() and (threshold <= limit).all() and (np.abs(start) <= limit).all()):
        raise UnfitError("its bias or threshold needs more than 32 bits; use fewer weight_bits or state_bits")
    rule = layer.rule
    if x.source is None:
        raise UnfitError("its drive is a constant of the network, not of the image; leave it out of the source network")
    low.emit(Neuron(
        name=node.name, sources=(x.source,), shape=x.shape, timing="steps", threshold=_integers(threshold),
        start=_integers(start), bias=_integers(bias), highest=rule.max_spikes, signed=rule.signed,
        ternary=rule.min_spikes < 0 and not rule.signed and not rule.powers, lookahead=layer.lookahead,
        unit=settled(x.full_unit()), powers=rule.powers,
    ))  # fmt: skip
    amplitude = neuron_values(low.snn, node, "amplitude", ndim)
    return Signal(node.name, amplitude, np.zeros((1,) * ndim), x.shape, "steps")


def _whole(ratio: Floats) -> bool:
    return bool(np.isclose(ratio, np.round(ratio), rtol=1e-6, atol=0).all()) and bool((ratio >= 2).all())


def _refined(low: Lowering, node: Node, x: Signal, theta: Floats) -> Signal:
    """The drive in a unit of which the threshold is nearly a whole number, by factors of few bits."""
    ratio = settled(np.broadcast_to(theta / x.unit, x.shape))
    fine = low.scales.options.fine
    factor = np.clip(np.floor(2 * fine / ratio), 1, low.scales.options.largest)
    shift = 0
    while bool((ratio * factor * 2**shift).min() < fine) and low.scales.options.shifts and shift < 14:
        shift += 1
    return gained(low, node, x, factor, x.unit / (factor * 2.0**shift), shift)


def _integers(values: Floats) -> np.ndarray:
    return settled(values).astype(np.int64)


def max_pool(low: Lowering, node: Node, inputs: list[Signal]) -> Signal:
    """The greatest of the sums so far, whose increase comes out: units above 0, one in a window."""
    x = positive(low, node, inputs[0])
    windows, shape = pool_windows(node, x.shape), output_shape(node, x.shape)
    axes = tuple(axis for axis, window in enumerate(windows) if window is not None)
    if any(
        np.ptp(values, axis=axes).any()
        for values in (np.asarray(settled(x.full_unit())), np.asarray(settled(x.full_offset())))
    ):
        raise UnfitError("the values in a window have several scales or biases; put a neuron before the pooling")
    if x.source is None:
        raise UnfitError("it pools a constant of the network; leave it out of the source network")
    low.emit(MaxPool(name=node.name, sources=(x.source,), shape=shape, timing=x.timing, windows=windows,
                     dilation=dilations(node, len(x.shape))))  # fmt: skip
    unit, offset = (fitted(settled(values), shape) for values in (x.full_unit(), x.full_offset()))
    return Signal(node.name, unit, offset, shape, x.timing)


def sum_pool(low: Lowering, node: Node, inputs: list[Signal]) -> Signal:
    """Sums over the windows; what an average divides by goes into the unit."""
    x = low.counted(node, inputs[0])
    windows = pool_windows(node, x.shape)
    axes = tuple(axis for axis, window in enumerate(windows) if window is not None)
    if np.ptp(np.asarray(x.unit), axis=axes).any() and 0 not in axes:
        x = even(low, node, x, node.op)
    if np.ptp(np.asarray(x.unit), axis=axes).any():
        raise UnfitError('the values in a window have several scales; convert with granularity="layer"')
    kept = tuple(size if window is None else len(window) for size, window in zip(x.shape, windows, strict=True))
    shape = output_shape(node, x.shape)
    unit, offset = (_averaged(node, values) for values in (x.full_unit(), x.full_offset()))
    counts = _counts(windows, x.shape).reshape(shape)
    out = Signal(None, settled(unit / counts), settled(offset), shape, x.timing)
    if x.source is None:
        return out
    name = node.name if kept == shape else low.fresh(f"{node.name}:sum")
    low.emit(SumPool(name=name, sources=(x.source,), shape=kept, timing=x.timing, windows=windows))
    if kept != shape:
        low.emit(Move(name=node.name, sources=(name,), shape=shape, timing=x.timing, index=None))
    return replace(out, source=node.name)


def _averaged(node: Node, values: Floats) -> Floats:
    given = torch.from_numpy(np.array(values))[None]
    return np.asarray(OPERATORS[node.op].run([given], node.attrs, {})[0].numpy())


def _counts(windows: tuple[tuple[tuple[int, int], ...] | None, ...], shape: tuple[int, ...]) -> Floats:
    """Elements of every window."""
    out = np.ones((1,) * len(shape))
    for axis, window in enumerate(windows):
        sizes = np.ones(shape[axis]) if window is None else np.array([stop - first for first, stop in window])
        out = out * placed(sizes.astype(np.float64), len(shape), axis)
    return out


def move(low: Lowering, node: Node, inputs: list[Signal]) -> Signal:
    """Values at other places, with their units and constants; what is put in is a constant."""
    x = low.counted(node, inputs[0])
    index, shape = moved(node, x.shape)
    put_in = float(node.attrs["value"] or 0.0) if node.op == "pad" else 0.0
    put_in *= low.snn.timesteps if x.timing == "total" else 1
    unit = np.where(index < 0, np.nan, x.full_unit().reshape(-1)[index]).reshape(shape)
    offset = np.where(index < 0, put_in, x.full_offset().reshape(-1)[index]).reshape(shape)
    out = Signal(node.name, settled(unit), settled(offset), shape, x.timing)
    if x.source is None:
        return replace(out, source=None)
    same = len(index) == int(np.prod(x.shape)) and bool((index == np.arange(len(index))).all())
    low.emit(Move(name=node.name, sources=(x.source,), shape=shape, timing=x.timing, index=None if same else index))
    return out


def interpolate(low: Lowering, node: Node, inputs: list[Signal]) -> Signal:
    """Nearest neighbours are copies; other kinds weigh their neighbours."""
    if not str(node.attrs["mode"]).startswith("nearest"):
        raise UnfitError(f'interpolation by {node.attrs["mode"]!r} has no integer form; use mode="nearest"')
    return move(low, node, inputs)


def concat(low: Lowering, node: Node, inputs: list[Signal]) -> Signal:
    """Parts one behind the other, each with its own unit."""
    read = [low.counted(node, x) for x in inputs]
    if any(x.source is None for x in read):
        raise UnfitError("one of its parts is a constant of the network; add it as a bias instead")
    ndim = len(read[0].shape) + 1
    if node.op == "stack":
        axis = int(node.attrs["dim"]) % (ndim + 1) - 1
        read = [_with_axis(low, node, x, axis) for x in read]
    else:
        axis = int(node.attrs["dim"]) % ndim - 1
    if axis < 0:
        raise UnfitError("it joins values along the batch; join them along another dimension")
    unit, offset = (np.concatenate(parts, axis) for parts in
                    ([x.full_unit() for x in read], [x.full_offset() for x in read]))  # fmt: skip
    timing = meeting([x.timing for x in read])
    low.emit(Concat(name=node.name, sources=tuple(str(x.source) for x in read), shape=unit.shape, timing=timing,
                    axis=axis))  # fmt: skip
    return Signal(node.name, settled(unit), settled(offset), unit.shape, timing)


def _with_axis(low: Lowering, node: Node, x: Signal, axis: int) -> Signal:
    shape = (*x.shape[:axis], 1, *x.shape[axis:])
    name = low.fresh(f"{node.name}:axis")
    low.emit(Move(name=name, sources=(str(x.source),), shape=shape, timing=x.timing, index=None))
    return Signal(name, np.expand_dims(x.unit, axis), np.expand_dims(x.offset, axis), shape, x.timing)


def affine(low: Lowering, node: Node, inputs: list[Signal]) -> Signal:
    """A gain and a constant an element, which change what an integer stands for and nothing else."""
    x = low.counted(node, inputs[0])
    own = {name: value.detach().double().cpu() for name, value in low.snn.tensors(node.name).items()}
    zero, one = (torch.full((1, *x.shape), value, dtype=torch.float64) for value in (0.0, 1.0))
    constant = OPERATORS[node.op].run([zero], node.attrs, own)
    gain = (OPERATORS[node.op].run([one], node.attrs, own) - constant)[0].numpy()
    shift = constant[0].numpy() * (low.snn.timesteps if x.timing == "total" else 1)
    if gain.shape != x.shape:
        raise UnfitError(f"it makes {gain.shape} of {x.shape}; expand the value first")
    out = replace(x, unit=settled(x.full_unit() * gain), offset=settled(x.full_offset() * gain + shift))
    return positive(low, node, out) if bool((out.unit == 0).any()) else out


def constant(low: Lowering, node: Node, inputs: list[Signal]) -> Signal:
    """A value of the network's own."""
    value = low.snn.tensors(node.name)["value"].detach().double().cpu().numpy()[0]
    return Signal(None, np.ones((1,) * value.ndim), value, tuple(value.shape), "constant")


MOVES = (
    "flatten", "reshape", "permute", "squeeze", "unsqueeze", "pad", "slice", "expand", "repeat", "roll", "flip",
    "pixel_shuffle", "pixel_unshuffle", "channel_shuffle", "unfold",
)  # fmt: skip
HANDLERS: dict[str, Handler] = {
    **dict.fromkeys(("conv1d", "conv2d", "conv3d", "linear"), weight_layer),
    **{f"{kind}{dims}d": max_pool for kind in ("max_pool", "adaptive_max_pool") for dims in (1, 2, 3)},
    **{f"{kind}{dims}d": sum_pool for kind in ("avg_pool", "adaptive_avg_pool") for dims in (1, 2, 3)},
    **dict.fromkeys(("mean", "sum"), sum_pool),
    **dict.fromkeys(MOVES, move),
    **dict.fromkeys(("add", "sub"), add),
    **dict.fromkeys(("cat", "stack"), concat),
    **dict.fromkeys(("batch_norm", "affine", "scale"), affine),
    "identity": lambda low, node, inputs: inputs[0],
    "interpolate": interpolate,
    "constant": constant,
    "neuron": neuron,
}
