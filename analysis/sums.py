"""A layer's sums over its elements in one read of memory, compiled; `schema` has what they mean.

A block's values lie in `work`, so that the loops with divisions are short enough to be done several elements at a time.
"""

from typing import Any

import numpy as np

from speedysnn.analysis.schema import indices
from speedysnn.analysis.sum_blocks import add_block, add_starts, add_trains, add_units, clip_into, count_bins
from speedysnn.analysis.sum_channels import add_channels, spread
from speedysnn.analysis.sum_rows import BLOCK, ROWS, Array, summed
from speedysnn.analysis.sum_steps import over_time

STARTED, START = indices("started", "start")
ROUNDING, NOISE = indices("rounding", "noise")


@summed
def accumulate(
    z: Array, corrected: Array, a: Array, twin: Array, drive: Array, out: Array, theta: Array, start: Array,
    step: Array, inner: int, timesteps: Any, max_count: Any, min_count: Any, constant: bool, channels: Array,
    totals: Array, counts: Array, bins: Array, pulses: Array, fires: Array, full: Array, peak: Array, lags: bool,
    clip: bool, source_floor: Any, source_ceiling: Any,
) -> None:  # pragma: no cover - compiled
    """Add every element to the sums, which lie as `schema` orders them; theta, start and step are one a channel.

    With `clip` the source's activation is z kept between `source_floor` and `source_ceiling`, and `a` is not read.
    Without `lags` the sums of adjacent steps stay 0.
    """
    n, emitted, seen = z.size, pulses.size, 1 if constant else np.int64(timesteps)
    when, rounded, missed = np.empty(BLOCK, np.int32), np.empty(BLOCK, np.uint32), np.empty(BLOCK, np.uint32)
    work, each, begun = np.empty((ROWS, BLOCK)), np.empty((2, BLOCK), theta.dtype), np.zeros(n // fires.size, np.int32)
    few, tables = np.empty(BLOCK, np.float32), np.zeros((2, 8, bins.shape[1]), np.int64)
    clipped = np.empty(BLOCK if clip else 0, a.dtype)
    high, factor = np.float64(max_count) / timesteps, timesteps if constant else timesteps / timesteps
    low = -high if min_count < 0 else 0.0
    c, left, laid, size = 0, inner, -1, BLOCK
    if inner == 1 and theta.size <= BLOCK:  # every block begins with the first channel
        size = BLOCK - BLOCK % theta.size
    for first in range(0, n, size):
        m = min(size, n - first)
        own, held = z[first : first + m], corrected[first : first + m]
        if clip:
            clip_into(own, source_floor, source_ceiling, clipped)
        source = clipped[:m] if clip else a[first : first + m]
        over_time(out, first, m, n, when, work, pulses, lags)
        if inner > 1 or c != laid:  # else each element has the channel it had in the block before
            spread(c, left, inner, theta, start, step, each, work, m)
            laid = c
        add_block(
            own, held, source, twin[first : first + m], drive[first : first + m], each[0], each[1], factor,
            np.float64(emitted), timesteps, max_count, min_count, work, rounded, missed, few, totals, counts,
        )  # fmt: skip
        count_bins(rounded[:m], tables[ROUNDING])
        count_bins(missed[:m], tables[NOISE])
        c, left = add_channels(own, source, held, c, left, inner, max_count, min_count, work, channels)
        add_starts(when[:m], counts)
        add_units(source, when, first, max_count, few, fires, full, peak, begun)
        if lags:
            add_trains(drive[first : first + m], each[0, :m], seen, emitted, high, low, work, totals, counts)
    bins += tables.sum(1)
    for image in range(begun.size):
        counts[STARTED] += begun[image] != 0
        counts[START] += begun[image]
