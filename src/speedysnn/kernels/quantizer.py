"""The quantized reading, Q(z) = (A/T) clip(floor(T z / theta + v_init), 0, T N), and its gradients.

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

from speedysnn.kernels import triton_backend
from speedysnn.kernels.dispatch import traced
from speedysnn.kernels.jit import AVAILABLE
from speedysnn.kernels.layout import Layout, array, flat, laid_out, plan, reduced, rows_first, shared, values
from speedysnn.kernels.numba_backend import share
from speedysnn.kernels.numba_sequence import quantize as quantize_loop
from speedysnn.kernels.numba_sequence import quantizer_gradients
from speedysnn.kernels.reference import Rule, count_reference, gradients_reference, quantize_reference

_DTYPES = (torch.float32, torch.float64)
_TRITON_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
_BLOCK = 1024  # values of one program forward
_TILE = 1024  # values that one program reads at once backward
_ONE_THETA = 512  # columns that a layer is cut into where all its neurons have one theta


def numba_supports(drive: Tensor, theta: Tensor, v_init: Tensor, amplitude: Tensor | None = None) -> bool:
    """Tell whether these kernels can run a call."""
    return (
        AVAILABLE and drive.device.type == "cpu" and drive.dtype in _DTYPES and drive.numel() > 0
        and theta.dtype in _DTYPES and plan(drive[:1], theta, v_init, 1, amplitude) is not None
    )  # fmt: skip


def numba_forward(
    drive: Tensor, theta: Tensor, v_init: Tensor, timesteps: int, min_count: int, max_count: int,
    amplitude: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Quantize a drive; see `reference.quantize_reference`."""
    where = plan(drive.detach(), theta, v_init, 1, amplitude)
    assert where is not None
    out, kind = torch.empty_like(where.drive), _kind(drive)
    arrays = (array(where.drive), *_arrays(drive.dtype, theta, v_init, amplitude))
    rest, result = (where.inner, kind(timesteps), kind(min_count), kind(max_count)), array(out)
    share(where.neurons, 1, lambda begin, end, _: quantize_loop(*arrays, *rest, begin, end, result))
    return out


