"""All steps of a layer, block by block, compiled with numba: `forward` and its adjoint `backward`.

Groups of neurons that fill whole vectors go through the LLVM code of `llvm_neuron` where that works; the neurons that
are left, and all of them elsewhere, go through the loops of `numba_neuron`. The adjoint computes the membranes of a
block again instead of keeping those of the forward pass. bfloat16 comes as uint16 bits. The quantizer's loops, which
read values without steps, are here too: `quantize` and `quantizer_gradients`.
"""

from typing import Any

import numpy as np

from speedysnn.kernels.jit import WORKS, compiled
from speedysnn.kernels.llvm_neuron import AT_ONCE, adjoint_all, fire_all
from speedysnn.kernels.numba_neuron import (
    RECTANGLE,
    add,
    add_slope,
    adjoint,
    fire,
    fire_and_note,
    gather,
    load,
    load_half,
    spread,
    store_half,
)

Array = Any
NEURON_BLOCK = 2048  # neurons of a block: four arrays of them fit the first-level cache
HISTORY_VALUES = 65536  # values of a block's history
QUANTIZER_BLOCK = 4096  # values that the quantizer's loops look at together


@compiled
def block_size(limit: int, period: int) -> int:  # pragma: no cover - compiled
    """Return the neurons of a block: whole periods of the thetas where they fit, so that all blocks are alike."""
    return limit // period * period if period <= limit else limit


@compiled
def period_of(theta: Array, start: Array, inner: int) -> int:  # pragma: no cover - compiled
    """Return the number of neurons after which the values of two parameters repeat."""
    channels = max(theta.size, start.size)
    return channels * inner if channels > 1 else 1


@compiled
def total_upto(
    x: Array, first: int, m: int, neurons: int, seen: int, upto: int, total: Array
) -> None:  # pragma: no cover - compiled
    """Add the inputs of steps seen..upto - 1 to the total, in the order in which they arrive."""
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
    """Add the inputs of steps seen..upto - 1 to the total where they are bfloat16; `row` is scratch memory."""
    for step in range(seen, upto):
        load_half(x[step * neurons + first : step * neurons + first + m], m, row)
        if step == 0:
            load(row, m, total)
        else:
            add(row, m, total)


@compiled
def forward(
    flags: Any, x: Array, theta: Array, start: Array, amplitude: Array, inner: int, steps: int, delay: int,
    factors: Array, lo: Any, hi: Any, input_sum: Array, neurons: int, begin: int, end: int, out: Array,
) -> None:  # pragma: no cover - compiled
    """Write A * s[t] of the neurons begin..end - 1 for all steps; `flags` are those of `llvm_neuron.CallFlags`.

    If the flag `input_sum` is set, the drive's sum over all steps is written to the array of that name.
    """
    th, v0 = np.empty(NEURON_BLOCK, theta.dtype), np.empty(NEURON_BLOCK, theta.dtype)
    constant, take_back, half = len(flags.constant) > 0, len(flags.take_back) > 0, len(flags.half) > 0
    separate, powers = len(flags.amplitude) > 0, len(flags.powers) > 0
    own = np.empty(NEURON_BLOCK if separate else 0, theta.dtype)
    am = own if separate else th
    period = max(period_of(theta, start, inner), period_of(amplitude, start, inner))
    size = block_size(NEURON_BLOCK, period)
    for first in range(begin, end, size):
        m = min(size, end - first)
        if first == begin or size % period != 0:
            spread(theta, first, m, inner, th)
            spread(start, first, m, inner, v0)
            if separate:
                spread(amplitude, first, m, inner, own)
        vectorized = m // AT_ONCE * AT_ONCE if WORKS else 0
        seen = 1 if constant else min(1 + delay, steps)
        fire_all(flags, x, first, neurons, steps, seen, factors, th, v0, lo, hi, out, vectorized, input_sum, am)
        if vectorized < m:
            forward_plain(x, first + vectorized, m - vectorized, steps, delay, constant, half, factors, lo, hi,
                          take_back, powers, th[vectorized:], v0[vectorized:], am[vectorized:], neurons, out,
                          input_sum)  # fmt: skip


