"""Counts of a layer's values by channel and float32 code, in one read of memory; compiled."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from speedysnn.kernels.compiled import AVAILABLE, compiled
from speedysnn.kernels.cpu import spread_over
from speedysnn.kernels.layout import flat, in_rows

Array = Any
SHIFT = 19  # a code is a positive float32's exponent and the first four bits of its mantissa
CODES = 1 << (31 - SHIFT)
LOWEST, ALL_BUT = np.int32(-(2**31)), np.int32(2**31 - 1)  # the bit of the sign, and all others
NOT_FINITE = 0xFF << 23  # from these bits on, the sign left out, a value is infinite or NaN
MOST = 2**21  # cells of a table; beyond it the table would cost more than the values
BLOCK = 2048  # values looked at together, about: they stay in the nearest cache


@dataclass(frozen=True)
class Counted:
    """Counts of a tensor's values by row.

    Attributes:
        table: (rows, 2 + codes) int64: values that are not positive, positive ones with codes smaller than `low`, and
            those with code `low`, low + 1, ...
        low: that code.
        largest: (rows,) float32, largest positive value, 0 if there is none, NaN where anything is not finite.
    """

    table: Array
    low: int
    largest: Array


@compiled
def raise_to(bits: Array, sign: Any, largest: Array) -> None:  # pragma: no cover - compiled
    """The larger of two values, place by place, their signs turned by `sign`; positive floats come as their bits do."""
    for j in range(bits.size):
        largest[j] = max(largest[j], bits[j] ^ sign)


@compiled
def size_of(bits: Array) -> Any:  # pragma: no cover - compiled
    """The largest magnitude's bits."""
    most = np.int32(0)
    for j in range(bits.size):
        most = max(most, bits[j] & ALL_BUT)
    return most


@compiled
def block_of(channels: int, inner: int) -> int:  # pragma: no cover - compiled
    """Values looked at together: whole rows of channels, or neighbours of one channel."""
    return channels * max(1, BLOCK // channels) if inner == 1 else min(inner, BLOCK)


@compiled
def peak(
    bits: Array, channels: int, inner: int, signed: bool, begin: int, end: int, peaks: Array
) -> Any:  # pragma: no cover - compiled
    """Bits of the largest magnitude of values begin..end - 1; `peaks` takes the channels' largest, and negated."""
    block = block_of(channels, inner)
    high, i, c, most = np.zeros((2, block), np.int32), begin, begin // inner % channels, np.int32(0)
    while i < end:
        run = end if inner == 1 else i + inner
        while i < run:
            part = bits[i : min(run, i + block)]
            most = max(most, size_of(part))
            raise_to(part, np.int32(0), high[0])
            if signed:
                raise_to(part, LOWEST, high[1])
            i += part.size
        for j in range(block):
            at = j % channels if inner == 1 else c
            for k in range(2):
                peaks[k, at], high[k, j] = max(peaks[k, at], high[k, j]), 0
        c = (c + 1) % channels
    return most


@compiled
def add(
    bits: Array, sign: Any, low: int, base: Array, place: Array, table: Array
) -> None:  # pragma: no cover - compiled
    """Count values, their signs turned by `sign`, in the rows that begin at `base`."""
    for j in range(bits.size):
        code = (bits[j] ^ sign) >> SHIFT
        place[j] = base[j] + (code - low + np.int32(2) if code >= low else min(max(code, np.int32(0)), np.int32(1)))
    for j in range(bits.size):
        table[place[j]] += np.int32(1)


@compiled
def tally(
    bits: Array, channels: int, inner: int, signed: bool, begin: int, end: int, low: Any, table: Array
) -> None:  # pragma: no cover - compiled
    """Count values begin..end - 1, whole rows of channels or whole channels; rows `channels`.. are of negated values.

    In a row come what is not positive, smaller codes than `low`, and the codes from `low` on.
    """
    block, flat_, apart = block_of(channels, inner), table.reshape(table.size), table.shape[1]
    base, place = np.empty(block, np.int32), np.empty(block, np.uint32)  # a signed place might count from the end
    i, c = begin, begin // inner % channels
    for j in range(block):
        base[j] = j % channels * apart
    while i < end:
        run = end if inner == 1 else i + inner
        if inner > 1:
            base[:] = c * apart
        while i < run:
            part = bits[i : min(run, i + block)]
            add(part, np.int32(0), low, base, place, flat_)
            if signed:
                add(part, LOWEST, low, base, place, flat_[channels * apart :])
            i += part.size
        c = (c + 1) % channels


@compiled
def fold(table: Array, low: int, top: Array, counts: Array) -> None:  # pragma: no cover - compiled
    """Add a table's codes to rows of bins that end below the code `top`; what lies below the first goes there."""
    bins = counts.shape[1]
    for row in range(table.shape[0]):
        first = low - (top[row] - bins)
        counts[row, 0] += table[row, 1]
        for k in range(2, table.shape[1]):
            if table[row, k]:
                counts[row, min(max(first + k - 2, 0), bins - 1)] += table[row, k]


def counted(x: Tensor, channel_dim: int | None, signed: bool, depth: int) -> Counted | None:
    """A tensor's counts by row and code, down to `depth` codes below each row's largest; None where it does not pay.

    Rows are channels, or one without `channel_dim`; twice that if `signed`. Positive values below the smallest normal
    number count as zeros.
    """
    dim = -1 if channel_dim is None or x.ndim < 2 else channel_dim % x.ndim
    channels = 1 if dim < 0 else x.shape[dim]
    rows = channels * (2 if signed else 1)
    if not AVAILABLE or x.device.type != "cpu" or rows * CODES > MOST or x.numel() == 0:
        return None
    x = in_rows(x.detach().to(torch.float32))
    bits, inner = flat(x).view(torch.int32).numpy(), x.stride(dim) if channels > 1 else 1
    unit, peaks, tables, sizes = channels if inner == 1 else inner, list[Array](), list[Array](), list[int]()

    def measure(begin: int, end: int) -> None:
        found = np.zeros((2, channels), np.int32)
        sizes.append(int(peak(bits, channels, inner, signed, begin * unit, end * unit, found)))
        peaks.append(found[: rows // channels].reshape(-1))

    def work(begin: int, end: int) -> None:
        table = np.zeros((rows, (high - low + 2) | 1), np.int32)  # odd, so that rows lie in other places of a cache
        tally(bits, channels, inner, signed, begin * unit, end * unit, np.int32(low), table)
        tables.append(table)

    spread_over(bits.size // unit, bits.size, measure)
    highest = np.maximum.reduce(peaks)
    codes = highest[highest > 0] >> SHIFT
    low, high = (max(1, int(codes.min()) - depth), int(codes.max()) + 1) if codes.size else (1, 2)
    if max(sizes) >= NOT_FINITE:
        return Counted(np.zeros((rows, 2), np.int64), low, np.full(rows, np.nan, np.float32))
    spread_over(bits.size // unit, bits.size, work)
    return Counted(sum(tables[1:], tables[0].astype(np.int64)), low, highest.view(np.float32))
