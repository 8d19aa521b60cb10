"""Compiled sums of one block by channel and over its time steps, and how all compiled sums are compiled.

A block's values lie in the rows of `work` named here. Channels may lie side by side in memory or far apart; `spread`,
`ahead` and `advance` keep track of the channel of each element. `over_time` sums a block's outputs over its steps.
"""

from functools import partial
from typing import Any

import numpy as np

from speedysnn.analysis.noise.schema import FOLDER, indices
from speedysnn.kernels.jit import together
from speedysnn.kernels.numba_backend import tally

Array = Any
BLOCK = 4096
LANES = 16  # elements that a processor works on at once
TOTAL, ERROR, MEAN, STEP, SQUARE, NEXT, ENDS, PER, INVERSE, WIDTH, DRIFT, OWN, PASSED = range(13)  # rows of `work`
ROWS = PASSED + 1  # STEP is A / T, PER is 1 / A, INVERSE is T / A, WIDTH is theta / T

# Compiled code holds the places of the sums and the number of bins as constants, and calls functions of other files: it
# is compiled anew when any file of the folder that declares the sums changes, or any below it.
FILES = sorted(FOLDER.rglob("*.py"))
summed = together(FILES)


@partial(together, fastmath=("reassoc",))(FILES)
def plus(total: float, value: float) -> float:  # pragma: no cover - compiled
    """Add one more term to a sum whose terms may come in any order, so that several are added at once.

    Returns:
        The new total.
    """
    return total + value


# Places in the sums by channel.
SIZE, POWER, SOURCE = indices("a", "aa", "s")
E1, E2, E3, E4 = indices("e", "ee", "eee", "eeee")
IN_RANGE, GRANULAR = indices("in_range", "granular")
Z1, Z2, D1, D2, ZD = indices("z", "zz", "d", "dd", "zd")
O1, AO, PROPAGATED = indices("o", "ao", "propagated")


@summed
def ahead(c: int, left: int, inner: int, length: int, channels: int) -> int:  # pragma: no cover - compiled
    """Find the channel after `length` more elements, of which the first `left` are of channel c.

    Returns:
        The channel.
    """
    if inner == 1:
        return (c + length) % channels
    return c if length < left else (c + 1) % channels


@summed
def advance(left: int, inner: int, length: int) -> int:  # pragma: no cover - compiled
    """Find how many elements of the channel that `ahead` gives are still to come.

    Returns:
        Their number.
    """
    return inner if inner == 1 or length == left else left - length


@summed
def spread(
    c: int, left: int, inner: int, theta: Array, start: Array, amplitude: Array, width: Array, step: Array, each: Array,
    work: Array, m: int,
) -> None:  # pragma: no cover - compiled
    """Write each element's channel parameters; `left` more elements of channel c come first."""
    done, row, per, inverse, drive = 0, work[STEP], work[PER], work[INVERSE], work[WIDTH]
    while done < m:
        length = min(m - done, left if inner > 1 else theta.size - c)
        for j in range(done, done + length):
            at = c if inner > 1 else c + j - done
            each[0, j], each[1, j], row[j], drive[j] = theta[at], start[at], step[at], width[at]
            per[j], inverse[j] = 1 / np.float64(amplitude[at]), 1 / step[at]
        c, left, done = ahead(c, left, inner, length, theta.size), advance(left, inner, length), done + length


@summed
def add_channel(
    z: Array, a: Array, corrected: Array, first: int, last: int, max_count: Any, min_count: Any, work: Array,
    sums: Array,
) -> None:  # pragma: no cover - compiled
    """Add the elements first..last of a block, all of one channel, to its sums."""
    aa = total = size = one = two = three = four = 0.0
    drive = power = drift = scatter = both = alone = product = passed = 0.0
    inside = granular = 0
    top, low = work[WIDTH, first] * max_count, work[WIDTH, first] * min_count
    for j in range(first, last):
        source, e = np.float64(a[j]), work[ERROR, j]
        square = e * e
        size, aa, total = plus(size, abs(source)), plus(aa, source * source), plus(total, source)
        one, two, three, four = plus(one, e), plus(two, square), plus(three, square * e), plus(four, square * square)
    for j in range(first, last):
        alone, product = plus(alone, work[OWN, j]), plus(product, np.float64(a[j]) * work[OWN, j])
        passed = plus(passed, work[PASSED, j])
    for j in range(first, last):
        own, d = np.float64(z[j]), work[DRIFT, j]
        drive, power = plus(drive, own), plus(power, own * own)
        drift, scatter, both = plus(drift, d), plus(scatter, d * d), plus(both, own * d)
    for j in range(first, last):
        inside += (z[j] > low) & (z[j] < top)
        granular += (corrected[j] > low) & (corrected[j] < top) & (corrected[j] != 0)
    sums[SIZE] += size
    sums[POWER] += aa
    sums[SOURCE] += total
    sums[E1] += one
    sums[E2] += two
    sums[E3] += three
    sums[E4] += four
    sums[IN_RANGE] += np.float64(inside)
    sums[GRANULAR] += np.float64(granular)
    sums[Z1] += drive
    sums[Z2] += power
    sums[D1] += drift
    sums[D2] += scatter
    sums[ZD] += both
    sums[O1] += alone
    sums[AO] += product
    sums[PROPAGATED] += passed


