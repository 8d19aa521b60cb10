"""A layer's sums over its elements in Triton, as `numba_backend.accumulate` has them.

This module is imported only where Triton is there. Each program adds up some channels of some rows on its own, and
several add whole numbers only, so that the same sums come out of every run. Tensors are matrices (rows, channels);
what lies beyond them reads as zeros, which add nothing.
"""

import triton
import triton.language as tl

from speedysnn.analysis.noise.schema import ELEMENT_SUMS, HISTOGRAMS, TRAIN_SUMS
from speedysnn.kernels.triton_kernels import within

# Rows of what `errors` finds.
SIZE, POWER, SOURCE, E1, E2, E3, E4, IN_RANGE, GRANULAR = (
    tl.constexpr(ELEMENT_SUMS.index(name))
    for name in ("a", "aa", "s", "e", "ee", "eee", "eeee", "in_range", "granular")
)
Z1, Z2, D1, D2, ZD = (tl.constexpr(ELEMENT_SUMS.index(name)) for name in ("z", "zz", "d", "dd", "zd"))
O1, AO = (tl.constexpr(ELEMENT_SUMS.index(name)) for name in ("o", "ao"))
AR, RR, TWIN, MISS, CLIP, ROUND, PROPAGATED, TEMPORAL, G1, G2, G3, G4 = (
    tl.constexpr(ELEMENT_SUMS.index(name))
    for name in ("ar", "rr", "twin", "miss", "clip", "round", "propagated", "temporal", "g", "gg", "ggg", "gggg")
)
SATURATED, SILENT, SOURCE_SILENT, OUTSIDE = (
    tl.constexpr(ELEMENT_SUMS.index(name)) for name in ("saturated", "silent", "source_silent", "outside")
)
ELEMENT_ROWS = tl.constexpr(len(ELEMENT_SUMS))
# Rows of what `trains` finds.
LAG0, LAG1, FIRED, FIRST, LAGGED = (
    tl.constexpr(TRAIN_SUMS.index(name)) for name in ("lag0", "lag1", "fired", "first", "lagged")
)
TRAIN_ROWS = tl.constexpr(len(TRAIN_SUMS))
ROUNDING, NOISE = (tl.constexpr(HISTOGRAMS.index(name)) for name in ("rounding", "noise"))
TABLES = tl.constexpr(len(HISTOGRAMS))


@triton.jit
def _count_of(x, theta, start, max_count, min_count):  # pragma: no cover - compiled
    return within(tl.floor(tl.div_rn(x, theta) + start), min_count, max_count).to(tl.float64)


@triton.jit
def _count_bins(table, x, kept, bins: tl.constexpr, per: tl.constexpr):  # pragma: no cover - compiled
    place = x * per + (per + 1)
    place = tl.where(place < bins + 1, place, bins + 1)  # NaN, of which a comparison is false, counts as beyond
    tl.atomic_add(table + tl.where(place > 0, place, 0.0).to(tl.int32), 1, mask=kept, sem="relaxed")


@triton.jit
def _put(found, row: tl.constexpr, channels, j, sums):  # pragma: no cover - compiled
    tl.store(found + row * channels + j, tl.sum(sums, 0).to(tl.float64), mask=j < channels)


@triton.jit
def _put_four(
    found, p: tl.constexpr, q: tl.constexpr, r: tl.constexpr, s: tl.constexpr, channels, j, w, x, y, z
):  # pragma: no cover - compiled
    _put(found, p, channels, j, w)
    _put(found, q, channels, j, x)
    _put(found, r, channels, j, y)
    _put(found, s, channels, j, z)


