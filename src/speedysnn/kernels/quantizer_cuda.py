"""The quantized reading on a GPU, through Triton: one read and one write forward, two reads and one write backward."""

from functools import cache

import torch
from torch import Tensor

from speedysnn.kernels import cuda
from speedysnn.kernels.grids import shared
from speedysnn.kernels.layout import Layout, flat, laid_out, plan, reduced, rows_first, values
from speedysnn.kernels.quantizer_reference import gradients_reference, quantize_reference

_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
_BLOCK = 1024
_TILE = 1024
_ONE_THETA = 512  # columns of a layer whose neurons have one theta


def supports(drive: Tensor, theta: Tensor, v_init: Tensor) -> bool:
    """Whether these kernels can run a call; `quantizer_reference` runs the others."""
    if drive.device.type == "cpu" or drive.dtype not in _DTYPES or not drive.numel():
        return False
    if not _right(drive.device.type):
        return False
    where = plan(drive.detach(), theta, v_init, 1) if rows_first(drive) else None
    return where is not None and (where.channels == 1 or where.inner == 1)  # channels lie side by side


def forward(drive: Tensor, theta: Tensor, v_init: Tensor, timesteps: int, min_count: int, max_count: int) -> Tensor:
    """theta/T clip(floor(T z / theta + v_init), min_count, max_count); shapes as those of `quantizer.quantize`."""
    from speedysnn.kernels import triton_quantizer

    where, th, v0 = _given(drive, theta, v_init)
    out = torch.empty_like(where.drive)
    with cuda.on(drive):
        triton_quantizer.forward[(-(-where.neurons // _BLOCK),)](
            flat(where.drive), th, v0, flat(out), where.neurons, _width(where), th.numel(), v0.numel(),
            float(timesteps), float(min_count), float(max_count), th.dtype == torch.float64, _BLOCK,
        )  # fmt: skip
    return out


def backward(
    grad: Tensor, drive: Tensor, theta: Tensor, v_init: Tensor, timesteps: int, min_count: int, max_count: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of drive, theta and v_init, the last two in the parameters' shapes and not yet scaled."""
    from speedysnn.kernels import triton_quantizer

    where, th, v0 = _given(drive, theta, v_init)
    out, width = torch.empty_like(where.drive, dtype=grad.dtype), _width(where)
    grid, tile = shared(-(-where.neurons // width), width, _TILE)
    sums = torch.empty(grid[0], 2, width, dtype=th.dtype, device=drive.device)
    with cuda.on(drive):
        triton_quantizer.backward[grid](
            flat(laid_out(grad.detach(), where.drive)), flat(where.drive), th, v0, flat(out), sums, where.neurons,
            width, th.numel(), v0.numel(), float(timesteps), float(min_count), float(max_count),
            min_count / timesteps, max_count / timesteps, th.dtype == torch.float64, *tile,
        )  # fmt: skip
    to_theta, to_start = sums.sum(0)
    return out, reduced(to_theta, theta), reduced(to_start, v_init)


def _given(drive: Tensor, theta: Tensor, v_init: Tensor) -> tuple[Layout, Tensor, Tensor]:
    where, work = plan(drive.detach(), theta, v_init, 1), torch.promote_types(drive.dtype, torch.float32)
    assert where is not None
    return where, values(theta, work), values(v_init, work)


def _width(where: Layout) -> int:
    return _ONE_THETA if where.channels == 1 else where.channels


@cache
def _right(device: str) -> bool:
    """Whether Triton is there and its compiled code gives what plain torch does, on trial in a few values."""
    if not cuda.usable(device):
        return False
    generator = torch.Generator().manual_seed(0)
    z, grad = (torch.randn(64, 3, generator=generator) for _ in range(2))
    theta, start = torch.rand(1, 3, generator=generator) + 0.3, torch.full((1, 3), 0.5)
    g, x, th, v0 = (value.to(device) for value in (grad, z, theta, start))
    if not torch.equal(forward(x, th, v0, 4, 0, 4).cpu(), quantize_reference(z, theta, start, 4, 0, 4)):
        return False
    gradients, ours = gradients_reference(grad, z, theta, start, 4, 0, 4), backward(g, x, th, v0, 4, 0, 4)
    return all(torch.allclose(a.cpu(), b, 1e-4, 1e-4) for a, b in zip(ours, gradients, strict=True))