@compiled
def forward_plain(
    x: Array, first: int, m: int, steps: int, delay: int, constant: bool, half: bool, factors: Array, lo: Any,
    hi: Any, take_back: bool, powers: bool, th: Array, v0: Array, am: Array, neurons: int, out: Array,
    input_sum: Array,
) -> None:  # pragma: no cover - compiled
    """Write A * s[t] of the m neurons from `first` on without vector code; `am` holds A."""
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
        fire(total, factors[t - 1], th, v0, count, lo, hi, take_back, powers, m, s)
        for i in range(m):
            s[i] = s[i] * am[i]
        if half:
            store_half(s, m, row)
        else:
            load(s, m, row)
    if input_sum.size:
        load(total, m, input_sum[first : first + m])


@compiled
def history(
    x: Array, first: int, m: int, neurons: int, steps: int, delay: int, constant: bool, factors: Array, lo: Any,
    hi: Any, take_back: bool, powers: bool, th: Array, v0: Array, total: Array, u: Array, counts: Array,
) -> None:  # pragma: no cover - compiled
    """Write a block's membranes before firing (steps, size) and counts before each step, in the last row after it."""
    counts[steps, :m] = 0
    seen = 0
    for t in range(1, steps + 1):
        upto = 1 if constant else min(t + delay, steps)
        total_upto(x, first, m, neurons, seen, upto, total)
        seen = upto
        fire_and_note(total, factors[t - 1], th, v0, counts[steps], lo, hi, take_back, powers, m, u[t - 1],
                      counts[t - 1])  # fmt: skip


