"""A layer's sums over its elements in one read of memory, compiled; `definition` has what they mean in plain torch.

A block's values lie in `work`, so that the loops with divisions are short enough to be done several elements at a time.
Every compiled function of this room lies in this file: what numba keeps on disk is renewed when the file changes.
"""

from typing import Any

import numpy as np

from speedysnn.kernels.compiled import compiled

Array = Any
BLOCK = 1024
CHANNELS = ("a", "aa", "s", "e", "ee", "eee", "eeee", "in_range", "granular")
TOTALS = (
    "ar", "rr", "twin", "miss", "clip", "round", "propagated", "temporal", "g", "gg", "ggg", "gggg", "lag0", "lag1",
)  # fmt: skip
COUNTS = ("saturated", "silent", "source_silent", "outside", "fired", "first", "lagged", "started", "start")
BINS, PER_STEP = 64, 32  # over [-1, 1] steps; one more below, one above, and one for what is left out
AIMED, REACHED, FIRED, MEAN, ERROR, OWN, STEP, SQUARE, NEXT, ENDS = range(10)  # rows of `work`


@compiled
def over_time(
    drive: Array, out: Array, first: int, m: int, n: int, seen: int, totalled: Array, when: Array, work: Array,
    pulses: Array, lags: bool,
) -> None:  # pragma: no cover - compiled
    """A block's summed drive, mean output, first step with a spike (0: none), products a step apart; spikes a step."""
    emitted = pulses.size
    for j in range(m):
        totalled[j] = drive[first + j]
    for t in range(1, seen):
        row = drive[t * n + first : t * n + first + m]
        for j in range(m):
            totalled[j] += row[j]
    when[:m] = 0
    for k in (MEAN, SQUARE, NEXT):
        work[k, :m] = 0
    for t in range(emitted):
        at, last = t * n + first, max(t - 1, 0) * n + first
        row = out[at : at + m]
        pulses[t] += add_step(row, t, work[MEAN], when)
        if lags:
            add_lag(row, out[last : last + m], t, work[SQUARE], work[NEXT])
    opening, ending, ends = out[first : first + m], out[(emitted - 1) * n + first :], work[ENDS]
    for j in range(m):
        ends[j] = np.float64(opening[j]) + ending[j]
    for j in range(m):
        work[MEAN, j] /= emitted


@compiled
def add_step(row: Array, t: int, mean: Array, when: Array) -> int:  # pragma: no cover - compiled
    """Add step t, counted from 0; returns its spikes."""
    fired = 0
    for j in range(row.size):
        mean[j] += row[j]
    for j in range(row.size):
        when[j] = t + 1 if (when[j] == 0) & (row[j] != 0) else when[j]
    for j in range(row.size):
        fired += row[j] != 0
    return fired


@compiled
def add_lag(row: Array, before: Array, t: int, square: Array, beside: Array) -> None:  # pragma: no cover - compiled
    """Add step t's square, and its product with the step before."""
    for j in range(row.size):
        square[j] += np.float64(row[j]) * row[j]
    if t > 0:
        for j in range(row.size):
            beside[j] += np.float64(row[j]) * before[j]


@compiled
def count_into(
    x: Array, theta: Array, start: Array, factor: Any, most: Any, least: Any, out: Array
) -> None:  # pragma: no cover - compiled
    """The quantizer's count of every value, in the neuron's own precision."""
    for j in range(x.size):
        out[j] = min(max(np.floor(x[j] * factor / theta[j] + start[j]), least), most)


@compiled
def errors(
    corrected: Array, a: Array, most: Any, least: Any, work: Array, place: Array, bins: Array
) -> None:  # pragma: no cover - compiled
    """Count, error and rounding error in steps (0 where out of range) of a block, and their histograms."""
    m, step, fired, error, own = a.size, work[STEP], work[FIRED], work[ERROR], work[OWN]
    aimed, mean = work[AIMED], work[MEAN]
    for j in range(m):
        fired[j] = np.rint(mean[j] / step[j])
    for j in range(m):
        error[j] = fired[j] * step[j] - a[j]
    for j in range(m):
        x = error[j] / step[j]
        bin_ = min(max(np.floor((x + 1) * PER_STEP), -1.0), np.float64(BINS)) + 1
        place[j] = np.int32(bin_ if x != 0 else BINS + 2.0)
    for j in range(m):
        bins[1, place[j]] += 1
    for j in range(m):
        held = np.float64(corrected[j])
        inside = (held > step[j] * least) & (held < step[j] * most) & (held != 0)
        g = aimed[j] - held / step[j]
        own[j] = g if inside else 0.0
        bin_ = min(max(np.floor((g + 1) * PER_STEP), -1.0), np.float64(BINS)) + 1
        place[j] = np.int32(bin_ if inside else BINS + 2.0)
    for j in range(m):
        bins[0, place[j]] += 1


