"""Number of nonzero values of a tensor, compiled: one read of memory, several values at once.

The quantizer's squared error over a histogram, compiled: the inner loop of the threshold search.

`speedysnn.calibration.rules.squared_error` is the definition in plain torch; a test holds the two equal.
"""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numba
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from speedysnn.kernels.jit import AVAILABLE, compiled
from speedysnn.kernels.layout import array, dense
from speedysnn.kernels.neuron.numba_backend import share

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


Floats = NDArray[np.float64]


def _errors(edges: Floats, density: Floats, theta: Floats, start: Floats, steps: int, most: int, out: Floats) -> None:
    """Row by row: sum over filled bins of density times the error's integral across the bin."""
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
                    n = min(np.floor(w), most)
                    before = n * cells + (v3 - (v - (w - n)) ** 3) / 3
                w = edges[row, b + 1] * inverse + v
                n = min(np.floor(w), most)
                after = n * cells + (v3 - (v - (w - n)) ** 3) / 3
                total += (after - before) * density[row, b]
                last, before = b + 1, after
            out[row, j] = total * step * step * step


# Not cached on disk: cache files beside an installed package outlive its removal, and shadow what is installed next.
_compiled: Any = numba.njit(nogil=True)(_errors)


def squared_error(
    edges: Tensor, density: Tensor, theta: Tensor, v_init: Tensor, timesteps: int, max_spikes: int = 1
) -> Tensor:
    """Summed squared error of the quantizer for every candidate theta, in as many threads as torch uses.

    Shapes: edges (C, bins + 1), density (C, bins), theta (C, J), v_init (C,), all float64; result (C, J), the
    activation's unit squared.
    """
    out = np.zeros(tuple(theta.shape))
    arrays = [np.ascontiguousarray(x.numpy()) for x in (edges, density, theta, v_init)]
    workers = max(1, min(torch.get_num_threads(), len(out)))
    bounds = np.linspace(0, len(out), workers + 1).astype(int)

    def work(i: int) -> None:
        rows = slice(bounds[i], bounds[i + 1])
        _compiled(*(x[rows] for x in arrays), timesteps, timesteps * max_spikes, out[rows])

    if workers == 1:
        work(0)
    else:
        with ThreadPoolExecutor(workers) as pool:
            list(pool.map(work, range(workers)))
    return torch.from_numpy(out)
