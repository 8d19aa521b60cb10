"""A convolution as an autograd function: by events (the input's nonzero values), by Winograd tiles, or by torch.

`ConvMethods` says which of the three computes the result and each gradient. Binary spikes are packed into bits for the
backward pass.

`gradient_by_events` is the gradient of the weights on the CPU, where the input is mostly zeros. The input is transposed
channel by channel, so that the sums of one channel's weights stay in registers while its events are read; each event
adds the output's gradient around its place, times the event's value. Input and gradient lie in frames of one size, with
zeros where a kernel reaches beyond the image, so that an event's place is an index into both.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from speedysnn.errors import TrainingError
from speedysnn.kernels.jit import VECTOR_LANES, WORKS, compiled
from speedysnn.kernels.layout import flat
from speedysnn.kernels.numba_backend import spread_over
from speedysnn.kernels.sparse_conv import EventPlan, Size, output_size, pair, winograd
from speedysnn.kernels.sparse_conv.bitpack import Packed, pack
from speedysnn.kernels.sparse_conv.llvm_events import lanes_of_masks

Array = Any
REGISTERS = 12  # vectors of sums that are kept in registers
FRAME_BYTES, SPAN_BYTES = 2**17, 28_000  # gradients that fit the second-level cache, and the first-level one
EVENT_BYTES = 2**18  # transposed inputs and events of some channels
TILE = 8  # channels that read one span of gradients before the next
APART = 24  # values between channels, which would otherwise begin in the same places of a cache
PLACES = lanes_of_masks()
if WORKS:
    from speedysnn.kernels.sparse_conv.llvm_events import add_taps, turn
    from speedysnn.kernels.sparse_conv.llvm_events import pack as pack_events


@dataclass(frozen=True)
class ConvShape:
    """Sizes of a 2-d convolution, rows before columns.

    Attributes:
        channels: of the input and of the output.
        kernel: rows and columns of the kernel.
        stride: of rows and columns.
        padding: zeros above and to the left, as many on the other side.
        size: rows and columns of the output.
    """

    channels: tuple[int, int]
    kernel: Size
    stride: Size
    padding: Size
    size: Size

    @classmethod
    def of(cls, x: Tensor, weight: Tensor, attrs: Mapping[str, Any]) -> "ConvShape":
        """Return the sizes of a node's convolution from its input, weight and attributes."""
        kernel, stride, padding = pair(weight.shape[2:]), pair(attrs["stride"]), pair(attrs["padding"])
        size = output_size(pair(x.shape[2:]), kernel, stride, padding)
        return cls((weight.shape[1], weight.shape[0]), kernel, stride, padding, size)

    @property
    def places(self) -> int:
        """The number of output pixels."""
        return self.size[0] * self.size[1]

    def numbers(self) -> tuple[int, ...]:
        """Return the numbers that identify a convolution, whatever the size of the image."""
        return (*self.channels, *self.kernel, *self.stride, *self.padding)


@dataclass(frozen=True)
class ConvMethods:
    """Which implementation computes a convolution and its gradients; None means torch.

    Attributes:
        plan: runs the convolution by events.
        points: transformed weights for the convolution by Winograd tiles; see `winograd.laid_out`.
        turned: transformed weights for the gradient of its input by Winograd tiles; see `winograd.turned`.
        to_weight: "events" or "tiles" for the gradient of its weights.
    """

    plan: EventPlan | None = None
    points: Tensor | None = None
    turned: Tensor | None = None
    to_weight: str | None = None


def forward(x: Tensor, weight: Tensor, bias: Tensor | None, shape: ConvShape, methods: ConvMethods) -> Tensor:
    """Compute the convolution by events, by Winograd tiles or by torch."""
    if methods.plan is not None:
        return methods.plan.run(x)
    if methods.points is not None:
        return winograd.convolve(x, methods.points, bias)
    return F.conv2d(x, weight, bias, shape.stride, shape.padding)


def weight_gradient(x: Tensor, grad: Tensor, weight: Tensor, shape: ConvShape, method: str | None) -> Tensor:
    """Compute the gradient of the weights by "events", by "tiles" or by torch."""
    if method == "events":
        return gradient_by_events(x, grad, shape.kernel, shape.padding)
    if method == "tiles":
        return winograd.weight_gradients(x, grad)[0]
    out: Tensor = _torch(grad, x, weight, shape, (False, True, False))[1]
    return out


