"""The adjoint of a layer's whole sequence, block by block, compiled: what is needed is computed again, not kept."""

from typing import Any

import numpy as np

from speedysnn.kernels.adjoint_code import adjoint_all
from speedysnn.kernels.blocks import RECTANGLE, add, add_slope, adjoint, fire_and_note, gather, spread
from speedysnn.kernels.compiled import compiled
from speedysnn.kernels.neuron_code import AT_ONCE
from speedysnn.kernels.sequence import NEURON_BLOCK, block_size, period_of, total_upto
from speedysnn.kernels.vector_code import WORKS

Array = Any
HISTORY_VALUES = 65536  # numbers of a block's history


@compiled
def history(
    x: Array, first: int, m: int, neurons: int, steps: int, delay: int, constant: bool, factors: Array, lo: Any,
    hi: Any, take_back: bool, th: Array, v0: Array, total: Array, u: Array, counts: Array,
) -> None:  # pragma: no cover - compiled
    """A block's membranes before firing (steps, size) and counts before each step, the last row after the last."""
    counts[steps, :m] = 0
    seen = 0
    for t in range(1, steps + 1):
        upto = 1 if constant else min(t + delay, steps)
        total_upto(x, first, m, neurons, seen, upto, total)
        seen = upto
        fire_and_note(total, factors[t - 1], th, v0, counts[steps], lo, hi, take_back, m, u[t - 1], counts[t - 1])


@compiled
def slopes_of(
    kind: int, shape: Array, levels: Array, signed: bool, take_back: bool, u: Array, count: Array, m: int,
    slopes: Array, weighted: Array,
) -> None:  # pragma: no cover - compiled
    """Slopes of one step's spikes over all thresholds, and the same weighted by the threshold's level."""
    slopes[:m] = 0
    weighted[:m] = 0
    for n in range(1, levels.size):
        add_slope(kind, u, levels[n], shape, levels[n], count, False, m, slopes, weighted)
    if signed:
        for n in range(levels.size - 1):
            add_slope(kind, u, -levels[n], shape, -levels[n], count, False, m, slopes, weighted)
    elif take_back:
        add_slope(kind, u, levels[0], shape, levels[0], count, True, m, slopes, weighted)


@compiled
def hand_on(
    summed: Array, t: int, first: int, m: int, neurons: int, steps: int, delay: int, constant: bool, grad_x: Array
) -> None:  # pragma: no cover - compiled
    """Write the gradient of the inputs that step t was the first to see."""
    if constant:
        if t == 1:
            grad_x[first : first + m] = summed[:m]
        return
    k = min(t + delay, steps)
    begin = 0 if t == 1 else min(t - 1 + delay, steps)
    for step in range(begin, k):
        grad_x[step * neurons + first : step * neurons + first + m] = summed[:m]


@compiled
def block_back(
    x: Array, grad: Array, first: int, m: int, neurons: int, steps: int, delay: int, constant: bool, factors: Array,
    levels: Array, shape: Array, lo: Any, hi: Any, take_back: bool, signed: bool, kind: int, keep: Any, th: Array,
    v0: Array, inv: Array, total: Array, work: Array, u: Array, counts: Array, grad_x: Array, to_theta: Array,
    to_start: Array,
) -> None:  # pragma: no cover - compiled
    """A block's gradients of any kind of spikes and surrogate; what each neuron's theta and start get is added."""
    later, summed, slopes, weighted = work[0], work[1], work[2], work[3]
    history(x, first, m, neurons, steps, delay, constant, factors, lo, hi, take_back, th, v0, total, u, counts)
    work[:2, :m] = 0
    for t in range(steps, 0, -1):
        row = grad[(t - 1) * neurons + first : (t - 1) * neurons + first + m]
        before, after = counts[t - 1], counts[t]
        slopes_of(kind, shape, levels, signed, take_back, u[t - 1], before, m, slopes, weighted)
        adjoint(row, th, inv, v0, before, after, slopes, weighted, factors[t - 1], keep, m, later, summed, to_theta,
                to_start)  # fmt: skip
        hand_on(summed, t, first, m, neurons, steps, delay, constant, grad_x)


@compiled
def backward(
    flags: Any, x: Array, grad: Array, theta: Array, start: Array, inner: int, steps: int, delay: int, constant: bool,
    factors: Array, levels: Array, shape: Array, lo: Any, hi: Any, take_back: bool, signed: bool, kind: int,
    keep: Any, neurons: int, begin: int, end: int, grad_x: Array, grad_theta: Array, grad_start: Array,
) -> None:  # pragma: no cover - compiled
    """Gradients of the neurons begin..end - 1; grad_theta and grad_start are added to, in float64, one a channel."""
    period = period_of(theta, start, inner)
    size = block_size(max(64, min(NEURON_BLOCK, HISTORY_VALUES // steps)), period)
    state, work = np.empty((6, size), theta.dtype), np.empty((4, size), theta.dtype)
    th, v0, inv, total, to_theta, to_start = state[0], state[1], state[2], state[3], state[4], state[5]
    u, counts = np.empty((steps, size), theta.dtype), np.empty((steps + 1, size), theta.dtype)
    notes = np.empty(2 * steps * AT_ONCE, theta.dtype)
    simple = kind == RECTANGLE and levels.size == 2 and not signed and not take_back
    seen = 1 if constant else min(1 + delay, steps)
    alike, found = size % period == 0, np.zeros((2, size))  # a place has the same channel in every block
    for first in range(begin, end, size):
        m = min(size, end - first)
        if first == begin or not alike:
            spread(theta, first, m, inner, th)
            spread(start, first, m, inner, v0)
            for i in range(m):
                inv[i] = hi / hi / th[i]
            vectorized = m // AT_ONCE * AT_ONCE if simple and WORKS else 0
            state[4:, vectorized:m] = 0
            adjoint_all(flags, x, first, neurons, steps, seen, factors, th, v0, lo, hi, grad_x, vectorized, grad, inv,
                        shape[1], shape[2], keep, notes, to_theta, to_start)  # fmt: skip
            if vectorized < m:
                block_back(
                    x, grad, first + vectorized, m - vectorized, neurons, steps, delay, constant, factors, levels,
                    shape, lo, hi, take_back, signed, kind, keep, th[vectorized:], v0[vectorized:], inv[vectorized:],
                    total, work, u, counts, grad_x, to_theta[vectorized:], to_start[vectorized:],
                )  # fmt: skip
        if alike:
            add(to_theta, m, found[0])
            add(to_start, m, found[1])
        else:
            gather(to_theta, first, m, inner, grad_theta)
            gather(to_start, first, m, inner, grad_start)
    if alike:
        gather(found[0], begin, size, inner, grad_theta)
        gather(found[1], begin, size, inner, grad_start)
