"""The quantized reading: what T steps count under constant drive, with the gradient of a learned step size."""

import math
from typing import Any

import torch
from torch import Tensor


def levels(
    drive: Tensor, theta: Tensor, v_init: Tensor, timesteps: int, highest: int = 1, signed: bool = False
) -> Tensor:
    """Spikes counted in T steps of constant drive, n = clip(floor(T z / theta + v_init), 0, T N).

    Shapes: drive (B, ...), theta and v_init broadcast against it; result as drive. N = `highest` spikes a step; the
    lower clip is -T N if `signed`.
    """
    dtype = torch.promote_types(drive.dtype, torch.float32)
    scaled = drive.to(dtype) * timesteps / theta.to(dtype) + v_init.to(dtype)
    return torch.floor(scaled).clamp_(-timesteps * highest if signed else 0, timesteps * highest)


class _Quantize(torch.autograd.Function):
    """Straight-through in z, and LSQ's step gradient in theta (Esser et al. 2020) with its scale 1/sqrt(N T)."""

    @staticmethod
    def forward(
        ctx: Any,
        drive: Tensor,
        theta: Tensor,
        v_init: Tensor,
        timesteps: int,
        highest: int,
        signed: bool,
        scaled: bool,
    ) -> Tensor:
        ctx.save_for_backward(drive, theta, v_init)
        ctx.timesteps, ctx.highest, ctx.signed, ctx.scaled = timesteps, highest, signed, scaled
        count = levels(drive, theta, v_init, timesteps, highest, signed)
        return (count * (theta.to(count.dtype) / timesteps)).to(drive.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        drive, theta, v_init = ctx.saved_tensors
        steps, highest, grad = ctx.timesteps, ctx.highest, grads[0]
        count = levels(drive, theta, v_init, steps, highest, ctx.signed)
        ratio = drive.to(count.dtype) / theta.to(count.dtype)
        least = -highest if ctx.signed else 0
        inside = (ratio > least) & (ratio < highest)
        to_theta = grad * torch.where(inside, count / steps - ratio, ratio.clamp(least, highest))
        to_start = grad * inside * (theta / steps)
        scale = 1.0
        if ctx.scaled and drive.numel():
            features = drive[0].numel() / theta.numel()
            scale = 1 / math.sqrt(max(1.0, features) * steps)
        return (
            grad * inside,
            to_theta.sum_to_size(theta.shape).to(theta.dtype) * scale,
            to_start.sum_to_size(v_init.shape).to(v_init.dtype) * scale,
            None,
            None,
            None,
            None,
        )


def quantize(
    drive: Tensor,
    theta: Tensor,
    v_init: Tensor,
    timesteps: int,
    highest: int = 1,
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
    out: Tensor = _Quantize.apply(drive, theta, v_init, timesteps, highest, signed, scaled)
    return out
