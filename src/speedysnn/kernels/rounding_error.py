"""The quantizer's squared error over a histogram, compiled: the inner loop of the threshold search.

`speedysnn.thresholds.squared_error` is the definition in plain torch; a test holds the two equal.
"""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numba
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

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
