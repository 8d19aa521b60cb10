"""Compiled sums: a block's counts, errors, products, units and trains, added up over its elements."""

from typing import Any

import numpy as np

from speedysnn.analysis.sum_rows import (
    BINS,
    ENDS,
    ERROR,
    INVERSE,
    MEAN,
    NEXT,
    PER,
    PER_STEP,
    SQUARE,
    STEP,
    TOTAL,
    Array,
    plus,
    summed,
)  # fmt: skip


@summed
def count_of(x: Any, theta: Any, start: Any, most: Any, least: Any) -> Any:  # pragma: no cover - compiled
    """The quantizer's count of x, in the neuron's own precision."""
    return np.float64(min(max(np.floor(x / theta + start), least), most))


@summed
def clip_into(x: Array, lowest: Any, highest: Any, out: Array) -> None:  # pragma: no cover - compiled
    """Every value within its range; NaN stays."""
    for j in range(x.size):
        high = highest if x[j] > highest else x[j]
        out[j] = lowest if high < lowest else high


@summed
def tell(place: Array, tables: Array) -> None:  # pragma: no cover - compiled
    """Count a block's bins in turn in tables of their own: one that comes again need not wait for itself."""
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
    """An error's place in a histogram, in steps; NaN, of which a comparison is false, counts as beyond it."""
    return max(0.0, min(BINS + 1.0, x * PER_STEP + (PER_STEP + 1)))  # as a whole number, which cuts off


@summed
def one_if(true: bool) -> float:  # pragma: no cover - compiled
    """A count's addend, as wide as what it is counted beside."""
    return 1.0 if true else 0.0


@summed
def add_block(
    z: Array, corrected: Array, a: Array, twin: Array, drive: Array, theta: Array, start: Array, factor: Any,
    emitted: Any, many: Any, most: Any, least: Any, work: Array, rounded: Array, missed: Array, few: Array,
    totals: Array, counts: Array,
) -> None:  # pragma: no cover - compiled
    """Add a block's products and counts; its errors, their places in both histograms and its counts are laid down.

    Each part of the error starts where one ends. In one loop, what is divided takes no longer than the rest beside it.
    """
    total, steps, inverse, error = work[TOTAL], work[STEP], work[INVERSE], work[ERROR]
    ar = rr = tt = mm = ce = de = pe = te = one = two = three = four = 0.0
    saturated = silent = quiet = outside = 0.0
    for j in range(z.size):
        step, measured, source, held = steps[j], total[j] / emitted, np.float64(a[j]), np.float64(corrected[j])
        low, high = step * least, step * most
        aimed = count_of(corrected[j] * many, theta[j], start[j], most, least)
        reached = count_of(drive[j] * factor, theta[j], start[j], most, least)
        fired = np.rint(measured * inverse[j])
        r, target, given, clipped = fired * step, aimed * step, reached * step, min(max(np.float64(z[j]), low), high)
        e, clip, rounding, propagated = r - source, clipped - source, target - clipped, given - target
        temporal, off = r - given, np.float64(twin[j]) - source
        miss = clip + rounding + propagated + temporal - (measured - source)
        inside = (held > low) & (held < high) & (held != 0)
        gap = aimed - held / step
        few[j], error[j] = np.float32(fired), e
        missed[j] = np.uint32(np.int32(bin_of(e / step) if e != 0 else BINS + 2.0))
        rounded[j] = np.uint32(np.int32(bin_of(gap) if inside else BINS + 2.0))
        g = gap if inside else 0.0
        square = g * g
        ar, rr, tt, mm = plus(ar, source * r), plus(rr, r * r), plus(tt, off * off), plus(mm, miss * miss)
        ce, de, pe, te = plus(ce, clip * e), plus(de, rounding * e), plus(pe, propagated * e), plus(te, temporal * e)
        one, two, three, four = plus(one, g), plus(two, square), plus(three, square * g), plus(four, square * square)
        saturated, silent = plus(saturated, one_if(abs(fired) == most)), plus(silent, one_if(fired == 0))
        quiet, outside = plus(quiet, one_if(source == 0)), plus(outside, one_if(fired != reached))
    for k, value in enumerate((ar, rr, tt, mm, ce, de, pe, te, one, two, three, four)):
        totals[k] += value
    for k, value in enumerate((saturated, silent, quiet, outside)):
        counts[k] += np.int64(value)


@summed
def add_starts(when: Array, counts: Array) -> None:  # pragma: no cover - compiled
    """Count a block's elements with a spike, and add up the steps in which their first ones came."""
    fired = first = 0
    for j in range(when.size):
        fired += when[j] != 0
        first += when[j]
    counts[4] += fired
    counts[5] += first


@summed
def add_trains(
    totalled: Array, theta: Array, seen: int, steps: int, ceiling: float, floor: float, work: Array, totals: Array,
    counts: Array,
) -> None:  # pragma: no cover - compiled
    """Add products of the train's error against the mean drive, in theta, where that is in range."""
    squares = beside = lagged = 0.0
    mean, square, product = work[MEAN], work[SQUARE], work[NEXT]
    for j in range(theta.size):
        mean[j] = np.float64(totalled[j]) / (np.float64(theta[j]) * seen)
    for j in range(theta.size):
        per, d = work[PER, j], mean[j]
        total = work[TOTAL, j] * per
        inside = (d > floor) & (d < ceiling) & (d != 0)
        each = square[j] * per * per - 2 * d * total + steps * d * d
        next_to = product[j] * per * per - d * (2 * total - work[ENDS, j] * per) + (steps - 1) * d * d
        lagged = plus(lagged, 1.0 if inside else 0.0)
        squares = plus(squares, each if inside else 0.0)
        beside = plus(beside, next_to if inside else 0.0)
    totals[12] += squares
    totals[13] += beside
    counts[6] += np.int64(lagged)


@summed
def add_units(
    a: Array, when: Array, position: int, most: Any, few: Array, fires: Array, full: Array, peak: Array, begun: Array
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
            saturated[j] += abs(count[j]) == most
        for j in range(length):
            largest[j] = max(largest[j], abs(source[j]))
        soonest = np.int32(0x7FFFFFFF)
        for j in range(length):
            soonest = min(soonest, steps[j] if steps[j] != 0 else np.int32(0x7FFFFFFF))
        if soonest != 0x7FFFFFFF and (begun[image] == 0 or soonest < begun[image]):
            begun[image] = soonest
        done += length
