"""Counts of a layer's values by channel and float32 code, in one read of memory; compiled."""

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
INFINITE, NEGATIVE_INFINITE = np.int32(0x7F800000), np.int32(-0x800000)  # bits from which on nothing is finite
MOST = 2**21  # cells of a table; beyond it the table would cost more than the values


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
    bits: Array, channels: int, inner: int, signed: bool, begin: int, end: int, table: Array, top: Array
) -> bool:  # pragma: no cover - compiled
    """Count values begin..end - 1, code 0 being all that are not positive; rows `channels`.. are of negated values.

    `top` keeps each row's largest positive value as bits, which order as the values do. False at NaN or infinity.
    """
    c = (begin // inner) % channels
    left = inner - begin % inner
    most, least, worst = np.int32(0), np.int32(-(2**31)), np.int32(-(2**31))
    for i in range(begin, end):
        b = bits[i]
        table[c, max(b >> SHIFT, 0)] += 1
        top[c] = max(top[c], b)
        most = max(most, b)
        worst = max(worst, b if b < 0 else least)
        if signed:
            n = b ^ least
            table[channels + c, max(n >> SHIFT, 0)] += 1
            top[channels + c] = max(top[channels + c], n)
        left -= 1
        if left == 0:
            left = inner
            c = c + 1 if c + 1 < channels else 0
    return bool(most < INFINITE and worst < NEGATIVE_INFINITE)


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
    bits = flat(where.drive).view(torch.int32).numpy()
    tables: dict[int, tuple[Array, Array, bool]] = {}

    def work(begin: int, end: int, i: int) -> None:
        table, top = np.zeros((rows, CODES), np.int32), np.zeros(rows, np.int32)
        finite = tally(bits, channels, where.inner, signed, begin, end, table, top)
        tables[i] = table, top, finite

    share(where.neurons, 1, work)
    top = torch.from_numpy(np.max([top for _, top, _ in tables.values()], axis=0))
    largest = top.view(torch.float32)
    if not all(finite for *_, finite in tables.values()):
        largest = torch.full_like(largest, torch.nan)
    codes = [code for code in (largest.nan_to_num(0, 0, 0).view(torch.int32) >> SHIFT).tolist() if code] or [1]
    low, high = max(1, min(codes) - depth), max(codes) + 1
    parts = [table for table, *_ in tables.values()]
    table = torch.from_numpy(np.sum([part[:, low:high] for part in parts], axis=0, dtype=np.int64))
    zeros = torch.from_numpy(np.sum([part[:, 0] for part in parts], axis=0, dtype=np.int64))
    below = where.neurons // channels - zeros - table.sum(1)
    return Counted(table, low, below, zeros, largest)
