"""Compiled sums: a block over its time steps, and what steps beside one another have in common."""

import numpy as np

from speedysnn.analysis.sum_rows import ENDS, MEAN, NEXT, SQUARE, Array, summed


@summed
def add_four(
    one: Array, two: Array, three: Array, four: Array, t: int, mean: Array, when: Array, pulses: Array
) -> None:  # pragma: no cover - compiled
    """Add the steps t to t + 3, in their order; every loop has numbers of one width alone."""
    for j in range(one.size):
        mean[j] = mean[j] + one[j] + two[j] + three[j] + four[j]
    for j in range(one.size):
        late = np.int32(t + 3) if three[j] != 0 else np.int32(t + 4 if four[j] != 0 else 0)
        soon = np.int32(t + 1) if one[j] != 0 else np.int32(t + 2 if two[j] != 0 else 0)
        found = soon if soon != 0 else late
        when[j] = when[j] if when[j] != 0 else found
    pulses[t] += spikes(one)
    pulses[t + 1] += spikes(two)
    pulses[t + 2] += spikes(three)
    pulses[t + 3] += spikes(four)


@summed
def add_one(row: Array, t: int, mean: Array, when: Array, pulses: Array) -> None:  # pragma: no cover - compiled
    """Add step t."""
    for j in range(row.size):
        mean[j] += row[j]
    for j in range(row.size):
        when[j] = np.int32(t + 1) if (when[j] == 0) & (row[j] != 0) else when[j]
    pulses[t] += spikes(row)


@summed
def spikes(row: Array) -> int:  # pragma: no cover - compiled
    """Elements of a block that are not zero, counted in 32 bits, which twice as many fit into a register."""
    found = np.int32(0)
    for j in range(row.size):
        found = np.int32(found + np.int32(row[j] != 0))
    return int(found)


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
def add_lag(row: Array, before: Array, square: Array, beside: Array) -> None:  # pragma: no cover - compiled
    """Add one step's square, and its product with the step before."""
    for j in range(row.size):
        square[j] += np.float64(row[j]) * row[j]
        beside[j] += np.float64(row[j]) * before[j]


@summed
def over_train(
    out: Array, first: int, m: int, n: int, when: Array, work: Array, pulses: Array, lags: bool
) -> None:  # pragma: no cover - compiled
    """A block's outputs, four steps at a time and what is left one by one."""
    mean, square, beside = work[MEAN], work[SQUARE], work[NEXT]
    when[:], mean[:m], square[:m], beside[:m] = 0, 0, 0, 0
    nothing, whole = np.zeros(m, out.dtype), pulses.size // 4 * 4
    for t in range(0, whole, 4):
        at = t * n + first
        one, two = out[at : at + m], out[at + n : at + n + m]
        three, four = out[at + 2 * n : at + 2 * n + m], out[at + 3 * n : at + 3 * n + m]
        add_four(one, two, three, four, t, mean, when, pulses)
        if lags:
            add_lags(one, two, three, four, out[at - n : at - n + m] if t > 0 else nothing, square, beside)
    for t in range(whole, pulses.size):
        at = t * n + first
        add_one(out[at : at + m], t, mean, when, pulses)
        if lags:
            add_lag(out[at : at + m], out[at - n : at - n + m] if t > 0 else nothing, square, beside)


@summed
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
    over_train(out, first, m, n, when[:m], work, pulses, lags)
    opening, ending, ends = out[first : first + m], out[(emitted - 1) * n + first :], work[ENDS]
    for j in range(m):
        ends[j] = np.float64(opening[j]) + ending[j]
    for j in range(m):
        work[MEAN, j] /= emitted
