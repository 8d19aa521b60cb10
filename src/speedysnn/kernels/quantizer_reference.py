"""The quantized reading in plain torch: the definition that the compiled kernels are held equal to."""

import torch
from torch import Tensor


def count_reference(
    drive: Tensor, theta: Tensor, v_init: Tensor, timesteps: int, min_count: int, max_count: int
) -> Tensor:
    """Spikes counted in T steps of constant drive, clip(floor(T z / theta + v_init), min_count, max_count).

    Shapes: drive (B, ...), theta and v_init broadcast against it; result as drive, float32 at least.
    """
    dtype = torch.promote_types(drive.dtype, torch.float32)
    count = torch.floor(drive.to(dtype) * timesteps / theta.to(dtype) + v_init.to(dtype))
    return count.clamp_(min_count, max_count)


def quantize_reference(
    drive: Tensor, theta: Tensor, v_init: Tensor, timesteps: int, min_count: int, max_count: int
) -> Tensor:
    """The count of `count_reference` times theta/T, in the drive's type."""
    count = count_reference(drive, theta, v_init, timesteps, min_count, max_count)
    return (count * (theta.to(count.dtype) / timesteps)).to(drive.dtype)


def gradients_reference(
    grad: Tensor, drive: Tensor, theta: Tensor, v_init: Tensor, timesteps: int, min_count: int, max_count: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of drive, theta and v_init from the output's, the last two in the parameters' shapes, not yet scaled.

    Straight through inside the clip, and the step gradient of a learned step size.

    Reference: esser2020
    """
    dtype = torch.promote_types(drive.dtype, torch.float32)
    count = count_reference(drive, theta, v_init, timesteps, min_count, max_count)
    ratio, low, high = drive.to(dtype) / theta.to(dtype), min_count / timesteps, max_count / timesteps
    inside = (ratio > low) & (ratio < high)
    to_theta = grad * torch.where(inside, count / timesteps - ratio, ratio.clamp(low, high))
    to_start = grad * inside * (theta / timesteps)
    sums = (to_theta.sum_to_size(theta.shape).to(theta.dtype), to_start.sum_to_size(v_init.shape).to(v_init.dtype))
    return grad * inside, *sums
