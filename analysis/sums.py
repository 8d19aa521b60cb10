"""A layer's sums over its elements in one read of memory, compiled; `LayerSums` has the definition in plain torch.

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
COUNTS = ("saturated", "silent", "source_silent", "exact", "outside", "fired", "first", "started", "start", "lagged")
BINS, PER_STEP = 64, 32  # over [-1, 1] steps; one more below and one above


@compiled
def over_time(
    drive: Array, out: Array, first: int, m: int, n: int, seen: int, totalled: Array, meant: Array, when: Array,
    trail: Array, pulses: Array,
) -> None:  # pragma: no cover - compiled
    """A block's summed drive, mean output, first step with a spike (0: none), products a step apart; spikes a step."""
    emitted = pulses.size
    for j in range(m):
        totalled[j] = drive[first + j]
        meant[j], when[j], trail[0, j], trail[1, j] = 0, 0, 0, 0
    for t in range(1, seen):
        row = drive[t * n + first : t * n + first + m]
        for j in range(m):
            totalled[j] += row[j]
    for t in range(emitted):
        row = out[t * n + first : t * n + first + m]
        before = out[max(t - 1, 0) * n + first : max(t - 1, 0) * n + first + m]
        fired = 0
        for j in range(m):
            meant[j] += row[j]
            fired += row[j] != 0
            emission = np.float64(row[j])
            trail[0, j] += emission * emission
            trail[1, j] += emission * before[j]
        for j in range(m):
            when[j] = t + 1 if when[j] == 0 and row[j] != 0 else when[j]
        pulses[t] += fired
    last = out[(emitted - 1) * n + first : (emitted - 1) * n + first + m]
    for j in range(m):
        own = np.float64(out[first + j])
        trail[1, j] -= own * own
        trail[2, j] = own + last[j]
        meant[j] /= emitted


@compiled
def parts(
    z: Any, corrected: Any, a: Any, total: Any, measured: Any, th: Any, v0: Any, s: Any, seen: int, many: Any,
    most: Any, least: Any,
) -> Any:  # pragma: no cover - compiled
    """One element's value, error, its parts, count, whether in range, rounding error, whether time moved it."""
    aimed = min(max(np.floor(corrected * many / th + v0), least), most)
    scaled = total * many / th if seen == 1 else total / th
    reached = min(max(np.floor(scaled + v0), least), most)
    fired = np.rint(measured / s)
    top, low = s * most, s * least
    own, source, held = np.float64(z), np.float64(a), np.float64(corrected)
    clipped, r = min(max(own, low), top), fired * s
    clip, rounding = clipped - source, aimed * s - clipped
    propagated, temporal = reached * s - aimed * s, r - reached * s
    miss = clip + rounding + propagated + temporal - (measured - source)
    g = aimed - held / s if (held > low) & (held < top) & (held != 0) else np.nan
    inside = (own > low) & (own < top)
    return source, r, clip, rounding, propagated, temporal, miss, fired, inside, g, fired != reached


@compiled
def add_block(
    z: Array, corrected: Array, a: Array, twin: Array, totalled: Array, meant: Array, theta: Array, start: Array,
    step: Array, at: Array, seen: int, many: Any, most: Any, least: Any, channels: Array, totals: Array, counts: Array,
    error: Array, own: Array, fire: Array,
) -> None:  # pragma: no cover - compiled
    """Add a block's elements; `at` holds their channels. Leaves error, rounding error and count of each behind."""
    ar = rr = tt = mm = ce = de = pe = te = 0.0
    saturated = silent = quiet = outside = 0
    for j in range(z.size):
        c = at[j]
        source, r, clip, rounding, propagated, temporal, miss, fired, inside, g, moved = parts(
            z[j], corrected[j], a[j], totalled[j], meant[j], theta[c], start[c], step[c], seen, many, most, least
        )
        e, off = r - source, np.float64(twin[j]) - source
        error[j], own[j], fire[j] = e, g, fired
        channels[c, 0] += abs(source)
        channels[c, 1] += source * source
        channels[c, 2] += source
        channels[c, 7] += inside
        ar, rr, tt, mm = ar + source * r, rr + r * r, tt + off * off, mm + miss * miss
        ce, de, pe, te = ce + clip * e, de + rounding * e, pe + propagated * e, te + temporal * e
        saturated += abs(fired) == most
        silent += fired == 0
        quiet += source == 0
        outside += moved
    for k, value in enumerate((ar, rr, tt, mm, ce, de, pe, te)):
        totals[k] += value
    for k, count in enumerate((saturated, silent, quiet)):
        counts[k] += count
    counts[4] += outside


@compiled
def bin_of(x: float) -> int:  # pragma: no cover - compiled
    """The histogram's bin of a value in steps: 0 below -1, BINS + 1 from 1 on."""
    return int(min(max(np.floor((x + 1) * PER_STEP), -1), BINS)) + 1


