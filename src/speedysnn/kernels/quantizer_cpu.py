"""The quantized reading on the CPU: one read and one write forward, two reads and one write backward; compiled."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from speedysnn.kernels.blocks import gather, spread
from speedysnn.kernels.compiled import AVAILABLE, compiled
from speedysnn.kernels.cpu import share
from speedysnn.kernels.layout import array, laid_out, plan, reduced, values
from speedysnn.kernels.sequence import block_size, period_of

Array = Any
QUANTIZER_BLOCK = 4096
_DTYPES = (torch.float32, torch.float64)


@compiled
def _forward(
    z: Array, theta: Array, v_init: Array, inner: int, timesteps: Any, min_count: Any, max_count: Any, begin: int,
    end: int, out: Array,
) -> None:  # pragma: no cover - compiled
    th, v0 = np.empty(QUANTIZER_BLOCK, z.dtype), np.empty(QUANTIZER_BLOCK, z.dtype)
    step = np.empty(QUANTIZER_BLOCK, z.dtype)
    period = period_of(theta, v_init, inner)
    size = block_size(QUANTIZER_BLOCK, period)
    for first in range(begin, end, size):
        m = min(size, end - first)
        if first == begin or size % period != 0:
            spread(theta, first, m, inner, th)
            spread(v_init, first, m, inner, v0)
            for i in range(m):
                step[i] = th[i] / timesteps
        own, result = z[first : first + m], out[first : first + m]
        for i in range(m):  # from 0 on: an index that might be negative is looked at one by one
            n = np.floor(own[i] * timesteps / th[i] + v0[i])
            n = min_count if n < min_count else n
            n = max_count if n > max_count else n
            result[i] = n * step[i]


@compiled
def _backward(
    z: Array, g: Array, theta: Array, v_init: Array, inner: int, channels: int, timesteps: Any, min_count: Any,
    max_count: Any, begin: int, end: int, out: Array, to_theta: Array, to_start: Array,
) -> None:  # pragma: no cover - compiled
    th, v0 = np.empty(QUANTIZER_BLOCK, z.dtype), np.empty(QUANTIZER_BLOCK, z.dtype)
    a, b = np.zeros(QUANTIZER_BLOCK), np.zeros(QUANTIZER_BLOCK)
    zero, low, high = max_count - max_count, min_count / timesteps, max_count / timesteps
    period = period_of(theta, v_init, inner)
    size = block_size(QUANTIZER_BLOCK, period)
    alike = size % period == 0  # a place has the same channel in every block
    for first in range(begin, end, size):
        m = min(size, end - first)
        if first == begin or not alike:
            spread(theta, first, m, inner, th)
            spread(v_init, first, m, inner, v0)
        own, given, result = z[first : first + m], g[first : first + m], out[first : first + m]
        for i in range(m):
            x, grad = own[i], given[i]
            ratio = x / th[i]
            n = np.floor(x * timesteps / th[i] + v0[i])
            n = min_count if n < min_count else n
            n = max_count if n > max_count else n
            inside = (ratio > low) & (ratio < high)
            outside = high if ratio >= high else low
            a[i] += grad * (n / timesteps - ratio if inside else outside)
            kept = grad if inside else zero
            result[i] = kept
            b[i] += kept * (th[i] / timesteps)
        if not alike:
            gather(a, first, m, inner, to_theta)
            gather(b, first, m, inner, to_start)
            a[:], b[:] = 0, 0
    if alike:
        gather(a, begin, size, inner, to_theta)
        gather(b, begin, size, inner, to_start)


def supports(drive: Tensor, theta: Tensor, v_init: Tensor) -> bool:
    """Whether these kernels can run a call; `quantizer_reference` runs the others."""
    return (
        AVAILABLE and drive.device.type == "cpu" and drive.dtype in _DTYPES and drive.numel() > 0
        and theta.dtype in _DTYPES and plan(drive[:1], theta, v_init, 1) is not None
    )  # fmt: skip


def forward(drive: Tensor, theta: Tensor, v_init: Tensor, timesteps: int, min_count: int, max_count: int) -> Tensor:
    """theta/T clip(floor(T z / theta + v_init), min_count, max_count); shapes as those of `quantizer.quantize`."""
    where = plan(drive.detach(), theta, v_init, 1)
    assert where is not None
    out, kind = torch.empty_like(where.drive), _kind(drive)
    arrays = (array(where.drive), *(values(x, drive.dtype).numpy() for x in (theta, v_init)))
    rest, result = (where.inner, kind(timesteps), kind(min_count), kind(max_count)), array(out)
    share(where.neurons, 1, lambda begin, end, _: _forward(*arrays, *rest, begin, end, result))
    return out


def backward(
    grad: Tensor, drive: Tensor, theta: Tensor, v_init: Tensor, timesteps: int, min_count: int, max_count: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of drive, theta and v_init, the last two in the parameters' shapes and not yet scaled."""
    where = plan(drive.detach(), theta, v_init, 1)
    assert where is not None
    out, kind = torch.empty_like(where.drive), _kind(drive)
    sums = np.zeros((2, torch.get_num_threads(), where.channels))
    outputs = laid_out(grad.detach(), where.drive)
    arrays = (array(where.drive), array(outputs), *(values(x, drive.dtype).numpy() for x in (theta, v_init)))
    rest, result = (where.inner, where.channels, kind(timesteps), kind(min_count), kind(max_count)), array(out)
    share(
        where.neurons, 1,
        lambda begin, end, i: _backward(*arrays, *rest, begin, end, result, sums[0, i], sums[1, i]),
    )  # fmt: skip
    to_theta, to_start = (torch.from_numpy(x.sum(0)) for x in sums)
    return out, reduced(to_theta, theta), reduced(to_start, v_init)


def _kind(drive: Tensor) -> Any:
    return np.float64 if drive.dtype == torch.float64 else np.float32
