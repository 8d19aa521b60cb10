"""Inner loops of the neuron over one block of neurons, compiled with numba; `kernels.reference` defines their results.

The state of a block stays in small arrays that the nearest cache holds, so that the sequence is read once and written
once. Values are rounded in the same order as in the reference, so that results agree bit for bit. A function whose name
ends in `_half` takes bfloat16 as uint16, the upper half of a float32's bits.
"""

from typing import Any

import numpy as np

from speedysnn.kernels.jit import compiled

Array = Any
RECTANGLE, TRIANGLE, SIGMOID, ATAN = range(4)  # surrogates, as the kernels know them


@compiled
def spread(values: Array, first: int, m: int, inner: int, out: Array) -> None:  # pragma: no cover - compiled
    """Write the value of each neuron's channel for the m neurons from `first` on."""
    channels = values.size
    if channels == 1:
        out[:m] = values[0]
    elif inner == 1:
        c, done = first % channels, 0
        while done < m:  # row by row of channels, so that the inner loop has no branch
            run = min(channels - c, m - done)
            for i in range(run):
                out[done + i] = values[c + i]
            done, c = done + run, 0
    else:
        done = 0
        while done < m:
            run = (first + done) // inner
            stop = min(m, (run + 1) * inner - first)
            out[done:stop] = values[run % channels]
            done = stop


@compiled
def gather(grad: Array, first: int, m: int, inner: int, out: Array) -> None:  # pragma: no cover - compiled
    """Add the values of the m neurons from `first` on to their channels' sums."""
    channels = out.size
    if inner == 1 and channels > 1:
        c, done = first % channels, 0
        while done < m:  # row by row of channels, so that the inner loop has no branch
            run = min(channels - c, m - done)
            for i in range(run):
                out[c + i] += grad[done + i]
            done, c = done + run, 0
        return
    done = 0
    while done < m:
        run = (first + done) // inner
        stop = m if channels == 1 else min(m, (run + 1) * inner - first)
        total = 0.0
        for i in range(done, stop):
            total += grad[i]
        out[run % channels] += total
        done = stop


@compiled
def load(x: Array, m: int, out: Array) -> None:  # pragma: no cover - compiled
    """Copy m values."""
    for i in range(m):
        out[i] = x[i]


@compiled
def load_half(x: Array, m: int, out: Array) -> None:  # pragma: no cover - compiled
    """Copy m values of bfloat16 to float32."""
    bits = out.view(np.uint32)
    for i in range(m):
        bits[i] = np.uint32(x[i]) << np.uint32(16)


@compiled
def add(x: Array, m: int, out: Array) -> None:  # pragma: no cover - compiled
    """Add m values."""
    for i in range(m):
        out[i] += x[i]


@compiled
def to_half(bits: Any) -> Any:  # pragma: no cover - compiled
    """Return 32 bits whose upper half is a float32's bfloat16, ties to even; without the cast they would become 64."""
    return np.uint32(bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1)))


@compiled
def store_half(values: Array, m: int, out: Array) -> None:  # pragma: no cover - compiled
    """Copy m values of float32 to bfloat16, ties to even; NaN stays NaN."""
    bits = values.view(np.uint32)
    for i in range(m):
        rounded = to_half(bits[i]) >> np.uint32(16)
        out[i] = np.uint16(0x7FC0) if values[i] != values[i] else np.uint16(rounded)


@compiled
def nearest_power(halves: Any, count: Any, most: Any, bounded: bool) -> Any:  # pragma: no cover - compiled
    """Return the signed power of two nearest to u - 1/2, from floor(2 u) and the spikes so far.

    If `bounded`, no more is taken back than was sent.
    """
    one = most / most
    back = halves < one - one
    far = -halves if back else halves - one  # 1 at the first threshold, then 3, 6, 12, ...
    limit = count if back & bounded & (count < most) else most
    size, power, threshold = one - one, one, one
    while (far >= threshold) & (power <= limit):
        size, power = power, power + power
        threshold = power + size
    size = one - one - size if back else size
    return halves if halves != halves else size