@compiled
def add_powers(
    error: Array, own: Array, step: Array, at: Array, channels: Array, totals: Array, counts: Array, bins: Array
) -> None:  # pragma: no cover - compiled
    """Add powers and histograms of a block's error (by channel) and rounding error (in steps)."""
    one = two = three = four = 0.0
    exact = 0
    for j in range(at.size):
        c, e, g = at[j], error[j], own[j]
        square = e * e
        channels[c, 3] += e
        channels[c, 4] += square
        channels[c, 5] += square * e
        channels[c, 6] += square * square
        if e == 0:
            exact += 1
        else:
            bins[1, bin_of(e / step[c])] += 1
        if g == g:
            channels[c, 8] += 1
            bins[0, bin_of(g)] += 1
            square = g * g
            one, two, three, four = one + g, two + square, three + square * g, four + square * square
    counts[3] += exact
    for k, value in enumerate((one, two, three, four)):
        totals[8 + k] += value


@compiled
def add_trains(
    totalled: Array, meant: Array, when: Array, trail: Array, theta: Array, at: Array, seen: int, steps: int,
    ceiling: Any, floor: Any, totals: Array, counts: Array,
) -> None:  # pragma: no cover - compiled
    """Add first spikes, and products of the train's error against the mean drive, where that is in range; in theta."""
    square = next_to = 0.0
    fired = first = lagged = 0
    for j in range(at.size):
        first += when[j]
        fired += when[j] != 0
        th = np.float64(theta[at[j]])
        mean = totalled[j] / th if seen == 1 else totalled[j] / th / seen
        if mean > floor and mean < ceiling and mean != 0:
            total, scale = meant[j] * steps / th, 1 / (th * th)
            lagged += 1
            square += trail[0, j] * scale - 2 * mean * total + steps * mean * mean
            next_to += trail[1, j] * scale - mean * (2 * total - trail[2, j] / th) + (steps - 1) * mean * mean
    totals[12] += square
    totals[13] += next_to
    counts[5] += fired
    counts[6] += first
    counts[9] += lagged


@compiled
def add_units(
    a: Array, fire: Array, when: Array, position: int, most: Any, fires: Array, full: Array, peak: Array, begun: Array
) -> None:  # pragma: no cover - compiled
    """Add a block to every unit's images with a spike, saturated images and source's peak; an image's first spike."""
    image, unit = position // fires.size, position % fires.size
    for j in range(a.size):
        fires[unit] += fire[j] != 0
        full[unit] += abs(fire[j]) == most
        peak[unit] = max(peak[unit], abs(a[j]))
        if when[j] != 0 and (begun[image] == 0 or when[j] < begun[image]):
            begun[image] = when[j]
        unit += 1
        if unit == fires.size:
            unit, image = 0, image + 1


@compiled
def accumulate(
    z: Array, corrected: Array, a: Array, twin: Array, drive: Array, out: Array, theta: Array, start: Array,
    step: Array, inner: int, many: Any, most: Any, least: Any, channels: Array, totals: Array, counts: Array,
    bins: Array, pulses: Array, fires: Array, full: Array, peak: Array,
) -> None:  # pragma: no cover - compiled
    """Add every element, in the order of CHANNELS, TOTALS and COUNTS; theta, start and step are one a channel."""
    n, seen, emitted = z.size, drive.size // z.size, pulses.size
    totalled, at, when = np.empty(BLOCK, z.dtype), np.empty(BLOCK, np.int64), np.empty(BLOCK, np.int32)
    meant, error, own, fire = np.empty(BLOCK), np.empty(BLOCK), np.empty(BLOCK), np.empty(BLOCK)
    trail, begun = np.empty((3, BLOCK)), np.zeros(n // fires.size, np.int32)
    per = np.float64(most) / emitted
    c, left = 0, inner
    for first in range(0, n, BLOCK):
        m = min(BLOCK, n - first)
        over_time(drive, out, first, m, n, seen, totalled, meant, when, trail, pulses)
        for j in range(m):
            at[j] = c
            left -= 1
            if left == 0:
                left = inner
                c = c + 1 if c + 1 < channels.shape[0] else 0
        here = slice(first, first + m)
        add_block(
            z[here], corrected[here], a[here], twin[here], totalled, meant, theta, start, step, at, seen, many, most,
            least, channels, totals, counts, error, own, fire,
        )
        add_powers(error, own, step, at[:m], channels, totals, counts, bins)
        add_trains(
            totalled, meant, when, trail, theta, at[:m], seen, emitted, per, -per if least < 0 else 0.0, totals, counts
        )
        add_units(a[here], fire, when, first, most, fires, full, peak, begun)
    for image in range(begun.size):
        counts[7] += begun[image] != 0
        counts[8] += begun[image]
