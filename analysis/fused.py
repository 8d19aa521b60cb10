"""Hand a layer's tensors to the compiled sums, where they can take them."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from speedysnn.analysis.sums import BINS, CHANNELS, COUNTS, TOTALS, accumulate
from speedysnn.kernels.compiled import AVAILABLE
from speedysnn.kernels.layout import flat, laid_out, plan, values

Sums = dict[str, Tensor]
Clip = tuple[float | None, float | None]
SIDE_BY_SIDE = 512  # channels in memory one after the other, at least: few would make loops short, so they come again


def summed(
    z: Tensor, a: Tensor | Clip, twin: Tensor, drive: Tensor, constant: bool, out: Tensor, theta: Tensor, start: Tensor,
    offset: Tensor | None, steps: int, most: int, least: int, channel_dim: int, lags: bool,
    known: dict[tuple[int, int], list[Any]],
) -> Sums | None:
    """Every sum of `LayerSums` by name; None where the plain way must be taken.

    `lags`: also those of steps beside one another. `constant`: the drive holds for each step, else it is their sum.
    `known` keeps the channels' parameters for the next call.
    `a`: the source's activation, or the range that it keeps z in.
    Shapes: z, a, twin, drive (B, ...); out (B, ...) or (T*B, ...); theta, start and offset broadcast against z.
    """
    tensors = (z, twin, drive, out) if isinstance(a, tuple) else (z, a, twin, drive, out)
    if not AVAILABLE or any(x.device.type != "cpu" or x.dtype != torch.float32 for x in tensors) or z.numel() == 0:
        return None
    channels = z.shape[channel_dim] if z.ndim > 1 else 1
    each = torch.empty([channels if i == channel_dim % z.ndim and z.ndim > 1 else 1 for i in range(z.ndim)])
    where = plan(z, each, each, 1)
    if where is None:
        return None
    corrected = where.drive if offset is None else where.drive + offset
    rows = [flat(laid_out(x, where.drive)).numpy() for x in (corrected, *tensors[1:])]
    if isinstance(a, tuple):
        rows.insert(1, np.empty(0, np.float32))
    low, high = a if isinstance(a, tuple) else (None, None)
    again = -(-SIDE_BY_SIDE // where.channels) if where.inner == 1 else 1
    if (where.channels, again) not in known:
        own = [values(x, torch.float32).expand(where.channels).repeat(again) for x in (theta, start)]
        known[where.channels, again] = [x.numpy() for x in (*own, own[0].to(torch.float64) / steps)]
    sums = _empty(where.channels * again, z.shape[1:].numel(), out.numel() // z.numel())
    accumulate(
        flat(where.drive).numpy(), *rows, *known[where.channels, again], where.inner,
        np.float32(steps), np.float32(most), np.float32(least), constant, *sums.values(), lags,
        np.float32(-np.inf if low is None else low), np.float32(np.inf if high is None else high),
    )  # fmt: skip
    found = {name: torch.from_numpy(x) for name, x in sums.items()}
    found["channels"] = found["channels"].view(len(CHANNELS), again, where.channels).sum(1)
    for name in ("fires", "full", "peak"):  # units as they lie in memory, put in order
        found[name] = found[name].as_strided(z.shape[1:], where.drive.stride()[1:]).reshape(-1)
    return found


def _empty(channels: int, units: int, emitted: int) -> dict[str, Any]:
    """Zeros in the order in which the compiled sums take them."""
    return {
        "channels": np.zeros((len(CHANNELS), channels)),
        "totals": np.zeros(len(TOTALS)),
        "counts": np.zeros(len(COUNTS), np.int64),
        "bins": np.zeros((2, BINS + 3), np.int64),
        "pulses": np.zeros(emitted, np.int64),
        "fires": np.zeros(units, np.int32),
        "full": np.zeros(units, np.int32),
        "peak": np.zeros(units, np.float32),
    }
