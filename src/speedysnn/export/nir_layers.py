"""Layers in the words of NIR: grouped as dense, 3-d as 2-d with depth in the channels, kernels made square."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from speedysnn.errors import ConversionError
from speedysnn.graph.ir import Node

CONVOLUTIONS = {"conv1d": 1, "conv2d": 2, "conv3d": 3}
POOLS = {f"{kind}avg_pool{dims}d": dims for kind in ("", "adaptive_") for dims in (1, 2, 3)}


def merged(shape: Sequence[int]) -> tuple[int, ...]:
    """A shape (C, ...) as layers of NIR see it: (C, D, H, W) is (C D, H, W), the same values in the same order."""
    return (shape[0] * shape[1], *shape[2:]) if len(shape) == 4 else tuple(shape)


def several(value: Any, dims: int) -> tuple[int, ...]:
    """One number, or one a dimension, as one a dimension."""
    values = [value] if isinstance(value, int) else [int(each) for each in value]
    return tuple(values * dims if len(values) == 1 else values)


def convolution(weight: Tensor, attrs: Mapping[str, Any], shape: Sequence[int]) -> dict[str, Any]:
    """A convolution's constants for NIR.

    Args:
        weight: (O, I, ...) with 1 to 3 dimensions of kernel, without groups.
        attrs: `stride`, `padding` and `dilation` of the graph's node.
        shape: of its input, (I, ...).

    Returns:
        `weight` (O, I, k) or (O, I, k, k), `stride`, `padding`, `dilation`; a 3-d convolution comes as a 2-d one over
        depth times channels.

    Raises:
        ConversionError: a kernel that NIR's readers compute another size for.
    """
    dims = weight.ndim - 2
    window = {key: several(attrs[key], dims) for key in ("stride", "dilation")}
    padding = _numbers(attrs["padding"], weight.shape[2:], window["dilation"])
    if dims == 3:
        weight = deep(weight, shape[1], (window["stride"][0], padding[0], window["dilation"][0]))
        window, padding = {key: value[1:] for key, value in window.items()}, padding[1:]
    if weight.ndim == 4:
        weight, padding = square(weight, padding, window["dilation"])
    return {"weight": weight, "padding": padding, **window}


def _numbers(padding: Any, kernel: Sequence[int], dilation: Sequence[int]) -> tuple[int, ...]:
    """Padding as numbers.

    Raises:
        ConversionError: "same" that is not the same on both sides.
    """
    if padding == "valid":
        return (0,) * len(kernel)
    if padding != "same":
        return several(padding, len(kernel))
    both = [dilated * (size - 1) for size, dilated in zip(kernel, dilation, strict=True)]
    if any(total % 2 for total in both):
        raise ConversionError(f'NIR: padding "same" of the even kernel {tuple(kernel)} is uneven; expected odd kernels')
    return tuple(total // 2 for total in both)


def dense(weight: Tensor, groups: int) -> Tensor:
    """A grouped convolution's weight (O, I/groups, ...) as (O, I, ...) with zeros between the groups."""
    if groups == 1:
        return weight
    each, width = weight.shape[0] // groups, weight.shape[1]
    out = weight.new_zeros(weight.shape[0], width * groups, *weight.shape[2:])
    for g in range(groups):
        out[g * each : (g + 1) * each, g * width : (g + 1) * width] = weight[g * each : (g + 1) * each]
    return out


def deep(weight: Tensor, depth: int, along: tuple[int, int, int]) -> Tensor:
    """A 3-d convolution's weight as that of a 2-d one over depth times channels.

    Args:
        weight: (O, I, k, h, w), without groups.
        depth: D of its input.
        along: stride, padding and dilation of the depth.

    Returns:
        (O D', I D, h, w), whose entry for the depths d' and d is the slice of the kernel that meets both, else zero.
    """
    stride, padding, dilation = along
    size = weight.shape[2]
    after = (depth + 2 * padding - dilation * (size - 1) - 1) // stride + 1
    out = weight.new_zeros(weight.shape[0], after, weight.shape[1], depth, *weight.shape[3:])
    for at in range(after):
        for k in range(size):
            seen = at * stride - padding + k * dilation
            if 0 <= seen < depth:
                out[:, at, :, seen] = weight[:, :, k]
    return out.flatten(2, 3).flatten(0, 1)


