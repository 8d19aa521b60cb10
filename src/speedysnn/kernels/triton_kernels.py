"""The neuron's sequence in Triton: the state of a block of neurons in registers, one read and one write of memory.

Every value is rounded in the same order as in `reference`; divisions are IEEE's. Imported only where Triton is there.
"""

import triton
import triton.language as tl


@triton.jit
def within(x, low, high):  # pragma: no cover - compiled
    """Every value between two limits; NaN stays."""
    x = tl.where(x > high, high, x)
    return tl.where(x < low, low, x)


@triton.jit
def _spikes(level, count, lo, hi, take_back: tl.constexpr):  # pragma: no cover - compiled
    s = within(tl.floor(level) - count, lo, hi)
    if take_back:
        s = s - tl.where((level < count) & (count > 0), 1.0, 0.0)
    return s


@triton.jit
def divided(a, b, double: tl.constexpr):  # pragma: no cover - compiled
    """IEEE's quotient."""
    return a / b if double else tl.div_rn(a, b)  # plain division of float32 is approximate here


@triton.jit
def forward(
    x, theta, start, factors, out, neurons, channels, starts, inner,
    steps, delay, lo, hi, constant: tl.constexpr, take_back: tl.constexpr, double: tl.constexpr,
    block: tl.constexpr,
):  # pragma: no cover - compiled
    """Theta * s[t] of a block of neurons, all steps; `channels` and `starts` count the values of theta and start."""
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
        s = _spikes(level, count, lo, hi, take_back)
        count += s
        tl.store(out + t * row + at, (s * th).to(out.dtype.element_ty), mask=here)


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
    inner, steps, delay, lo, hi, constant: tl.constexpr, take_back: tl.constexpr,
    double: tl.constexpr, block: tl.constexpr,
):  # pragma: no cover - compiled
    """Forward sweep of the backward pass: membranes before firing (steps, neurons), counts (steps + 1, neurons)."""
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
        count += _spikes(level, count, lo, hi, take_back)
    tl.store(counts + steps * row + at, count, mask=here)


@triton.jit
def _slopes(
    u, before, half, inverse, max_spikes: tl.constexpr, kind: tl.constexpr, take_back: tl.constexpr,
    signed: tl.constexpr,
):  # pragma: no cover - compiled
    slopes, weighted = tl.zeros_like(u), tl.zeros_like(u)
    for n in tl.static_range(1, max_spikes + 1):
        h = _slope(u - n, half, inverse, kind)
        slopes += h
        weighted += n * h
    if signed:
        for n in tl.static_range(0, max_spikes):
            h = _slope(u + n, half, inverse, kind)
            slopes += h
            weighted -= n * h
    elif take_back:
        slopes += tl.where(before > 0, _slope(u, half, inverse, kind), 0.0)
    return slopes, weighted


@triton.jit
def adjoint(
    grad, theta, start, factors, shape, membranes, counts, grad_x,
    to_theta, to_start, neurons, channels, starts, inner, steps, delay,
    max_spikes: tl.constexpr, kind: tl.constexpr, constant: tl.constexpr, take_back: tl.constexpr, signed: tl.constexpr,
    block: tl.constexpr,
):  # pragma: no cover - compiled
    """Reverse sweep; `shape` holds half the surrogate's width, its inverse, and 0 without a gradient of the reset."""
    at = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    here = at < neurons
    th = tl.load(theta + (at // inner) % channels, mask=here, other=1.0)
    v0 = tl.load(start + (at // inner) % starts, mask=here, other=0.0)
    half, inverse, keep = tl.load(shape), tl.load(shape + 1), tl.load(shape + 2)
    row = tl.zeros_like(at) + neurons
    later, summed = tl.zeros_like(th), tl.zeros_like(th)
    theta_sum, start_sum = tl.zeros_like(th), tl.zeros_like(th)
    after = tl.load(counts + steps * row + at, mask=here, other=0.0)
    for back in range(steps):
        t = steps - 1 - back
        u = tl.load(membranes + t * row + at, mask=here, other=0.0)
        before = tl.load(counts + t * row + at, mask=here, other=0.0)
        g = tl.load(grad + t * row + at, mask=here, other=0.0)
        slopes, weighted = _slopes(u, before, half, inverse, max_spikes, kind, take_back, signed)
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
