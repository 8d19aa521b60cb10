"""The quantized reading, Q(z) = theta/T clip(floor(T z / theta + v_init), 0, T N), and its gradients.

`quantize` and `levels` are what T steps emit and count under constant drive; `step_gradient` gives spikes the
quantizer's gradient in theta. `COMPILED` lists the kernels: numba on the CPU and Triton on a GPU, both with one read
and one write forward, two reads and one write backward. `kernels.reference` defines what they compute and runs the
calls that neither supports.
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
QUANTIZER_BLOCK = 4096  # values that the CPU's kernels look at together
_DTYPES = (torch.float32, torch.float64)
_TRITON_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
_BLOCK = 1024  # values of one program forward
_TILE = 1024  # values that one program reads at once backward
_ONE_THETA = 512  # columns that a layer is cut into where all its neurons have one theta


@compiled
def _forward(
    z: Array, theta: Array, v_init: Array, inner: int, timesteps: Any, min_count: Any, max_count: Any, begin: int,
    end: int, out: Array,
) -> None:  # pragma: no cover - compiled
    """Quantize the values begin..end - 1; see `reference.quantize_reference`."""
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
        for i in range(m):  # an index from 0 on is never negative, so that the loop is vectorized
            n = np.floor(own[i] * timesteps / th[i] + v0[i])
            n = min_count if n < min_count else n
            n = max_count if n > max_count else n
            result[i] = n * step[i]


@compiled
def _backward(
    z: Array, g: Array, theta: Array, v_init: Array, inner: int, channels: int, timesteps: Any, min_count: Any,
    max_count: Any, begin: int, end: int, out: Array, to_theta: Array, to_start: Array,
) -> None:  # pragma: no cover - compiled
    """Write the gradient of the values begin..end - 1, and add those of theta and v_init to their channels' sums."""
    th, v0 = np.empty(QUANTIZER_BLOCK, z.dtype), np.empty(QUANTIZER_BLOCK, z.dtype)
    a, b = np.zeros(QUANTIZER_BLOCK), np.zeros(QUANTIZER_BLOCK)
    zero, low, high = max_count - max_count, min_count / timesteps, max_count / timesteps
    period = period_of(theta, v_init, inner)
    size = block_size(QUANTIZER_BLOCK, period)
    alike = size % period == 0  # position i has the same channel in every block
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
    """Tell whether these kernels can run a call."""
    return (
        AVAILABLE and drive.device.type == "cpu" and drive.dtype in _DTYPES and drive.numel() > 0
        and theta.dtype in _DTYPES and plan(drive[:1], theta, v_init, 1) is not None
    )  # fmt: skip


def numba_forward(
    drive: Tensor, theta: Tensor, v_init: Tensor, timesteps: int, min_count: int, max_count: int
) -> Tensor:
    """Quantize a drive; see `reference.quantize_reference`."""
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
    """Compute the gradients of drive, theta and v_init; see `reference.gradients_reference`."""
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


def triton_supports(drive: Tensor, theta: Tensor, v_init: Tensor) -> bool:
    """Tell whether these kernels can run a call."""
    if drive.device.type == "cpu" or drive.dtype not in _TRITON_DTYPES or not drive.numel():
        return False
    if not _matches_reference(drive.device.type):
        return False
    where = plan(drive.detach(), theta, v_init, 1) if rows_first(drive) else None
    return where is not None and (where.channels == 1 or where.inner == 1)  # channels lie side by side


def triton_forward(
    drive: Tensor, theta: Tensor, v_init: Tensor, timesteps: int, min_count: int, max_count: int
) -> Tensor:
    """Quantize a drive; see `reference.quantize_reference`."""
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
    """Compute the gradients of drive, theta and v_init; see `reference.gradients_reference`."""
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
    """Return the drive's layout, and the flat parameters in the type that is computed in."""
    where, work = plan(drive.detach(), theta, v_init, 1), torch.promote_types(drive.dtype, torch.float32)
    assert where is not None
    return where, values(theta, work), values(v_init, work)


def _width(where: Layout) -> int:
    """Return the number of columns of the matrix that a layer is seen as; neurons of a column share a theta."""
    return _ONE_THETA if where.channels == 1 else where.channels


