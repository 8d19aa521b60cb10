"""A convolution that multiplies only its input's events, with gradients: an autograd function for the CPU."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from speedysnn.kernels import event_gradient
from speedysnn.kernels.events import Plan, Size, output_size, pair


@dataclass(frozen=True)
class Shape:
    """Sizes of a 2-d convolution and of what it reads and gives, rows before columns."""

    channels: tuple[int, int]
    kernel: Size
    stride: Size
    padding: Size
    size: Size

    @classmethod
    def of(cls, x: Tensor, weight: Tensor, attrs: Mapping[str, Any]) -> "Shape":
        """Of a node's attributes and tensors."""
        kernel, stride, padding = pair(weight.shape[2:]), pair(attrs["stride"]), pair(attrs["padding"])
        size = output_size(pair(x.shape[2:]), kernel, stride, padding)
        return cls((weight.shape[1], weight.shape[0]), kernel, stride, padding, size)

    @property
    def places(self) -> int:
        """Output pixels."""
        return self.size[0] * self.size[1]

    def numbers(self) -> tuple[int, ...]:
        """What tells a convolution from others, but for the size of the picture."""
        return (*self.channels, *self.kernel, *self.stride, *self.padding)


def weight_gradient(x: Tensor, grad: Tensor, weight: Tensor, shape: Shape, *, sparse: bool) -> Tensor:
    """Gradient of the weights, by events or by torch."""
    if sparse:
        return event_gradient.weight_gradient(x, grad, shape.kernel, shape.padding)
    out: Tensor = _torch(grad, x, weight, shape, (False, True, False))[1]
    return out


def convolve(
    x: Tensor, weight: Tensor, bias: Tensor | None, shape: Shape, plan: Plan | None, sparse: bool
) -> Tensor:
    """The convolution, recorded for its gradients.

    Args:
        x: (N, C, H, W) channels-last float32.
        weight: (O, C, kh, kw).
        bias: (O,) or None.
        shape: of all.
        plan: for the forward pass; None: torch does it.
        sparse: the weights' gradient goes by events; else torch does it.
    """
    out: Tensor = _Convolution.apply(x, weight, bias, shape, plan, sparse)
    return out


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, shape: Shape, plan: Plan | None, sparse: bool
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.shape, ctx.sparse = shape, sparse
        return F.conv2d(x, weight, bias, shape.stride, shape.padding) if plan is None else plan.run(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        to_x, to_weight, to_bias = ctx.needs_input_grad[:3]
        grad = grad.contiguous(memory_format=torch.channels_last)
        both = _torch(grad, x, weight, ctx.shape, (to_x, to_weight and not ctx.sparse, False))
        by_weight = both[1]
        if to_weight and ctx.sparse:
            by_weight = weight_gradient(x, grad, weight, ctx.shape, sparse=True)
        return both[0], by_weight, grad.sum((0, 2, 3)) if to_bias else None, None, None, None


def _torch(grad: Tensor, x: Tensor, weight: Tensor, shape: Shape, wanted: tuple[bool, bool, bool]) -> Any:
    if not any(wanted):
        return None, None, None
    return torch.ops.aten.convolution_backward(
        grad, x, weight, None, shape.stride, shape.padding, (1, 1), False, (0, 0), 1, wanted
    )
