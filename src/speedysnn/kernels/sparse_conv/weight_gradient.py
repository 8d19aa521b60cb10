"""Gradient of a convolution's weights on the CPU by events, where its input is mostly zeros.

The input is transposed channel by channel, so that the sums of one channel's weights stay in registers while its events
are read; each event adds the output's gradient around its place, times the event's value. Input and gradient lie in
frames of one size, with zeros where a kernel reaches beyond the image, so that an event's place is an index into both.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from speedysnn.kernels.jit import VECTOR_LANES, WORKS, compiled
from speedysnn.kernels.layout import flat
from speedysnn.kernels.neuron.numba_backend import spread_over
from speedysnn.kernels.sparse_conv.forward import Size
from speedysnn.kernels.sparse_conv.llvm_events import lanes_of_masks

Array = Any
REGISTERS = 12  # vectors of sums that are kept in registers
FRAME_BYTES, SPAN_BYTES = 2**17, 28_000  # gradients that fit the second-level cache, and the first-level one
EVENT_BYTES = 2**18  # transposed inputs and events of some channels
TILE = 8  # channels that read one span of gradients before the next
APART = 24  # values between channels, which would otherwise begin in the same places of a cache
PLACES = lanes_of_masks()
if WORKS:
    from speedysnn.kernels.sparse_conv.llvm_events import add_taps, pack, turn


def supports(kernel: Size, stride: Size, padding: Size) -> bool:
    """Tell whether `weight_gradient` supports a convolution that `forward.supports`."""
    inside = all(p < k for p, k in zip(padding, kernel, strict=True))
    return WORKS and stride == (1, 1) and kernel[1] <= REGISTERS and inside


def weight_gradient(x: Tensor, grad: Tensor, kernel: Size, padding: Size) -> Tensor:
    """Compute dL/dW[o, c, k] = sum over images and places p of dL/dy[o, p] x[c, p + k - padding], for stride 1.

    Args:
        x: input (N, C, H, W), channels-last float32.
        grad: dL/dy (N, O, OH, OW), likewise.
        kernel: rows and columns.
        padding: rows and columns.

    Returns:
        The gradient (O, C, kh, kw).
    """
    images, channels, high, wide = x.shape
    outputs, (tall, across) = grad.shape[1], kernel
    width, framed = _width(outputs, across), wide + across - 1
    area = -(-(high + tall - 1) * framed // VECTOR_LANES) * VECTOR_LANES
    group = max(1, min(images, FRAME_BYTES // (4 * area * outputs)))
    chunk = min(channels, max(TILE, EVENT_BYTES // (8 * group * area) // TILE * TILE))
    span = max(64, (SPAN_BYTES // (4 * width) - (tall - 1) * framed) // VECTOR_LANES * VECTOR_LANES)
    sizes = (high, wide, channels, chunk, tall, across, outputs, *padding, *grad.shape[2:], group, framed, area, span)
    inputs, given, parts = flat(x).numpy(), flat(grad).numpy(), dict[int, Array]()

    def work(begin: int, end: int) -> None:
        sums = parts[begin] = np.zeros(channels * tall * across * outputs, np.float32)
        frame = torch.zeros(group * area * outputs).numpy()  # torch's memory begins at a cache line
        turned = torch.zeros(chunk * (group * area + APART)).numpy()
        vectors = (0,) * (width // VECTOR_LANES)
        _add_up(vectors, (0,) * across, inputs, given, PLACES, sizes, begin, end, frame, turned, sums)

    spread_over(images, x.numel(), work)
    total = sum(torch.from_numpy(parts[begin]) for begin in sorted(parts))
    assert isinstance(total, Tensor)
    return total.view(channels, tall, across, outputs).flip(1, 2).permute(3, 0, 1, 2)


def _width(outputs: int, across: int) -> int:
    """Return the widest block of outputs whose sums for one row of the kernel fit the registers."""
    widest = max(1, REGISTERS // across) * VECTOR_LANES
    return max(width for width in range(VECTOR_LANES, widest + 1, VECTOR_LANES) if outputs % width == 0)


@compiled
def _frame(
    grad: Array, first: int, images: int, rows: int, columns: int, outputs: int, area: int, framed: int, above: int,
    left: int, out: Array,
) -> None:  # pragma: no cover - compiled
    """Copy some images' gradients into their frames of zeros, (images, area, outputs)."""
    run = columns * outputs
    for n in range(images):
        for row in range(rows):
            to = (n * area + (row + above) * framed + left) * outputs
            since = ((first + n) * rows + row) * run
            for i in range(run):
                out[to + i] = grad[since + i]


@compiled
def _turn(
    x: Array, base: int, high: int, wide: int, channels: int, some: int, framed: int, room: int, start: int, out: Array
) -> None:  # pragma: no cover - compiled
    """Transpose an image's values to lie channel by channel, rows `framed` apart."""
    whole, full = some // VECTOR_LANES * VECTOR_LANES, wide // VECTOR_LANES * VECTOR_LANES
    for row in range(high):
        at, to = base + row * wide * channels, start + row * framed
        for c in range(0, whole, VECTOR_LANES):
            for p in range(0, full, VECTOR_LANES):
                turn(x, at + p * channels + c, channels, out, c * room + to + p, room)
        for p in range(wide):
            for c in range(whole if p < full else 0, some):
                out[c * room + to + p] = x[at + p * channels + c]


@compiled
def _pack(
    turned: Array, some: int, room: int, numbers: int, span: int, masks: Array, places: Array, ends: Array
) -> None:  # pragma: no cover - compiled
    """Write the events' places by channel and span; `ends` takes where each span's begin, and where the last end."""
    used = -(-numbers // span)
    for c in range(some):
        count = c * room
        for s in range(used):
            ends[c, s] = count
            since, groups = s * span, min(span, numbers - s * span) // VECTOR_LANES
            count = pack(turned, c * room + since, groups, since, masks, places, count)
        ends[c, used] = count


@compiled
def _add_up(
    lanes: Any, taps: Any, x: Array, grad: Array, masks: Array, sizes: Any, begin: int, end: int, frame: Array,
    turned: Array, sums: Array,
) -> None:  # pragma: no cover - compiled
    """Add images begin..end - 1 to the sums (C, kh, kw, O), rows and columns of the kernel backwards."""
    high, wide, channels, chunk, tall, across, outputs, above, left, rows, columns, group, framed, area, span = sizes
    width, room, spans = VECTOR_LANES * len(lanes), group * area + APART, -(-group * area // span)
    places = np.empty(chunk * room, np.int32)
    ends = np.zeros((chunk, spans + 1), np.int64)
    for n in range(begin, end, group):
        images = min(group, end - n)
        _frame(grad, n, images, rows, columns, outputs, area, framed, tall - 1 - above, across - 1 - left, frame)
        used = -(-images * area // span)
        for first in range(0, channels, chunk):
            some = min(chunk, channels - first)
            for i in range(images):
                base = (n + i) * high * wide * channels + first
                _turn(x, base, high, wide, channels, some, framed, room, i * area, turned)
            _pack(turned, some, room, images * area, span, masks, places, ends)
            for block in range(0, outputs, width):
                for tile in range(0, some, TILE):
                    for s in range(used):
                        for c in range(tile, min(tile + TILE, some)):
                            for k in range(tall):
                                to = ((first + c) * tall + k) * across * outputs + block
                                add_taps(lanes, taps, sums, to, outputs, frame, k * framed * outputs + block, turned,
                                         c * room, places, ends[c, s], ends[c, s + 1])  # fmt: skip
