"""Two compiled sums over elements: how many values are not zero, and the quantizer's squared error over a histogram.

`nonzero` and `density` read memory once and compare several values at a time. `squared_error` is the inner loop of the
search for thresholds; `speedysnn.calibration.distributions.squared_error` defines it in plain torch, and a test
compares both.
"""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch import Tensor

from speedysnn.kernels.jit import AVAILABLE, compiled
from speedysnn.kernels.layout import array, dense
from speedysnn.kernels.numba_backend import share

Array = Any
_HALVES = (torch.bfloat16, torch.float16)
NONZERO_BLOCK = 1 << 20  # values that a 32-bit counter counts: a register holds twice as many of those as of 64 bits


@compiled
def tally(row: Array) -> int:  # pragma: no cover - compiled
    """Count the elements of a row that are not zero."""
    total = 0
    for first in range(0, row.size, NONZERO_BLOCK):
        found: Any = np.int32(0)
        part = row[first : first + NONZERO_BLOCK]
        for j in range(part.size):  # an index from 0 on is never negative, so that the loop is vectorized
            found = np.int32(found + np.int32(part[j] != 0))
        total += found
    return total


@compiled
def tally_some(values: Array, size: int, every: int) -> int:  # pragma: no cover - compiled
    """Count the elements that are not zero in every `every`-th piece of `size` elements."""
    total = 0
    for first in range(0, values.size, size * every):
        total += tally(values[first : first + size])
    return total


def density(x: Tensor, samples: int = 8) -> float:
    """Estimate the share of values that are not zero.

    Args:
        x: a batch (B, ...).
        samples: at least so many samples, spread over the batch, are looked at.

    Returns:
        The share in these samples, 0 for an empty tensor.

    Example:
        >>> import torch
        >>> from speedysnn.kernels.elementwise import density
        >>> density(torch.tensor([[0.0, 1.0], [0.0, 0.0]]))
        0.25
    """
    batch = x.shape[0]
    every = max(1, batch // samples)
    size = x.numel() // batch if batch else 0
    counted = size * -(-batch // every)
    if counted == 0:
        return 0.0
    if _supports(x, _HALVES) and (batch == 1 or x.stride(0) == size):  # samples lie one after the other
        return int(tally_some(array(x), size, every)) / counted  # as bits: spikes have no negative zero
    some = x[::every]
    return nonzero(some.float() if some.dtype in _HALVES else some) / counted


def _supports(x: Tensor, further: tuple[torch.dtype, ...] = ()) -> bool:
    """Tell whether the compiled count supports a tensor of float32 or of a further type."""
    return AVAILABLE and x.device.type == "cpu" and x.dtype in (torch.float32, *further) and dense(x)


def nonzero(x: Tensor) -> int:
    """Count the values of a tensor that are not zero; dense float32 on the CPU is counted by compiled code.

    Args:
        x: any tensor.

    Returns:
        The number of values that are not zero; NaN is one of them.

    Example:
        >>> import torch
        >>> from speedysnn.kernels.elementwise import nonzero
        >>> nonzero(torch.tensor([0.0, 1.0, -0.0, 2.0]))
        2
    """
    if x.numel() == 0 or not _supports(x):
        return int(torch.count_nonzero(x))
    values, found = array(x), dict[int, int]()

    def work(begin: int, end: int, i: int) -> None:
        found[i] = int(tally(values[begin:end]))

    share(values.size, 1, work)
    return sum(found.values())


@compiled
def _errors(
    edges: Array, density: Array, theta: Array, start: Array, steps: int, max_count: int, out: Array
) -> None:  # pragma: no cover - compiled
    """Write for every row and theta the sum over filled bins of density times the error's integral across the bin."""
    rows, bins = density.shape
    for row in range(rows):
        v = start[row]
        v3 = v * v * v
        cells = (v3 + (1 - v) ** 3) / 3
        for j in range(theta.shape[1]):
            step = theta[row, j] / steps
            inverse = 1.0 / step
            total = 0.0
            last, before = -1, 0.0
            for b in range(bins):
                if density[row, b] == 0.0:
                    continue
                if last != b:
                    w = edges[row, b] * inverse + v
                    n = min(np.floor(w), max_count)
                    before = n * cells + (v3 - (v - (w - n)) ** 3) / 3
                w = edges[row, b + 1] * inverse + v
                n = min(np.floor(w), max_count)
                after = n * cells + (v3 - (v - (w - n)) ** 3) / 3
                total += (after - before) * density[row, b]
                last, before = b + 1, after
            out[row, j] = total * step * step * step


def squared_error(
    edges: Tensor, density: Tensor, theta: Tensor, v_init: Tensor, timesteps: int, max_spikes: int = 1
) -> Tensor:
    """Sum the quantizer's squared error over a histogram for every candidate theta, in as many threads as torch uses.

    Args:
        edges: the bins' edges, (C, bins + 1) float64.
        density: count over width of every bin, (C, bins) float64.
        theta: J candidates a channel, (C, J) float64.
        v_init: (C,) float64.
        timesteps: T.
        max_spikes: N.

    Returns:
        The errors (C, J), in the activation's unit squared.
    """
    out = np.zeros(tuple(theta.shape))
    arrays = [np.ascontiguousarray(x.numpy()) for x in (edges, density, theta, v_init)]
    workers = max(1, min(torch.get_num_threads(), len(out)))
    bounds = np.linspace(0, len(out), workers + 1).astype(int)

    def work(i: int) -> None:
        rows = slice(bounds[i], bounds[i + 1])
        _errors(*(x[rows] for x in arrays), timesteps, timesteps * max_spikes, out[rows])

    if workers == 1:
        work(0)
    else:
        with ThreadPoolExecutor(workers) as pool:
            list(pool.map(work, range(workers)))
    return torch.from_numpy(out)