@compiled
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
        ar, rr, tt, mm = ar + source * r, rr + r * r, tt + off * off, mm + miss * miss
        ce, de, pe, te = ce + clip * e, de + rounding * e, pe + propagated * e, te + temporal * e
    one = two = three = four = 0.0
    for j in range(z.size):
        g = work[OWN, j]
        square = g * g
        one, two, three, four = one + g, two + square, three + square * g, four + square * square
    for k, value in enumerate((ar, rr, tt, mm, ce, de, pe, te, one, two, three, four)):
        totals[k] += value


@compiled
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


@compiled
def add_channel(
    z: Array, a: Array, corrected: Array, first: int, last: int, most: Any, least: Any, work: Array, sums: Array
) -> None:  # pragma: no cover - compiled
    """Add the elements first..last of a block, all of one channel, to its sums."""
    aa = total = size = one = two = three = four = 0.0
    inside = granular = 0
    top, low = work[STEP, first] * most, work[STEP, first] * least
    for j in range(first, last):
        source, e = np.float64(a[j]), work[ERROR, j]
        square = e * e
        size, aa, total = size + abs(source), aa + source * source, total + source
        one, two, three, four = one + e, two + square, three + square * e, four + square * square
    for j in range(first, last):
        inside += (z[j] > low) & (z[j] < top)
        granular += (corrected[j] > low) & (corrected[j] < top) & (corrected[j] != 0)
    for k, value in enumerate((size, aa, total, one, two, three, four, np.float64(inside), np.float64(granular))):
        sums[k] += value


@compiled
def add_trains(
    totalled: Array, theta: Array, seen: int, steps: int, ceiling: float, floor: float, work: Array, totals: Array,
    counts: Array,
) -> None:  # pragma: no cover - compiled
    """Add products of the train's error against the mean drive, in theta, where that is in range."""
    squares = beside = 0.0
    lagged, mean, square, product = 0, work[OWN], work[SQUARE], work[NEXT]
    for j in range(theta.size):
        mean[j] = np.float64(totalled[j]) / theta[j] / seen
    for j in range(theta.size):
        per, d = 1 / np.float64(theta[j]), mean[j]
        total = work[MEAN, j] * steps * per
        inside = (d > floor) & (d < ceiling) & (d != 0)
        each = square[j] * per * per - 2 * d * total + steps * d * d
        next_to = product[j] * per * per - d * (2 * total - work[ENDS, j] * per) + (steps - 1) * d * d
        square[j] = each if inside else 0.0
        product[j] = next_to if inside else 0.0
    for j in range(theta.size):
        lagged += (mean[j] > floor) & (mean[j] < ceiling) & (mean[j] != 0)
    for j in range(theta.size):
        squares += square[j]
        beside += product[j]
    totals[12] += squares
    totals[13] += beside
    counts[6] += lagged


@compiled
def add_units(
    a: Array, when: Array, position: int, most: Any, work: Array, fires: Array, full: Array, peak: Array, begun: Array
) -> None:  # pragma: no cover - compiled
    """Add a block to every unit's images with a spike, saturated images and source's peak; an image's first spike."""
    done, count = 0, work[FIRED]
    while done < a.size:
        image, unit = (position + done) // fires.size, (position + done) % fires.size
        length = min(a.size - done, fires.size - unit)
        for j in range(length):
            fires[unit + j] += count[done + j] != 0
        for j in range(length):
            full[unit + j] += abs(count[done + j]) == most
        for j in range(length):
            peak[unit + j] = max(peak[unit + j], abs(a[done + j]))
        soonest = np.int32(0x7FFFFFFF)
        for j in range(length):
            step = when[done + j]
            soonest = min(soonest, step if step != 0 else np.int32(0x7FFFFFFF))
        if soonest != 0x7FFFFFFF and (begun[image] == 0 or soonest < begun[image]):
            begun[image] = soonest
        done += length


