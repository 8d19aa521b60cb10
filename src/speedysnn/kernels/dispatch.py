"""Run the multi-step neuron with the fastest backend that supports the call; entries that a user adds come first.

`BACKENDS` is the table of backends, `multistep` the one function that chooses from it. Where torch.compile or
torch.export follows, the neuron is one call of the custom operator `speedysnn::multistep`, whichever backend runs it;
elsewhere a plain autograd function does the same with less overhead.
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
from speedysnn.kernels import numba_backend, reference, triton_backend
from speedysnn.kernels.layout import promised, rows_first
from speedysnn.kernels.reference import Rule

Forward = Callable[..., Tensor]
Backward = Callable[..., tuple[Tensor, ...]]
Refuses = Callable[..., str]


@dataclass(frozen=True)
class Backend:
    """One implementation of the multi-step neuron.

    Attributes:
        forward: called with (drive, theta, v_init, rule, constant); returns the output, as `multistep` describes it.
        backward: called with (grad, drive, theta, v_init, rule, constant); returns the gradients of drive, theta and
            v_init in their shapes.
        refuses: called with (drive, theta, v_init, rule); returns why the backend cannot run the call, "" if it can.
        inplace: like `forward`, and may write its output over the drive; None if there is no such version.
        amplitude: whether all four take the amplitude as one more argument, last, where it is not theta, and
            `backward` then returns its gradient too. If not, the output is multiplied by amplitude/theta afterwards.

    Example:
        >>> import torch
        >>> from speedysnn.kernels import BACKENDS, Backend, Rule, multistep, reference
        >>> def forward(drive, theta, v_init, rule, constant):
        ...     print("mine runs")
        ...     return reference.multistep(drive, theta, v_init, rule, constant)
        >>> BACKENDS["mine"] = Backend(forward, BACKENDS["cpu"].backward, lambda *call: "")
        >>> out = multistep(torch.ones(4, 1), torch.tensor(1.0), torch.tensor(0.5), Rule(timesteps=4))
        mine runs
        >>> del BACKENDS["mine"]
    """

    forward: Forward
    backward: Backward
    refuses: Refuses
    inplace: Forward | None = None
    amplitude: bool = False


BACKENDS: dict[str, Backend] = {}

_RULE = ", ".join(f"{getattr(field.type, '__name__', field.type)} {field.name}" for field in fields(Rule))


_FIELDS = len(fields(Rule))


def _rest(rest: tuple[Any, ...]) -> tuple[Rule, tuple[Tensor, ...]]:
    """Return the rule and, if one is given, the amplitude; the dispatcher leaves a last argument out that is None."""
    return Rule(*rest[:_FIELDS]), tuple(value for value in rest[_FIELDS:] if value is not None)


def _multistep(drive: Tensor, theta: Tensor, v_init: Tensor, kernel: str, constant: bool, *rest: Any) -> Tensor:
    rule, amplitude = _rest(rest)
    return BACKENDS[kernel].forward(drive, theta, v_init, rule, constant, *amplitude)


def _multistep_backward(
    grad: Tensor, drive: Tensor, theta: Tensor, v_init: Tensor, kernel: str, constant: bool, *rest: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    rule, amplitude = _rest(rest)
    found = BACKENDS[kernel].backward(grad, drive, theta, v_init, rule, constant, *amplitude)
    return found[0], found[1], found[2], found[3] if amplitude else theta.new_empty(0)


_TENSORS = "Tensor drive, Tensor theta, Tensor v_init, str kernel, bool constant"
_AMPLITUDE = "Tensor? amplitude=None"  # last and with a default, so that networks exported before it still load
_forward = torch.library.custom_op(
    "speedysnn::multistep", _multistep, mutates_args=(), schema=f"({_TENSORS}, {_RULE}, {_AMPLITUDE}) -> Tensor"
)
_backward = torch.library.custom_op(
    "speedysnn::multistep_backward", _multistep_backward, mutates_args=(),
    schema=f"(Tensor grad, {_TENSORS}, {_RULE}, {_AMPLITUDE}) -> (Tensor, Tensor, Tensor, Tensor)",
)  # fmt: skip


@_forward.register_fake
def _(drive: Tensor, theta: Tensor, v_init: Tensor, kernel: str, constant: bool, *rest: Any) -> Tensor:
    return promised(drive, _rest(rest)[0].timesteps, constant)


@_backward.register_fake
def _(
    grad: Tensor, drive: Tensor, theta: Tensor, v_init: Tensor, kernel: str, constant: bool, *rest: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    amplitude = _rest(rest)[1]
    last = torch.empty_like(amplitude[0]) if amplitude else theta.new_empty(0)
    return promised(drive, 1, False), torch.empty_like(theta), torch.empty_like(v_init), last


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    (drive, theta, v_init), kernel, constant, rest = inputs[:3], inputs[3], inputs[4], inputs[5:]
    amplitude = rest[_FIELDS] if len(rest) > _FIELDS else None
    ctx.save_for_backward(drive, theta, v_init, amplitude)
    ctx.rest = (kernel, constant, *rest[:_FIELDS])


def _differentiate(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    *tensors, amplitude = ctx.saved_tensors
    *found, last = _backward(grad, *tensors, *ctx.rest, amplitude)
    return (*found, *[None] * len(ctx.rest), None if amplitude is None else last)


_forward.register_autograd(_differentiate, setup_context=_save)


def multistep_operator(
    drive: Tensor, theta: Tensor, v_init: Tensor, kernel: str, rule: Rule, constant: bool,
    amplitude: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Run the named backend through the custom operator, which tracers record as one call."""
    out: Tensor = _forward(drive, theta, v_init, kernel, constant, *rule.values(), *_given(amplitude))
    return out