def input_gradient(
    grad: Tensor, weight: Tensor, shape: ConvShape, size: Sequence[int], turned: Tensor | None
) -> Tensor:
    """Compute the gradient of the input (N, C, H, W) by Winograd tiles or by torch."""
    if turned is not None:
        return winograd.convolve(grad, turned)
    out: Tensor = _torch(grad, _stand_in(size), weight, shape, (True, False, False))[0]
    return out


def _stand_in(size: Sequence[int]) -> Tensor:
    """Return an input without values, for torch's functions that read its size alone."""
    return torch.empty(size, memory_format=torch.channels_last)


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None, shape: ConvShape, methods: ConvMethods) -> Tensor:
    """Compute the convolution with gradients.

    Args:
        x: (N, C, H, W) channels-last float32.
        weight: (O, C, kh, kw).
        bias: (O,) or None.
        shape: the sizes of all.
        methods: the implementations.

    Returns:
        The result (N, O, OH, OW).
    """
    out: Tensor = _Convolution.apply(x, weight, bias, shape, methods)
    return out


class _Convolution(torch.autograd.Function):
    """A convolution that keeps its input as bits for the backward pass where the input is binary."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, shape: ConvShape, methods: ConvMethods
    ) -> Tensor:
        out = forward(x, weight, bias, shape, methods)
        learns = ctx.needs_input_grad[1]  # otherwise only the size of x is needed
        spikes = pack(x) if learns else None
        ctx.save_for_backward(weight, *((spikes.words, spikes.values) if spikes else (x,) if learns else ()))
        ctx.given = shape, methods, x.shape
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        weight, *kept = ctx.saved_tensors
        (shape, methods, size), (to_x, to_weight, to_bias, *_) = ctx.given, ctx.needs_input_grad
        spikes = Packed(kept[0], kept[1], size) if len(kept) > 1 else None
        if torch.is_grad_enabled():
            x = _stand_in(size) if not to_weight else kept[0] if spikes is None else None
            return _differentiable(grad, x, weight, shape, (to_x, to_weight, to_bias))
        grad = grad.contiguous(memory_format=torch.channels_last)
        own = input_gradient(grad, weight, shape, size, methods.turned) if to_x else None
        if to_weight and methods.to_weight == "tiles":  # the tiles give the bias's gradient as well
            by_weight, by_bias = winograd.weight_gradients(spikes or kept[0], grad)
            return own, by_weight, by_bias.clone() if to_bias else None, None, None
        of_bias = grad.sum((0, 2, 3)) if to_bias else None
        if not to_weight:
            return own, None, of_bias, None, None
        x = kept[0] if spikes is None else spikes.unpacked()
        return own, weight_gradient(x, grad, weight, shape, methods.to_weight), of_bias, None, None


def _differentiable(
    grad: Tensor, x: Tensor | None, weight: Tensor, shape: ConvShape, wanted: tuple[bool, bool, bool]
) -> tuple[Tensor | None, ...]:
    """Compute gradients that can be differentiated again, which torch alone can.

    Raises:
        TrainingError: the input was kept as bits.
    """
    if x is None:
        raise TrainingError(
            "gradients of gradients: spikes have none; to have torch's, call it within "
            "`speedysnn.settings.using(events='never')` or set SPEEDYSNN_EVENTS=never"
        )
    by_x, by_weight, _ = _torch(grad, x, weight, shape, (*wanted[:2], False))
    return by_x, by_weight, grad.sum((0, 2, 3)) if wanted[2] else None, None, None


def _torch(grad: Tensor, x: Tensor, weight: Tensor, shape: ConvShape, wanted: tuple[bool, bool, bool]) -> Any:
    """Compute torch's gradients of (input, weight, bias); None for those that are not wanted."""
    if not any(wanted):
        return None, None, None
    return torch.ops.aten.convolution_backward(
        grad, x, weight, None, shape.stride, shape.padding, (1, 1), False, (0, 0), 1, wanted
    )


def supports_gradient(kernel: Size, stride: Size, padding: Size) -> bool:
    """Tell whether `gradient_by_events` supports a convolution that `sparse_conv.supports`."""
    inside = all(p < k for p, k in zip(padding, kernel, strict=True))
    return WORKS and stride == (1, 1) and kernel[1] <= REGISTERS and inside


def gradient_by_events(x: Tensor, grad: Tensor, kernel: Size, padding: Size) -> Tensor:
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
            count = pack_events(turned, c * room + since, groups, since, masks, places, count)
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
