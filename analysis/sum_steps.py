"""Compiled sums: a block over its time steps, and what steps beside one another have in common."""

import numpy as np

from speedysnn.analysis.sum_rows import ENDS, MEAN, NEXT, SQUARE, Array, summed


@summed
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


@summed
def add_lag(row: Array, before: Array, t: int, square: Array, beside: Array) -> None:  # pragma: no cover - compiled
    """Add step t's square, and its product with the step before."""
    for j in range(row.size):
        square[j] += np.float64(row[j]) * row[j]
    if t > 0:
        for j in range(row.size):
            beside[j] += np.float64(row[j]) * before[j]


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
