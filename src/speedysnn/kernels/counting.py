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
    bits: Array, channels: int, inner: int, signed: bool, begin: int, end: int, table: Array
) -> None:  # pragma: no cover - compiled
    """Count values begin..end - 1, code 0 being all that are not positive; rows `channels`.. are of negated values."""
    c = (begin // inner) % channels
    left = inner - begin % inner
    for i in range(begin, end):
        code = bits[i] >> SHIFT
        table[c, max(code, 0)] += 1
        if signed:
            table[channels + c, max((bits[i] ^ np.int32(-(2**31))) >> SHIFT, 0)] += 1
        left -= 1
        if left == 0:
            left = inner
            c = c + 1 if c + 1 < channels else 0


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
    tables: dict[int, Array] = {}

    def work(begin: int, end: int, i: int) -> None:
        tables[i] = np.zeros((rows, CODES), np.int32)
        tally(bits, channels, where.inner, signed, begin, end, tables[i])

    share(where.neurons, 1, work)
    largest = _largest(where.drive, channel_dim if channels > 1 else None, signed)
    codes = [code for code in (largest.nan_to_num(0, 0, 0).view(torch.int32) >> SHIFT).tolist() if code] or [1]
    low, high = max(1, min(codes) - depth), max(codes) + 1
    parts = [tables[i] for i in sorted(tables)]
    table = torch.from_numpy(np.sum([part[:, low:high] for part in parts], axis=0, dtype=np.int64))
    zeros = torch.from_numpy(np.sum([part[:, 0] for part in parts], axis=0, dtype=np.int64))
    below = where.neurons // channels - zeros - table.sum(1)
    return Counted(table, low, below, zeros, largest)


def _largest(x: Tensor, channel_dim: int | None, signed: bool) -> Tensor:
    """(rows,) largest positive values, 0 where there are none, NaN where anything is not finite."""
    low, high = torch.aminmax(x)
    rest = [dim for dim in range(x.ndim) if dim != channel_dim]
    most = x.amax(rest).reshape(-1)
    if signed:
        most = torch.cat([most, -x.amin(rest).reshape(-1)])
    finite = bool(low.isfinite()) and bool(high.isfinite())
    return most.clamp_min(0) if finite else torch.full_like(most, torch.nan)
