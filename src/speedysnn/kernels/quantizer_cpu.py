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
BLOCK = 4096
_DTYPES = (torch.float32, torch.float64)


@compiled
def _forward(
    z: Array, theta: Array, v_init: Array, inner: int, steps: Any, low: Any, high: Any, begin: int, end: int, out: Array
) -> None:  # pragma: no cover - compiled
    th, v0, step = np.empty(BLOCK, z.dtype), np.empty(BLOCK, z.dtype), np.empty(BLOCK, z.dtype)
    period = period_of(theta, v_init, inner)
    size = block_size(BLOCK, period)
    for first in range(begin, end, size):
        m = min(size, end - first)
        if first == begin or size % period != 0:
            spread(theta, first, m, inner, th)
            spread(v_init, first, m, inner, v0)
            for i in range(m):
                step[i] = th[i] / steps
        own, result = z[first : first + m], out[first : first + m]
        for i in range(m):  # from 0 on: an index that might be negative is looked at one by one
            n = np.floor(own[i] * steps / th[i] + v0[i])
            n = low if n < low else n
            n = high if n > high else n
            result[i] = n * step[i]


@compiled
def _backward(
    z: Array, g: Array, theta: Array, v_init: Array, inner: int, channels: int, steps: Any, low: Any, high: Any,
    begin: int, end: int, out: Array, to_theta: Array, to_start: Array,
) -> None:  # pragma: no cover - compiled
    th, v0 = np.empty(BLOCK, z.dtype), np.empty(BLOCK, z.dtype)
    a, b = np.zeros(BLOCK), np.zeros(BLOCK)
    zero, least, most = high - high, low / steps, high / steps
    period = period_of(theta, v_init, inner)
    size = block_size(BLOCK, period)
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
            n = np.floor(x * steps / th[i] + v0[i])
            n = low if n < low else n
            n = high if n > high else n
            inside = (ratio > least) & (ratio < most)
            outside = most if ratio >= most else least
            a[i] += grad * (n / steps - ratio if inside else outside)
            kept = grad if inside else zero
            result[i] = kept
            b[i] += kept * (th[i] / steps)
        if not alike:
            gather(a, first, m, inner, to_theta)
            gather(b, first, m, inner, to_start)
            a[:], b[:] = 0, 0
    if alike:
        gather(a, begin, size, inner, to_theta)
        gather(b, begin, size, inner, to_start)


def takes(drive: Tensor, theta: Tensor, v_init: Tensor) -> bool:
    """Whether these kernels can take a call; `speedysnn.kernels.quantizer` does the others."""
    return (
        AVAILABLE and drive.device.type == "cpu" and drive.dtype in _DTYPES and drive.numel() > 0
        and theta.dtype in _DTYPES and plan(drive[:1], theta, v_init, 1) is not None
    )  # fmt: skip


def forward(drive: Tensor, theta: Tensor, v_init: Tensor, steps: int, low: int, high: int) -> Tensor:
    """theta/T clip(floor(T z / theta + v_init), low, high); shapes as `speedysnn.kernels.quantizer.quantize`."""
    where = plan(drive.detach(), theta, v_init, 1)
    assert where is not None
    out, kind = torch.empty_like(where.drive), _kind(drive)
    arrays = (array(where.drive), *(values(x, drive.dtype).numpy() for x in (theta, v_init)))
    rest, result = (where.inner, kind(steps), kind(low), kind(high)), array(out)
    share(where.neurons, 1, lambda begin, end, _: _forward(*arrays, *rest, begin, end, result))
    return out


def backward(
    grad: Tensor, drive: Tensor, theta: Tensor, v_init: Tensor, steps: int, low: int, high: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of drive, theta and v_init, the last two in the parameters' shapes and not yet scaled."""
    where = plan(drive.detach(), theta, v_init, 1)
    assert where is not None
    out, kind = torch.empty_like(where.drive), _kind(drive)
    sums = np.zeros((2, torch.get_num_threads(), where.channels))
    outputs = laid_out(grad.detach(), where.drive)
    arrays = (array(where.drive), array(outputs), *(values(x, drive.dtype).numpy() for x in (theta, v_init)))
    rest, result = (where.inner, where.channels, kind(steps), kind(low), kind(high)), array(out)
    share(
        where.neurons, 1,
        lambda begin, end, i: _backward(*arrays, *rest, begin, end, result, sums[0, i], sums[1, i]),
    )  # fmt: skip
    to_theta, to_start = (torch.from_numpy(x.sum(0)) for x in sums)
    return out, reduced(to_theta, theta), reduced(to_start, v_init)


def _kind(drive: Tensor) -> Any:
    return np.float64 if drive.dtype == torch.float64 else np.float32
