"""Number of nonzero values of a tensor, compiled: one read of memory, several values at once."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from speedysnn.kernels.compiled import AVAILABLE, compiled
from speedysnn.kernels.cpu import share
from speedysnn.kernels.layout import array, dense

Array = Any
_HALVES = (torch.bfloat16, torch.float16)
NONZERO_BLOCK = 1 << 20  # values a 32-bit counter counts, twice as many of which fit into a register


@compiled
def tally(row: Array) -> int:  # pragma: no cover - compiled
    """Number of nonzero elements of a row."""
    total = 0
    for first in range(0, row.size, NONZERO_BLOCK):
        found: Any = np.int32(0)
        part = row[first : first + NONZERO_BLOCK]
        for j in range(part.size):  # from 0 on: an index that might be negative is looked at one by one
            found = np.int32(found + np.int32(part[j] != 0))
        total += found
    return total


@compiled
def tally_some(values: Array, size: int, every: int) -> int:  # pragma: no cover - compiled
    """The same for `size` elements of every so many pieces of that size."""
    total = 0
    for first in range(0, values.size, size * every):
        total += tally(values[first : first + size])
    return total


def density(x: Tensor, pictures: int = 8) -> float:
    """Share of nonzero values in at least `pictures` samples spread over the batch (B, ...)."""
    many = x.shape[0]
    every = max(1, many // pictures)
    size = x.numel() // many if many else 0
    counted = size * -(-many // every)
    if counted == 0:
        return 0.0
    if _counts(x, _HALVES) and (many == 1 or x.stride(0) == size):  # pictures lie one after the other
        return int(tally_some(array(x), size, every)) / counted  # spikes have no zero with a sign
    some = x[::every]
    return nonzero(some.float() if some.dtype in _HALVES else some) / counted


def _counts(x: Tensor, further: tuple[torch.dtype, ...] = ()) -> bool:
    """Whether the compiled count supports a tensor."""
    return AVAILABLE and x.device.type == "cpu" and x.dtype in (torch.float32, *further) and dense(x)


def nonzero(x: Tensor) -> int:
    """How many values of a tensor are not zero; float32 that is dense in memory on the CPU is counted compiled."""
    if x.numel() == 0 or not _counts(x):
        return int(torch.count_nonzero(x))
    values, found = array(x), dict[int, int]()

    def work(begin: int, end: int, i: int) -> None:
        found[i] = int(tally(values[begin:end]))

    share(values.size, 1, work)
    return sum(found.values())
