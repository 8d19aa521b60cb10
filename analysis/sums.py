"""A layer's sums over its elements in one read of memory, compiled; `LayerSums` has the definition in plain torch."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from speedysnn.kernels.compiled import AVAILABLE, compiled
from speedysnn.kernels.layout import flat, laid_out, plan, values

Array = Any
_BLOCK = 1024


@compiled
def over_time(
    drive: Array, out: Array, first: int, m: int, n: int, seen: int, emitted: int, totalled: Array, meant: Array,
    counts: Array,
) -> None:  # pragma: no cover - compiled
    """A block's summed drive, mean output and number of spikes."""
    for j in range(m):
        totalled[j] = drive[first + j]
        meant[j] = 0
    for t in range(1, seen):
        row = drive[t * n + first : t * n + first + m]
        for j in range(m):
            totalled[j] += row[j]
    fired = 0
    for t in range(emitted):
        row = out[t * n + first : t * n + first + m]
        for j in range(m):
            meant[j] += row[j]
            fired += row[j] != 0
    counts[3] += fired
    for j in range(m):
        meant[j] /= emitted


@compiled
def parts(
    z: Any, corrected: Any, a: Any, total: Any, measured: Any, th: Any, v0: Any, s: Any, seen: int, many: Any,
    most: Any, least: Any,
) -> Any:  # pragma: no cover - compiled
    """One element's value, error, its parts, count and whether it is in range; each part starts where one ends."""
    aimed = min(max(np.floor(corrected * many / th + v0), least), most)
    scaled = total * many / th if seen == 1 else total / th
    reached = min(max(np.floor(scaled + v0), least), most)
    fired = np.rint(measured / s)
    top, low = s * most, s * least
    own, source = np.float64(z), np.float64(a)
    clipped, r = min(max(own, low), top), fired * s
    clip, rounding = clipped - source, aimed * s - clipped
    propagated, temporal = reached * s - aimed * s, r - reached * s
    miss = clip + rounding + propagated + temporal - (measured - source)
    return source, r, clip, rounding, propagated, temporal, miss, fired, (own > low) & (own < top)


@compiled
def add_block(
    z: Array, corrected: Array, a: Array, twin: Array, totalled: Array, meant: Array, theta: Array, start: Array,
    step: Array, at: Array, seen: int, many: Any, most: Any, least: Any, channels: Array, totals: Array, counts: Array,
) -> None:  # pragma: no cover - compiled
    """Add a block's elements; `at` holds their channels. Sums stay in registers until its end."""
    aa = ar = rr = tt = mm = ce = de = pe = te = 0.0
    saturated = silent = quiet = 0
    for j in range(z.size):
        c = at[j]
        source, r, clip, rounding, propagated, temporal, miss, fired, inside = parts(
            z[j], corrected[j], a[j], totalled[j], meant[j], theta[c], start[c], step[c], seen, many, most, least
        )
        e, off = r - source, np.float64(twin[j]) - source
        channels[c, 0] += abs(source)
        channels[c, 1] += e
        channels[c, 2] += e * e
        channels[c, 3] += inside
        aa, ar, rr, tt, mm = aa + source * source, ar + source * r, rr + r * r, tt + off * off, mm + miss * miss
        ce, de, pe, te = ce + clip * e, de + rounding * e, pe + propagated * e, te + temporal * e
        saturated += abs(fired) == most
        silent += fired == 0
        quiet += source == 0
    for k, value in enumerate((aa, ar, rr, tt, mm, ce, de, pe, te)):
        totals[k] += value
    for k, count in enumerate((saturated, silent, quiet)):
        counts[k] += count


@compiled
def accumulate(
    z: Array, corrected: Array, a: Array, twin: Array, drive: Array, out: Array, theta: Array, start: Array,
    step: Array, inner: int, many: Any, most: Any, least: Any, channels: Array, totals: Array, counts: Array,
) -> None:  # pragma: no cover - compiled
    """Add every element; channels (C, 4), totals (9,) float64 and counts (4,) int64 in the order of `LayerSums`."""
    n, seen, emitted = z.size, drive.size // z.size, out.size // z.size
    totalled, meant, at = np.empty(_BLOCK, z.dtype), np.empty(_BLOCK, np.float64), np.empty(_BLOCK, np.int64)
    c, left = 0, inner
    for first in range(0, n, _BLOCK):
        m = min(_BLOCK, n - first)
        over_time(drive, out, first, m, n, seen, emitted, totalled, meant, counts)
        for j in range(m):
            at[j] = c
            left -= 1
            if left == 0:
                left = inner
                c = c + 1 if c + 1 < channels.shape[0] else 0
        here = slice(first, first + m)
        add_block(
            z[here], corrected[here], a[here], twin[here], totalled, meant, theta, start, step, at, seen, many, most,
            least, channels, totals, counts,
        )


def summed(
    z: Tensor, a: Tensor, twin: Tensor, drive: Tensor, out: Tensor, theta: Tensor, start: Tensor, offset: Tensor | None,
    steps: int, most: int, least: int, channel_dim: int,
) -> tuple[Tensor, Tensor, Tensor] | None:
    """(4, C) sums by channel, (9,) totals, (4,) counts; None where the plain way must be taken.

    Shapes: z, a, twin (B, ...); drive and out (B, ...) or (T*B, ...); theta, start and offset broadcast against z.
    """
    tensors = (z, a, twin, drive, out)
    if not AVAILABLE or any(x.device.type != "cpu" or x.dtype != torch.float32 for x in tensors) or z.numel() == 0:
        return None
    channels = z.shape[channel_dim] if z.ndim > 1 else 1
    each = torch.empty([channels if i == channel_dim % z.ndim and z.ndim > 1 else 1 for i in range(z.ndim)])
    where = plan(z, each, each, 1)
    if where is None:
        return None
    corrected = where.drive if offset is None else where.drive + offset
    drive = drive if offset is None else drive + offset
    rows = [flat(laid_out(x, where.drive)).numpy() for x in (corrected, a, twin, drive, out)]
    own = [values(x, torch.float32).expand(where.channels).contiguous() for x in (theta, start)]
    step = own[0].to(torch.float64) / steps
    sums = np.zeros((where.channels, 4)), np.zeros(9), np.zeros(4, np.int64)
    accumulate(
        flat(where.drive).numpy(), *rows, own[0].numpy(), own[1].numpy(), step.numpy(), where.inner,
        np.float32(steps), np.float32(most), np.float32(least), *sums,
    )  # fmt: skip
    by_channel, totals, counts = (torch.from_numpy(x) for x in sums)
    return by_channel.T, totals, counts
