"""The neuron's firing rule and the quantizer in plain torch: the definitions that every faster kernel has to equal.

`Rule` holds everything that a kernel must know beside the tensors. `multistep` simulates the neuron step by step and
defines its gradients; `count_reference`, `quantize_reference` and `gradients_reference` define the quantized reading.
Faster kernels round every value in the same order, so that their forward results are the same bit for bit.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from speedysnn.errors import InputError
from speedysnn.surrogate import SURROGATES, slope


@dataclass(frozen=True)
class Rule:
    """How a neuron fires over T steps.

    With S[k] the input summed over the first k steps, n the spikes so far and k = min(t + delay, T), the membrane in
    units of the threshold is u = (t/k) S[k] / theta + v_init - n, and s = clip(floor(u), 0, max_spikes); with
    min_spikes = -1 a neuron that has fired takes one spike back while u < 0. A signed neuron, whose value may be
    negative, emits s = clip(floor(u), -max_spikes, max_spikes) and its count may fall below zero.

    With min_spikes = -max_spikes = -2^(N-1) below -1 spikes are signed powers of two: s is the one of 0, 1, -1, 2, -2,
    4, ..., 2^(N-1) that lies nearest to u - 1/2, which u >= 1, 2, 3.5, 6.5, ... and u < 0, -1, -2.5, -5.5, ... tell
    apart; a neuron that is not signed takes no more back than it sent. Later steps make up the rest.

    Attributes:
        timesteps: T.
        delay: steps of look-ahead d, 0..T; 0 is the soft-reset integrate-and-fire neuron.
        min_spikes: 0, -1 for signed (ternary) spikes, or -max_spikes for signed powers of two.
        max_spikes: most spikes in one step; 1 is binary.
        surrogate: name of the spike derivative used in the backward pass.
        width: its width in units of theta.
        detach_reset: no gradient through the reset.
        signed: the count may be negative; spikes run from -max_spikes to max_spikes.

    Raises:
        InputError: a value that no kernel could compute with, such as `timesteps` below 1.

    Example:
        >>> from speedysnn.kernels import Rule
        >>> rule = Rule(timesteps=4, delay=1)
        >>> [rule.seen(t) for t in (1, 2, 3, 4)]  # inputs that the neuron knows at each step
        [2, 3, 4, 4]
        >>> rule.max_spikes  # binary spikes
        1
    """

    timesteps: int
    delay: int = 0
    min_spikes: int = 0
    max_spikes: int = 1
    surrogate: str = "rectangle"
    width: float = 1.0
    detach_reset: bool = False
    signed: bool = False

    def values(self) -> tuple[int | float | str | bool, ...]:
        """Return the attributes in order; written out, as torch.compile does not follow `vars` before torch 2.7."""
        return (
            self.timesteps, self.delay, self.min_spikes, self.max_spikes, self.surrogate, self.width, self.detach_reset,
            self.signed,
        )  # fmt: skip

    def __post_init__(self) -> None:
        """Raise InputError for values that no kernel could compute with."""
        if self.timesteps < 1:
            raise InputError(f"timesteps: expected at least 1, got {self.timesteps}")
        if not 0 <= self.delay <= self.timesteps:
            raise InputError(f"delay: expected 0..{self.timesteps} (T), got {self.delay}")
        if self.surrogate not in SURROGATES:
            raise InputError(f"unknown surrogate {self.surrogate!r}: expected one of {', '.join(sorted(SURROGATES))}")
        if not self.width > 0:
            raise InputError(f"surrogate width: expected a positive number, got {self.width}")
        if self.powers and (self.min_spikes != -self.max_spikes or self.max_spikes & (self.max_spikes - 1)):
            raise InputError(
                "min_spikes: expected 0, -1, or -max_spikes with max_spikes a power of two, got "
                f"{self.min_spikes} with max_spikes {self.max_spikes}"
            )

    @property
    def powers(self) -> bool:
        """Whether spikes are signed powers of two; of the alphabet 0, 1, -1 this is the ternary rule."""
        return self.min_spikes < -1

    @property
    def most_missed(self) -> int:
        """Most spikes by which T steps miss the quantizer's count although they see the whole input.

        It is 0 but for signed powers of two up to M of at least 4. A constant drive within the clip adds at most M a
        step; a rest of at most M/4 and such a drive are 5M/4 at most, of which the nearest power of two leaves at most
        M/4 again. Counts then miss by M/4 spikes of A/T each, 1/(4 T) of the full scale M A.
        """
        return self.max_spikes // 4 if self.powers else 0

    def seen(self, t: int) -> int:
        """Return k, the number of inputs that the neuron has seen when it makes its output of step t = 1..T."""
        return min(t + self.delay, self.timesteps)


def fire(level: Tensor, count: Tensor, rule: Rule) -> Tensor:
    """Compute the spikes of one step.

    The formula is floor(level) - n and not floor(level - n): whole numbers are subtracted exactly, so that a level on a
    threshold always fires.

    Args:
        level: u + n, in units of theta, with v_init added.
        count: n, the spikes so far, of the same shape.
        rule: the firing rule.

    Returns:
        The spikes, of the same shape; a new tensor.
    """
    if rule.powers:
        return _nearest_powers(torch.floor(level + level) - (count + count), count, rule)
    spikes = (torch.floor(level) - count).clamp_(-rule.max_spikes if rule.signed else 0, rule.max_spikes)
    if rule.min_spikes < 0 and not rule.signed:
        spikes = spikes - ((level < count) & (count > 0)).to(level.dtype)
    return spikes


def _nearest_powers(halves: Tensor, count: Tensor, rule: Rule) -> Tensor:
    """Return the signed power of two nearest to u - 1/2, from floor(2 u) and the spikes so far; NaN stays."""
    back = halves < 0
    far = torch.where(back, -halves, halves - 1)  # 1 at the first threshold, then 3, 6, 12, ...
    size, power = torch.zeros_like(halves), 1
    while power <= rule.max_spikes:
        reached = far >= (1 if power == 1 else 1.5 * power)
        if not rule.signed:
            reached &= ~back | (count >= power)
        size = torch.where(reached, float(power), size)
        power *= 2
    return torch.where(halves.isnan(), halves, torch.where(back, 0.0 - size, size))


def _work_dtype(drive: Tensor) -> torch.dtype:
    """Return the type that sums are kept in: the drive's, float32 at least."""
    return torch.promote_types(drive.dtype, torch.float32)


