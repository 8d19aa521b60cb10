"""The multi-step neuron in plain torch: the definition that every faster backend is held equal to."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from speedysnn.kernels.rule import Rule
from speedysnn.surrogate import slope


def fire(level: Tensor, count: Tensor, rule: Rule) -> Tensor:
    """Spikes of one step from the level u + n (units of theta, v_init included) and the spikes so far, n.

    floor(level) - n, not floor(level - n): whole numbers are subtracted exactly, so no tie is lost in rounding.
    """
    spikes = (torch.floor(level) - count).clamp_(-rule.max_spikes if rule.signed else 0, rule.max_spikes)
    if rule.min_spikes < 0 and not rule.signed:
        spikes = spikes - ((level < count) & (count > 0)).to(level.dtype)
    return spikes


def _work_dtype(drive: Tensor) -> torch.dtype:
    return torch.promote_types(drive.dtype, torch.float32)


def _paced_sums(drive: Tensor, rule: Rule, constant: bool) -> Iterator[tuple[int, Tensor]]:
    """For t = 1..T: t and (t/k) S[k], summed in the order in which the inputs arrive."""
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
    if not constant:
        return torch.empty_like(drive)
    shape = (rule.timesteps * drive.shape[0], *drive.shape[1:])
    channels_last = drive.ndim == 4 and drive.is_contiguous(memory_format=torch.channels_last)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return torch.empty(shape, dtype=drive.dtype, device=drive.device, memory_format=layout)


class _MultiStep(torch.autograd.Function):
    """Forward by simulation; backward recomputes the membranes and runs the adjoint in reverse time."""

    @staticmethod
    def forward(ctx: Any, drive: Tensor, theta: Tensor, v_init: Tensor, rule: Rule, constant: bool) -> Tensor:
        ctx.save_for_backward(drive, theta, v_init)
        ctx.rule, ctx.constant = rule, constant
        dtype = _work_dtype(drive)
        amplitude, start = theta.to(dtype), v_init.to(dtype)
        out = _allocate(drive, rule, constant)
        if out.numel() == 0:
            return out
        slices = out.chunk(rule.timesteps)
        count: Tensor | None = None
        for t, total in _paced_sums(drive.to(dtype), rule, constant):
            level = total / amplitude + start
            if count is None:
                count = torch.zeros_like(level)
            spikes = fire(level, count, rule)
            count = count + spikes
            slices[t - 1].copy_(spikes * amplitude)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        drive, theta, v_init = ctx.saved_tensors
        return (*_adjoint(drive, theta, v_init, grads[0], ctx.rule, ctx.constant), None, None)


def _history(drive: Tensor, theta: Tensor, v_init: Tensor, rule: Rule, constant: bool) -> list[tuple[Tensor, ...]]:
    """Per step: membrane before firing (units of theta), spikes before the step, spikes of the step."""
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
    """Slopes of s at its thresholds, and the same weighted by the threshold's level (its share of theta)."""
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


def _adjoint(
    drive: Tensor, theta: Tensor, v_init: Tensor, grad: Tensor, rule: Rule, constant: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of drive, theta and v_init: ds = h(m)/theta (dv - level dtheta), v = a S + (v_init - n) theta."""
    dtype = _work_dtype(drive)
    x, th, v0, g = drive.to(dtype), theta.to(dtype), v_init.to(dtype), grad.to(dtype)
    grad_x = torch.zeros_like(x)
    if x.numel() == 0:
        return grad_x.to(drive.dtype), torch.zeros_like(theta), torch.zeros_like(v_init)
    history = _history(x, th, v0, rule, constant)
    outputs = g.chunk(rule.timesteps)
    slices = (grad_x,) if constant else grad_x.chunk(rule.timesteps)
    later = torch.zeros_like(history[0][0])  # dL/dn from the steps after this one
    grad_theta, grad_start, summed = torch.zeros_like(later), torch.zeros_like(later), torch.zeros_like(later)
    for t in range(rule.timesteps, 0, -1):
        u, count, spikes = history.pop()
        slopes, weighted = _spike_slopes(u, count, rule)
        at_spike = (th * outputs[t - 1] + later) / th
        to_membrane = at_spike * slopes
        grad_theta += outputs[t - 1] * spikes - at_spike * weighted + to_membrane * (v0 - count)
        grad_start += to_membrane * th
        if not rule.detach_reset:
            later = later - th * to_membrane
        k = rule.seen(t)
        summed += to_membrane * (t if constant else t / k)
        if constant:
            continue
        if t == 1:
            for j in range(k):
                slices[j].copy_(summed)
        elif rule.seen(t - 1) < k:
            slices[k - 1].copy_(summed)
    if constant:
        grad_x = summed
    return (
        grad_x.to(drive.dtype),
        grad_theta.sum_to_size(theta.shape).to(theta.dtype),
        grad_start.sum_to_size(v_init.shape).to(v_init.dtype),
    )


def multistep(drive: Tensor, theta: Tensor, v_init: Tensor, rule: Rule, constant: bool) -> Tensor:
    """The reference backend; see `speedysnn.kernels.multistep`."""
    out: Tensor = _MultiStep.apply(drive, theta, v_init, rule, constant)
    return out
