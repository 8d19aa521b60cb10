"""Counts of a layer's values by channel and float32 code, in one read of memory; compiled."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from speedysnn.kernels.compiled import AVAILABLE, compiled
from speedysnn.kernels.cpu import share
from speedysnn.kernels.layout import flat, plan

Array = Any
SHIFT = 19  # a code is a positive float32's exponent and the first four bits of its mantissa
CODES = 1 << (31 - SHIFT)
LOWEST = np.int32(-(2**31))  # the bit of the sign
MOST = 2**21  # cells of a table; beyond it the table would cost more than the values
WIDE = 1024  # values side by side, at least, whose largest torch finds quickly
APART = CODES + 80  # numbers between rows, which would else lie in the same places of a cache


@dataclass(frozen=True)
class Counted:
    """Counts of a tensor's values by row.

    Attributes:
        table: (rows, codes) int64, positive values with code `low`, low + 1, ...
        low: the first code of the table.
        below: (rows,) positive values with smaller codes.
        zeros: (rows,) values that are not positive.
        largest: (rows,) largest positive value, 0 if there is none, NaN where anything is not finite.
    """

    table: Tensor
    low: int
    below: Tensor
    zeros: Tensor
    largest: Tensor


@compiled
def tally(
    bits: Array, channels: int, inner: int, signed: bool, begin: int, end: int, table: Array
) -> None:  # pragma: no cover - compiled
    """Count values begin..end - 1, code 0 being all that are not positive; rows `channels`.. are of negated values.

    The table is flat, rows APART: one index is summed up as channels go by.
    """
    i, c, negated = begin, (begin // inner) % channels, channels * APART
    left, step = (channels - c, APART) if inner == 1 else (inner - begin % inner, 0)
    while i < end:
        at, stop = c * APART, min(end, i + left)
        for j in range(i, stop):
            table[at + max(bits[j] >> SHIFT, 0)] += np.int32(1)
            if signed:
                table[negated + at + max((bits[j] ^ LOWEST) >> SHIFT, 0)] += np.int32(1)
            at += step
        i = stop
        c = 0 if inner == 1 or c + 1 == channels else c + 1
        left = channels if inner == 1 else inner


def _largest(x: Tensor, channels: int, inner: int, signed: bool) -> Tensor:
    """(rows,) largest positive value, 0 if there is none; all NaN where anything is not finite."""
    pixels = 1 if inner > 1 else math.gcd(x.numel() // channels, 1 << (WIDE // channels).bit_length())
    side_by_side = x.view(-1, pixels * channels * inner)
    most, least = (f(f(side_by_side, 0).view(-1, channels, inner), (0, 2)) for f in (torch.amax, torch.amin))
    out = (torch.cat([most, -least]) if signed else most).clamp_min(0)
    finite = bool(most.isfinite().all()) and bool(least.isfinite().all())
    return out if finite else torch.full_like(out, torch.nan)


def counted(x: Tensor, channel_dim: int | None, signed: bool, depth: int) -> Counted | None:
    """A tensor's counts by row and code, down to `depth` codes below each row's largest; None where it does not pay.

    Rows are channels, or one without `channel_dim`; twice that if `signed`. Positive values below the smallest normal
    number count as zeros.
    """
    channels = 1 if channel_dim is None or x.ndim < 2 else x.shape[channel_dim]
    rows = channels * (2 if signed else 1)
    if not AVAILABLE or x.device.type != "cpu" or rows * CODES > MOST or x.numel() == 0:
        return None
    x = x.detach().to(torch.float32)
    like_theta = [channels if i == channel_dim else 1 for i in range(x.ndim)]
    where = plan(x, torch.empty(like_theta), torch.ones(1), 1)
    if where is None:
        return None
    values = flat(where.drive)
    bits, tables = values.view(torch.int32).numpy(), dict[int, Array]()

    def work(begin: int, end: int, i: int) -> None:
        table = tables[i] = np.zeros(rows * APART, np.int32)
        tally(bits, channels, where.inner, signed, begin, end, table)

    share(where.neurons, 1, work)
    largest = _largest(values, channels, where.inner, signed)
    codes = [code for code in (largest.nan_to_num(0, 0, 0).view(torch.int32) >> SHIFT).tolist() if code] or [1]
    low, high = max(1, min(codes) - depth), max(codes) + 1
    parts = [table.reshape(rows, APART) for table in tables.values()]
    table = torch.from_numpy(np.sum([part[:, low:high] for part in parts], axis=0, dtype=np.int64))
    zeros = torch.from_numpy(np.sum([part[:, 0] for part in parts], axis=0, dtype=np.int64))
    below = where.neurons // channels - zeros - table.sum(1)
    return Counted(table, low, below, zeros, largest)