def _paced_sums(drive: Tensor, rule: Rule, constant: bool) -> Iterator[tuple[int, Tensor]]:
    """Yield t and (t/k) S[k] for t = 1..T; S[k] is summed in the order in which the inputs arrive."""
    steps = rule.timesteps
    if constant:
        for t in range(1, steps + 1):
            yield t, drive * t
        return
    inputs = drive.chunk(steps)
    total, added = inputs[0], 1
    for t in range(1, steps + 1):
        k = rule.seen(t)
        while added < k:
            total = total + inputs[added]
            added += 1
        yield t, total if k == t else total * (t / k)


def _allocate(drive: Tensor, rule: Rule, constant: bool) -> Tensor:
    """Allocate the output (T*B, ...) in the drive's memory format."""
    if not constant:
        return torch.empty_like(drive)
    shape = (rule.timesteps * drive.shape[0], *drive.shape[1:])
    channels_last = drive.ndim == 4 and drive.is_contiguous(memory_format=torch.channels_last)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return torch.empty(shape, dtype=drive.dtype, device=drive.device, memory_format=layout)


class _MultiStep(torch.autograd.Function):
    """The simulation, and its adjoint: the backward pass computes the membranes again and goes back in time."""

    @staticmethod
    def forward(
        ctx: Any, drive: Tensor, theta: Tensor, v_init: Tensor, amplitude: Tensor | None, rule: Rule, constant: bool
    ) -> Tensor:
        ctx.save_for_backward(drive, theta, v_init, amplitude)
        ctx.rule, ctx.constant = rule, constant
        dtype = _work_dtype(drive)
        th, start = theta.to(dtype), v_init.to(dtype)
        unit = th if amplitude is None else amplitude.to(dtype)
        out = _allocate(drive, rule, constant)
        if out.numel() == 0:
            return out
        slices = out.chunk(rule.timesteps)
        count: Tensor | None = None
        for t, total in _paced_sums(drive.to(dtype), rule, constant):
            level = total / th + start
            if count is None:
                count = torch.zeros_like(level)
            spikes = fire(level, count, rule)
            count = count + spikes
            slices[t - 1].copy_(spikes * unit)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return (*_adjoint(ctx.saved_tensors, grads[0], ctx.rule, ctx.constant), None, None)


