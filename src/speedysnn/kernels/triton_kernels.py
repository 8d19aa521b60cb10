"""The kernels in Triton: the neuron's sequence and its adjoint, the quantizer and its gradients, and histograms.

Every value is rounded in the same order as in `kernels.reference`, with IEEE's division. The neuron keeps the state of
a block in registers, so that the sequence is read once and written once. The quantizer and the histograms see a tensor
as rows of `width` values in memory order. This module is imported only where Triton is installed.
"""

import triton
import triton.language as tl


@triton.jit
def within(x, low, high):  # pragma: no cover - compiled
    """Clip values to two limits; NaN stays."""
    x = tl.where(x > high, high, x)
    return tl.where(x < low, low, x)


@triton.jit
def _leading(values, double: tl.constexpr):  # pragma: no cover - compiled
    """Return the largest power of two not above each number's size, with its sign: its sign and exponent bits."""
    if double:
        kept = (values.to(tl.int64, bitcast=True) & -4503599627370496).to(tl.float64, bitcast=True)
    else:
        kept = (values.to(tl.int32, bitcast=True) & -8388608).to(tl.float32, bitcast=True)
    return kept


@triton.jit
def _nearest_power(level, count, hi, take_back: tl.constexpr, double: tl.constexpr):  # pragma: no cover - compiled
    """Return the signed power of two nearest to u - 1/2; see `numba_neuron.nearest_power`."""
    halves = tl.floor(level + level) - (count + count)
    back = halves < 0
    far = tl.where(back, 0.0 - halves, halves - 1.0)
    below = _leading(far, double)
    size = tl.where(far >= below * 1.5, below, below * 0.5)
    size = tl.where(size < 1, 1.0, size)
    size = tl.where(size > hi, hi, size)
    size = tl.where(far >= 1, size, 0.0)
    if take_back:
        sent = _leading(count, double)
        size = tl.where(back & (sent < size), sent, size)
    signed = tl.where(back, 0.0 - size, size)
    return tl.where(halves == halves, signed, halves).to(level.dtype)


@triton.jit
def _spikes(
    level, count, lo, hi, take_back: tl.constexpr, powers: tl.constexpr, double: tl.constexpr
):  # pragma: no cover - compiled
    """Return the spikes of one step; see `reference.fire`."""
    if powers:
        s = _nearest_power(level, count, hi, take_back, double)
    else:
        s = within(tl.floor(level) - count, lo, hi)
        if take_back:
            s = s - tl.where((level < count) & (count > 0), 1.0, 0.0)
    return s


@triton.jit
def divided(a, b, double: tl.constexpr):  # pragma: no cover - compiled
    """Return IEEE's quotient."""
    return a / b if double else tl.div_rn(a, b)  # plain division of float32 is approximate here


