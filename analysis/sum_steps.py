"""Compiled sums: a block over its time steps, and products of adjacent steps."""

import numpy as np

from speedysnn.analysis.sum_rows import ENDS, NEXT, SQUARE, TOTAL, Array, summed
from speedysnn.kernels.nonzero import tally


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
