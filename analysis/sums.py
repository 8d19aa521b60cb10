"""A layer's sums over its elements in one read of memory, compiled; `definition` has what they mean in plain torch.

A block's values lie in `work`, so that the loops with divisions are short enough to be done several elements at a time.
What is compiled lies in the files sum*.py: what numba keeps on disk is renewed when one of them changes.
"""

from typing import Any

import numpy as np

from speedysnn.analysis.sum_blocks import add_block, add_starts, add_trains, add_units, clip_into, tell
from speedysnn.analysis.sum_channels import add_channels, spread
from speedysnn.analysis.sum_rows import BINS as BINS
from speedysnn.analysis.sum_rows import BLOCK, ROWS, Array, summed
from speedysnn.analysis.sum_rows import PER_STEP as PER_STEP
from speedysnn.analysis.sum_steps import over_time

CHANNELS = ("a", "aa", "s", "e", "ee", "eee", "eeee", "in_range", "granular")
TOTALS = (
    "ar", "rr", "twin", "miss", "clip", "round", "propagated", "temporal", "g", "gg", "ggg", "gggg", "lag0", "lag1",
)  # fmt: skip
COUNTS = ("saturated", "silent", "source_silent", "outside", "fired", "first", "lagged", "started", "start")


@summed
def accumulate(
    z: Array, corrected: Array, a: Array, twin: Array, drive: Array, out: Array, theta: Array, start: Array,
    step: Array, inner: int, many: Any, most: Any, least: Any, constant: bool, channels: Array, totals: Array,
    counts: Array, bins: Array, pulses: Array, fires: Array, full: Array, peak: Array, lags: bool, lowest: Any,
    highest: Any,
) -> None:  # pragma: no cover - compiled
    """Add every element, in the order of CHANNELS, TOTALS and COUNTS; theta, start and step are one a channel.

    Where `a` is empty the source's activation is z between `lowest` and `highest`. Without `lags` the sums of steps
    beside one another stay 0.
    """
    n, emitted, seen = z.size, pulses.size, 1 if constant else np.int64(many)
    when, rounded, missed = np.empty(BLOCK, np.int32), np.empty(BLOCK, np.uint32), np.empty(BLOCK, np.uint32)
    work, each, begun = np.empty((ROWS, BLOCK)), np.empty((2, BLOCK), theta.dtype), np.zeros(n // fires.size, np.int32)
    few, tables = np.empty(BLOCK, np.float32), np.zeros((2, 8, bins.shape[1]), np.int64)
    clipped = np.empty(BLOCK if a.size == 0 else 0, a.dtype)
    ceiling, factor = np.float64(most) / many, many if constant else many / many
    floor = -ceiling if least < 0 else 0.0
    c, left, laid, size = 0, inner, -1, BLOCK
    if inner == 1 and theta.size <= BLOCK:  # every block begins with the first channel
        size = BLOCK - BLOCK % theta.size
    for first in range(0, n, size):
        m = min(size, n - first)
        own, held = z[first : first + m], corrected[first : first + m]
        if a.size == 0:
            clip_into(own, lowest, highest, clipped)
        source = clipped[:m] if a.size == 0 else a[first : first + m]
        over_time(out, first, m, n, when, work, pulses, lags)
        if inner > 1 or c != laid:  # else each element has the channel it had in the block before
            spread(c, left, inner, theta, start, step, each, work, m)
            laid = c
        add_block(
            own, held, source, twin[first : first + m], drive[first : first + m], each[0], each[1], factor,
            np.float64(emitted), many, most, least, work, rounded, missed, few, totals, counts,
        )  # fmt: skip
        tell(rounded[:m], tables[0])
        tell(missed[:m], tables[1])
        c, left = add_channels(own, source, held, c, left, inner, most, least, work, channels)
        add_starts(when[:m], counts)
        add_units(source, when, first, most, few, fires, full, peak, begun)
        if lags:
            add_trains(drive[first : first + m], each[0, :m], seen, emitted, ceiling, floor, work, totals, counts)
    bins += tables.sum(1)
    for image in range(begun.size):
        counts[7] += begun[image] != 0
        counts[8] += begun[image]
