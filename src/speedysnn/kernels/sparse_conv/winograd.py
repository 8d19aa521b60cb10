"""Winograd convolutions on the CPU: a dense 3 x 3 convolution and its gradients with a quarter of the products.

The result is cut into tiles of 4 x 4. The 6 x 6 inputs of a tile are transformed to 36 points, where the convolution is
one product of matrices over the channels for each point, and the products are transformed back. In float32 the errors
are about 1e-6 of a result and of the gradient of an input, and 1e-5 of that of a weight, where products of tens of
thousands of places are summed.
"""

from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from speedysnn.kernels.jit import WORKS, compiled
from speedysnn.kernels.layout import array
from speedysnn.kernels.numba_backend import spread_over
from speedysnn.kernels.sparse_conv import Size
from speedysnn.kernels.sparse_conv.bitpack import Packed
from speedysnn.kernels.sparse_conv.winograd_code import ALIKE, TILE_LANES

if WORKS:
    from speedysnn.kernels.sparse_conv.bitpack import unpack_run
    from speedysnn.kernels.sparse_conv.winograd_code import (
        copy_run,
        gradients_at_points,
        inputs_at_points,
        multiply,
        results_of_points,
    )

Array = Any
TILE, POINTS = 4, 36
BLOCK_BYTES = 150_000  # points of the tiles that are multiplied together, so that they and their products stay cached
FRAME_BYTES = 2**17  # padded images that are cut into tiles together
APART = 16  # values between tiles, which would otherwise begin in the same places of a cache
_FILTER = torch.tensor([
    [1 / 4, 0, 0], [-1 / 6, -1 / 6, -1 / 6], [-1 / 6, 1 / 6, -1 / 6],
    [1 / 24, 1 / 12, 1 / 6], [1 / 24, -1 / 12, 1 / 6], [0, 0, 1],
])  # fmt: skip
_NOTHING, _NO_WORDS = torch.empty(0), torch.empty(0, dtype=torch.int16)
FILTERS = torch.kron(_FILTER, _FILTER)  # (36, 9)


def supports(channels: tuple[int, int], kernel: Size, stride: Size, padding: Size, size: Size) -> bool:
    """Tell whether a convolution is supported: 3 x 3, stride and padding 1, whole vectors of channels, whole tiles."""
    plain = WORKS and kernel == (3, 3) and stride == (1, 1) and padding == (1, 1)
    return plain and not any(c % TILE_LANES for c in channels) and not any(s % TILE for s in size)


def laid_out(weight: Tensor) -> Tensor:
    """Transform weights (O, C, 3, 3) to the 36 points, (36, C, O)."""
    outputs, channels = weight.shape[:2]
    return (FILTERS @ weight.permute(2, 3, 1, 0).reshape(9, -1)).view(POINTS, channels, outputs)


def turned(weight: Tensor) -> Tensor:
    """Return the weights (C, O, 3, 3) with which a convolution of dL/dy is dL/dx."""
    return weight.flip(2, 3).transpose(0, 1)


def convolve(x: Tensor, points: Tensor, bias: Tensor | None = None) -> Tensor:
    """Compute the convolution.

    Args:
        x: (N, C, H, W) channels-last, float32 or bfloat16.
        points: transformed weights, as `laid_out` returns them.
        bias: (O,) or None.

    Returns:
        The result (N, O, H, W) channels-last, in the type of x.
    """
    images, channels, rows, columns = x.shape
    outputs = points.shape[2]
    out = torch.empty((images, outputs, rows, columns), dtype=x.dtype, memory_format=torch.channels_last)
    shape = _cut(channels, outputs, rows, columns)
    given, weights, taken = array(x), array(points), array(out)
    start = (torch.zeros(outputs) if bias is None else bias.detach()).numpy()

    def work(begin: int, end: int) -> None:
        frame, transformed = shape.frame(), shape.room(channels)
        sums = transformed if shape.in_place else shape.room(outputs)
        arguments = (given, weights, start, shape.numbers, begin, end, frame, transformed, sums, taken)
        _convolve_images(shape.rows, shape.columns, *arguments)

    spread_over(images, x.numel(), work)
    return out


