"""Convolution of spikes on the CPU by events: only inputs that are not zero are multiplied.

The events of a row of pixels lie one after the other, so that an output pixel reads one run of them for every row of
its window: sparse work on a CPU costs mostly loops and branches, and these are few. The result is exact for any input;
values need not be spikes.

`EventPlan` lays a convolution's weights out as (block, kh, kw, C, width), in float32 or as two bfloat16 in a word, and
runs it. `WeightBuffers` keeps the memory of laid-out weights for later calls, since touching new memory pages costs
more than filling them.
"""

import threading
from typing import Any

import numpy as np
import torch
from torch import Tensor

from speedysnn.kernels.jit import VECTOR_LANES, WORKS, compiled
from speedysnn.kernels.layout import flat
from speedysnn.kernels.numba_backend import spread_over
from speedysnn.kernels.numba_neuron import to_half
from speedysnn.kernels.sparse_conv import llvm_events

if WORKS:
    from speedysnn.kernels.sparse_conv.llvm_events import add_rows, pack, turn

Array = Any
Size = tuple[int, int]
# WIDEST: outputs whose sums are kept in registers. TABLE_BYTES: weights in use at a time, so that they stay in the
# second-level cache. AVX-512 has four times the registers, and processors that have it the larger caches.
WIDEST, TABLE_BYTES = (256, 600_000) if torch.backends.cpu.get_cpu_capability() == "AVX512" else (64, 300_000)
FOLDED = 32  # most outputs of a block that holds several pixels
PAIR = 32  # outputs whose weights in bfloat16 lie in the same 16 words
PLACES = llvm_events.lanes_of_masks()


@compiled
def _transpose(
    weight: Array, read: int, row: int, channels: int, outputs: int, table: Array, write: int, width: int
) -> None:  # pragma: no cover - compiled
    """Transpose the weights of one place of the window, (O, C) with rows `row` apart, to (C, width), eight by eight."""
    whole = channels // VECTOR_LANES * VECTOR_LANES
    for o in range(0, outputs, VECTOR_LANES):
        for c in range(0, whole, VECTOR_LANES):
            turn(weight, read + o * row + c, row, table, write + c * width + o, width)
        for c in range(whole, channels):
            for i in range(VECTOR_LANES):
                table[write + c * width + o + i] = weight[read + (o + i) * row + c]