@triton.jit
def trains(
    out, drive, theta, amplitude, found, pulses, total, when, rows, channels, steps, seen, min_count, max_count,
    lags: tl.constexpr, tall: tl.constexpr, wide: tl.constexpr,
):  # pragma: no cover - compiled
    """Each element's output over all steps and its first step; spikes a step; products of a train's errors.

    `out` (steps, rows, channels); `pulses` (programs, steps, tall, wide); `found` (programs, TRAIN_ROWS, channels):
    the sums of `schema.TRAIN_SUMS`.
    """
    j = tl.program_id(1).to(tl.int64) * wide + tl.arange(0, wide)
    number = tl.program_id(0).to(tl.int64)
    size = (number * 0 + rows) * channels
    th = tl.load(theta + j, mask=j < channels, other=1.0)[None, :].to(tl.float64)
    unit = tl.load(amplitude + j, mask=j < channels, other=1.0)[None, :].to(tl.float64)
    own = tl.arange(0, tall)[:, None] * wide + tl.arange(0, wide)[None, :]
    own += ((number * tl.num_programs(1) + tl.program_id(1)) * steps * (tall * wide)).to(tl.int64)
    squares, beside = tl.zeros((tall, wide), tl.float64), tl.zeros((tall, wide), tl.float64)
    none = tl.zeros((tall, wide), tl.int32)
    firing, first, lagged = none, none, none
    for tile in range(tl.program_id(0), (rows + tall - 1) // tall, tl.num_programs(0)):
        r = (number * 0 + tile) * tall + tl.arange(0, tall)  # in 64 bits
        here = (r < rows)[:, None] & (j < channels)[None, :]
        at = r[:, None] * channels + j[None, :]
        mean = tl.load(drive + at, mask=here, other=0.0).to(tl.float64) / th / seen
        varies = (mean > min_count) & (mean < max_count) & (mean != 0)
        spent, before = tl.zeros((tall, wide), tl.float64), tl.zeros((tall, wide), tl.float64)
        soon = none
        for t in range(steps):
            o = tl.load(out + t * size + at, mask=here, other=0.0).to(tl.float64)
            spent += o
            soon = tl.where((soon == 0) & (o != 0), t + 1, soon)
            mine = pulses + t * (tall * wide) + own
            tl.store(mine, tl.load(mine) + (o != 0).to(tl.int32))
            if lags:
                error = tl.where(varies, o / unit - mean, 0.0)
                squares += error * error
                beside += error * before
                before = error
        tl.store(total + at, spent, mask=here)
        tl.store(when + at, soon, mask=here)
        firing += (soon != 0).to(tl.int32)
        first += soon
        lagged += varies.to(tl.int32)
    found += number * TRAIN_ROWS * channels
    _put(found, FIRED, channels, j, firing)
    _put(found, FIRST, channels, j, first)
    _put(found, LAGGED, channels, j, lagged)
    _put(found, LAG0, channels, j, squares)
    _put(found, LAG1, channels, j, beside)


@triton.jit
def errors(
    z, held, a, twin, drive, total, theta, start, amplitude, found, tables, fired, rows, channels, emitted, timesteps,
    max_count, min_count, factor, source_floor, source_ceiling, clip: tl.constexpr, bins: tl.constexpr,
    per: tl.constexpr, tall: tl.constexpr, wide: tl.constexpr,
):  # pragma: no cover - compiled
    """Products, counts and histograms of the errors; each element's count goes to `fired`.

    `found` (programs, ELEMENT_ROWS, channels): the sums of `schema.ELEMENT_SUMS`; `tables` (programs, TABLES, bins + 3)
    without what they leave out. With `clip` the source is z between its floor and its ceiling.

    The loop is one piece: its 32 sums stay in registers, and a function of a part would take and return them all.
    """
    j = tl.program_id(1).to(tl.int64) * wide + tl.arange(0, wide)
    number = tl.program_id(0).to(tl.int64)
    th = tl.load(theta + j, mask=j < channels, other=1.0)[None, :]
    v0 = tl.load(start + j, mask=j < channels, other=0.0)[None, :]
    width = th.to(tl.float64) / timesteps
    step = tl.load(amplitude + j, mask=j < channels, other=1.0)[None, :].to(tl.float64) / timesteps
    low, high = width * min_count, width * max_count
    table = tables + (number * tl.num_programs(1) + tl.program_id(1)) * TABLES * (bins + 3)
    none = tl.zeros((tall, wide), tl.float64)
    c0, c1, c2, c3, c4, c5, c6, c7, c8 = none, none, none, none, none, none, none, none, none
    z1, z2, d1, d2, zd, o1, ao = none, none, none, none, none, none, none
    t0, t1, t2, t3, t4, t5, t6, t7 = none, none, none, none, none, none, none, none
    g1, g2, g3, g4, n0, n1, n2, n3 = none, none, none, none, none, none, none, none
    for tile in range(tl.program_id(0), (rows + tall - 1) // tall, tl.num_programs(0)):
        r = (number * 0 + tile) * tall + tl.arange(0, tall)  # in 64 bits
        here = (r < rows)[:, None] & (j < channels)[None, :]
        at = r[:, None] * channels + j[None, :]
        pre = tl.load(z + at, mask=here, other=0.0)
        kept = tl.load(held + at, mask=here, other=0.0)
        given = tl.load(drive + at, mask=here, other=0.0)
        act = within(pre, source_floor, source_ceiling) if clip else tl.load(a + at, mask=here, other=0.0)
        source, own, inner = tl.where(here, act, 0.0).to(tl.float64), pre.to(tl.float64), kept.to(tl.float64)
        measured = tl.load(total + at, mask=here, other=0.0) / emitted
        n = tl.floor(measured / step + 0.5)
        aimed = _count_of(kept * timesteps, th, v0, max_count, min_count)
        reached = _count_of(given * factor, th, v0, max_count, min_count)
        clipped, r_, target = within(own, low, high), n * step, aimed * step
        e, cut, rounding = r_ - source, clipped - source, target - clipped
        passed, late = reached * step - target, r_ - reached * step
        off = tl.load(twin + at, mask=here, other=0.0).to(tl.float64) - source
        miss = tl.where(here, cut + rounding + passed + late - (measured - source), 0.0)
        fine = (inner > low) & (inner < high) & (inner != 0) & here
        gap = aimed - inner / width
        _count_bins(table + ROUNDING * (bins + 3), gap, fine, bins, per)
        _count_bins(table + NOISE * (bins + 3), e / step, (e != 0) & here, bins, per)
        drift = given.to(tl.float64) * factor / timesteps * (step / width) - own
        ee, gap = e * e, tl.where(fine, gap, 0.0)
        gg = gap * gap
        c0, c1, c2, c3, c4 = c0 + tl.abs(source), c1 + source * source, c2 + source, c3 + e, c4 + ee
        c5, c6, c7 = c5 + ee * e, c6 + ee * ee, c7 + ((own > low) & (own < high) & here).to(tl.float64)
        z1, z2, d1, d2, zd = z1 + own, z2 + own * own, d1 + drift, d2 + drift * drift, zd + own * drift
        alone = tl.where(here, target - source, 0.0)
        o1, ao = o1 + alone, ao + source * alone
        c8, t0, t1, t2 = c8 + fine.to(tl.float64), t0 + source * r_, t1 + r_ * r_, t2 + off * off
        t3, t4, t5, t6, t7 = t3 + miss * miss, t4 + cut * e, t5 + rounding * e, t6 + passed * e, t7 + late * e
        g1, g2, g3, g4 = g1 + gap, g2 + gg, g3 + gg * gap, g4 + gg * gg
        n0, n1 = n0 + ((tl.abs(n) == max_count) & here).to(tl.float64), n1 + ((n == 0) & here).to(tl.float64)
        n2, n3 = n2 + ((act == 0) & here).to(tl.float64), n3 + ((n != reached) & here).to(tl.float64)
        tl.store(fired + at, n.to(tl.float32), mask=here)
    found += number * ELEMENT_ROWS * channels
    _put_four(found, SIZE, POWER, SOURCE, E1, channels, j, c0, c1, c2, c3)
    _put_four(found, E2, E3, E4, IN_RANGE, channels, j, c4, c5, c6, c7)
    _put_four(found, GRANULAR, Z1, Z2, D1, channels, j, c8, z1, z2, d1)
    _put_four(found, D2, ZD, O1, AO, channels, j, d2, zd, o1, ao)
    _put_four(found, AR, RR, TWIN, MISS, channels, j, t0, t1, t2, t3)
    _put_four(found, CLIP, ROUND, PROPAGATED, TEMPORAL, channels, j, t4, t5, t6, t7)
    _put_four(found, G1, G2, G3, G4, channels, j, g1, g2, g3, g4)
    _put_four(found, SATURATED, SILENT, SOURCE_SILENT, OUTSIDE, channels, j, n0, n1, n2, n3)


@triton.jit
def units(
    z, a, fired, fires, full, peak, images, count, max_count, source_floor, source_ceiling, clip: tl.constexpr,
    block: tl.constexpr,
):  # pragma: no cover - compiled
    """Add to every unit's images with a spike and saturated images, and raise its source's peak; (images, units).

    A program takes every second, third, ... image of some units; a peak is its float's bits, ordered as whole numbers.
    """
    u = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    here = u < count
    spiking, crowded = tl.zeros((block,), tl.int32), tl.zeros((block,), tl.int32)
    largest = tl.zeros((block,), tl.float32)
    row = tl.zeros_like(u) + count
    for image in range(tl.program_id(1), images, tl.num_programs(1)):
        n = tl.load(fired + image * row + u, mask=here, other=0.0)
        act = tl.load((z if clip else a) + image * row + u, mask=here, other=0.0)
        act = within(act, source_floor, source_ceiling) if clip else act
        spiking += (n != 0).to(tl.int32)
        crowded += (tl.abs(n) == max_count).to(tl.int32)
        largest = tl.where(tl.abs(act) > largest, tl.abs(act), largest)
    tl.atomic_add(fires + u, spiking, mask=here, sem="relaxed")
    tl.atomic_add(full + u, crowded, mask=here, sem="relaxed")
    tl.atomic_max(peak + u, largest.to(tl.int32, bitcast=True), mask=here, sem="relaxed")