def weight_gradients(x: Tensor | Packed, grad: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the gradients of weights and bias.

    Args:
        x: input (N, C, H, W), channels-last, or packed into bits.
        grad: dL/dy (N, O, H, W), channels-last.

    Returns:
        dL/dW (O, C, 3, 3) and dL/db (O,).
    """
    images, channels, rows, columns = x.shape
    outputs, parts = grad.shape[1], dict[int, Tensor]()
    shape = _cut(channels, outputs, rows, columns)
    bits = Packed(_NO_WORDS, _NOTHING, x.shape) if isinstance(x, Tensor) else x
    spikes = (bits.words.numpy(), bits.values.numpy())
    inputs, given = array(x if isinstance(x, Tensor) else _NOTHING), array(grad)

    def work(begin: int, end: int) -> None:
        frame, transformed, grads = shape.frame(), shape.room(channels), shape.room(outputs)
        parts[begin] = torch.zeros((POINTS * channels + 1) * outputs)
        sums, own = parts[begin].numpy(), np.zeros(outputs, np.float32)
        arguments = (inputs, *spikes, given, shape.numbers, begin, end, frame, transformed, grads, sums, own)
        _add_gradients(shape.rows, shape.columns, *arguments)

    spread_over(images, grad.numel(), work)
    first, *others = (parts[begin] for begin in sorted(parts))
    for other in others:
        first += other
    filters = FILTERS.T @ first[:-outputs].view(POINTS, -1)
    return filters.view(3, 3, channels, outputs).permute(3, 2, 0, 1), first[-outputs:]


class _Cut:
    """How images are cut: sizes of groups of images, of blocks of tiles, and of the part of a product in registers."""

    def __init__(self, channels: int, outputs: int, rows: int, columns: int) -> None:
        vectors = 1 if outputs % 32 else 2
        self.rows, self.columns = (0,) * (16 // vectors), (0,) * vectors
        high, wide = rows // TILE, columns // TILE
        framed = (rows + 2) * (columns + 2) * channels
        block = max(16, BLOCK_BYTES // (4 * POINTS * max(channels, outputs)) // 16 * 16)
        group = max(1, FRAME_BYTES // (4 * framed))
        while group > 1 and group * high * wide % len(self.rows):  # no rows of the last product are then unused
            group += 1
        self.block, self.size = block, group * framed
        self.numbers = (channels, outputs, rows, columns, high, wide, group, block)
        self.in_place = channels == outputs == TILE_LANES * len(self.columns)

    def frame(self) -> Array:
        """Allocate zeros for some images with their borders."""
        return torch.zeros(self.size).numpy()  # torch's memory begins at a cache line

    def room(self, channels: int) -> Array:
        """Allocate the points of a block of tiles; values beyond the last tile are multiplied too, and not used."""
        return torch.empty(self.block * (POINTS * channels + APART)).numpy()


_cut = lru_cache(maxsize=256)(_Cut)


@compiled
def _framed(
    x: Array, first: int, images: int, rows: int, columns: int, channels: int, out: Array
) -> None:  # pragma: no cover - compiled
    """Copy some images into their frames of zeros."""
    run, line = columns * channels, (columns + 2) * channels
    for n in range(images):
        for row in range(rows):
            to, since = (n * (rows + 2) + row + 1) * line + channels, ((first + n) * rows + row) * run
            copy_run(x, since, out, to, run)


@compiled
def _framed_bits(
    words: Array, values: Array, first: int, images: int, rows: int, columns: int, out: Array
) -> None:  # pragma: no cover - compiled
    """Copy some images of spikes, kept as bits, into their frames of zeros."""
    channels = values.size
    spread, line = channels // TILE_LANES, (columns + 2) * channels
    for n in range(images):
        for row in range(rows):
            to, since = (n * (rows + 2) + row + 1) * line + channels, ((first + n) * rows + row) * columns * spread
            for g in range(spread):
                c = g * TILE_LANES
                unpack_run(words, since + g, spread, values, c, out, to + c, channels, columns)


@compiled
def _place(t: int, high: int, wide: int, rows: int, columns: int) -> Any:  # pragma: no cover - compiled
    """Return the pixel at which tile t begins, of images with the given rows and columns."""
    image, inside = t // (high * wide), t % (high * wide)
    return (image * rows + inside // wide * TILE) * columns + inside % wide * TILE


@compiled
def _points_of(
    frame: Array, first: int, tiles: int, sizes: Any, apart: int, transformed: Array
) -> None:  # pragma: no cover - compiled
    """Transform some tiles of the frame to the points."""
    channels, _, rows, columns, high, wide, _, _ = sizes
    for t in range(tiles):
        at = _place(first + t, high, wide, rows + 2, columns + 2) * channels
        inputs_at_points(frame, at, (columns + 2) * channels, channels, transformed, t * apart, channels, channels)


@compiled
def _convolve_images(
    block_rows: Any, vectors: Any, x: Array, weights: Array, bias: Array, sizes: Any, begin: int, end: int,
    frame: Array, transformed: Array, sums: Array, out: Array,
) -> None:  # pragma: no cover - compiled
    """Convolve images begin..end - 1."""
    channels, outputs, rows, columns, high, wide, group, block = sizes
    apart, further, width = POINTS * channels + APART, POINTS * outputs + APART, TILE_LANES * len(vectors)
    for n in range(begin, end, group):
        images = min(group, end - n)
        _framed(x, n, images, rows, columns, channels, frame)
        for first in range(0, images * high * wide, block):
            tiles = min(block, images * high * wide - first)
            _points_of(frame, first, tiles, sizes, apart, transformed)
            for p in range(POINTS):
                for column in range(0, outputs, width):
                    for row in range(0, tiles, len(block_rows)):
                        multiply(block_rows, vectors, (0,), transformed, p * channels + row * apart, apart, 1, weights,
                                 p * channels * outputs + column, outputs, channels, sums,
                                 p * outputs + row * further + column, further)  # fmt: skip
            for t in range(tiles):
                at = (n * rows * columns + _place(first + t, high, wide, rows, columns)) * outputs
                results_of_points(sums, t * further, outputs, bias, out, at, columns * outputs, outputs, outputs)


@compiled
def _add_bias_gradient(
    grads: Array, tiles: int, outputs: int, further: int, own: Array, out: Array
) -> None:  # pragma: no cover - compiled
    """Add some tiles' gradients to the bias's; at the point (1, 1) a tile's gradients are summed up already."""
    own[:] = 0
    for t in range(tiles):
        sums = grads[t * further + ALIKE * outputs : t * further + (ALIKE + 1) * outputs]
        for o in range(outputs):
            own[o] += sums[o]
    for o in range(outputs):
        out[o] += own[o]


@compiled
def _add_gradients(
    block_rows: Any, vectors: Any, x: Array, words: Array, values: Array, grad: Array, sizes: Any, begin: int, end: int,
    frame: Array, transformed: Array, grads: Array, sums: Array, own: Array,
) -> None:  # pragma: no cover - compiled
    """Add images begin..end - 1 to the weights' gradient at the points, (36, C, O), and to the bias's after it."""
    channels, outputs, rows, columns, high, wide, group, block = sizes
    apart, further, width = POINTS * channels + APART, POINTS * outputs + APART, TILE_LANES * len(vectors)
    for n in range(begin, end, group):
        images = min(group, end - n)
        if words.size:
            _framed_bits(words, values, n, images, rows, columns, frame)
        else:
            _framed(x, n, images, rows, columns, channels, frame)
        for first in range(0, images * high * wide, block):
            tiles = min(block, images * high * wide - first)
            _points_of(frame, first, tiles, sizes, apart, transformed)
            for t in range(tiles):
                at = (n * rows * columns + _place(first + t, high, wide, rows, columns)) * outputs
                gradients_at_points(grad, at, columns * outputs, outputs, grads, t * further, outputs, outputs)
            _add_bias_gradient(grads, tiles, outputs, further, own, sums[POINTS * channels * outputs :])
            for p in range(POINTS):
                for column in range(0, outputs, width):
                    for row in range(0, channels, len(block_rows)):
                        multiply(block_rows, vectors, (0, 0), transformed, p * channels + row, 1, apart, grads,
                                 p * outputs + column, further, tiles, sums,
                                 (p * channels + row) * outputs + column, outputs)  # fmt: skip