@summed
def add_across(
    z: Array, a: Array, corrected: Array, first: int, last: int, c: int, max_count: Any, min_count: Any,
    work: Array, sums: Array,
) -> None:  # pragma: no cover - compiled
    """Add the elements first..last of a block, whose channels are c, c + 1, ..., to their sums."""
    m, error, step = last - first, work[ERROR, first:last], work[WIDTH, first:last]
    own, held, source = z[first:last], corrected[first:last], a[first:last]
    size, aa, total = sums[SIZE, c:], sums[POWER, c:], sums[SOURCE, c:]
    inside, granular = sums[IN_RANGE, c:], sums[GRANULAR, c:]
    one, two, three, four = sums[E1, c:], sums[E2, c:], sums[E3, c:], sums[E4, c:]
    drive, power, drift, scatter, both = sums[Z1, c:], sums[Z2, c:], sums[D1, c:], sums[D2, c:], sums[ZD, c:]
    d, o, p = work[DRIFT, first:last], work[OWN, first:last], work[PASSED, first:last]
    alone, product, passed = sums[O1, c:], sums[AO, c:], sums[PROPAGATED, c:]
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
        alone[j] += o[j]
        passed[j] += p[j]
        product[j] += np.float64(source[j]) * o[j]
    for j in range(m):
        value = np.float64(own[j])
        drive[j] += value
        power[j] += value * value
    for j in range(m):
        drift[j] += d[j]
        scatter[j] += d[j] * d[j]
        both[j] += np.float64(own[j]) * d[j]
    for j in range(m):
        inside[j] += (own[j] > step[j] * min_count) & (own[j] < step[j] * max_count)
    for j in range(m):
        granular[j] += (held[j] > step[j] * min_count) & (held[j] < step[j] * max_count) & (held[j] != 0)


@summed
def add_rows(
    z: Array, a: Array, corrected: Array, first: int, max_count: Any, min_count: Any, work: Array, sums: Array
) -> None:  # pragma: no cover - compiled
    """Add four elements of every channel: each sum is read and written once for four of them."""
    width, last = sums.shape[1], first + 4 * sums.shape[1]
    own, source = z[first:last].reshape(4, width), a[first:last].reshape(4, width)
    held = corrected[first:last].reshape(4, width)
    error, step = work[ERROR, first:last].reshape(4, width), work[WIDTH, first:last]
    drift, alone = work[DRIFT, first:last].reshape(4, width), work[OWN, first:last].reshape(4, width)
    passed = work[PASSED, first:last].reshape(4, width)
    for j in range(width):
        p, q = np.float64(source[0, j]), np.float64(source[1, j])
        r, s = np.float64(source[2, j]), np.float64(source[3, j])
        sums[SIZE, j] += abs(p) + abs(q) + abs(r) + abs(s)
        sums[POWER, j] += p * p + q * q + r * r + s * s
        sums[SOURCE, j] += p + q + r + s
    for j in range(width):
        p, q, r, s = error[0, j], error[1, j], error[2, j], error[3, j]
        pp, qq, rr, ss = p * p, q * q, r * r, s * s
        sums[E1, j] += p + q + r + s
        sums[E2, j] += pp + qq + rr + ss
        sums[E3, j] += p * pp + q * qq + r * rr + s * ss
        sums[E4, j] += pp * pp + qq * qq + rr * rr + ss * ss
    for j in range(width):
        p, q = np.float64(source[0, j]), np.float64(source[1, j])
        r, s = np.float64(source[2, j]), np.float64(source[3, j])
        sums[O1, j] += alone[0, j] + alone[1, j] + alone[2, j] + alone[3, j]
        sums[AO, j] += p * alone[0, j] + q * alone[1, j] + r * alone[2, j] + s * alone[3, j]
        sums[PROPAGATED, j] += passed[0, j] + passed[1, j] + passed[2, j] + passed[3, j]
    for j in range(width):
        p, q = np.float64(own[0, j]), np.float64(own[1, j])
        r, s = np.float64(own[2, j]), np.float64(own[3, j])
        t, u, v, w = drift[0, j], drift[1, j], drift[2, j], drift[3, j]
        sums[Z1, j] += p + q + r + s
        sums[Z2, j] += p * p + q * q + r * r + s * s
        sums[D1, j] += t + u + v + w
        sums[D2, j] += t * t + u * u + v * v + w * w
        sums[ZD, j] += p * t + q * u + r * v + s * w
    for j in range(width):
        low, high, inside = step[j] * min_count, step[j] * max_count, 0.0
        for k in range(4):
            inside += 1.0 if (own[k, j] > low) & (own[k, j] < high) else 0.0
        sums[IN_RANGE, j] += inside
    for j in range(width):
        low, high, granular = step[j] * min_count, step[j] * max_count, 0.0
        for k in range(4):
            granular += 1.0 if (held[k, j] > low) & (held[k, j] < high) & (held[k, j] != 0) else 0.0
        sums[GRANULAR, j] += granular


