"""The quantized reading: what T steps count under constant drive, with the gradient of a learned step size."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from speedysnn.kernels import quantizer_cpu, quantizer_cuda
from speedysnn.kernels.dispatch import traced
from speedysnn.kernels.quantizer_reference import count_reference, gradients_reference, quantize_reference
from speedysnn.kernels.rule import Rule


def levels(
    drive: Tensor, theta: Tensor, v_init: Tensor, timesteps: int, max_spikes: int = 1, signed: bool = False
) -> Tensor:
    """Spikes counted in T steps of constant drive, n = clip(floor(T z / theta + v_init), 0, T N).

    Shapes: drive (B, ...), theta and v_init broadcast against it; result as drive. N = `max_spikes` spikes a step; the
    lower clip is -T N if `signed`.
    """
    max_count = timesteps * max_spikes
    return count_reference(drive, theta, v_init, timesteps, -max_count if signed else 0, max_count)


class _Quantize(torch.autograd.Function):
    """Straight-through in z, and LSQ's step gradient in theta (Esser et al. 2020) with its scale 1/sqrt(N T)."""

    @staticmethod
    def forward(
        ctx: Any,
        drive: Tensor,
        theta: Tensor,
        v_init: Tensor,
        timesteps: int,
        max_spikes: int,
        signed: bool,
        scaled: bool,
    ) -> Tensor:
        ctx.save_for_backward(drive, theta, v_init)
        ctx.timesteps, ctx.max_spikes, ctx.signed, ctx.scaled = timesteps, max_spikes, signed, scaled
        low, high = -timesteps * max_spikes if signed else 0, timesteps * max_spikes
        ctx.compiled = None if traced() else _compiled(drive, theta, v_init)
        forward = quantize_reference if ctx.compiled is None else ctx.compiled.forward
        return forward(drive, theta, v_init, timesteps, low, high)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        drive, theta, v_init = ctx.saved_tensors
        steps, grad = ctx.timesteps, grads[0]
        low, high = -steps * ctx.max_spikes if ctx.signed else 0, steps * ctx.max_spikes
        backward = gradients_reference if ctx.compiled is None else ctx.compiled.backward
        to_drive, to_theta, to_start = backward(grad, drive, theta, v_init, steps, low, high)
        scale = 1.0
        if ctx.scaled and drive.numel():
            features = drive[0].numel() / theta.numel()
            scale = 1 / math.sqrt(max(1.0, features) * steps)
        return to_drive, to_theta * scale, to_start * scale, None, None, None, None


class CompiledQuantizer(NamedTuple):
    """Compiled kernels: whether they support a call, the quantizer, and its gradients."""

    supports: Callable[[Tensor, Tensor, Tensor], bool]
    forward: Callable[[Tensor, Tensor, Tensor, int, int, int], Tensor]
    backward: Callable[[Tensor, Tensor, Tensor, Tensor, int, int, int], tuple[Tensor, Tensor, Tensor]]


COMPILED = (
    CompiledQuantizer(quantizer_cpu.supports, quantizer_cpu.forward, quantizer_cpu.backward),
    CompiledQuantizer(quantizer_cuda.supports, quantizer_cuda.forward, quantizer_cuda.backward),
)


def _compiled(drive: Tensor, theta: Tensor, v_init: Tensor) -> CompiledQuantizer | None:
    """The compiled kernels that support a call, or None."""
    return next((own for own in COMPILED if own.supports(drive, theta, v_init)), None)


def quantize(
    drive: Tensor,
    theta: Tensor,
    v_init: Tensor,
    timesteps: int,
    max_spikes: int = 1,
    *,
    signed: bool = False,
    scaled: bool = True,
) -> Tensor:
    """Q(z) = theta/T clip(floor(T z / theta + v_init), 0, T N).

    Gradients: dQ/dz = 1 for 0 < z < N theta, else 0; dQ/dtheta = n/T - z/theta inside, N above, 0 below;
    dQ/dv_init = theta/T inside. If `signed`, "inside" is -N theta < z < N theta, with -N below. With `scaled` the last
    two are multiplied by 1/sqrt(features * T).

    Shapes: drive (B, ...), theta and v_init broadcast against it; result as drive, in its unit.

    Reference: castagnetti2023, esser2020
    """
    out: Tensor = _Quantize.apply(drive, theta, v_init, timesteps, max_spikes, signed, scaled)
    return out


class _StepGradient(torch.autograd.Function):
    """The spikes as they are, with the learned step size's gradient in theta added."""

    @staticmethod
    def forward(
        ctx: Any, out: Tensor, drive: Tensor, theta: Tensor, steps: int, low: int, high: int, factor: float
    ) -> Tensor:
        ctx.save_for_backward(out, drive, theta)
        ctx.steps, ctx.low, ctx.high, ctx.factor = steps, low, high, factor
        return out.view_as(out)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        out, drive, theta = ctx.saved_tensors
        steps = ctx.steps
        to_mean = grads[0].view(steps, -1, *grads[0].shape[1:]).sum(0)
        mean = out.view(steps, -1, *out.shape[1:]).mean(0) / theta
        ratio = drive / theta
        inside = (ratio > ctx.low) & (ratio < ctx.high)
        to_theta = to_mean * torch.where(inside, mean - ratio, ratio.clamp(ctx.low, ctx.high))
        return grads[0], None, to_theta.sum_to_size(theta.shape) * ctx.factor, None, None, None, None


def step_gradient(
    out: Tensor, drive: Tensor, theta: Tensor, rule: Rule, share: float = 1.0, *, scaled: bool = True
) -> Tensor:
    """Spikes (T*B, ...) unchanged; `share` of dy/dtheta = n/T - z/theta inside, N above, 0 below, is added.

    y is the output's mean over time, n the spikes counted, z the mean drive (B, ...); with `scaled` the gradient is
    multiplied by 1/sqrt(features * T).

    Reference: esser2020
    """
    scale = share
    if scaled and drive.numel():
        scale /= math.sqrt(max(1.0, drive[0].numel() / theta.numel()) * rule.timesteps)
    low = -rule.max_spikes if rule.signed else 0
    result: Tensor = _StepGradient.apply(out, drive, theta, rule.timesteps, low, rule.max_spikes, scale)
    return result
