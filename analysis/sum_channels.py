"""Compiled sums: a block's elements added to their channels, however these lie in memory."""

from typing import Any

import numpy as np

from speedysnn.analysis.sum_rows import ERROR, INVERSE, PER, STEP, Array, plus, summed


@summed
def ahead(c: int, left: int, inner: int, length: int, channels: int) -> int:  # pragma: no cover - compiled
    """The channel after `length` elements more, of which the first `left` are of channel c."""
    if inner == 1:
        return (c + length) % channels
    return c if length < left else (c + 1) % channels


@summed
def advance(left: int, inner: int, length: int) -> int:  # pragma: no cover - compiled
    """Elements of that channel that are still to come."""
    return inner if inner == 1 or length == left else left - length


@summed
def spread(
    c: int, left: int, inner: int, theta: Array, start: Array, step: Array, each: Array, work: Array, m: int
) -> None:  # pragma: no cover - compiled
    """Each element's channel parameters; `left` more elements of channel c come first."""
    done, row, per, inverse = 0, work[STEP], work[PER], work[INVERSE]
    while done < m:
        length = min(m - done, left if inner > 1 else theta.size - c)
        for j in range(done, done + length):
            at = c if inner > 1 else c + j - done
            each[0, j], each[1, j], row[j] = theta[at], start[at], step[at]
            per[j], inverse[j] = 1 / np.float64(theta[at]), 1 / step[at]
        c, left, done = ahead(c, left, inner, length, theta.size), advance(left, inner, length), done + length


@summed
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
        size, aa, total = plus(size, abs(source)), plus(aa, source * source), plus(total, source)
        one, two, three, four = plus(one, e), plus(two, square), plus(three, square * e), plus(four, square * square)
    for j in range(first, last):
        inside += (z[j] > low) & (z[j] < top)
        granular += (corrected[j] > low) & (corrected[j] < top) & (corrected[j] != 0)
    for k, value in enumerate((size, aa, total, one, two, three, four, np.float64(inside), np.float64(granular))):
        sums[k] += value


@summed
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


@summed
def add_rows(
    z: Array, a: Array, corrected: Array, first: int, most: Any, least: Any, work: Array, sums: Array
) -> None:  # pragma: no cover - compiled
    """The same for four times all channels: one read and one write of a sum for four elements."""
    many, last = sums.shape[1], first + 4 * sums.shape[1]
    own, source = z[first:last].reshape(4, many), a[first:last].reshape(4, many)
    held = corrected[first:last].reshape(4, many)
    error, step = work[ERROR, first:last].reshape(4, many), work[STEP, first:last]
    for j in range(many):
        p, q = np.float64(source[0, j]), np.float64(source[1, j])
        r, s = np.float64(source[2, j]), np.float64(source[3, j])
        sums[0, j] += abs(p) + abs(q) + abs(r) + abs(s)
        sums[1, j] += p * p + q * q + r * r + s * s
        sums[2, j] += p + q + r + s
    for j in range(many):
        p, q, r, s = error[0, j], error[1, j], error[2, j], error[3, j]
        pp, qq, rr, ss = p * p, q * q, r * r, s * s
        sums[3, j] += p + q + r + s
        sums[4, j] += pp + qq + rr + ss
        sums[5, j] += p * pp + q * qq + r * rr + s * ss
        sums[6, j] += pp * pp + qq * qq + rr * rr + ss * ss
    for j in range(many):
        low, high, inside = step[j] * least, step[j] * most, 0.0
        for k in range(4):
            inside += 1.0 if (own[k, j] > low) & (own[k, j] < high) else 0.0
        sums[7, j] += inside
    for j in range(many):
        low, high, granular = step[j] * least, step[j] * most, 0.0
        for k in range(4):
            granular += 1.0 if (held[k, j] > low) & (held[k, j] < high) & (held[k, j] != 0) else 0.0
        sums[8, j] += granular


@summed
def add_channels(
    z: Array, a: Array, corrected: Array, c: int, left: int, inner: int, most: Any, least: Any, work: Array,
    channels: Array,
) -> Any:  # pragma: no cover - compiled
    """Add a block's elements to their channels; returns the channel of what comes next, and how much of it is left."""
    done, many = 0, channels.shape[1]
    while done < z.size:
        if inner == 1 and c == 0 and z.size - done >= 4 * many:
            length = 4 * many
            add_rows(z, a, corrected, done, most, least, work, channels)
        elif inner == 1:
            length = min(many - c, z.size - done)
            add_across(z, a, corrected, done, done + length, c, most, least, work, channels)
        else:
            length = min(left, z.size - done)
            add_channel(z, a, corrected, done, done + length, most, least, work, channels[:, c])
        c, left, done = ahead(c, left, inner, length, many), advance(left, inner, length), done + length
    return c, left