def numba_backward(
    grad: Tensor, drive: Tensor, theta: Tensor, v_init: Tensor, timesteps: int, min_count: int, max_count: int,
    amplitude: Tensor | None = None,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Compute the gradients of drive, theta, v_init and a given amplitude; see `reference.gradients_reference`."""
    where = plan(drive.detach(), theta, v_init, 1, amplitude)
    assert where is not None
    out, kind = torch.empty_like(where.drive), _kind(drive)
    sums = np.zeros((3, torch.get_num_threads(), where.channels))
    outputs = laid_out(grad.detach(), where.drive)
    arrays = (array(where.drive), array(outputs), *_arrays(drive.dtype, theta, v_init, amplitude))
    rest, result = (where.inner, kind(timesteps), kind(min_count), kind(max_count)), array(out)
    share(
        where.neurons, 1,
        lambda begin, end, i: quantizer_gradients(*arrays, *rest, begin, end, result, *(x[i] for x in sums)),
    )  # fmt: skip
    found = zip(sums, (theta, v_init, *_given(amplitude)), strict=False)
    return out, *(reduced(torch.from_numpy(x.sum(0)), value) for x, value in found)


def _arrays(
    dtype: torch.dtype, theta: Tensor, v_init: Tensor, amplitude: Tensor | None
) -> tuple[Any, Any, Any, bool]:
    """Return theta, v_init and amplitude as flat arrays, and whether the amplitude is one of its own."""
    th, separate = values(theta, dtype).numpy(), amplitude is not None
    return th, values(v_init, dtype).numpy(), th if amplitude is None else values(amplitude, dtype).numpy(), separate


def _given(amplitude: Tensor | None) -> tuple[Tensor, ...]:
    """Return the amplitude as the parameters that follow, none without one."""
    return () if amplitude is None else (amplitude,)


def _kind(drive: Tensor) -> Any:
    return np.float64 if drive.dtype == torch.float64 else np.float32


def triton_supports(drive: Tensor, theta: Tensor, v_init: Tensor, amplitude: Tensor | None = None) -> bool:
    """Tell whether these kernels can run a call."""
    if drive.device.type == "cpu" or drive.dtype not in _TRITON_DTYPES or not drive.numel():
        return False
    if not _matches_reference(drive.device.type):
        return False
    where = plan(drive.detach(), theta, v_init, 1, amplitude) if rows_first(drive) else None
    return where is not None and (where.channels == 1 or where.inner == 1)  # channels lie side by side


def triton_forward(
    drive: Tensor, theta: Tensor, v_init: Tensor, timesteps: int, min_count: int, max_count: int,
    amplitude: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Quantize a drive; see `reference.quantize_reference`."""
    from speedysnn.kernels import triton_kernels

    where, th, v0, unit = _laid(drive, theta, v_init, amplitude)
    out = torch.empty_like(where.drive)
    with triton_backend.on(drive):
        triton_kernels.quantize_forward[(-(-where.neurons // _BLOCK),)](
            flat(where.drive), th, v0, unit, flat(out), where.neurons, _width(where), th.numel(), v0.numel(),
            unit.numel(), float(timesteps), float(min_count), float(max_count), th.dtype == torch.float64, _BLOCK,
        )  # fmt: skip
    return out


def triton_backward(
    grad: Tensor, drive: Tensor, theta: Tensor, v_init: Tensor, timesteps: int, min_count: int, max_count: int,
    amplitude: Tensor | None = None,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Compute the gradients of drive, theta, v_init and a given amplitude; see `reference.gradients_reference`."""
    from speedysnn.kernels import triton_kernels

    where, th, v0, unit = _laid(drive, theta, v_init, amplitude)
    out, width = torch.empty_like(where.drive, dtype=grad.dtype), _width(where)
    grid, tile = shared(-(-where.neurons // width), width, _TILE)
    own = (theta, v_init, *_given(amplitude))
    sums = torch.empty(grid[0], len(own), width, dtype=th.dtype, device=drive.device)
    with triton_backend.on(drive):
        triton_kernels.quantize_backward[grid](
            flat(laid_out(grad.detach(), where.drive)), flat(where.drive), th, v0, unit, flat(out), sums, where.neurons,
            width, th.numel(), v0.numel(), unit.numel(), float(timesteps), float(min_count), float(max_count),
            min_count / timesteps, max_count / timesteps, amplitude is not None, th.dtype == torch.float64, *tile,
        )  # fmt: skip
    return out, *(reduced(found, value) for found, value in zip(sums.sum(0), own, strict=True))


def _laid(
    drive: Tensor, theta: Tensor, v_init: Tensor, amplitude: Tensor | None
) -> tuple[Layout, Tensor, Tensor, Tensor]:
    """Return the drive's layout, and the flat parameters in the type that is computed in; theta for no amplitude."""
    where, work = plan(drive.detach(), theta, v_init, 1, amplitude), torch.promote_types(drive.dtype, torch.float32)
    assert where is not None
    th = values(theta, work)
    return where, th, values(v_init, work), th if amplitude is None else values(amplitude, work)


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
    for unit in (None, theta + 0.1):
        there = None if unit is None else unit.to(device)
        expected = quantize_reference(z, theta, start, 4, 0, 4, unit)
        if not torch.equal(triton_forward(x, th, v0, 4, 0, 4, there).cpu(), expected):
            return False
        gradients = gradients_reference(grad, z, theta, start, 4, 0, 4, unit)
        ours = triton_backward(g, x, th, v0, 4, 0, 4, there)
        if not all(torch.allclose(a.cpu(), b, 1e-4, 1e-4) for a, b in zip(ours, gradients, strict=True)):
            return False
    return True


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
        ctx: Any, drive: Tensor, theta: Tensor, v_init: Tensor, amplitude: Tensor | None, timesteps: int,
        max_spikes: int, signed: bool, scaled: bool,
    ) -> Tensor:  # fmt: skip
        ctx.save_for_backward(drive, theta, v_init, amplitude)
        ctx.timesteps, ctx.max_spikes, ctx.signed, ctx.scaled = timesteps, max_spikes, signed, scaled
        low, high = -timesteps * max_spikes if signed else 0, timesteps * max_spikes
        given = (drive, theta, v_init)
        ctx.compiled = None if traced() else _compiled(*given, *_given(amplitude))
        forward = quantize_reference if ctx.compiled is None else ctx.compiled.forward
        return forward(*given, timesteps, low, high, *_given(amplitude))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        drive, theta, v_init, amplitude = ctx.saved_tensors
        steps, grad = ctx.timesteps, grads[0]
        low, high = -steps * ctx.max_spikes if ctx.signed else 0, steps * ctx.max_spikes
        backward = gradients_reference if ctx.compiled is None else ctx.compiled.backward
        found = backward(grad, drive, theta, v_init, steps, low, high, *_given(amplitude))
        to_drive, to_theta, to_start, *to_amplitude = found
        scale = _lsq_scale(drive, theta, steps) if ctx.scaled else 1.0
        last = to_amplitude[0] if amplitude is not None else None
        if amplitude is not None and last is not None and ctx.scaled:
            last = last * _lsq_scale(drive, amplitude, steps)
        return to_drive, to_theta * scale, to_start * scale, last, None, None, None, None


def _lsq_scale(drive: Tensor, parameter: Tensor, steps: int) -> float:
    """Return LSQ's scale of a parameter's gradient, 1/sqrt(features T), with the features that share one value."""
    if not drive.numel():
        return 1.0
    return 1 / math.sqrt(max(1.0, drive[0].numel() / parameter.numel()) * steps)


class CompiledQuantizer(NamedTuple):
    """One set of compiled kernels.

    Attributes:
        supports: called with (drive, theta, v_init), and the amplitude if there is one; whether the kernels can run
            the call.
        forward: the quantizer, with the arguments of `reference.quantize_reference`.
        backward: its gradients, with the arguments of `reference.gradients_reference`.
    """

    supports: Callable[..., bool]
    forward: Callable[..., Tensor]
    backward: Callable[..., tuple[Tensor, ...]]


COMPILED = (
    CompiledQuantizer(numba_supports, numba_forward, numba_backward),
    CompiledQuantizer(triton_supports, triton_forward, triton_backward),
)


def _compiled(*given: Tensor) -> CompiledQuantizer | None:
    """Return the first compiled kernels that support a call, or None."""
    return next((own for own in COMPILED if own.supports(*given)), None)


def quantize(
    drive: Tensor,
    theta: Tensor,
    v_init: Tensor,
    timesteps: int,
    max_spikes: int = 1,
    *,
    amplitude: Tensor | None = None,
    signed: bool = False,
    scaled: bool = True,
) -> Tensor:
    """Quantize a drive as T steps of a spiking neuron would, Q(z) = (A/T) clip(floor(T z / theta + v_init), 0, T N).

    Gradients: dQ/dz = 1 for 0 < z < N theta, else 0; dQ/dtheta = n/T - z/theta inside, N above, 0 below;
    dQ/dv_init = theta/T inside. If `signed`, "inside" is -N theta < z < N theta, with -N below. With an amplitude A of
    its own dQ/dz = A/theta, dQ/dtheta = -(A/theta) z/theta and dQ/dv_init = A/T inside, 0 outside; dQ/dA = n/T.

    Args:
        drive: z (B, ...), in the activation's unit.
        theta: thresholds in the same unit, broadcast against the drive.
        v_init: initial membrane as a fraction of theta, likewise.
        timesteps: T.
        max_spikes: N, the most spikes in one step.
        amplitude: A, what one spike stands for, in the drive's unit, broadcast likewise; None for theta.
        signed: the value may be negative; the lower clip is -T N.
        scaled: multiply the gradients of theta, v_init and amplitude by LSQ's scale, 1/sqrt(features * T).

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
    out: Tensor = _Quantize.apply(drive, theta, v_init, amplitude, timesteps, max_spikes, signed, scaled)
    return out


class _StepGradient(torch.autograd.Function):
    """Spikes unchanged forward; backward the learned step size's gradient in theta is added."""

    @staticmethod
    def forward(
        ctx: Any, out: Tensor, drive: Tensor, theta: Tensor, amplitude: Tensor | None, rule: Rule, share: float,
        scaled: bool,
    ) -> Tensor:  # fmt: skip
        ctx.save_for_backward(out, drive, theta, amplitude)
        ctx.rule, ctx.share, ctx.scaled = rule, share, scaled
        return out.view_as(out)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (out, drive, theta, amplitude), rule = ctx.saved_tensors, ctx.rule
        steps, low, high = rule.timesteps, -rule.max_spikes if rule.signed else 0, rule.max_spikes
        to_mean = grads[0].view(steps, -1, *grads[0].shape[1:]).sum(0)
        mean = out.view(steps, -1, *out.shape[1:]).mean(0) / (theta if amplitude is None else amplitude)
        ratio = drive / theta
        inside = (ratio > low) & (ratio < high)

        def reduced_to(each: Tensor, parameter: Tensor) -> Tensor:
            factor = ctx.share * (_lsq_scale(drive, parameter, steps) if ctx.scaled else 1.0)
            summed: Tensor = each.sum_to_size(parameter.shape) * factor
            return summed

        if amplitude is None:
            to_theta = to_mean * torch.where(inside, mean - ratio, ratio.clamp(low, high))
            return grads[0], None, reduced_to(to_theta, theta), None, None, None, None
        to_theta = torch.where(inside, -to_mean * ratio * (amplitude / theta), torch.zeros_like(ratio))
        to_amplitude = reduced_to(to_mean * torch.where(inside, mean, ratio.clamp(low, high)), amplitude)
        return grads[0], None, reduced_to(to_theta, theta), to_amplitude, None, None, None


def step_gradient(
    out: Tensor, drive: Tensor, theta: Tensor, rule: Rule, share: float = 1.0, *, scaled: bool = True,
    amplitude: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Return spikes unchanged and add the quantizer's gradient in theta to their own.

    With y the output's mean over time and n the spikes counted, the gradient added is
    dy/dtheta = n/T - z/theta inside the clip, N above, 0 below; with an amplitude A of its own it is
    -(A/theta) z/theta inside, 0 outside, and dy/dA = n/T inside, N above, 0 below.

    Args:
        out: spikes (T*B, ...), in the activation's unit.
        drive: z, the mean drive (B, ...).
        theta: thresholds, broadcast against the drive.
        rule: how the neuron fired.
        share: factor of the gradient that is added.
        scaled: multiply it by LSQ's scale, 1/sqrt(features * T).
        amplitude: A, broadcast likewise; None for theta.

    Returns:
        The spikes (T*B, ...).

    Reference: esser2020
    """
    result: Tensor = _StepGradient.apply(out, drive, theta, amplitude, rule, share, scaled)
    return result