def _history(drive: Tensor, theta: Tensor, v_init: Tensor, rule: Rule, constant: bool) -> list[tuple[Tensor, ...]]:
    """Return for each step the membrane before firing (units of theta), the count before the step, and its spikes."""
    steps: list[tuple[Tensor, ...]] = []
    count: Tensor | None = None
    for _, total in _paced_sums(drive, rule, constant):
        level = total / theta + v_init
        if count is None:
            count = torch.zeros_like(level)
        u = level - count
        spikes = fire(level, count, rule)
        steps.append((u, count, spikes))
        count = count + spikes
    return steps


def _spike_slopes(u: Tensor, count: Tensor, rule: Rule) -> tuple[Tensor, Tensor]:
    """Return the sum of the surrogate's slopes over all thresholds of s, and the sum weighted by the threshold's level.

    The level-th threshold lies at level * theta, so the weight is its derivative in theta.
    """
    if rule.powers:
        return _power_slopes(u, count, rule)
    first = slope(rule.surrogate, u - 1, rule.width)
    total, weighted = first, first
    for level in range(2, rule.max_spikes + 1):
        term = slope(rule.surrogate, u - level, rule.width)
        total, weighted = total + term, weighted + level * term
    if rule.signed:
        for level in range(rule.max_spikes):
            term = slope(rule.surrogate, u + level, rule.width)
            total, weighted = total + term, weighted - level * term
    elif rule.min_spikes < 0:
        total = total + torch.where(count > 0, slope(rule.surrogate, u, rule.width), torch.zeros_like(u))
    return total, weighted


