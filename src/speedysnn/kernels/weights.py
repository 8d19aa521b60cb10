"""Weights of a convolution laid out for events, (block, kh, kw, C, width), in float32 or two bfloat16 in a word."""

from typing import Any

import numpy as np

from speedysnn.kernels.blocks import to_half
from speedysnn.kernels.compiled import compiled
from speedysnn.kernels.vector_code import VECTOR_LANES, WORKS

if WORKS:
    from speedysnn.kernels.event_code import turn

Array = Any
PAIR = 32  # outputs whose weights in bfloat16 lie in the same 16 words


@compiled
def _turned(
    weight: Array, read: int, row: int, channels: int, outputs: int, table: Array, write: int, width: int
) -> None:  # pragma: no cover - compiled
    """One place of the window, (O, C) with rows that far apart, to (C, width); eight by eight."""
    many = channels // VECTOR_LANES * VECTOR_LANES
    for o in range(0, outputs, VECTOR_LANES):
        for c in range(0, many, VECTOR_LANES):
            turn(weight, read + o * row + c, row, table, write + c * width + o, width)
        for c in range(many, channels):
            for i in range(VECTOR_LANES):
                table[write + c * width + o + i] = weight[read + (o + i) * row + c]


@compiled
def lay_out(weight: Array, sizes: Any, width: int, table: Array) -> None:  # pragma: no cover - compiled
    """Weights (O, kh, kw, C) as `EventPlan` says."""
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
                    _turned(weight, read, row, channels, together, table, place * width + pixel * outputs, width)


@compiled
def lay_out_half(weight: Array, sizes: Any, width: int, table: Array) -> None:  # pragma: no cover - compiled
    """The same, one pixel at a time, in bfloat16; one place of the window after the other, which the cache holds."""
    outputs, channels, tall, kernel, _, _, _ = sizes
    row, size = channels * tall * kernel, channels * width
    some = np.empty(size, np.float32)
    for block in range(outputs // width):
        for k in range(tall * kernel):
            _turned(weight, block * width * row + k * channels, row, channels, width, some, 0, width)
            place = (block * tall * kernel + k) * size // 2
            halve(some.view(np.uint32), table[place : place + size // 2])


@compiled
def halve(bits: Array, out: Array) -> None:  # pragma: no cover - compiled
    """Every 32 values as 16 words: of bfloat16, ties to even, those of the second half in the upper bits."""
    half = PAIR // 2
    for group in range(out.size // half):
        read, write = bits[2 * half * group : 2 * half * (group + 1)], out[half * group : half * (group + 1)]
        for i in range(half):
            write[i] = (to_half(read[i]) >> np.uint32(16)) | (to_half(read[half + i]) & np.uint32(0xFFFF0000))