@summed
def add_channels(
    z: Array, a: Array, corrected: Array, c: int, left: int, inner: int, max_count: Any, min_count: Any, work: Array,
    channels: Array,
) -> Any:  # pragma: no cover - compiled
    """Add a block's elements to their channels.

    Returns:
        The channel of the next element, and how many of its elements are left.
    """
    done, width = 0, channels.shape[1]
    while done < z.size:
        if inner == 1 and c == 0 and z.size - done >= 4 * width:
            length = 4 * width
            add_rows(z, a, corrected, done, max_count, min_count, work, channels)
        elif inner == 1:
            length = min(width - c, z.size - done)
            add_across(z, a, corrected, done, done + length, c, max_count, min_count, work, channels)
        else:
            length = min(left, z.size - done)
            add_channel(z, a, corrected, done, done + length, max_count, min_count, work, channels[:, c])
        c, left, done = ahead(c, left, inner, length, width), advance(left, inner, length), done + length
    return c, left


@summed
def add_steps(
    one: Array, two: Array, three: Array, four: Array, t: int, total: Array, when: Array
) -> None:  # pragma: no cover - compiled
    """Add the steps t to t + 3, in their order; every loop has numbers of one width alone."""
    for j in range(one.size):
        total[j] = total[j] + one[j] + two[j] + three[j] + four[j]
    for j in range(one.size):
        late = np.int32(t + 3) if three[j] != 0 else np.int32(t + 4 if four[j] != 0 else 0)
        soon = np.int32(t + 1) if one[j] != 0 else np.int32(t + 2 if two[j] != 0 else 0)
        found = soon if soon != 0 else late
        when[j] = when[j] if when[j] != 0 else found


@summed
def add_lags(
    one: Array, two: Array, three: Array, four: Array, before: Array, square: Array, beside: Array
) -> None:  # pragma: no cover - compiled
    """Add four steps' squares, and each one's product with the step before, that before the first of them first."""
    for j in range(one.size):
        a, b, c, d = np.float64(one[j]), np.float64(two[j]), np.float64(three[j]), np.float64(four[j])
        square[j] = square[j] + a * a + b * b + c * c + d * d
        beside[j] = beside[j] + a * before[j] + b * a + c * b + d * c


@summed
def step_of(out: Array, t: int, steps: int, first: int, n: int, nothing: Array) -> Array:  # pragma: no cover - compiled
    """Take a block's outputs at step t.

    Returns:
        A view of them; `nothing` before the first step and after the last.
    """
    at = t * n + first
    return out[at : at + nothing.size] if 0 <= t < steps else nothing


@summed
def over_time(
    out: Array, first: int, m: int, n: int, when: Array, work: Array, pulses: Array, lags: bool
) -> None:  # pragma: no cover - compiled
    """A block's sum over all steps, first step with a spike (0: none), products of adjacent steps; spikes a step.

    Four steps are done at a time; where T is no multiple of four, silent steps follow its last.
    """
    total, square, beside = work[TOTAL], work[SQUARE], work[NEXT]
    when[:], total[:m], square[:m], beside[:m] = 0, 0, 0, 0
    nothing, steps = np.zeros(m, out.dtype), pulses.size
    for t in range(0, steps, 4):
        one, two = step_of(out, t, steps, first, n, nothing), step_of(out, t + 1, steps, first, n, nothing)
        three, four = step_of(out, t + 2, steps, first, n, nothing), step_of(out, t + 3, steps, first, n, nothing)
        add_steps(one, two, three, four, t, total, when)
        if lags:
            add_lags(one, two, three, four, step_of(out, t - 1, steps, first, n, nothing), square, beside)
    for t in range(steps):
        pulses[t] += tally(step_of(out, t, steps, first, n, nothing))
    if lags:
        opening, ends, last = out[first : first + m], work[ENDS], (steps - 1) * n + first
        ending = out[last : last + m]
        for j in range(m):
            ends[j] = np.float64(opening[j]) + ending[j]
