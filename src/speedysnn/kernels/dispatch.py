"""Choose the backend of the multi-step neuron; user entries in BACKENDS win.

The multi-step neuron as a custom operator of torch: traced, compiled and exported as one call, whatever runs it.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils._python_dispatch import _get_current_dispatch_mode

from speedysnn import settings
from speedysnn.errors import InputError
from speedysnn.kernels import reference
from speedysnn.kernels.layout import promised, rows_first
from speedysnn.kernels.neuron import numba_backend, triton_backend
from speedysnn.kernels.reference import Rule

Forward = Callable[[Tensor, Tensor, Tensor, Rule, bool], Tensor]
Backward = Callable[[Tensor, Tensor, Tensor, Tensor, Rule, bool], tuple[Tensor, Tensor, Tensor]]
Refuses = Callable[[Tensor, Tensor, Tensor, Rule], str]


@dataclass(frozen=True)
class Backend:
    """What runs the neuron.

    Attributes:
        forward: from drive to output.
        backward: its adjoint.
        refuses: why it cannot run a call, "" if it can.
        inplace: forward that may write over the drive; None if there is none.
    """

    forward: Forward
    backward: Backward
    refuses: Refuses
    inplace: Forward | None = None


BACKENDS: dict[str, Backend] = {}

_RULE = ", ".join(f"{getattr(field.type, '__name__', field.type)} {field.name}" for field in fields(Rule))


def _multistep(drive: Tensor, theta: Tensor, v_init: Tensor, kernel: str, constant: bool, *rule: Any) -> Tensor:
    return BACKENDS[kernel].forward(drive, theta, v_init, Rule(*rule), constant)


def _multistep_backward(
    grad: Tensor, drive: Tensor, theta: Tensor, v_init: Tensor, kernel: str, constant: bool, *rule: Any
) -> tuple[Tensor, Tensor, Tensor]:
    return BACKENDS[kernel].backward(grad, drive, theta, v_init, Rule(*rule), constant)


_TENSORS = "Tensor drive, Tensor theta, Tensor v_init, str kernel, bool constant"
_forward = torch.library.custom_op(
    "speedysnn::multistep", _multistep, mutates_args=(), schema=f"({_TENSORS}, {_RULE}) -> Tensor"
)
_backward = torch.library.custom_op(
    "speedysnn::multistep_backward", _multistep_backward, mutates_args=(),
    schema=f"(Tensor grad, {_TENSORS}, {_RULE}) -> (Tensor, Tensor, Tensor)",
)  # fmt: skip


@_forward.register_fake
def _(drive: Tensor, theta: Tensor, v_init: Tensor, kernel: str, constant: bool, *rule: Any) -> Tensor:
    return promised(drive, Rule(*rule).timesteps, constant)


@_backward.register_fake
def _(grad: Tensor, drive: Tensor, theta: Tensor, v_init: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    return promised(drive, 1, False), torch.empty_like(theta), torch.empty_like(v_init)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    drive, theta, v_init, *ctx.rest = inputs
    ctx.save_for_backward(drive, theta, v_init)


def _differentiate(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return (*_backward(grad, *ctx.saved_tensors, *ctx.rest), *[None] * len(ctx.rest))


_forward.register_autograd(_differentiate, setup_context=_save)


def multistep_operator(drive: Tensor, theta: Tensor, v_init: Tensor, kernel: str, rule: Rule, constant: bool) -> Tensor:
    """Theta * s[t] of all steps, run by the named backend."""
    out: Tensor = _forward(drive, theta, v_init, kernel, constant, *rule.values())
    return out


class _Direct(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, drive: Tensor, theta: Tensor, v_init: Tensor, kernel: str, rule: Rule, constant: bool
    ) -> Tensor:
        ctx.save_for_backward(drive, theta, v_init)
        backend = BACKENDS[kernel]
        ctx.call = backend, rule, constant
        return backend.forward(drive, theta, v_init, rule, constant)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        backend, rule, constant = ctx.call
        return (*backend.backward(grad, *ctx.saved_tensors, rule, constant), None, None, None)


def direct(drive: Tensor, theta: Tensor, v_init: Tensor, kernel: str, rule: Rule, constant: bool) -> Tensor:
    """The same with gradients but without the custom operator, whose overhead equals a small layer's work."""
    out: Tensor = _Direct.apply(drive, theta, v_init, kernel, rule, constant)
    return out


BACKENDS["cpu"] = Backend(
    numba_backend.forward, numba_backend.backward, numba_backend.refuses, partial(numba_backend.forward, inplace=True)
)
BACKENDS["cuda"] = Backend(
    triton_backend.forward, triton_backend.backward, triton_backend.refuses,
    partial(triton_backend.forward, inplace=True),
)  # fmt: skip

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
        if asked is not None or reason.startswith(triton_backend.BROKEN):
            _tell(f"kernel {name!r} cannot run ({reason}): the reference runs instead")
    return reference.multistep(drive, theta, v_init, rule, constant)


def with_total(drive: Tensor, theta: Tensor, v_init: Tensor, rule: Rule) -> tuple[Tensor, Tensor]:
    """What `multistep` gives, written over a drive (T*B, ...), and that drive's sum over its steps, (B, ...)."""
    step = drive[: len(drive) // rule.timesteps]
    plain = drive.dtype in (torch.float32, torch.float64) and rows_first(drive) and not recorded(drive, theta, v_init)
    if plain and _candidates(_chosen(), drive) == ("cpu",) and not numba_backend.refuses(drive, theta, v_init, rule):
        input_sum = torch.empty_like(step)
        return numba_backend.forward(drive, theta, v_init, rule, False, True, input_sum), input_sum
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
        return multistep_operator(*inputs, name, rule, constant)
    if recorded(*inputs):
        return direct(*inputs, name, rule, constant)
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