def square(weight: Tensor, padding: tuple[int, ...], dilation: Sequence[int]) -> tuple[Tensor, tuple[int, ...]]:
    """A kernel (O, I, h, w) made square by zeros around it, and the padding that keeps its output the same.

    nir computes a layer's size from the kernel's height alone.

    Raises:
        ConversionError: height and width differ by an odd number.
    """
    high, wide = weight.shape[2:]
    size = max(high, wide)
    if (size - high) % 2 or (size - wide) % 2:
        raise ConversionError(f"NIR: its kernels are square, a kernel of {high} x {wide} cannot be padded to one")
    rows, columns = (size - high) // 2, (size - wide) // 2
    around = (padding[0] + rows * dilation[0], padding[1] + columns * dilation[1])
    return torch.nn.functional.pad(weight, (columns, columns, rows, rows)), around


def pick(channels: int, total: int, first: int, like: Tensor) -> Tensor:
    """A weight (total, channels) that puts a value's channels at `first` and on, among `total`."""
    out = torch.zeros(total, channels, dtype=torch.float64, device=like.device)
    out[first : first + channels] = torch.eye(channels, dtype=torch.float64)
    return out


def pooling(node: Node, shape: Sequence[int], out: Sequence[int]) -> dict[str, tuple[int, ...]]:
    """Kernel, stride and padding of an average pooling, one number a dimension.

    Args:
        node: a pooling, or a mean over all places.
        shape: of its input, (C, ...).
        out: of its output.

    Raises:
        ConversionError: windows of unequal size.
    """
    dims = len(shape) - 1
    if node.op in POOLS and not node.op.startswith("adaptive"):
        stride = node.attrs["kernel"] if node.attrs["stride"] is None else node.attrs["stride"]
        given = {"kernel": node.attrs["kernel"], "stride": stride, "padding": node.attrs["padding"]}
        return {key: several(value, dims) for key, value in given.items()}
    places = out[1:] if len(out) == len(shape) else (1,) * dims
    if any(size % count for size, count in zip(shape[1:], places, strict=True)):
        raise ConversionError(
            f"NIR: {node.name!r} pools {tuple(shape[1:])} to {tuple(places)} with windows of unequal size; "
            "expected a divisor"
        )
    kernel = tuple(size // count for size, count in zip(shape[1:], places, strict=True))
    return {"kernel": kernel, "stride": kernel, "padding": (0,) * dims}


@dataclass(frozen=True)
class Placing:
    """A slice or a padding with zeros as a convolution of kernel 1: which channel goes where, and the places kept.

    Attributes:
        matrix: (channels out, channels in), zeros and ones.
        stride: one number a dimension of places.
        padding: one number a dimension of places, on both sides.
    """

    matrix: Tensor
    stride: tuple[int, ...]
    padding: tuple[int, ...]


def placing(node: Node, shape: Sequence[int]) -> Placing:
    """What a node "slice" or "pad" does to a value of this shape, (C, ...); see `placing_problem`."""
    every = torch.eye(shape[0], dtype=torch.float64)
    places = len(shape) - 1
    if node.op == "slice":
        index = [*node.attrs["index"], *[None] * (places + 2 - len(node.attrs["index"]))]
        channels = slice(None) if index[1] is None else slice(*index[1])
        return Placing(every[channels], tuple(1 if each is None else each[2] or 1 for each in index[2:]), (0,) * places)
    pairs = _pairs(node, places)
    first, last = pairs[0]
    matrix = torch.nn.functional.pad(every, (0, 0, first, last))
    return Placing(matrix, (1,) * places, tuple(pair[0] for pair in pairs[1:]))


def placing_problem(node: Node, places: int) -> str | None:
    """Why a slice or a padding is no convolution of kernel 1, or None; `places` counts the dimensions behind C."""
    if node.op == "slice":
        index = node.attrs["index"]
        if any(isinstance(each, int) for each in index) or (index and index[0] not in (None, [None, None, None])):
            return "takes single entries, or some of the batch; expected slices of channels"
        whole = all(each is None or (not each[0] and each[1] is None and (each[2] or 1) > 0) for each in index[2:])
        return None if whole else "cuts places off; expected every place, or every second, third, ..."
    if node.attrs["mode"] != "constant" or node.attrs["value"]:
        return "pads with other values than zero; expected zeros"
    given = len(node.attrs["pad"]) // 2
    if given > places + 1 or min(node.attrs["pad"]) < 0 or any(a != b for a, b in _pairs(node, places)[1:]):
        return "pads two sides unequally, or cuts; expected the same on both sides"
    return None


def _pairs(node: Node, places: int) -> list[tuple[int, int]]:
    """Entries before and after, for the channels and each dimension of places; torch lists the last one first."""
    pad = [int(each) for each in node.attrs["pad"]]
    found = [(pad[i], pad[i + 1]) for i in range(0, len(pad), 2)]
    return [*reversed(found + [(0, 0)] * (places + 1 - len(found)))]
