"""The "cuda" backend of the multi-step neuron, in Triton.

Triton's code is tried once against the reference before it is used. Tests run it on the CPU in Triton's interpreter
(TRITON_INTERPRET=1).
"""

import os
from functools import cache, lru_cache
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from speedysnn.kernels import reference
from speedysnn.kernels.layout import Layout, channel_dim, flat, laid_out, like, plan, values
from speedysnn.kernels.numba_neuron import ATAN, RECTANGLE, SIGMOID, TRIANGLE
from speedysnn.kernels.reference import Rule
from speedysnn.surrogate import SURROGATES, atan, rectangle, sigmoid, triangle

_SLOPES = {
    "rectangle": (RECTANGLE, rectangle),
    "triangle": (TRIANGLE, triangle),
    "sigmoid": (SIGMOID, sigmoid),
    "atan": (ATAN, atan),
}
_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
_BLOCK = 512  # neurons of one program
INSTALLED = find_spec("triton") is not None  # looked up at import, where torch.compile does not trace
BROKEN = "Triton does not run here"


def refuses(drive: Tensor, theta: Tensor, v_init: Tensor, rule: Rule, amplitude: Tensor | None = None) -> str:
    """Return why this backend cannot run a call, "" if it can."""
    if not INSTALLED:
        return "Triton is not installed"
    if not _reaches(drive.device.type):
        return f"the drive is on {drive.device.type}"
    if drive.dtype not in _DTYPES:
        return f"{drive.dtype} is not one of its types"
    if rule.surrogate not in _SLOPES or SURROGATES[rule.surrogate] is not _SLOPES[rule.surrogate][1]:
        return f"the surrogate {rule.surrogate!r} is not one of its own"
    if channel_dim(drive, theta, v_init, amplitude) is None:
        return "theta, v_init or amplitude varies along more than one dimension"
    found: str = _usable(drive.device.type)
    return found


def usable(device: str) -> bool:
    """Tell whether Triton is installed and computes what it should on such a device."""
    return INSTALLED and _reaches(device) and not _fault(device)


def _reaches(device: str) -> bool:
    """Tell whether Triton's programs can read tensors of such a device."""
    return device == "cuda" or os.environ.get("TRITON_INTERPRET") == "1"


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _usable(device: str) -> str:
    """Return what `_fault` finds, as a constant for torch.compile, which must not trace into Triton."""
    return _fault(device)


@cache
def _fault(device: str) -> str:
    """Return what keeps Triton from running here, such as an old driver or wrong machine code, or ""; tried once."""
    try:
        with _disable_current_modes(), torch.inference_mode(False):  # a tracer's tensors would hold no values
            wrong = _wrong(device)
    except Exception as err:  # the compiler and the driver raise errors of their own, which change with versions
        wrong = (str(err).strip() or type(err).__name__).splitlines()[-1][:200]
    return f"{BROKEN}: {wrong}" if wrong else ""


def _wrong(device: str) -> str:
    """Run a few neurons and return where they differ from the reference on the CPU, or ""."""
    import triton

    generator = torch.Generator().manual_seed(0)
    drive, grad = (torch.randn(8, 3, 5, generator=generator) + 0.3 for _ in range(2))
    theta, start = torch.rand(1, 3, 1, generator=generator) + 0.3, torch.tensor(0.5)
    cases: list[tuple[Rule, Tensor | None]] = [(Rule(4), None), (Rule(4, 1, -1), None), (Rule(4, 4, 0, 2), None),
                                                 (Rule(4, 0, -4, 4), None)]  # fmt: skip
    for rule, amplitude in [*cases, (Rule(4), theta + 0.1)]:
        own = (drive, theta, start) if amplitude is None else (drive, theta, start, amplitude)
        leaves = [value.clone().requires_grad_() for value in own]
        with torch.enable_grad():
            unit = leaves[3] if amplitude is not None else None
            expected = reference.multistep(leaves[0], leaves[1], leaves[2], rule, False, unit)
            gradients = torch.autograd.grad(expected, leaves, grad)
        z, th, v0, *rest = (value.to(device) for value in own)
        last = rest[0] if rest else None
        if not torch.equal(forward(z, th, v0, rule, False, last).cpu(), expected.detach()):
            return f"the spikes of its compiled code are not those of the reference (Triton {triton.__version__})"
        ours = backward(grad.to(device), z, th, v0, rule, False, last)
        if not all(torch.allclose(a.cpu(), b, 1e-4, 1e-4) for a, b in zip(ours, gradients, strict=True)):
            return f"the gradients of its compiled code are not those of the reference (Triton {triton.__version__})"
    return ""