@cache
def _matches_reference(device: str) -> bool:
    """Tell whether Triton runs on such a device and, in a trial with a few values, computes what the reference does."""
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
    """Count the spikes in T steps of constant drive, n = clip(floor(T z / theta + v_init), 0, T N).

    Args:
        drive: z (B, ...), in the activation's unit.
        theta: thresholds in the same unit, broadcast against the drive.
        v_init: initial membrane as a fraction of theta, likewise.
        timesteps: T.
        max_spikes: N, the most spikes in one step.
        signed: counts may be negative, down to -T N.

    Returns:
        The counts, whole numbers in the drive's shape, float32 at least.

    Example:
        >>> import torch
        >>> from speedysnn.kernels.quantizer import levels
        >>> levels(torch.tensor([-1.0, 0.3, 9.0]), torch.tensor(1.0), torch.tensor(0.5), timesteps=4)
        tensor([0., 1., 4.])
    """
    max_count = timesteps * max_spikes
    return count_reference(drive, theta, v_init, timesteps, -max_count if signed else 0, max_count)


class _Quantize(torch.autograd.Function):
    """The quantizer with LSQ's gradients: straight through in z, the step gradient in theta."""

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
    """One set of compiled kernels.

    Attributes:
        supports: called with (drive, theta, v_init); whether the kernels can run the call.
        forward: the quantizer, with the arguments of `reference.quantize_reference`.
        backward: its gradients, with the arguments of `reference.gradients_reference`.
    """

    supports: Callable[[Tensor, Tensor, Tensor], bool]
    forward: Callable[[Tensor, Tensor, Tensor, int, int, int], Tensor]
    backward: Callable[[Tensor, Tensor, Tensor, Tensor, int, int, int], tuple[Tensor, Tensor, Tensor]]


COMPILED = (
    CompiledQuantizer(numba_supports, numba_forward, numba_backward),
    CompiledQuantizer(triton_supports, triton_forward, triton_backward),
)


def _compiled(drive: Tensor, theta: Tensor, v_init: Tensor) -> CompiledQuantizer | None:
    """Return the first compiled kernels that support a call, or None."""
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
    """Quantize a drive as T steps of a spiking neuron would, Q(z) = theta/T clip(floor(T z / theta + v_init), 0, T N).

    Gradients: dQ/dz = 1 for 0 < z < N theta, else 0; dQ/dtheta = n/T - z/theta inside, N above, 0 below;
    dQ/dv_init = theta/T inside. If `signed`, "inside" is -N theta < z < N theta, with -N below.

    Args:
        drive: z (B, ...), in the activation's unit.
        theta: thresholds in the same unit, broadcast against the drive.
        v_init: initial membrane as a fraction of theta, likewise.
        timesteps: T.
        max_spikes: N, the most spikes in one step.
        signed: the value may be negative; the lower clip is -T N.
        scaled: multiply the gradients of theta and v_init by LSQ's scale, 1/sqrt(features * T).

    Returns:
        Q(z), in the drive's shape, type and unit.

    Reference: castagnetti2023, esser2020

    Example:
        >>> import torch
        >>> from speedysnn.kernels.quantizer import quantize
        >>> theta = torch.tensor(2.0, requires_grad=True)
        >>> out = quantize(torch.tensor([-1.0, 0.6, 9.0]), theta, torch.tensor(0.5), timesteps=4, scaled=False)
        >>> out.detach()
        tensor([0.0000, 0.5000, 2.0000])
        >>> out.sum().backward()  # n/T - z/theta inside, N = 1 above
        >>> round(theta.grad.item(), 4)
        0.95
    """
    out: Tensor = _Quantize.apply(drive, theta, v_init, timesteps, max_spikes, signed, scaled)
    return out


class _StepGradient(torch.autograd.Function):
    """Spikes unchanged forward; backward the learned step size's gradient in theta is added."""

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
    """Return spikes unchanged and add the quantizer's gradient in theta to their own.

    With y the output's mean over time and n the spikes counted, the gradient added is
    dy/dtheta = n/T - z/theta inside the clip, N above, 0 below.

    Args:
        out: spikes (T*B, ...), in the activation's unit.
        drive: z, the mean drive (B, ...).
        theta: thresholds, broadcast against the drive.
        rule: how the neuron fired.
        share: factor of the gradient that is added.
        scaled: multiply it by LSQ's scale, 1/sqrt(features * T).

    Returns:
        The spikes (T*B, ...).

    Reference: esser2020
    """
    scale = share
    if scaled and drive.numel():
        scale /= math.sqrt(max(1.0, drive[0].numel() / theta.numel()) * rule.timesteps)
    low = -rule.max_spikes if rule.signed else 0
    result: Tensor = _StepGradient.apply(out, drive, theta, rule.timesteps, low, rule.max_spikes, scale)
    return result