@compiled
def lay_out(weight: Array, sizes: Any, width: int, table: Array) -> None:  # pragma: no cover - compiled
    """Lay out weights (O, kh, kw, C) as `EventPlan` describes."""
    outputs, channels, tall, kernel, wide, pixels, right = sizes
    row, together = channels * tall * kernel, min(width, outputs)
    if pixels > 1:
        table[:] = 0
    for block in range(outputs // together):
        for k in range(tall):
            for j in range(kernel):
                read = block * together * row + (k * kernel + j) * channels
                for pixel in range(pixels):
                    place = ((block * tall + k) * wide + pixel * right + j) * channels
                    _transpose(weight, read, row, channels, together, table, place * width + pixel * outputs, width)


@compiled
def lay_out_half(weight: Array, sizes: Any, width: int, table: Array) -> None:  # pragma: no cover - compiled
    """Lay out weights in bfloat16, one pixel a block; one place of the window at a time fits the cache."""
    outputs, channels, tall, kernel, _, _, _ = sizes
    row, size = channels * tall * kernel, channels * width
    some = np.empty(size, np.float32)
    for block in range(outputs // width):
        for k in range(tall * kernel):
            _transpose(weight, block * width * row + k * channels, row, channels, width, some, 0, width)
            place = (block * tall * kernel + k) * size // 2
            halve(some.view(np.uint32), table[place : place + size // 2])


@compiled
def halve(bits: Array, out: Array) -> None:  # pragma: no cover - compiled
    """Pack every 32 float32 values into 16 words of two bfloat16, ties to even; the second 16 go to the upper bits."""
    half = PAIR // 2
    for group in range(out.size // half):
        read, write = bits[2 * half * group : 2 * half * (group + 1)], out[half * group : half * (group + 1)]
        for i in range(half):
            write[i] = (to_half(read[i]) >> np.uint32(16)) | (to_half(read[half + i]) & np.uint32(0xFFFF0000))


class WeightBuffers:
    """Thread-safe pool of free arrays by size and type; a copy, also in another process, starts empty."""

    def __init__(self) -> None:
        self._free: dict[tuple[int, Any], list[Array]] = {}
        self.last: dict[str, tuple[Any, ...]] = {}
        self.held: Any = None  # laid-out weights that several calls share, see `execution.sparse_conv`
        self._lock = threading.Lock()

    def take(self, size: int, kind: Any) -> Array:
        """Take an array of `size` values out of the pool, or a new one, aligned to a cache line."""
        with self._lock:
            free = self._free.get((size, np.dtype(kind)))
            if free:
                return free.pop()
        return torch.empty(size * np.dtype(kind).itemsize, dtype=torch.uint8).numpy().view(kind)

    def give(self, array: Array) -> None:
        """Put an array that nobody reads any more back into the pool."""
        with self._lock:
            self._free.setdefault((array.size, array.dtype), []).append(array)

    def __reduce__(self) -> tuple[Any, ...]:
        return WeightBuffers, ()


class EventPlan:
    """A 2-d convolution laid out for events: weights (block, kh, kw, C, width), a block of `width` outputs at a time.

    Where there are few output channels, a block holds those of several neighbouring pixels, whose windows overlap:
    their window is wider by (pixels - 1) strides, and a pixel's weights are zero outside its own window.

    Args:
        weight: (O, C, kh, kw).
        bias: (O,) or None.
        stride: of rows and columns.
        padding: zeros above and to the left, as many on the other side.
        columns: pixels of an output row.
        half: keep weights in bfloat16 where a block is whole groups of 32 outputs of one pixel; sums stay float32.
        buffers: memory for the weights; `close` gives it back.
    """

    def __init__(
        self, weight: Tensor, bias: Tensor | None, stride: Size, padding: Size, columns: int,
        half: bool = False, buffers: WeightBuffers | None = None,
    ) -> None:  # fmt: skip
        outputs, self.channels, self.tall, self.kernel = weight.shape
        self.stride, self.padding, self.outputs = stride, padding, outputs
        self.pixels = _pixels(outputs, self.kernel, columns)
        self.wide = self.kernel + (self.pixels - 1) * stride[1]
        self.width = outputs * self.pixels if self.pixels > 1 else _divisor(outputs)
        self.half = half and self.pixels == 1 and self.width % PAIR == 0
        self.buffers = buffers or WeightBuffers()
        self.table = self._laid_out(weight.detach().permute(0, 2, 3, 1).reshape(-1).numpy())
        start = weight.new_zeros(outputs) if bias is None else bias.detach()
        self.bias = start.repeat(self.pixels).numpy()
        per_channel = (2 if self.half else 4) * self.tall * self.wide * self.width
        self.chunk = min(self.channels, max(VECTOR_LANES, TABLE_BYTES // per_channel // VECTOR_LANES * VECTOR_LANES))

    def _laid_out(self, weight: Array) -> Array:
        """Return the weights laid out, in memory of the pool."""
        sizes = (self.outputs, self.channels, self.tall, self.kernel, self.wide, self.pixels, self.stride[1])
        size = self.tall * self.wide * self.channels * self.outputs * self.pixels
        if self.half:
            table = self.buffers.take(size // 2, np.uint32)
            lay_out_half(weight, sizes, self.width, table)
        else:
            table = self.buffers.take(size, np.float32)
            lay_out(weight, sizes, self.width, table)
        return table

    def close(self) -> None:
        """Give the weights' memory back; the plan must not run again."""
        self.buffers.give(self.table)

    def run(self, x: Tensor) -> Tensor:
        """Compute the convolution of x (N, C, H, W) channels-last; return (N, O, OH, OW) channels-last float32."""
        images, _, high, wide = x.shape
        rows, columns = output_size((high, wide), (self.tall, self.kernel), self.stride, self.padding)
        out = torch.empty((images, self.outputs, rows, columns), memory_format=torch.channels_last)
        sizes = (high, wide, self.channels, self.chunk, rows, columns // self.pixels, self.tall, self.wide,
                 self.stride[0], self.stride[1] * self.pixels, *self.padding)  # fmt: skip
        given = ((0,) * (self.width // VECTOR_LANES), flat(x.float()).numpy(), self.table, self.bias, PLACES)
        result = flat(out).numpy()
        spread_over(images, x.numel(), lambda begin, end: _convolve(*given, sizes, begin, end, result))
        return out


def supports(x: Tensor, weight: Tensor, attrs: Any) -> bool:
    """Tell whether `EventPlan` supports a convolution: one group, no dilation, channels-last float32 or bfloat16."""
    return (
        WORKS
        and x.device.type == "cpu"
        and x.dtype in (torch.float32, torch.bfloat16)
        and weight.dtype == torch.float32
        and x.ndim == 4
        and attrs["groups"] == 1
        and all(size == 1 for size in pair(attrs["dilation"]))
        and not isinstance(attrs["padding"], str)
        and weight.shape[0] % VECTOR_LANES == 0
        and x.is_contiguous(memory_format=torch.channels_last)
    )


def output_size(size: Size, kernel: Size, stride: Size, padding: Size) -> Size:
    """Return the rows and columns of a convolution's output."""
    rows, columns = ((n + 2 * p - k) // s + 1 for n, k, s, p in zip(size, kernel, stride, padding, strict=True))
    return rows, columns


def pair(value: Any) -> Size:
    """Return a size in rows and columns from one number or two."""
    return (value, value) if isinstance(value, int) else (int(value[0]), int(value[-1]))


def _pixels(outputs: int, wide: int, columns: int) -> int:
    """Return how many pixels of an output row share a block."""
    for pixels in (4, 2):
        if wide > 1 and outputs * pixels <= FOLDED and columns % pixels == 0:
            return pixels
    return 1


def _divisor(outputs: int) -> int:
    """Return the widest block of whole vectors that divides the outputs."""
    return max(width for width in range(VECTOR_LANES, WIDEST + 1, VECTOR_LANES) if outputs % width == 0)


@compiled
def events_of(
    x: Array, base: int, high: int, wide: int, channels: int, first: int, chunk: int, places: Array, columns: Array,
    ends: Array,
) -> None:  # pragma: no cover - compiled
    """Write the positions of an image's nonzero values in some channels, pixel after pixel.

    A position is (pixel in its row) * channels + channel; ends[p + 1] is the number of events up to pixel p.
    """
    count, groups = 0, chunk // VECTOR_LANES
    ends[0] = 0
    for row in range(high):
        for pixel in range(wide):  # two loops, as a division by the width costs as much as a pixel
            at, column = base + (row * wide + pixel) * channels + first, pixel * channels + first
            count = pack(x, at, groups, column, places, columns, count)
            for c in range(groups * VECTOR_LANES, chunk):
                columns[count] = column + c
                count += 1 if x[at + c] != 0 else 0
            ends[row * wide + pixel + 1] = count


@compiled
def _convolve(
    lanes: Any, x: Array, table: Array, bias: Array, places: Array, sizes: Any, begin: int, end: int, out: Array
) -> None:  # pragma: no cover - compiled
    """Convolve images begin..end - 1, all of them with one block and chunk of channels before the next."""
    high, wide, channels, chunk, rows, columns, tall, window, down, right, above, left = sizes
    width = VECTOR_LANES * len(lanes)
    unit = table.size // (bias.size // width * tall * window * channels)
    per_image = rows * columns * bias.size
    active, ends = np.empty(high * wide * chunk + VECTOR_LANES, np.int32), np.empty(high * wide + 1, np.int64)
    lows, highs = np.empty(tall, np.int64), np.empty(tall, np.int64)
    values, weights = np.empty(tall, np.int64), np.empty(tall, np.int64)
    for block in range(bias.size // width):
        for first in range(0, channels, chunk):
            some = min(chunk, channels - first)
            for n in range(begin, end):
                events_of(x, n * high * wide * channels, high, wide, channels, first, some, places, active, ends)
                for row in range(rows):
                    for column in range(columns):
                        to = n * per_image + (row * columns + column) * bias.size + block * width
                        start = column * right - left
                        since = min(max(start, 0), wide)
                        until = max(min(start + window, wide), since)
                        runs = 0
                        for k in range(max(0, above - row * down), min(tall, high + above - row * down)):
                            r = row * down - above + k
                            lows[runs], highs[runs] = ends[r * wide + since], ends[r * wide + until]
                            values[runs] = (n * high + r) * wide * channels
                            weights[runs] = ((block * tall + k) * window - start) * channels * unit
                            runs += 1
                        sums, origin = (bias, block * width) if first == 0 else (out, to)
                        add_rows(lanes, sums, origin, out, to, x, table, active, lows, highs, values, weights, runs)