def forward(
    drive: Tensor, theta: Tensor, v_init: Tensor, rule: Rule, constant: bool, amplitude: Tensor | None = None, *,
    inplace: bool = False,
) -> Tensor:  # fmt: skip
    """Compute A * s[t], written over the drive if `inplace`; see `speedysnn.kernels.multistep`."""
    from speedysnn.kernels import triton_kernels

    where = _plan(drive, theta, v_init, rule, constant, amplitude)
    if inplace and not constant:
        out = where.drive
    else:
        out = like(where.drive, rule.timesteps) if constant else torch.empty_like(where.drive)
    if out.numel() == 0:
        return out
    work = torch.promote_types(drive.dtype, torch.float32)
    th, v0 = values(theta, work), values(v_init, work)
    unit = th if amplitude is None else values(amplitude, work)
    lo, hi, take_back = _clip(rule)
    with on(drive):
        triton_kernels.forward[_grid(where)](
            flat(where.drive), th, v0, unit, _factors(rule, constant, work, drive.device), flat(out), where.neurons,
            th.numel(), v0.numel(), unit.numel(), where.inner, rule.timesteps, rule.delay, lo, hi, constant, take_back,
            rule.powers, work == torch.float64, _BLOCK,
        )  # fmt: skip
    return out


def backward(
    grad: Tensor, drive: Tensor, theta: Tensor, v_init: Tensor, rule: Rule, constant: bool,
    amplitude: Tensor | None = None,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Compute the gradients of drive, theta, v_init and, where it is given, amplitude from the output's.

    The membranes are computed again.
    """
    from speedysnn.kernels import triton_kernels

    work = torch.promote_types(drive.dtype, torch.float32)
    where = _plan(drive.detach().to(work), theta, v_init, rule, constant, amplitude)
    one = where.drive if constant else where.drive[: where.drive.shape[0] // rule.timesteps]
    grad_x = torch.empty_like(where.drive)
    own = (theta, v_init) if amplitude is None else (theta, v_init, amplitude)
    found = [torch.zeros_like(one) for _ in own]
    if drive.numel():
        outputs = laid_out(grad.detach().to(work), where.drive)
        th, v0, unit = values(theta, work), values(v_init, work), values(own[-1] if len(own) > 2 else theta, work)
        factors = _factors(rule, constant, work, drive.device)
        lo, hi, take_back = _clip(rule)
        options: dict[str, Any] = {"dtype": work, "device": drive.device}
        membranes = torch.empty(rule.timesteps, where.neurons, **options)
        counts = torch.empty(rule.timesteps + 1, where.neurons, **options)
        shape = _shape(rule.width, rule.detach_reset, work, drive.device)
        sizes = (where.inner, rule.timesteps, rule.delay)
        numbers = (where.neurons, th.numel(), v0.numel())
        powers = rule.max_spikes.bit_length() if rule.powers else 0
        with on(drive):
            triton_kernels.note[_grid(where)](
                flat(where.drive), th, v0, factors, membranes, counts, *numbers, *sizes, lo, hi, constant, take_back,
                rule.powers, work == torch.float64, _BLOCK,
            )  # fmt: skip
            triton_kernels.adjoint[_grid(where)](
                flat(outputs), th, v0, unit, factors, shape, membranes, counts, flat(grad_x), flat(found[0]),
                flat(found[1]), flat(found[-1]), *numbers, unit.numel(), *sizes, rule.max_spikes,
                _SLOPES[rule.surrogate][0], constant, take_back, powers, rule.signed, amplitude is not None, _BLOCK,
            )  # fmt: skip
    each = zip(found, own, strict=True)
    return grad_x.to(drive.dtype), *(
        sums.sum_to_size(_against(value, one)).reshape(value.shape).to(value.dtype) for sums, value in each
    )


def _against(parameter: Tensor, one: Tensor) -> tuple[int, ...]:
    """Return the parameter's shape with as many dimensions as one step of the drive."""
    return (*[1] * (one.ndim - parameter.ndim), *parameter.shape)


def _plan(
    drive: Tensor, theta: Tensor, v_init: Tensor, rule: Rule, constant: bool, amplitude: Tensor | None
) -> Layout:
    """Return the layout of a drive that `refuses` has accepted."""
    where = plan(drive, theta, v_init, 1 if constant else rule.timesteps, amplitude)
    assert where is not None
    return where


def _grid(where: Layout) -> tuple[int]:
    return (-(-where.neurons // _BLOCK),)


def _clip(rule: Rule) -> tuple[float, float, bool]:
    """Return the least and the most spikes of a step, and whether a neuron that has fired may take spikes back."""
    low = float(-rule.max_spikes if rule.signed or rule.powers else 0)
    return low, float(rule.max_spikes), rule.min_spikes < 0 and not rule.signed


@lru_cache(maxsize=256)
def _factors(rule: Rule, constant: bool, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return t/k of every step, kept on the device, as sending it at every call would wait for the GPU."""
    steps = range(1, rule.timesteps + 1)
    return torch.tensor([float(t) if constant else t / rule.seen(t) for t in steps], dtype=dtype, device=device)


@lru_cache(maxsize=256)
def _shape(width: float, detach_reset: bool, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return half the surrogate's width, its inverse, and 1 with a gradient through the reset, kept on the device."""
    return torch.tensor([width / 2, 1 / width, float(not detach_reset)], dtype=dtype, device=device)


def on(x: Tensor) -> Any:
    """Return a context in which kernels are launched on the tensor's GPU."""
    return torch.cuda.device(x.device) if x.device.type == "cuda" else torch.autograd.profiler.record_function("neuron")
