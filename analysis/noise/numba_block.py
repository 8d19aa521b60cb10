"""Compiled sums of one block of elements: counts, errors, products, neurons and spike trains."""

from typing import Any

import numpy as np

from speedysnn.analysis.noise.moments import BINS, PER_STEP
from speedysnn.analysis.noise.numba_channels import (
    DRIFT,
    ENDS,
    ERROR,
    INVERSE,
    MEAN,
    NEXT,
    OWN,
    PASSED,
    PER,
    SQUARE,
    STEP,
    TOTAL,
    WIDTH,
    Array,
    plus,
    summed,
)
from speedysnn.analysis.noise.schema import indices

# Places in `totals` and in `counts`.
AR, RR, TWIN, MISS = indices("ar", "rr", "twin", "miss")
CLIP, ROUND, TEMPORAL = indices("clip", "round", "temporal")
G1, G2, G3, G4, LAG0, LAG1 = indices("g", "gg", "ggg", "gggg", "lag0", "lag1")
SATURATED, SILENT, SOURCE_SILENT, OUTSIDE = indices("saturated", "silent", "source_silent", "outside")
FIRED, FIRST, LAGGED = indices("fired", "first", "lagged")


@summed
def count_of(x: Any, theta: Any, start: Any, max_count: Any, min_count: Any) -> Any:  # pragma: no cover - compiled
    """Quantize x in the neuron's own precision.

    Returns:
        The count of spikes.
    """
    return np.float64(min(max(np.floor(x / theta + start), min_count), max_count))


@summed
def clip_into(x: Array, floor: Any, ceiling: Any, out: Array) -> None:  # pragma: no cover - compiled
    """Write every value, kept between the floor and the ceiling, to `out`; NaN stays."""
    for j in range(x.size):
        high = ceiling if x[j] > ceiling else x[j]
        out[j] = floor if high < floor else high


@summed
def count_bins(place: Array, tables: Array) -> None:  # pragma: no cover - compiled
    """Count a block's bins in eight tables in turn, so that a bin need not wait for its own last count."""
    one, two, three, four, five, six, seven, eight = (
        tables[0], tables[1], tables[2], tables[3], tables[4], tables[5], tables[6], tables[7],
    )  # fmt: skip
    whole = place.size - place.size % 8
    for j in range(0, whole, 8):
        one[place[j]] += 1
        two[place[j + 1]] += 1
        three[place[j + 2]] += 1
        four[place[j + 3]] += 1
        five[place[j + 4]] += 1
        six[place[j + 5]] += 1
        seven[place[j + 6]] += 1
        eight[place[j + 7]] += 1
    for j in range(whole, place.size):
        one[place[j]] += 1


@summed
def bin_of(x: Any) -> Any:  # pragma: no cover - compiled
    """Find the bin of an error in steps; NaN, of which a comparison is false, counts as beyond the histogram.

    Returns:
        The bin and a fraction, which a cast to a whole number cuts off.
    """
    return max(0.0, min(BINS + 1.0, x * PER_STEP + (PER_STEP + 1)))


@summed
def one_if(true: bool) -> float:  # pragma: no cover - compiled
    """Turn a condition into a number as wide as the float64 sums beside it.

    Returns:
        1 or 0.
    """
    return 1.0 if true else 0.0


@summed
def add_to(sums: Array, places: Any, values: Any) -> None:  # pragma: no cover - compiled
    """Add to the sums at some places a value each."""
    for k in range(len(places)):
        sums[places[k]] += values[k]


