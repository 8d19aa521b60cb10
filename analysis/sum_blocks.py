"""Compiled sums: a block's counts, errors, products, units and trains, added up over its elements."""

from typing import Any

import numpy as np

from speedysnn.analysis.sum_rows import (
    AIMED,
    BINS,
    ENDS,
    ERROR,
    FIRED,
    INVERSE,
    MEAN,
    NEXT,
    OWN,
    PER,
    PER_STEP,
    REACHED,
    SQUARE,
    STEP,
    Array,
    plus,
    summed,
)  # fmt: skip


@summed
def count_into(
    x: Array, theta: Array, start: Array, factor: Any, most: Any, least: Any, out: Array
) -> None:  # pragma: no cover - compiled
    """The quantizer's count of every value, in the neuron's own precision."""
    for j in range(x.size):
        out[j] = min(max(np.floor(x[j] * factor / theta[j] + start[j]), least), most)


@summed
def clip_into(x: Array, lowest: Any, highest: Any, out: Array) -> None:  # pragma: no cover - compiled
    """Every value within its range; NaN stays."""
    for j in range(x.size):
        high = highest if x[j] > highest else x[j]
        out[j] = lowest if high < lowest else high


@summed
def tell(place: Array, tables: Array) -> None:  # pragma: no cover - compiled
    """Count a block's bins in turn in tables of their own: one that comes again need not wait for itself."""
    one, two, three, four = tables[0], tables[1], tables[2], tables[3]
    whole = place.size - place.size % 4
    for j in range(0, whole, 4):
        one[place[j]] += 1
        two[place[j + 1]] += 1
        three[place[j + 2]] += 1
        four[place[j + 3]] += 1
    for j in range(whole, place.size):
        one[place[j]] += 1


@summed
def bin_of(x: Any) -> Any:  # pragma: no cover - compiled
    """An error's place in a histogram, in steps; NaN, of which a comparison is false, counts as beyond it."""
    return max(-1.0, min(np.float64(BINS), np.floor((x + 1) * PER_STEP))) + 1


@summed
def errors(
    corrected: Array, a: Array, most: Any, least: Any, work: Array, place: Array, tables: Array, few: Array
) -> None:  # pragma: no cover - compiled
    """Count, error and rounding error in steps (0 where out of range) of a block, and their histograms."""
    m, step, fired, error, own = a.size, work[STEP], work[FIRED], work[ERROR], work[OWN]
    aimed, mean, inverse = work[AIMED], work[MEAN], work[INVERSE]
    for j in range(m):
        fired[j] = np.rint(mean[j] * inverse[j])
        few[j] = np.float32(fired[j])
    for j in range(m):
        error[j] = fired[j] * step[j] - a[j]
    for j in range(m):
        place[j] = np.uint32(np.int32(bin_of(error[j] / step[j]) if error[j] != 0 else BINS + 2.0))
    tell(place[:m], tables[1])
    for j in range(m):
        held = np.float64(corrected[j])
        inside = (held > step[j] * least) & (held < step[j] * most) & (held != 0)
        g = aimed[j] - held / step[j]
        own[j] = g if inside else 0.0
        place[j] = np.uint32(np.int32(bin_of(g) if inside else BINS + 2.0))
    tell(place[:m], tables[0])


@summed
def add_totals(
    z: Array, a: Array, twin: Array, most: Any, least: Any, work: Array, totals: Array
) -> None:  # pragma: no cover - compiled
    """Add a block's products; each part of the error starts where one ends."""
    ar = rr = tt = mm = ce = de = pe = te = 0.0
    for j in range(z.size):
        step, measured = work[STEP, j], work[MEAN, j]
        own, source, e = np.float64(z[j]), np.float64(a[j]), work[ERROR, j]
        clipped, r = min(max(own, step * least), step * most), work[FIRED, j] * step
        target, given, off = work[AIMED, j] * step, work[REACHED, j] * step, np.float64(twin[j]) - source
        clip, rounding, propagated, temporal = clipped - source, target - clipped, given - target, r - given
        miss = clip + rounding + propagated + temporal - (measured - source)
        ar, rr, tt, mm = plus(ar, source * r), plus(rr, r * r), plus(tt, off * off), plus(mm, miss * miss)
        ce, de = plus(ce, clip * e), plus(de, rounding * e)
        pe, te = plus(pe, propagated * e), plus(te, temporal * e)
    one = two = three = four = 0.0
    for j in range(z.size):
        g = work[OWN, j]
        square = g * g
        one, two, three, four = plus(one, g), plus(two, square), plus(three, square * g), plus(four, square * square)
    for k, value in enumerate((ar, rr, tt, mm, ce, de, pe, te, one, two, three, four)):
        totals[k] += value


@summed
def add_counts(a: Array, most: Any, when: Array, work: Array, counts: Array) -> None:  # pragma: no cover - compiled
    """Count a block's saturated, silent and affected elements, and those that fire."""
    saturated = silent = quiet = outside = fired = first = 0
    count, reached = work[FIRED], work[REACHED]
    for j in range(a.size):
        saturated += abs(count[j]) == most
    for j in range(a.size):
        silent += count[j] == 0
    for j in range(a.size):
        outside += count[j] != reached[j]
    for j in range(a.size):
        quiet += a[j] == 0
    for j in range(a.size):
        fired += when[j] != 0
        first += when[j]
    for k, value in enumerate((saturated, silent, quiet, outside, fired, first)):
        counts[k] += value


@summed
def add_trains(
    totalled: Array, theta: Array, seen: int, steps: int, ceiling: float, floor: float, work: Array, totals: Array,
    counts: Array,
) -> None:  # pragma: no cover - compiled
    """Add products of the train's error against the mean drive, in theta, where that is in range."""
    squares = beside = lagged = 0.0
    mean, square, product = work[OWN], work[SQUARE], work[NEXT]
    for j in range(theta.size):
        mean[j] = np.float64(totalled[j]) / (np.float64(theta[j]) * seen)
    for j in range(theta.size):
        per, d = work[PER, j], mean[j]
        total = work[MEAN, j] * steps * per
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