@compiled
def slopes_of(
    kind: int, shape: Array, levels: Array, signed: bool, take_back: bool, powers: bool, u: Array, count: Array, m: int,
    slopes: Array, weighted: Array,
) -> None:  # pragma: no cover - compiled
    """Write the sum of a step's slopes over all thresholds, and that weighted by the threshold's level."""
    slopes[:m] = 0
    weighted[:m] = 0
    zero, one = levels[0], levels[1]
    if powers:
        n = 1
        while n < levels.size:
            at, least = levels[n] - (levels[n] / levels[2] - one) / levels[2], zero if signed else levels[n]
            at, scale = one if n == 1 else at, one / levels[max(1, n // 2)]  # one over the jump's height
            add_slope(kind, u, at, scale, shape, count, zero, m, slopes, weighted)
            add_slope(kind, u, one - at, scale, shape, count, least, m, slopes, weighted)
            n *= 2
        return
    for n in range(1, levels.size):
        add_slope(kind, u, levels[n], one, shape, count, zero, m, slopes, weighted)
    if signed:
        for n in range(levels.size - 1):
            add_slope(kind, u, -levels[n], one, shape, count, zero, m, slopes, weighted)
    elif take_back:
        add_slope(kind, u, zero, one, shape, count, one, m, slopes, weighted)


@compiled
def write_input_gradient(
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
    levels: Array, shape: Array, lo: Any, hi: Any, take_back: bool, powers: bool, signed: bool, kind: int, keep: Any,
    th: Array, v0: Array, inv: Array, total: Array, work: Array, u: Array, counts: Array, grad_x: Array,
    to_theta: Array, to_start: Array, separate: bool, ratio: Array, to_amplitude: Array,
) -> None:  # pragma: no cover - compiled
    """Compute a block's gradients without vector code, for any kind of spikes and surrogate.

    The gradients of each neuron's theta and v_init are added to `to_theta` and `to_start`, and if `separate` that of an
    amplitude of its own, whose quotient by theta is `ratio`, to `to_amplitude`.
    """
    later, summed, slopes, weighted = work[0], work[1], work[2], work[3]
    history(x, first, m, neurons, steps, delay, constant, factors, lo, hi, take_back, powers, th, v0, total, u, counts)
    work[:2, :m] = 0
    for t in range(steps, 0, -1):
        row = grad[(t - 1) * neurons + first : (t - 1) * neurons + first + m]
        before, after = counts[t - 1], counts[t]
        slopes_of(kind, shape, levels, signed, take_back, powers, u[t - 1], before, m, slopes, weighted)
        adjoint(row, th, inv, v0, before, after, slopes, weighted, factors[t - 1], keep, m, later, summed, to_theta,
                to_start, separate, ratio, to_amplitude)  # fmt: skip
        write_input_gradient(summed, t, first, m, neurons, steps, delay, constant, grad_x)


@compiled
def spread_quotients(
    amplitude: Array, first: int, m: int, inner: int, th: Array, out: Array
) -> None:  # pragma: no cover - compiled
    """Write the quotient of each neuron's amplitude by its theta for the m neurons from `first` on."""
    spread(amplitude, first, m, inner, out)
    for i in range(m):
        out[i] = out[i] / th[i]


@compiled
def backward(
    flags: Any, x: Array, grad: Array, theta: Array, start: Array, amplitude: Array, inner: int, steps: int, delay: int,
    constant: bool, factors: Array, levels: Array, shape: Array, lo: Any, hi: Any, take_back: bool, signed: bool,
    kind: int, keep: Any, neurons: int, begin: int, end: int, grad_x: Array, grad_theta: Array, grad_start: Array,
    grad_amplitude: Array,
) -> None:  # pragma: no cover - compiled
    """Write the gradient of the drive for the neurons begin..end - 1.

    Those of theta, v_init and amplitude are added to the last three arrays, one float64 value a channel.
    """
    separate, powers = len(flags.amplitude) > 0, len(flags.powers) > 0
    period = max(period_of(theta, start, inner), period_of(amplitude, start, inner))
    size = block_size(max(64, min(NEURON_BLOCK, HISTORY_VALUES // steps)), period)
    state, work = np.empty((8, size), theta.dtype), np.empty((4, size), theta.dtype)
    th, v0, inv, total, to_theta, to_start = state[0], state[1], state[2], state[3], state[4], state[5]
    to_amplitude, ratio = state[6], state[7]
    u, counts = np.empty((steps, size), theta.dtype), np.empty((steps + 1, size), theta.dtype)
    notes = np.empty(2 * steps * AT_ONCE, theta.dtype)
    simple = kind == RECTANGLE and levels.size == 2 and not signed and not take_back and not powers
    seen = 1 if constant else min(1 + delay, steps)
    alike, found = size % period == 0, np.zeros((3, size))  # position i has the same channel in every block
    for first in range(begin, end, size):
        m = min(size, end - first)
        if first == begin or not alike:
            spread(theta, first, m, inner, th)
            spread(start, first, m, inner, v0)
            for i in range(m):
                inv[i] = hi / hi / th[i]
            if separate:
                spread_quotients(amplitude, first, m, inner, th, ratio)
        vectorized = m // AT_ONCE * AT_ONCE if simple and WORKS else 0
        state[4:7, vectorized:m] = 0
        adjoint_all(flags, x, first, neurons, steps, seen, factors, th, v0, lo, hi, grad_x, vectorized, grad, inv,
                    shape[1], shape[2], keep, notes, to_theta, to_start, ratio, to_amplitude)  # fmt: skip
        if vectorized < m:
            block_back(
                x, grad, first + vectorized, m - vectorized, neurons, steps, delay, constant, factors, levels,
                shape, lo, hi, take_back, powers, signed, kind, keep, th[vectorized:], v0[vectorized:],
                inv[vectorized:], total, work, u, counts, grad_x, to_theta[vectorized:], to_start[vectorized:],
                separate, ratio[vectorized:], to_amplitude[vectorized:],
            )  # fmt: skip
        if alike:
            add(to_theta, m, found[0])
            add(to_start, m, found[1])
            if separate:
                add(to_amplitude, m, found[2])
        else:
            gather(to_theta, first, m, inner, grad_theta)
            gather(to_start, first, m, inner, grad_start)
            if separate:
                gather(to_amplitude, first, m, inner, grad_amplitude)
    if alike:
        gather(found[0], begin, size, inner, grad_theta)
        gather(found[1], begin, size, inner, grad_start)
        gather(found[2], begin, size, inner, grad_amplitude)


@compiled
def quantize(
    z: Array, theta: Array, v_init: Array, amplitude: Array, separate: bool, inner: int, timesteps: Any,
    min_count: Any, max_count: Any, begin: int, end: int, out: Array,
) -> None:  # pragma: no cover - compiled
    """Quantize the values begin..end - 1; see `reference.quantize_reference`. `amplitude` is read if `separate`."""
    th, v0 = np.empty(QUANTIZER_BLOCK, z.dtype), np.empty(QUANTIZER_BLOCK, z.dtype)
    step = np.empty(QUANTIZER_BLOCK, z.dtype)
    period = max(period_of(theta, v_init, inner), period_of(amplitude, v_init, inner))
    size = block_size(QUANTIZER_BLOCK, period)
    for first in range(begin, end, size):
        m = min(size, end - first)
        if first == begin or size % period != 0:
            spread(theta, first, m, inner, th)
            spread(v_init, first, m, inner, v0)
            if separate:
                spread(amplitude, first, m, inner, step)
            unit = step if separate else th
            for i in range(m):
                step[i] = unit[i] / timesteps
        own, result = z[first : first + m], out[first : first + m]
        for i in range(m):  # an index from 0 on is never negative, so that the loop is vectorized
            n = np.floor(own[i] * timesteps / th[i] + v0[i])
            n = min_count if n < min_count else n
            n = max_count if n > max_count else n
            result[i] = n * step[i]


@compiled
def quantizer_gradients(
    z: Array, g: Array, theta: Array, v_init: Array, amplitude: Array, separate: bool, inner: int, timesteps: Any,
    min_count: Any, max_count: Any, begin: int, end: int, out: Array, to_theta: Array, to_start: Array,
    to_amplitude: Array,
) -> None:  # pragma: no cover - compiled
    """Write the gradient of the values begin..end - 1, and add those of the parameters to their channels' sums."""
    th, v0 = np.empty(QUANTIZER_BLOCK, z.dtype), np.empty(QUANTIZER_BLOCK, z.dtype)
    gain = np.empty(QUANTIZER_BLOCK if separate else 0, z.dtype)  # amplitude over theta
    a, b, c = np.zeros(QUANTIZER_BLOCK), np.zeros(QUANTIZER_BLOCK), np.zeros(gain.size)
    zero, low, high = max_count - max_count, min_count / timesteps, max_count / timesteps
    period = max(period_of(theta, v_init, inner), period_of(amplitude, v_init, inner))
    size = block_size(QUANTIZER_BLOCK, period)
    alike = size % period == 0  # position i has the same channel in every block
    for first in range(begin, end, size):
        m = min(size, end - first)
        if first == begin or not alike:
            spread(theta, first, m, inner, th)
            spread(v_init, first, m, inner, v0)
            if separate:
                spread_quotients(amplitude, first, m, inner, th, gain)
        own, given, result = z[first : first + m], g[first : first + m], out[first : first + m]
        if separate:
            add_separate(own, given, result, th, v0, gain, timesteps, min_count, max_count, a, b, c)
        else:
            for i in range(m):
                x, grad = own[i], given[i]
                ratio = x / th[i]
                n = np.floor(x * timesteps / th[i] + v0[i])
                n = min_count if n < min_count else n
                n = max_count if n > max_count else n
                inside = (ratio > low) & (ratio < high)
                outside = high if ratio >= high else low
                a[i] += grad * (n / timesteps - ratio if inside else outside)
                kept = grad if inside else zero
                result[i] = kept
                b[i] += kept * (th[i] / timesteps)
        if not alike:
            gather(a, first, m, inner, to_theta)
            gather(b, first, m, inner, to_start)
            a[:], b[:] = 0, 0
            if separate:
                gather(c, first, m, inner, to_amplitude)
                c[:] = 0
    if alike:
        gather(a, begin, size, inner, to_theta)
        gather(b, begin, size, inner, to_start)
        if separate:
            gather(c, begin, size, inner, to_amplitude)


@compiled
def add_separate(
    own: Array, given: Array, result: Array, th: Array, v0: Array, gain: Array, timesteps: Any, min_count: Any,
    max_count: Any, a: Array, b: Array, c: Array,
) -> None:  # pragma: no cover - compiled
    """Write a block's gradients of z, and add those of theta, v_init and an amplitude of its own to a, b and c."""
    zero, low, high = max_count - max_count, min_count / timesteps, max_count / timesteps
    for i in range(own.size):
        x, grad = own[i], given[i]
        ratio = x / th[i]
        n = np.floor(x * timesteps / th[i] + v0[i])
        n = min_count if n < min_count else n
        n = max_count if n > max_count else n
        kept = grad * gain[i] if (ratio > low) & (ratio < high) else zero
        result[i] = kept
        a[i] -= kept * ratio if kept != zero else zero
        b[i] += kept * (th[i] / timesteps)
        c[i] += grad * (n / timesteps)
