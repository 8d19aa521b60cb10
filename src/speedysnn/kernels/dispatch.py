"""Choose the backend of the multi-step neuron; user entries in BACKENDS win."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor
from torch.utils._python_dispatch import _get_current_dispatch_mode

from speedysnn import settings
from speedysnn.errors import InputError
from speedysnn.kernels import cpu, cuda, operator, reference
from speedysnn.kernels.layout import rows_first
from speedysnn.kernels.operator import BACKENDS, Backend
from speedysnn.kernels.rule import Rule

BACKENDS["cpu"] = Backend(cpu.forward, cpu.backward, cpu.refuses, partial(cpu.forward, inplace=True))
BACKENDS["cuda"] = Backend(cuda.forward, cuda.backward, cuda.refuses, partial(cuda.forward, inplace=True))

_told: set[str] = set()


class KernelWarning(UserWarning):
    """A faster backend was asked for and cannot run; the reference runs instead."""


@contextmanager
def using(kernel: str) -> Iterator[None]:
    """Run every neuron in the block with one backend, as the setting "kernel" does; see `speedysnn.settings`."""
    with settings.using(kernel=kernel):
        yield


def multistep(
    drive: Tensor,
    theta: Tensor,
    v_init: Tensor,
    rule: Rule,
    *,
    constant: bool = False,
    backend: str | None = None,
    inplace: bool = False,
) -> Tensor:
    """Output theta * s[t] of a layer of neurons for T steps.

    Shapes: drive (T*B, ...) time-major, or (B, ...) if `constant`; theta and v_init broadcast against (B, ...);
    result (T*B, ...). v_init is a fraction of theta. The backend is the one given, else the one that the settings
    name (`using`, $SPEEDYSNN_KERNEL), else the fastest that takes the call; they agree bit for bit forward. With
    `inplace` the drive is not needed afterwards: a backend may write its output there.

    Raises:
        InputError: the drive's first dimension is no multiple of T, or the backend is unknown.

    Reference: castagnetti2023
    """
    asked = backend or _chosen()
    if asked is not None and asked != "reference" and asked not in BACKENDS:
        raise InputError(f"unknown kernel {asked!r}: expected one of {', '.join(sorted({*BACKENDS, 'reference'}))}")
    if not constant and drive.shape[0] % rule.timesteps:
        raise InputError(
            f"time-batched drive: expected a first dimension that is a multiple of T={rule.timesteps}, "
            f"got shape {tuple(drive.shape)}"
        )
    for name in _candidates(asked, drive):
        reason = BACKENDS[name].refuses(drive, theta, v_init, rule)
        if not reason:
            return _run(name, drive, theta, v_init, rule, constant, inplace)
        if asked is not None or reason.startswith(cuda.BROKEN):
            _tell(f"kernel {name!r} cannot run ({reason}): the reference runs instead")
    return reference.multistep(drive, theta, v_init, rule, constant)


def with_total(drive: Tensor, theta: Tensor, v_init: Tensor, rule: Rule) -> tuple[Tensor, Tensor]:
    """What `multistep` gives, written over a drive (T*B, ...), and that drive's sum over its steps, (B, ...)."""
    step = drive[: len(drive) // rule.timesteps]
    plain = drive.dtype in (torch.float32, torch.float64) and rows_first(drive) and not recorded(drive, theta, v_init)
    if plain and _candidates(_chosen(), drive) == ("cpu",) and not cpu.refuses(drive, theta, v_init, rule):
        input_sum = torch.empty_like(step)
        return cpu.forward(drive, theta, v_init, rule, False, True, input_sum), input_sum
    input_sum = over_time(drive, rule.timesteps)
    return multistep(drive, theta, v_init, rule, inplace=True), input_sum


def over_time(drive: Tensor, steps: int) -> Tensor:
    """Sum of a drive (T*B, ...) over its steps, in the order in which a neuron adds them up: (B, ...)."""
    first, *rest = drive.view(steps, len(drive) // steps, *drive.shape[1:]).unbind(0)
    out = first.clone()
    for later in rest:
        out.add_(later)
    return out


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _chosen() -> str | None:
    """The backend that the settings name; torch.compile takes the one at hand while it traces."""
    found: str | None = settings.get("kernel")
    return found


def recorded(*tensors: Tensor) -> bool:
    """Whether something records a call on these tensors: gradients, torch.compile, or another tracer."""
    return (torch.is_grad_enabled() and any(x.requires_grad for x in tensors)) or traced()


def traced() -> bool:
    """Whether torch.compile or another tracer records what runs."""
    return torch.compiler.is_compiling() or _get_current_dispatch_mode() is not None


def _run(
    name: str, drive: Tensor, theta: Tensor, v_init: Tensor, rule: Rule, constant: bool, inplace: bool
) -> Tensor:
    """Run through the custom operator only if a tracer follows: its overhead equals a small layer's work."""
    inputs = (drive, theta, v_init)
    if traced() or torch._C._are_functorch_transforms_active():
        return operator.multistep(*inputs, name, rule, constant)
    if recorded(*inputs):
        return operator.direct(*inputs, name, rule, constant)
    backend = BACKENDS[name]
    forward = backend.inplace if inplace and backend.inplace is not None else backend.forward
    return forward(*inputs, rule, constant)


def _candidates(asked: str | None, drive: Tensor) -> tuple[str, ...]:
    if asked is not None:
        return () if asked == "reference" else (asked,)
    own = [name for name in BACKENDS if name not in ("cpu", "cuda")]
    return (*own, *(name for name in (drive.device.type,) if name in BACKENDS))


def _tell(message: str) -> None:
    if message not in _told:
        _told.add(message)
        warnings.warn(message, KernelWarning, stacklevel=4)
