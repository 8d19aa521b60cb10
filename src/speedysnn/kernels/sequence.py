"""A layer's whole sequence, block by block, compiled; bfloat16 comes as bits."""

from typing import Any

import numpy as np

from speedysnn.kernels.blocks import add, fire, load, load_half, spread, store_half
from speedysnn.kernels.compiled import compiled
from speedysnn.kernels.neuron_code import AT_ONCE, CONSTANT, HALF, TAKE_BACK, TOTALLED, fire_all
from speedysnn.kernels.vector_code import WORKS

Array = Any
BLOCK = 2048  # neurons: four arrays of a block fit the first-level cache


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
    kind: Any, x: Array, theta: Array, start: Array, inner: int, steps: int, delay: int, factors: Array, lo: Any,
    hi: Any, whole: Array, neurons: int, begin: int, end: int, out: Array,
) -> None:  # pragma: no cover - compiled
    """Theta * s[t] of the neurons begin..end - 1, all steps; `kind` tells by its length what `kind_of` says.

    Where it says so the drive's sum over all steps goes to `whole`.
    """
    th, v0 = np.empty(BLOCK, theta.dtype), np.empty(BLOCK, theta.dtype)
    constant, take_back = (len(kind) - 1) & CONSTANT != 0, (len(kind) - 1) & TAKE_BACK != 0
    half = (len(kind) - 1) & HALF != 0
    period = period_of(theta, start, inner)
    size = block_size(BLOCK, period)
    for first in range(begin, end, size):
        m = min(size, end - first)
        if first == begin or size % period != 0:
            spread(theta, first, m, inner, th)
            spread(start, first, m, inner, v0)
        many = m // AT_ONCE * AT_ONCE if WORKS else 0
        seen = 1 if constant else min(1 + delay, steps)
        fire_all(kind, x, first, neurons, steps, seen, factors, th, v0, lo, hi, out, many, whole)
        if many < m:
            few(x, first + many, m - many, steps, delay, constant, half, factors, lo, hi, take_back, th[many:],
                v0[many:], neurons, out, whole)  # fmt: skip


@compiled
def few(
    x: Array, first: int, m: int, steps: int, delay: int, constant: bool, half: bool, factors: Array, lo: Any,
    hi: Any, take_back: bool, th: Array, v0: Array, neurons: int, out: Array, whole: Array,
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
    if whole.size:
        load(total, m, whole[first : first + m])


def kind_of(constant: bool, take_back: bool, half: bool = False, totalled: bool = False) -> tuple[int, ...]:
    """A call's kind as a tuple's length, which the compiler knows: code for each, without branches."""
    return (0,) * (1 + CONSTANT * constant + TAKE_BACK * take_back + HALF * half + TOTALLED * totalled)