@compiled
def add_across(
    z: Array, a: Array, corrected: Array, first: int, last: int, c: int, most: Any, least: Any, work: Array, sums: Array
) -> None:  # pragma: no cover - compiled
    """The same for elements first..last whose channels are c, c + 1, ...; each sum adds up side by side."""
    m, error, step = last - first, work[ERROR, first:last], work[STEP, first:last]
    own, held, source = z[first:last], corrected[first:last], a[first:last]
    size, aa, total, inside, granular = sums[0, c:], sums[1, c:], sums[2, c:], sums[7, c:], sums[8, c:]
    one, two, three, four = sums[3, c:], sums[4, c:], sums[5, c:], sums[6, c:]
    for j in range(m):
        value = np.float64(source[j])
        size[j] += abs(value)
        aa[j] += value * value
        total[j] += value
    for j in range(m):
        one[j] += error[j]
        two[j] += error[j] * error[j]
    for j in range(m):
        square = error[j] * error[j]
        three[j] += square * error[j]
        four[j] += square * square
    for j in range(m):
        inside[j] += (own[j] > step[j] * least) & (own[j] < step[j] * most)
    for j in range(m):
        granular[j] += (held[j] > step[j] * least) & (held[j] < step[j] * most) & (held[j] != 0)


@compiled
def spread(
    c: int, left: int, inner: int, theta: Array, start: Array, step: Array, each: Array, work: Array, m: int
) -> None:  # pragma: no cover - compiled
    """Each element's channel parameters; `left` more elements of channel c come first."""
    done, row = 0, work[STEP]
    while done < m:
        length = min(m - done, left if inner > 1 else theta.size - c)
        for j in range(done, done + length):
            at = c if inner > 1 else c + j - done
            each[0, j], each[1, j], row[j] = theta[at], start[at], step[at]
        c, left, done = ahead(c, left, inner, length, theta.size), advance(left, inner, length), done + length


@compiled
def ahead(c: int, left: int, inner: int, length: int, channels: int) -> int:  # pragma: no cover - compiled
    """The channel after `length` elements more, of which the first `left` are of channel c."""
    if inner == 1:
        return (c + length) % channels
    return c if length < left else (c + 1) % channels


@compiled
def advance(left: int, inner: int, length: int) -> int:  # pragma: no cover - compiled
    """Elements of that channel that are still to come."""
    return inner if inner == 1 or length == left else left - length


@compiled
def add_channels(
    z: Array, a: Array, corrected: Array, c: int, left: int, inner: int, most: Any, least: Any, work: Array,
    channels: Array,
) -> Any:  # pragma: no cover - compiled
    """Add a block's elements to their channels; returns the channel of what comes next, and how much of it is left."""
    done, many = 0, channels.shape[1]
    while done < z.size:
        if inner == 1:
            length = min(many - c, z.size - done)
            add_across(z, a, corrected, done, done + length, c, most, least, work, channels)
        else:
            length = min(left, z.size - done)
            add_channel(z, a, corrected, done, done + length, most, least, work, channels[:, c])
        c, left, done = ahead(c, left, inner, length, many), advance(left, inner, length), done + length
    return c, left


@compiled
def accumulate(
    z: Array, corrected: Array, a: Array, twin: Array, drive: Array, out: Array, theta: Array, start: Array,
    step: Array, inner: int, many: Any, most: Any, least: Any, channels: Array, totals: Array, counts: Array,
    bins: Array, pulses: Array, fires: Array, full: Array, peak: Array, lags: bool,
) -> None:  # pragma: no cover - compiled
    """Add every element, in the order of CHANNELS, TOTALS and COUNTS; theta, start and step are one a channel.

    Without `lags` the sums of steps beside one another stay 0.
    """
    n, seen, emitted = z.size, drive.size // z.size, pulses.size
    totalled, when, place = np.empty(BLOCK, z.dtype), np.empty(BLOCK, np.int32), np.empty(BLOCK, np.int32)
    work, each, begun = np.empty((10, BLOCK)), np.empty((2, BLOCK), theta.dtype), np.zeros(n // fires.size, np.int32)
    ceiling, factor = np.float64(most) / many, many if seen == 1 else many / many
    floor = -ceiling if least < 0 else 0.0
    c, left = 0, inner
    for first in range(0, n, BLOCK):
        m = min(BLOCK, n - first)
        own, held, source = z[first : first + m], corrected[first : first + m], a[first : first + m]
        over_time(drive, out, first, m, n, seen, totalled, when, work, pulses, lags)
        spread(c, left, inner, theta, start, step, each, work, m)
        count_into(held, each[0], each[1], many, most, least, work[AIMED])
        count_into(totalled[:m], each[0], each[1], factor, most, least, work[REACHED])
        errors(held, source, most, least, work, place, bins)
        add_totals(own, source, twin[first : first + m], most, least, work, totals)
        c, left = add_channels(own, source, held, c, left, inner, most, least, work, channels)
        add_counts(source, most, when, work, counts)
        add_units(source, when, first, most, work, fires, full, peak, begun)
        if lags:
            add_trains(totalled, each[0, :m], seen, emitted, ceiling, floor, work, totals, counts)
    for image in range(begun.size):
        counts[7] += begun[image] != 0
        counts[8] += begun[image]