@summed
def add_block(
    z: Array, corrected: Array, a: Array, twin: Array, drive: Array, theta: Array, start: Array, factor: Any,
    emitted: Any, timesteps: Any, max_count: Any, min_count: Any, work: Array, rounded: Array, missed: Array,
    few: Array, totals: Array, counts: Array,
) -> None:  # pragma: no cover - compiled
    """Add a block's products and counts; write its errors, their bins, the drive's errors and counts to work arrays.

    Each part of the error starts where one ends. In one loop, what is divided takes no longer than the rest beside it.
    """
    total, steps, inverse, error, widths = work[TOTAL], work[STEP], work[INVERSE], work[ERROR], work[WIDTH]
    drift, own, passed = work[DRIFT], work[OWN], work[PASSED]
    mean = np.float64(factor) / np.float64(timesteps)
    ar = rr = tt = mm = ce = de = te = one = two = three = four = 0.0
    saturated = silent = quiet = outside = 0.0
    for j in range(z.size):
        step, measured, source, held = steps[j], total[j] / emitted, np.float64(a[j]), np.float64(corrected[j])
        width = widths[j]
        low, high = width * min_count, width * max_count
        aimed = count_of(corrected[j] * timesteps, theta[j], start[j], max_count, min_count)
        reached = count_of(drive[j] * factor, theta[j], start[j], max_count, min_count)
        fired = np.rint(measured * inverse[j])
        r, target, given, clipped = fired * step, aimed * step, reached * step, min(max(np.float64(z[j]), low), high)
        e, clip, rounding, propagated = r - source, clipped - source, target - clipped, given - target
        temporal, off = r - given, np.float64(twin[j]) - source
        miss = clip + rounding + propagated + temporal - (measured - source)
        inside = (held > low) & (held < high) & (held != 0)
        gap = aimed - held / width
        own[j], passed[j] = target - source, propagated * e
        drift[j] = np.float64(drive[j]) * mean * (step / width) - np.float64(z[j])
        few[j], error[j] = np.float32(fired), e
        missed[j] = np.uint32(np.int32(bin_of(e / step) if e != 0 else BINS + 2.0))
        rounded[j] = np.uint32(np.int32(bin_of(gap) if inside else BINS + 2.0))
        g = gap if inside else 0.0
        square = g * g
        ar, rr, tt, mm = plus(ar, source * r), plus(rr, r * r), plus(tt, off * off), plus(mm, miss * miss)
        ce, de, te = plus(ce, clip * e), plus(de, rounding * e), plus(te, temporal * e)
        one, two, three, four = plus(one, g), plus(two, square), plus(three, square * g), plus(four, square * square)
        saturated, silent = plus(saturated, one_if(abs(fired) == max_count)), plus(silent, one_if(fired == 0))
        quiet, outside = plus(quiet, one_if(source == 0)), plus(outside, one_if(fired != reached))
    add_to(totals, (AR, RR, TWIN, MISS, CLIP, ROUND, TEMPORAL, G1, G2, G3, G4),
           (ar, rr, tt, mm, ce, de, te, one, two, three, four))  # fmt: skip
    add_to(counts, (SATURATED, SILENT, SOURCE_SILENT, OUTSIDE),
           (np.int64(saturated), np.int64(silent), np.int64(quiet), np.int64(outside)))  # fmt: skip


@summed
def add_starts(when: Array, counts: Array) -> None:  # pragma: no cover - compiled
    """Count a block's elements with a spike, and add up the steps in which their first ones came."""
    fired = first = 0
    for j in range(when.size):
        fired += when[j] != 0
        first += when[j]
    counts[FIRED] += fired
    counts[FIRST] += first


@summed
def add_trains(
    totalled: Array, theta: Array, seen: int, steps: int, ceiling: float, floor: float, work: Array, totals: Array,
    counts: Array,
) -> None:  # pragma: no cover - compiled
    """Add products of the train's error in spikes against the mean drive in theta, where that is in range."""
    squares = beside = lagged = 0.0
    mean, square, product = work[MEAN], work[SQUARE], work[NEXT]
    for j in range(theta.size):
        mean[j] = np.float64(totalled[j]) / (np.float64(theta[j]) * seen)
    for j in range(theta.size):
        per, d = work[PER, j], mean[j]
        total = work[TOTAL, j] * per
        inside = (d > floor) & (d < ceiling) & (d != 0)
        squared = square[j] * per * per - 2 * d * total + steps * d * d
        next_to = product[j] * per * per - d * (2 * total - work[ENDS, j] * per) + (steps - 1) * d * d
        lagged = plus(lagged, 1.0 if inside else 0.0)
        squares = plus(squares, squared if inside else 0.0)
        beside = plus(beside, next_to if inside else 0.0)
    totals[LAG0] += squares
    totals[LAG1] += beside
    counts[LAGGED] += np.int64(lagged)


@summed
def add_units(
    a: Array, when: Array, position: int, max_count: Any, few: Array, fires: Array, full: Array, peak: Array,
    begun: Array,
) -> None:  # pragma: no cover - compiled
    """Add a block to every unit's images with a spike, saturated images and source's peak; an image's first spike.

    Loops go from 0 on over arrays of their own, with numbers of one width: others are not done several at a time.
    """
    done = 0
    while done < a.size:
        image, unit = (position + done) // fires.size, (position + done) % fires.size
        length = min(a.size - done, fires.size - unit)
        count, source, steps = few[done : done + length], a[done : done + length], when[done : done + length]
        fired, saturated, largest = fires[unit : unit + length], full[unit : unit + length], peak[unit : unit + length]
        for j in range(length):
            fired[j] += count[j] != 0
        for j in range(length):
            saturated[j] += abs(count[j]) == max_count
        for j in range(length):
            largest[j] = max(largest[j], abs(source[j]))
        soonest = np.int32(0x7FFFFFFF)
        for j in range(length):
            soonest = min(soonest, steps[j] if steps[j] != 0 else np.int32(0x7FFFFFFF))
        if soonest != 0x7FFFFFFF and (begun[image] == 0 or soonest < begun[image]):
            begun[image] = soonest
        done += length