def _given(amplitude: Tensor | None) -> tuple[Tensor, ...]:
    """Return the amplitude as the arguments that follow, none without one."""
    return () if amplitude is None else (amplitude,)


class _Direct(torch.autograd.Function):
    """A backend with its own backward pass, outside the custom operator."""

    @staticmethod
    def forward(
        ctx: Any, drive: Tensor, theta: Tensor, v_init: Tensor, amplitude: Tensor | None, kernel: str, rule: Rule,
        constant: bool,
    ) -> Tensor:  # fmt: skip
        ctx.save_for_backward(drive, theta, v_init, amplitude)
        backend = BACKENDS[kernel]
        ctx.call = backend, rule, constant
        return backend.forward(drive, theta, v_init, rule, constant, *_given(amplitude))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        backend, rule, constant = ctx.call
        *tensors, amplitude = ctx.saved_tensors
        found = backend.backward(grad, *tensors, rule, constant, *_given(amplitude))
        return (*found, *[None] * (7 - len(found)))


def direct(
    drive: Tensor, theta: Tensor, v_init: Tensor, kernel: str, rule: Rule, constant: bool,
    amplitude: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Run the named backend with gradients but without the custom operator, which costs as much as a small layer."""
    out: Tensor = _Direct.apply(drive, theta, v_init, amplitude, kernel, rule, constant)
    return out


BACKENDS["cpu"] = Backend(
    numba_backend.forward, numba_backend.backward, numba_backend.refuses, partial(numba_backend.forward, inplace=True),
    amplitude=True,
)  # fmt: skip
BACKENDS["cuda"] = Backend(
    triton_backend.forward, triton_backend.backward, triton_backend.refuses,
    partial(triton_backend.forward, inplace=True), amplitude=True,
)  # fmt: skip

_warned: set[str] = set()


class KernelWarning(UserWarning):
    """Warns that the backend that was asked for cannot run and that the reference runs instead."""


@contextmanager
def using(kernel: str) -> Iterator[None]:
    """Run every neuron in the block with one backend, as the setting "kernel" does; see `speedysnn.settings`.

    Args:
        kernel: "reference" or a key of `BACKENDS`.

    Returns:
        A context manager.

    Example:
        >>> import torch
        >>> from speedysnn.kernels import Rule, multistep, using
        >>> with using("reference"):
        ...     multistep(torch.tensor([[0.5], [0.5]]), torch.tensor(1.0), torch.tensor(0.5), Rule(timesteps=2))
        tensor([[1.],
                [0.]])
    """
    with settings.using(kernel=kernel):
        yield


def multistep(
    drive: Tensor,
    theta: Tensor,
    v_init: Tensor,
    rule: Rule,
    *,
    amplitude: Tensor | None = None,
    constant: bool = False,
    backend: str | None = None,
    inplace: bool = False,
) -> Tensor:
    """Compute the output A * s[t] of a layer of integrate-and-fire neurons for T steps.

    At step t the neuron knows k = min(t + delay, T) inputs with sum S[k] and has fired n times; its membrane is
    u = (t/k) S[k] / theta + v_init - n, and s[t] = clip(floor(u), 0, max_spikes). `Rule` describes the other kinds of
    spikes. All backends give the same bits forward.

    Args:
        drive: input of every step, (T*B, ...) time-major, or (B, ...) if `constant`; in the activation's unit.
        theta: thresholds in the same unit, broadcast against (B, ...).
        v_init: initial membrane as a fraction of theta, likewise.
        rule: how the neuron fires.
        amplitude: A, what one spike stands for, in the drive's unit, broadcast likewise; None for theta.
        constant: the same drive holds for every step.
        backend: "reference" or a key of `BACKENDS`; by default the one that the settings name (`using`,
            $SPEEDYSNN_KERNEL), else the fastest that supports the call.
        inplace: the drive is not needed afterwards, so that a backend may write its output there.

    Returns:
        The output (T*B, ...), in the drive's unit and type.

    Raises:
        InputError: the drive's first dimension is no multiple of T, or the backend is unknown.

    Reference: castagnetti2023

    Example:
        >>> import torch
        >>> from speedysnn.kernels import Rule, multistep
        >>> drive = torch.tensor([[0.5], [0.5], [0.5], [0.5]])  # T = 4 steps of one neuron
        >>> multistep(drive, torch.tensor(1.0), torch.tensor(0.5), Rule(timesteps=4)).flatten()
        tensor([1., 0., 1., 0.])
        >>> multistep(drive[:1], torch.tensor(1.0), torch.tensor(0.5), Rule(timesteps=4), constant=True).flatten()
        tensor([1., 0., 1., 0.])
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
        given = _given(amplitude) if BACKENDS[name].amplitude else ()
        reason = BACKENDS[name].refuses(drive, theta, v_init, rule, *given)
        if not reason:
            out = _run(name, (drive, theta, v_init, *given), rule, constant, inplace)
            return out if amplitude is None or given else _rescaled(out, theta, amplitude, rule)
        if asked is not None or reason.startswith(triton_backend.BROKEN):
            _warn_once(f"kernel {name!r} cannot run ({reason}): the reference runs instead")
    return reference.multistep(drive, theta, v_init, rule, constant, amplitude)


def _rescaled(out: Tensor, theta: Tensor, amplitude: Tensor, rule: Rule) -> Tensor:
    """Return A s from theta s, for a backend that knows no amplitude; autograd gives each its gradient."""
    steps = out.view(rule.timesteps, out.shape[0] // rule.timesteps, *out.shape[1:])
    return (steps * (amplitude / theta)).to(out.dtype).view_as(out)


def with_total(
    drive: Tensor, theta: Tensor, v_init: Tensor, rule: Rule, amplitude: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Compute what `multistep` gives together with the drive's sum over its steps.

    Args:
        drive: (T*B, ...), time-major; the output may be written over it.
        theta: as for `multistep`.
        v_init: as for `multistep`.
        rule: how the neuron fires.
        amplitude: as for `multistep`.

    Returns:
        The output (T*B, ...), and the sum of the drive over its steps (B, ...).

    Example:
        >>> import torch
        >>> from speedysnn.kernels import Rule, with_total
        >>> drive = torch.tensor([[0.25], [0.75]])
        >>> out, total = with_total(drive, torch.tensor(1.0), torch.tensor(0.5), Rule(timesteps=2))
        >>> out.flatten(), total
        (tensor([0., 1.]), tensor([[1.]]))
    """
    step, given = drive[: len(drive) // rule.timesteps], (drive, theta, v_init)
    plain = drive.dtype in (torch.float32, torch.float64) and rows_first(drive)
    plain = plain and not recorded(*given, *_given(amplitude)) and _candidates(_chosen(), drive) == ("cpu",)
    if plain and not numba_backend.refuses(*given, rule, amplitude):
        input_sum = torch.empty_like(step)
        out = numba_backend.forward(*given, rule, False, amplitude, inplace=True, input_sum=input_sum)
        return out, input_sum
    input_sum = over_time(drive, rule.timesteps)
    return multistep(*given, rule, amplitude=amplitude, inplace=True), input_sum


def over_time(drive: Tensor, steps: int) -> Tensor:
    """Sum a drive over its steps, in the order in which a neuron adds them up.

    Args:
        drive: (T*B, ...), time-major.
        steps: T.

    Returns:
        The sum, (B, ...); a new tensor.

    Example:
        >>> import torch
        >>> from speedysnn.kernels import over_time
        >>> over_time(torch.tensor([[1.0, 2.0], [10.0, 20.0]]), steps=2)
        tensor([[11., 22.]])
    """
    first, *rest = drive.view(steps, len(drive) // steps, *drive.shape[1:]).unbind(0)
    out = first.clone()
    for later in rest:
        out.add_(later)
    return out


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _chosen() -> str | None:
    """Return the backend that the settings name; torch.compile uses the one that is set while it traces."""
    found: str | None = settings.get("kernel")
    return found


def recorded(*tensors: Tensor) -> bool:
    """Tell whether a call on these tensors is recorded: for gradients, by torch.compile, or by another tracer."""
    return (torch.is_grad_enabled() and any(x.requires_grad for x in tensors)) or traced()


def traced() -> bool:
    """Tell whether torch.compile or another tracer records what runs."""
    return torch.compiler.is_compiling() or _get_current_dispatch_mode() is not None


def _run(name: str, inputs: tuple[Tensor, ...], rule: Rule, constant: bool, inplace: bool) -> Tensor:
    """Run the named backend on drive, theta, v_init and an amplitude if there is one.

    It goes through the custom operator only where a tracer or functorch needs it.
    """
    drive, theta, v_init, *amplitude = inputs
    if traced() or torch._C._are_functorch_transforms_active():
        return multistep_operator(drive, theta, v_init, name, rule, constant, *amplitude)
    if recorded(*inputs):
        return direct(drive, theta, v_init, name, rule, constant, *amplitude)
    backend = BACKENDS[name]
    forward = backend.inplace if inplace and backend.inplace is not None else backend.forward
    return forward(drive, theta, v_init, rule, constant, *amplitude)


def _candidates(asked: str | None, drive: Tensor) -> tuple[str, ...]:
    """Return the backends to try, in order: the one asked for, or the user's and then the device's own."""
    if asked is not None:
        return () if asked == "reference" else (asked,)
    own = [name for name in BACKENDS if name not in ("cpu", "cuda")]
    return (*own, *(name for name in (drive.device.type,) if name in BACKENDS))


def _warn_once(message: str) -> None:
    if message not in _warned:
        _warned.add(message)
        warnings.warn(message, KernelWarning, stacklevel=4)