@triton.jit
def forward(
    x, theta, start, amplitude, factors, out, neurons, channels, starts, units, inner,
    steps, delay, lo, hi, constant: tl.constexpr, take_back: tl.constexpr, powers: tl.constexpr, double: tl.constexpr,
    block: tl.constexpr,
):  # pragma: no cover - compiled
    """Write A * s[t] of a block of neurons for all steps; theta has `channels` values, start `starts`, A `units`."""
    at = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    here = at < neurons
    th = tl.load(theta + (at // inner) % channels, mask=here, other=1.0)
    v0 = tl.load(start + (at // inner) % starts, mask=here, other=0.0)
    unit = tl.load(amplitude + (at // inner) % units, mask=here, other=0.0)
    total = tl.load(x + at, mask=here, other=0.0).to(th.dtype)
    count = tl.zeros_like(th)
    row = tl.zeros_like(at) + neurons
    for t in range(steps):
        if not constant:
            for step in range(tl.where(t == 0, 1, tl.minimum(t + delay, steps)), tl.minimum(t + 1 + delay, steps)):
                total += tl.load(x + step * row + at, mask=here, other=0.0).to(th.dtype)
        level = divided(total * tl.load(factors + t), th, double) + v0
        s = _spikes(level, count, lo, hi, take_back, powers, double)
        count += s
        tl.store(out + t * row + at, (s * unit).to(out.dtype.element_ty), mask=here)


@triton.jit
def _slope(m, half, inverse, kind: tl.constexpr):  # pragma: no cover - compiled
    if kind == 0:
        h = tl.where(tl.abs(m) < half, inverse, 0.0)
    elif kind == 1:
        h = tl.maximum(1 - tl.abs(m) * inverse, 0.0) * inverse
    elif kind == 2:
        p = 1 / (1 + tl.exp(-m * inverse))
        h = p * (1 - p) * inverse
    else:
        a = 3.141592653589793 * m * inverse
        h = inverse / (1 + a * a)
    return h


@triton.jit
def note(
    x, theta, start, factors, membranes, counts, neurons, channels, starts,
    inner, steps, delay, lo, hi, constant: tl.constexpr, take_back: tl.constexpr, powers: tl.constexpr,
    double: tl.constexpr, block: tl.constexpr,
):  # pragma: no cover - compiled
    """Go forward for the backward pass: write membranes before firing (steps, neurons), counts (steps + 1, neurons)."""
    at = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    here = at < neurons
    th = tl.load(theta + (at // inner) % channels, mask=here, other=1.0)
    v0 = tl.load(start + (at // inner) % starts, mask=here, other=0.0)
    total = tl.load(x + at, mask=here, other=0.0).to(th.dtype)
    count = tl.zeros_like(th)
    row = tl.zeros_like(at) + neurons
    for t in range(steps):
        if not constant:
            for step in range(tl.where(t == 0, 1, tl.minimum(t + delay, steps)), tl.minimum(t + 1 + delay, steps)):
                total += tl.load(x + step * row + at, mask=here, other=0.0).to(th.dtype)
        level = divided(total * tl.load(factors + t), th, double) + v0
        tl.store(membranes + t * row + at, level - count, mask=here)
        tl.store(counts + t * row + at, count, mask=here)
        count += _spikes(level, count, lo, hi, take_back, powers, double)
    tl.store(counts + steps * row + at, count, mask=here)


@triton.jit
def _slopes(
    u, before, half, inverse, max_spikes: tl.constexpr, kind: tl.constexpr, take_back: tl.constexpr,
    powers: tl.constexpr, signed: tl.constexpr,
):  # pragma: no cover - compiled
    """Sum the slopes over all thresholds; `powers` is how many powers of two there are, 0 for other spikes."""
    slopes, weighted = tl.zeros_like(u), tl.zeros_like(u)
    for k in tl.static_range(0, powers):
        power = 1 << k
        height = (power + 1) // 2
        first = 1.0 if k == 0 else 0.75 * power + 0.5
        up = _slope((u - first) / height, half, inverse, kind)
        down = _slope((u + first - 1.0) / height, half, inverse, kind)
        if not signed:
            down = tl.where(before >= power, down, 0.0)
        slopes += up + down
        weighted += first * up + (1.0 - first) * down
    for n in tl.static_range(1, 1 if powers > 0 else max_spikes + 1):
        h = _slope(u - n, half, inverse, kind)
        slopes += h
        weighted += n * h
    if signed and powers == 0:
        for n in tl.static_range(0, max_spikes):
            h = _slope(u + n, half, inverse, kind)
            slopes += h
            weighted -= n * h
    elif take_back and powers == 0:
        slopes += tl.where(before > 0, _slope(u, half, inverse, kind), 0.0)
    return slopes, weighted


@triton.jit
def adjoint(
    grad, theta, start, amplitude, factors, shape, membranes, counts, grad_x,
    to_theta, to_start, to_amplitude, neurons, channels, starts, units, inner, steps, delay,
    max_spikes: tl.constexpr, kind: tl.constexpr, constant: tl.constexpr, take_back: tl.constexpr,
    powers: tl.constexpr, signed: tl.constexpr, separate: tl.constexpr, block: tl.constexpr,
):  # pragma: no cover - compiled
    """Go back in time; `shape` holds half the surrogate's width, its inverse, and 0 without a reset's gradient.

    If `separate`, spikes stand for an amplitude of their own, and `to_amplitude` takes its gradient.
    """
    at = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    here = at < neurons
    th = tl.load(theta + (at // inner) % channels, mask=here, other=1.0)
    v0 = tl.load(start + (at // inner) % starts, mask=here, other=0.0)
    half, inverse, keep = tl.load(shape), tl.load(shape + 1), tl.load(shape + 2)
    row = tl.zeros_like(at) + neurons
    later, summed = tl.zeros_like(th), tl.zeros_like(th)
    theta_sum, start_sum, unit_sum, ratio = tl.zeros_like(th), tl.zeros_like(th), tl.zeros_like(th), th
    if separate:
        ratio = tl.load(amplitude + (at // inner) % units, mask=here, other=0.0) / th
    after = tl.load(counts + steps * row + at, mask=here, other=0.0)
    for back in range(steps):
        t = steps - 1 - back
        u = tl.load(membranes + t * row + at, mask=here, other=0.0)
        before = tl.load(counts + t * row + at, mask=here, other=0.0)
        g = tl.load(grad + t * row + at, mask=here, other=0.0)
        slopes, weighted = _slopes(u, before, half, inverse, max_spikes, kind, take_back, powers, signed)
        if separate:
            at_spike = g * ratio + later / th
            to_membrane = at_spike * slopes
            theta_sum += to_membrane * (v0 - before) - at_spike * weighted
            unit_sum += g * (after - before)
        else:
            at_spike = g + later / th
            to_membrane = at_spike * slopes
            theta_sum += g * (after - before) - at_spike * weighted + to_membrane * (v0 - before)
        start_sum += to_membrane * th
        later -= to_membrane * th * keep
        summed += to_membrane * tl.load(factors + t)
        after = before
        if not constant:
            first = tl.where(t == 0, 0, tl.minimum(t + delay, steps))
            for step in range(first, tl.minimum(t + 1 + delay, steps)):
                tl.store(grad_x + step * row + at, summed, mask=here)
    if constant:
        tl.store(grad_x + at, summed, mask=here)
    tl.store(to_theta + at, theta_sum, mask=here)
    tl.store(to_start + at, start_sum, mask=here)
    if separate:
        tl.store(to_amplitude + at, unit_sum, mask=here)


@triton.jit
def _count(x, theta, start, timesteps, min_count, max_count, double: tl.constexpr):  # pragma: no cover - compiled
    return within(tl.floor(divided(x * timesteps, theta, double) + start), min_count, max_count)


@triton.jit
def quantize_forward(
    z, theta, start, amplitude, out, size, width, channels, starts, units, timesteps, min_count, max_count,
    double: tl.constexpr, block: tl.constexpr,
):  # pragma: no cover - compiled
    """Write A/T clip(floor(T z / theta + v_init), min_count, max_count); column c has theta c % channels."""
    at = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    here = at < size
    th = tl.load(theta + (at % width) % channels, mask=here, other=1.0)
    v0 = tl.load(start + (at % width) % starts, mask=here, other=0.0)
    unit = tl.load(amplitude + (at % width) % units, mask=here, other=0.0)
    n = _count(tl.load(z + at, mask=here, other=0.0).to(th.dtype), th, v0, timesteps, min_count, max_count, double)
    tl.store(out + at, (n * divided(unit, timesteps, double)).to(out.dtype.element_ty), mask=here)


@triton.jit
def quantize_backward(
    grad, z, theta, start, amplitude, to_z, sums, size, width, channels, starts, units, timesteps, min_count, max_count,
    low, high, separate: tl.constexpr, double: tl.constexpr, tall: tl.constexpr, wide: tl.constexpr,
):  # pragma: no cover - compiled
    """Write the gradient of z, and to `sums` (programs, 2, width) each program's part of those of theta and v_init.

    If `separate`, it is (programs, 3, width), the last for an amplitude of its own.
    Every program adds up the same columns of the same rows in every run, so that the sums are the same.
    """
    c = tl.program_id(1).to(tl.int64) * wide + tl.arange(0, wide)
    there = c < width
    th = tl.load(theta + c % channels, mask=there, other=1.0)[None, :]
    v0 = tl.load(start + c % starts, mask=there, other=0.0)[None, :]
    per_step, gain = divided(th, timesteps, double), th
    if separate:
        gain = divided(tl.load(amplitude + c % units, mask=there, other=0.0)[None, :], th, double)
    to_theta, to_start = tl.zeros((tall, wide), th.dtype), tl.zeros((tall, wide), th.dtype)
    to_unit = tl.zeros((tall, wide), th.dtype)
    first = c * 0 + tl.program_id(0)  # in 64 bits
    rows = (size + width - 1) // width
    for tile in range(tl.program_id(0), (rows + tall - 1) // tall, tl.num_programs(0)):
        at = (tl.arange(0, tall)[:, None] + (first * 0 + tile)[None, :] * tall) * width + c[None, :]
        here = (at < size) & there[None, :]
        x = tl.load(z + at, mask=here, other=0.0).to(th.dtype)
        g = tl.load(grad + at, mask=here, other=0.0).to(th.dtype)
        ratio = divided(x, th, double)
        inside = (ratio > low) & (ratio < high)
        outside = tl.where(ratio >= high, high, low)
        n = _count(x, th, v0, timesteps, min_count, max_count, double)
        if separate:
            kept = tl.where(inside, g * gain, 0.0)
            to_theta -= tl.where(inside, kept * ratio, 0.0)
            to_unit += g * divided(n, timesteps, double)
        else:
            kept = tl.where(inside, g, 0.0)
            to_theta += g * tl.where(inside, divided(n, timesteps, double) - ratio, outside)
        to_start += kept * per_step
        tl.store(to_z + at, kept.to(to_z.dtype.element_ty), mask=here)
    row = sums + tl.program_id(0).to(tl.int64) * (3 if separate else 2) * width + c
    tl.store(row, tl.sum(to_theta, 0), mask=there)
    tl.store(row + width, tl.sum(to_start, 0), mask=there)
    if separate:
        tl.store(row + 2 * width, tl.sum(to_unit, 0), mask=there)


@triton.jit
def _count_bits(bits, here, channel, table, codes: tl.constexpr, shift: tl.constexpr):  # pragma: no cover - compiled
    code = bits >> shift
    tl.atomic_add(table + channel * codes + code, 1, mask=here & (code > 0), sem="relaxed")


@triton.jit
def _raise(bits, at, inside, peaks, axis: tl.constexpr):  # pragma: no cover - compiled
    largest = tl.max(bits, axis)
    before = tl.load(peaks + at, mask=inside, other=0)  # perhaps out of date, and then too small; it saves most writes
    tl.atomic_max(peaks + at, largest, mask=inside & (largest > before), sem="relaxed")


@triton.jit
def count_bins(
    x, table, peaks, worst, rows, width, channels, codes: tl.constexpr, shift: tl.constexpr, across: tl.constexpr,
    signed: tl.constexpr, tall: tl.constexpr, wide: tl.constexpr,
):  # pragma: no cover - compiled
    """Count a matrix (rows, width) by channel and code.

    Its columns are channels if `across`; else row r belongs to channel r % channels. `table` (channels, codes) and
    `peaks` (channels,) have as many rows more for negated values if `signed`; `worst` takes the largest magnitude's
    bits.
    """
    r = tl.program_id(0).to(tl.int64) * tall + tl.arange(0, tall)
    c = tl.program_id(1).to(tl.int64) * wide + tl.arange(0, wide)
    here = (r < rows)[:, None] & (c < width)[None, :]
    value = tl.load(x + r[:, None] * width + c[None, :], mask=here, other=0.0).to(tl.float32)
    bits = value.to(tl.int32, bitcast=True)
    if across:
        at, inside = c, c < width
        channel = at[None, :] + tl.zeros_like(bits)
    else:
        at, inside = r % channels, r < rows
        channel = at[:, None] + tl.zeros_like(bits)
    tl.atomic_max(worst, tl.max(tl.max(bits & 0x7FFFFFFF, 1), 0), sem="relaxed")
    _count_bits(bits, here, channel, table, codes, shift)
    _raise(bits, at, inside, peaks, 0 if across else 1)
    if signed:
        negated = (-value).to(tl.int32, bitcast=True)
        _count_bits(negated, here, channel + channels, table, codes, shift)
        _raise(negated, at + channels, inside, peaks, 0 if across else 1)
