"""The quantized reading and its gradients in Triton. Imported only where Triton is there.

Tensors are rows of `width` values as they lie in memory; column c has theta number c % channels. Values are rounded in
the order of plain torch.
"""

import triton
import triton.language as tl

from speedysnn.kernels.triton_kernels import divided, within


@triton.jit
def _count(x, theta, start, timesteps, min_count, max_count, double: tl.constexpr):  # pragma: no cover - compiled
    return within(tl.floor(divided(x * timesteps, theta, double) + start), min_count, max_count)


@triton.jit
def forward(
    z, theta, start, out, size, width, channels, starts, timesteps, min_count, max_count,
    double: tl.constexpr, block: tl.constexpr,
):  # pragma: no cover - compiled
    """theta/T clip(floor(T z / theta + v_init), min_count, max_count)."""
    at = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    here = at < size
    th = tl.load(theta + (at % width) % channels, mask=here, other=1.0)
    v0 = tl.load(start + (at % width) % starts, mask=here, other=0.0)
    n = _count(tl.load(z + at, mask=here, other=0.0).to(th.dtype), th, v0, timesteps, min_count, max_count, double)
    tl.store(out + at, (n * divided(th, timesteps, double)).to(out.dtype.element_ty), mask=here)


@triton.jit
def backward(
    grad, z, theta, start, to_z, sums, size, width, channels, starts, timesteps, min_count, max_count, low, high,
    double: tl.constexpr, tall: tl.constexpr, wide: tl.constexpr,
):  # pragma: no cover - compiled
    """The gradient of z, and in `sums` (programs, 2, width) those of theta and v_init, not added up to the end.

    Each program adds up some columns of some rows, so that the same sums come out of every run.
    """
    c = tl.program_id(1).to(tl.int64) * wide + tl.arange(0, wide)
    there = c < width
    th = tl.load(theta + c % channels, mask=there, other=1.0)[None, :]
    v0 = tl.load(start + c % starts, mask=there, other=0.0)[None, :]
    per_step = divided(th, timesteps, double)
    to_theta, to_start = tl.zeros((tall, wide), th.dtype), tl.zeros((tall, wide), th.dtype)
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
        kept = tl.where(inside, g, 0.0)
        to_theta += g * tl.where(inside, divided(n, timesteps, double) - ratio, outside)
        to_start += kept * per_step
        tl.store(to_z + at, kept.to(to_z.dtype.element_ty), mask=here)
    row = sums + tl.program_id(0).to(tl.int64) * 2 * width + c
    tl.store(row, tl.sum(to_theta, 0), mask=there)
    tl.store(row + width, tl.sum(to_start, 0), mask=there)
