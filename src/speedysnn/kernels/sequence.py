"""A layer's whole sequence, block by block, compiled; bfloat16 comes as bits."""

from typing import Any

import numpy as np

from speedysnn.kernels.blocks import add, fire, load, load_half, spread, store_half
from speedysnn.kernels.compiled import compiled
from speedysnn.kernels.neuron_code import AT_ONCE, fire_all
from speedysnn.kernels.vector_code import WORKS

Array = Any
NEURON_BLOCK = 2048  # neurons: four arrays of a block fit the first-level cache


@compiled
def block_size(most: int, period: int) -> int:  # pragma: no cover - compiled
    """Neurons a block: whole periods of the thetas where they fit, so that one layout of theta serves every block."""
    return most // period * period if period <= most else most


@compiled
def period_of(theta: Array, start: Array, inner: int) -> int:  # pragma: no cover - compiled
    """Neurons after which the thetas and starts come again."""
    channels = max(theta.size, start.size)
    return channels * inner if channels > 1 else 1


@compiled
def total_upto(
    x: Array, first: int, m: int, neurons: int, seen: int, upto: int, total: Array
) -> None:  # pragma: no cover - compiled
    """Add the inputs of steps seen..upto - 1, in the order in which they arrive."""
    for step in range(seen, upto):
        row = x[step * neurons + first : step * neurons + first + m]
        if step == 0:
            load(row, m, total)
        else:
            add(row, m, total)


@compiled
def total_upto_half(
    x: Array, first: int, m: int, neurons: int, seen: int, upto: int, total: Array, row: Array
) -> None:  # pragma: no cover - compiled
    """The same from bfloat16."""
    for step in range(seen, upto):
        load_half(x[step * neurons + first : step * neurons + first + m], m, row)
        if step == 0:
            load(row, m, total)
        else:
            add(row, m, total)


@compiled
def forward(
    flags: Any, x: Array, theta: Array, start: Array, inner: int, steps: int, delay: int, factors: Array, lo: Any,
    hi: Any, input_sum: Array, neurons: int, begin: int, end: int, out: Array,
) -> None:  # pragma: no cover - compiled
    """Theta * s[t] of the neurons begin..end - 1, all steps; `flags` are those of `neuron_code.CallFlags`.

    If the flag `input_sum` is set, the drive's sum over all steps goes to the array of that name.
    """
    th, v0 = np.empty(NEURON_BLOCK, theta.dtype), np.empty(NEURON_BLOCK, theta.dtype)
    constant, take_back, half = len(flags.constant) > 0, len(flags.take_back) > 0, len(flags.half) > 0
    period = period_of(theta, start, inner)
    size = block_size(NEURON_BLOCK, period)
    for first in range(begin, end, size):
        m = min(size, end - first)
        if first == begin or size % period != 0:
            spread(theta, first, m, inner, th)
            spread(start, first, m, inner, v0)
        vectorized = m // AT_ONCE * AT_ONCE if WORKS else 0
        seen = 1 if constant else min(1 + delay, steps)
        fire_all(flags, x, first, neurons, steps, seen, factors, th, v0, lo, hi, out, vectorized, input_sum)
        if vectorized < m:
            few(x, first + vectorized, m - vectorized, steps, delay, constant, half, factors, lo, hi, take_back,
                th[vectorized:], v0[vectorized:], neurons, out, input_sum)  # fmt: skip


@compiled
def few(
    x: Array, first: int, m: int, steps: int, delay: int, constant: bool, half: bool, factors: Array, lo: Any,
    hi: Any, take_back: bool, th: Array, v0: Array, neurons: int, out: Array, input_sum: Array,
) -> None:  # pragma: no cover - compiled
    """The same for what is left at the end, at most AT_ONCE neurons."""
    total, count, s = np.empty(m, th.dtype), np.zeros(m, th.dtype), np.empty(m, th.dtype)
    seen = 0
    for t in range(1, steps + 1):
        upto = 1 if constant else min(t + delay, steps)
        if half:
            total_upto_half(x, first, m, neurons, seen, upto, total, s)
        else:
            total_upto(x, first, m, neurons, seen, upto, total)
        seen = upto
        row = out[(t - 1) * neurons + first : (t - 1) * neurons + first + m]
        fire(total, factors[t - 1], th, v0, count, lo, hi, take_back, m, s)
        for i in range(m):
            s[i] = s[i] * th[i]
        if half:
            store_half(s, m, row)
        else:
            load(s, m, row)
    if input_sum.size:
        load(total, m, input_sum[first : first + m])