def _power_slopes(u: Tensor, count: Tensor, rule: Rule) -> tuple[Tensor, Tensor]:
    """Return `_spike_slopes` of signed powers of two.

    Each jump of the staircase s(u), of height j = 1, 1, 2, 4, ... at u = 1, 2, 3.5, 6.5, ... and at 1 minus these, is
    smoothed over j times the surrogate's width: its slope is j * (1/j) h((u - level)/j). Rectangles of width 1 then lie
    side by side. A neuron that is not signed has the jump down to -p only where its count is at least p.
    """
    total, weighted, power = torch.zeros_like(u), torch.zeros_like(u), 1
    while power <= rule.max_spikes:
        height = max(1, power // 2)
        first = 1.0 if power == 1 else 0.75 * power + 0.5
        for level in (first, 1 - first):
            term = slope(rule.surrogate, (u - level) / height, rule.width)
            if level < first and not rule.signed:
                term = torch.where(count >= power, term, torch.zeros_like(u))
            total, weighted = total + term, weighted + level * term
        power *= 2
    return total, weighted


def _adjoint(
    given: tuple[Tensor, Tensor, Tensor, Tensor | None], grad: Tensor, rule: Rule, constant: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Compute the gradients of drive, theta, v_init and amplitude, which are given, by going back in time.

    With the membrane v = (t/k) S + (v_init - n) theta and the surrogate's slope h, ds = h/theta (dv - level dtheta).
    An amplitude of its own gets the sum of grad s, and theta what is left; without one theta gets both.
    """
    drive, theta, v_init, amplitude = given
    dtype = _work_dtype(drive)
    x, th, v0, g = drive.to(dtype), theta.to(dtype), v_init.to(dtype), grad.to(dtype)
    unit = th if amplitude is None else amplitude.to(dtype)
    grad_x = torch.zeros_like(x)
    if x.numel() == 0:
        zeros = (None if value is None else torch.zeros_like(value) for value in given[1:])
        return (grad_x.to(drive.dtype), *zeros)  # type: ignore[return-value]
    history = _history(x, th, v0, rule, constant)
    outputs = g.chunk(rule.timesteps)
    slices = (grad_x,) if constant else grad_x.chunk(rule.timesteps)
    later = torch.zeros_like(history[0][0])  # dL/dn from the steps after this one
    grad_theta, grad_start, grad_unit, summed = (torch.zeros_like(later) for _ in range(4))
    for t in range(rule.timesteps, 0, -1):
        u, count, spikes = history.pop()
        slopes, weighted = _spike_slopes(u, count, rule)
        at_spike = (unit * outputs[t - 1] + later) / th
        to_membrane = at_spike * slopes
        emitted = outputs[t - 1] * spikes
        grad_unit += emitted
        own = -at_spike * weighted if amplitude is not None else emitted - at_spike * weighted
        grad_theta += own + to_membrane * (v0 - count)
        grad_start += to_membrane * th
        if not rule.detach_reset:
            later = later - th * to_membrane
        k = rule.seen(t)
        summed += to_membrane * (t if constant else t / k)
        if not constant:  # the inputs that this step was the first to see
            for j in range(rule.seen(t - 1) if t > 1 else 0, k):
                slices[j].copy_(summed)
    if constant:
        grad_x = summed
    return (
        grad_x.to(drive.dtype),
        grad_theta.sum_to_size(theta.shape).to(theta.dtype),
        grad_start.sum_to_size(v_init.shape).to(v_init.dtype),
        None if amplitude is None else grad_unit.sum_to_size(amplitude.shape).to(amplitude.dtype),
    )


def multistep(
    drive: Tensor, theta: Tensor, v_init: Tensor, rule: Rule, constant: bool, amplitude: Tensor | None = None
) -> Tensor:
    """Simulate the neuron in plain torch, with gradients; arguments as in `speedysnn.kernels.multistep`."""
    out: Tensor = _MultiStep.apply(drive, theta, v_init, amplitude, rule, constant)
    return out


def count_reference(
    drive: Tensor, theta: Tensor, v_init: Tensor, timesteps: int, min_count: int, max_count: int
) -> Tensor:
    """Count the spikes in T steps of constant drive, clip(floor(T z / theta + v_init), min_count, max_count).

    Args:
        drive: z (B, ...), in the activation's unit.
        theta: thresholds in the same unit, broadcast against the drive.
        v_init: initial membrane as a fraction of theta, likewise.
        timesteps: T.
        min_count: the lowest count, 0 or -T N of signed neurons.
        max_count: the highest count, T N.

    Returns:
        Counts as whole numbers in the drive's shape, float32 at least.
    """
    dtype = torch.promote_types(drive.dtype, torch.float32)
    count = torch.floor(drive.to(dtype) * timesteps / theta.to(dtype) + v_init.to(dtype))
    return count.clamp_(min_count, max_count)


def quantize_reference(
    drive: Tensor, theta: Tensor, v_init: Tensor, timesteps: int, min_count: int, max_count: int,
    amplitude: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Quantize a drive: the count of `count_reference` times A/T, in the drive's type; A is theta if not given."""
    count = count_reference(drive, theta, v_init, timesteps, min_count, max_count)
    unit = theta if amplitude is None else amplitude
    return (count * (unit.to(count.dtype) / timesteps)).to(drive.dtype)


def gradients_reference(
    grad: Tensor, drive: Tensor, theta: Tensor, v_init: Tensor, timesteps: int, min_count: int, max_count: int,
    amplitude: Tensor | None = None,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Compute the quantizer's gradients from its output's; the other arguments are those of `quantize_reference`.

    The gradient of z passes straight through inside the clip; that of theta is the one of a learned step size. With an
    amplitude A of its own y = A n/T, and straight through the rounding dn/dz = T/theta inside the clip, so that
    dy/dz = A/theta, dy/dtheta = -(A/theta) z/theta and dy/dv_init = A/T there, 0 outside; dy/dA = n/T everywhere.

    Returns:
        Gradients of drive, theta and v_init in their shapes, and of the amplitude if one is given; without LSQ's scale.

    Reference: esser2020
    """
    dtype = torch.promote_types(drive.dtype, torch.float32)
    count = count_reference(drive, theta, v_init, timesteps, min_count, max_count)
    ratio, low, high = drive.to(dtype) / theta.to(dtype), min_count / timesteps, max_count / timesteps
    inside = (ratio > low) & (ratio < high)
    if amplitude is not None:
        kept = grad * inside * (amplitude / theta)
        to_theta = -torch.where(inside, kept * ratio, torch.zeros_like(ratio))
        found = (to_theta, kept * (theta / timesteps), grad * (count / timesteps))
        own = zip(found, (theta, v_init, amplitude), strict=True)
        return kept.to(grad.dtype), *(each.sum_to_size(value.shape).to(value.dtype) for each, value in own)
    to_theta = grad * torch.where(inside, count / timesteps - ratio, ratio.clamp(low, high))
    to_start = grad * inside * (theta / timesteps)
    sums = (to_theta.sum_to_size(theta.shape).to(theta.dtype), to_start.sum_to_size(v_init.shape).to(v_init.dtype))
    return grad * inside, *sums
