"""The multi-step neuron as a custom operator of torch: traced, compiled and exported as one call, whatever runs it."""

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from speedysnn.kernels.layout import promised
from speedysnn.kernels.rule import Rule

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


def multistep(drive: Tensor, theta: Tensor, v_init: Tensor, kernel: str, rule: Rule, constant: bool) -> Tensor:
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