@compiled
def fire(
    total: Array, factor: Any, th: Array, v0: Array, count: Array, lo: Any, hi: Any, take_back: bool, powers: bool,
    m: int, s: Array,
) -> None:  # pragma: no cover - compiled
    """Write the spikes of one step and add them to the counts."""
    one, zero = hi / hi, hi - hi
    if powers:
        for i in range(m):
            level = total[i] * factor / th[i] + v0[i]
            s[i] = nearest_power(np.floor(level + level) - (count[i] + count[i]), count[i], hi, take_back)
            count[i] += s[i]
        return
    for i in range(m):
        level = total[i] * factor / th[i] + v0[i]
        spikes = np.floor(level) - count[i]
        spikes = hi if spikes > hi else spikes
        spikes = lo if spikes < lo else spikes
        if take_back:
            spikes -= one if (level < count[i]) & (count[i] > zero) else zero
        count[i] += spikes
        s[i] = spikes


@compiled
def fire_and_note(
    total: Array, factor: Any, th: Array, v0: Array, count: Array, lo: Any, hi: Any, take_back: bool, powers: bool,
    m: int, u: Array, before: Array,
) -> None:  # pragma: no cover - compiled
    """Fire for the backward pass: write the membrane and count before the step, add its spikes to the counts."""
    one, zero = hi / hi, hi - hi
    if powers:
        for i in range(m):
            level = total[i] * factor / th[i] + v0[i]
            u[i] = level - count[i]
            before[i] = count[i]
            count[i] += nearest_power(np.floor(level + level) - (count[i] + count[i]), count[i], hi, take_back)
        return
    for i in range(m):
        level = total[i] * factor / th[i] + v0[i]
        spikes = np.floor(level) - count[i]
        spikes = hi if spikes > hi else spikes
        spikes = lo if spikes < lo else spikes
        if take_back:
            spikes -= one if (level < count[i]) & (count[i] > zero) else zero
        u[i] = level - count[i]
        before[i] = count[i]
        count[i] += spikes


@compiled
def add_slope(
    kind: int, u: Array, at: Any, scale: Any, shape: Array, count: Array, least: Any, m: int, total: Array,
    weighted: Array,
) -> None:  # pragma: no cover - compiled
    """Add a surrogate's slope at scale (u - at) to `total` and `at` times it to `weighted`; if `least` is above 0,
    only where the count is at least that.
    """
    half, inverse, pi = shape[1], shape[2], shape[3]
    one, zero = inverse / inverse, inverse - inverse
    for i in range(m):
        x = (u[i] - at) * scale
        if kind == RECTANGLE:
            h = inverse if abs(x) < half else zero
        elif kind == TRIANGLE:
            h = max(one - abs(x) * inverse, zero) * inverse
        elif kind == SIGMOID:
            p = one / (one + np.exp(-x * inverse))
            h = p * (one - p) * inverse
        else:
            a = pi * x * inverse
            h = inverse / (one + a * a)
        if least > zero:
            h = h if count[i] >= least else zero
        total[i] += h
        weighted[i] += at * h


@compiled
def adjoint(
    g: Array, th: Array, inv: Array, v0: Array, count: Array, after: Array, slopes: Array, weighted: Array, factor: Any,
    keep: Any, m: int, later: Array, summed: Array, to_theta: Array, to_start: Array, separate: bool, ratio: Array,
    to_amplitude: Array,
) -> None:  # pragma: no cover - compiled
    """Go back one step; see `reference._adjoint`. `inv` holds 1/theta; `keep` is 0 without a gradient through the
    reset, else 1. If `separate`, spikes stand for an amplitude of their own, whose quotient by theta is `ratio`.
    """
    if separate:
        for i in range(m):
            at_spike = g[i] * ratio[i] + later[i] * inv[i]
            to_membrane = at_spike * slopes[i]
            to_amplitude[i] += g[i] * (after[i] - count[i])
            to_theta[i] += to_membrane * (v0[i] - count[i]) - at_spike * weighted[i]
            to_start[i] += to_membrane * th[i]
            summed[i] += to_membrane * factor
            later[i] -= to_membrane * th[i] * keep
        return
    for i in range(m):
        at_spike = g[i] + later[i] * inv[i]
        to_membrane = at_spike * slopes[i]
        spikes = after[i] - count[i]
        to_theta[i] += g[i] * spikes - at_spike * weighted[i] + to_membrane * (v0[i] - count[i])
        to_start[i] += to_membrane * th[i]
        summed[i] += to_membrane * factor
        later[i] -= to_membrane * th[i] * keep
