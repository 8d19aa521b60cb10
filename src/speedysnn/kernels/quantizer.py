"""The quantized reading: what T steps count under constant drive, with the gradient of a learned step size.

The quantized reading on the CPU: one read and one write forward, two reads and one write backward; compiled.

The quantized reading on a GPU, through Triton: one read and one write forward, two reads and one write backward.
"""

import math
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from speedysnn.kernels.dispatch import traced
from speedysnn.kernels.jit import AVAILABLE, compiled
from speedysnn.kernels.layout import Layout, array, flat, laid_out, plan, reduced, rows_first, shared, values
from speedysnn.kernels.neuron import triton_backend
from speedysnn.kernels.neuron.numba_backend import share
from speedysnn.kernels.neuron.numba_neuron import gather, spread
from speedysnn.kernels.neuron.numba_sequence import block_size, period_of
from speedysnn.kernels.reference import Rule, count_reference, gradients_reference, quantize_reference

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


def numba_supports(drive: Tensor, theta: Tensor, v_init: Tensor) -> bool:
    """Whether these kernels can run a call; `quantizer_reference` runs the others."""
    return (
        AVAILABLE and drive.device.type == "cpu" and drive.dtype in _DTYPES and drive.numel() > 0
        and theta.dtype in _DTYPES and plan(drive[:1], theta, v_init, 1) is not None
    )  # fmt: skip


def numba_forward(
    drive: Tensor, theta: Tensor, v_init: Tensor, timesteps: int, min_count: int, max_count: int
) -> Tensor:
    """theta/T clip(floor(T z / theta + v_init), min_count, max_count); shapes as those of `quantizer.quantize`."""
    where = plan(drive.detach(), theta, v_init, 1)
    assert where is not None
    out, kind = torch.empty_like(where.drive), _kind(drive)
    arrays = (array(where.drive), *(values(x, drive.dtype).numpy() for x in (theta, v_init)))
    rest, result = (where.inner, kind(timesteps), kind(min_count), kind(max_count)), array(out)
    share(where.neurons, 1, lambda begin, end, _: _forward(*arrays, *rest, begin, end, result))
    return out


def numba_backward(
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


_TRITON_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
_BLOCK = 1024
_TILE = 1024
_ONE_THETA = 512  # columns of a layer whose neurons have one theta


def triton_supports(drive: Tensor, theta: Tensor, v_init: Tensor) -> bool:
    """Whether these kernels can run a call; `quantizer_reference` runs the others."""
    if drive.device.type == "cpu" or drive.dtype not in _TRITON_DTYPES or not drive.numel():
        return False
    if not _right(drive.device.type):
        return False
    where = plan(drive.detach(), theta, v_init, 1) if rows_first(drive) else None
    return where is not None and (where.channels == 1 or where.inner == 1)  # channels lie side by side


def triton_forward(
    drive: Tensor, theta: Tensor, v_init: Tensor, timesteps: int, min_count: int, max_count: int
) -> Tensor:
    """theta/T clip(floor(T z / theta + v_init), min_count, max_count); shapes as those of `quantizer.quantize`."""
    from speedysnn.kernels import triton_kernels

    where, th, v0 = _given(drive, theta, v_init)
    out = torch.empty_like(where.drive)
    with triton_backend.on(drive):
        triton_kernels.quantize_forward[(-(-where.neurons // _BLOCK),)](
            flat(where.drive), th, v0, flat(out), where.neurons, _width(where), th.numel(), v0.numel(),
            float(timesteps), float(min_count), float(max_count), th.dtype == torch.float64, _BLOCK,
        )  # fmt: skip
    return out


def triton_backward(
    grad: Tensor, drive: Tensor, theta: Tensor, v_init: Tensor, timesteps: int, min_count: int, max_count: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of drive, theta and v_init, the last two in the parameters' shapes and not yet scaled."""
    from speedysnn.kernels import triton_kernels

    where, th, v0 = _given(drive, theta, v_init)
    out, width = torch.empty_like(where.drive, dtype=grad.dtype), _width(where)
    grid, tile = shared(-(-where.neurons // width), width, _TILE)
    sums = torch.empty(grid[0], 2, width, dtype=th.dtype, device=drive.device)
    with triton_backend.on(drive):
        triton_kernels.quantize_backward[grid](
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
    if not triton_backend.usable(device):
        return False
    generator = torch.Generator().manual_seed(0)
    z, grad = (torch.randn(64, 3, generator=generator) for _ in range(2))
    theta, start = torch.rand(1, 3, generator=generator) + 0.3, torch.full((1, 3), 0.5)
    g, x, th, v0 = (value.to(device) for value in (grad, z, theta, start))
    if not torch.equal(triton_forward(x, th, v0, 4, 0, 4).cpu(), quantize_reference(z, theta, start, 4, 0, 4)):
        return False
    gradients, ours = gradients_reference(grad, z, theta, start, 4, 0, 4), triton_backward(g, x, th, v0, 4, 0, 4)
    return all(torch.allclose(a.cpu(), b, 1e-4, 1e-4) for a, b in zip(ours, gradients, strict=True))


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
    CompiledQuantizer(numba_supports, numba_forward, numba_backward),
    CompiledQuantizer(triton_supports, triton_forward, triton_backward),
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
