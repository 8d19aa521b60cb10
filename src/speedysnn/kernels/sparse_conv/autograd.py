"""A convolution as an autograd function: by events (the input's nonzero values), by Winograd tiles, or by torch.

`ConvMethods` says which of the three computes the result and each gradient. Binary spikes are packed into bits for the
backward pass.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from speedysnn.errors import TrainingError
from speedysnn.kernels.sparse_conv import weight_gradient as event_gradient
from speedysnn.kernels.sparse_conv import winograd
from speedysnn.kernels.sparse_conv.bitpack import Packed, pack
from speedysnn.kernels.sparse_conv.forward import EventPlan, Size, output_size, pair


@dataclass(frozen=True)
class ConvShape:
    """Sizes of a 2-d convolution, rows before columns.

    Attributes:
        channels: of the input and of the output.
        kernel: rows and columns of the kernel.
        stride: of rows and columns.
        padding: zeros above and to the left, as many on the other side.
        size: rows and columns of the output.
    """

    channels: tuple[int, int]
    kernel: Size
    stride: Size
    padding: Size
    size: Size

    @classmethod
    def of(cls, x: Tensor, weight: Tensor, attrs: Mapping[str, Any]) -> "ConvShape":
        """Return the sizes of a node's convolution from its input, weight and attributes."""
        kernel, stride, padding = pair(weight.shape[2:]), pair(attrs["stride"]), pair(attrs["padding"])
        size = output_size(pair(x.shape[2:]), kernel, stride, padding)
        return cls((weight.shape[1], weight.shape[0]), kernel, stride, padding, size)

    @property
    def places(self) -> int:
        """The number of output pixels."""
        return self.size[0] * self.size[1]

    def numbers(self) -> tuple[int, ...]:
        """Return the numbers that identify a convolution, whatever the size of the image."""
        return (*self.channels, *self.kernel, *self.stride, *self.padding)


@dataclass(frozen=True)
class ConvMethods:
    """Which implementation computes a convolution and its gradients; None means torch.

    Attributes:
        plan: runs the convolution by events.
        points: transformed weights for the convolution by Winograd tiles; see `winograd.laid_out`.
        turned: transformed weights for the gradient of its input by Winograd tiles; see `winograd.turned`.
        to_weight: "events" or "tiles" for the gradient of its weights.
    """

    plan: EventPlan | None = None
    points: Tensor | None = None
    turned: Tensor | None = None
    to_weight: str | None = None


def forward(x: Tensor, weight: Tensor, bias: Tensor | None, shape: ConvShape, methods: ConvMethods) -> Tensor:
    """Compute the convolution by events, by Winograd tiles or by torch."""
    if methods.plan is not None:
        return methods.plan.run(x)
    if methods.points is not None:
        return winograd.convolve(x, methods.points, bias)
    return F.conv2d(x, weight, bias, shape.stride, shape.padding)


def weight_gradient(x: Tensor, grad: Tensor, weight: Tensor, shape: ConvShape, method: str | None) -> Tensor:
    """Compute the gradient of the weights by "events", by "tiles" or by torch."""
    if method == "events":
        return event_gradient.weight_gradient(x, grad, shape.kernel, shape.padding)
    if method == "tiles":
        return winograd.weight_gradients(x, grad)[0]
    out: Tensor = _torch(grad, x, weight, shape, (False, True, False))[1]
    return out


def input_gradient(
    grad: Tensor, weight: Tensor, shape: ConvShape, size: Sequence[int], turned: Tensor | None
) -> Tensor:
    """Compute the gradient of the input (N, C, H, W) by Winograd tiles or by torch."""
    if turned is not None:
        return winograd.convolve(grad, turned)
    out: Tensor = _torch(grad, _stand_in(size), weight, shape, (True, False, False))[0]
    return out


def _stand_in(size: Sequence[int]) -> Tensor:
    """Return an input without values, for torch's functions that read its size alone."""
    return torch.empty(size, memory_format=torch.channels_last)


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None, shape: ConvShape, methods: ConvMethods) -> Tensor:
    """Compute the convolution with gradients.

    Args:
        x: (N, C, H, W) channels-last float32.
        weight: (O, C, kh, kw).
        bias: (O,) or None.
        shape: the sizes of all.
        methods: the implementations.

    Returns:
        The result (N, O, OH, OW).
    """
    out: Tensor = _Convolution.apply(x, weight, bias, shape, methods)
    return out


class _Convolution(torch.autograd.Function):
    """A convolution that keeps its input as bits for the backward pass where the input is binary."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, shape: ConvShape, methods: ConvMethods
    ) -> Tensor:
        out = forward(x, weight, bias, shape, methods)
        learns = ctx.needs_input_grad[1]  # otherwise only the size of x is needed
        spikes = pack(x) if learns else None
        ctx.save_for_backward(weight, *((spikes.words, spikes.values) if spikes else (x,) if learns else ()))
        ctx.given = shape, methods, x.shape
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        weight, *kept = ctx.saved_tensors
        (shape, methods, size), (to_x, to_weight, to_bias, *_) = ctx.given, ctx.needs_input_grad
        spikes = Packed(kept[0], kept[1], size) if len(kept) > 1 else None
        if torch.is_grad_enabled():
            x = _stand_in(size) if not to_weight else kept[0] if spikes is None else None
            return _differentiable(grad, x, weight, shape, (to_x, to_weight, to_bias))
        grad = grad.contiguous(memory_format=torch.channels_last)
        own = input_gradient(grad, weight, shape, size, methods.turned) if to_x else None
        if to_weight and methods.to_weight == "tiles":  # the tiles give the bias's gradient as well
            by_weight, by_bias = winograd.weight_gradients(spikes or kept[0], grad)
            return own, by_weight, by_bias.clone() if to_bias else None, None, None
        of_bias = grad.sum((0, 2, 3)) if to_bias else None
        if not to_weight:
            return own, None, of_bias, None, None
        x = kept[0] if spikes is None else spikes.unpacked()
        return own, weight_gradient(x, grad, weight, shape, methods.to_weight), of_bias, None, None


def _differentiable(
    grad: Tensor, x: Tensor | None, weight: Tensor, shape: ConvShape, wanted: tuple[bool, bool, bool]
) -> tuple[Tensor | None, ...]:
    """Compute gradients that can be differentiated again, which torch alone can.

    Raises:
        TrainingError: the input was kept as bits.
    """
    if x is None:
        raise TrainingError(
            "gradients of gradients: spikes have none; to have torch's, call it within "
            "`speedysnn.settings.using(events='never')` or set SPEEDYSNN_EVENTS=never"
        )
    by_x, by_weight, _ = _torch(grad, x, weight, shape, (*wanted[:2], False))
    return by_x, by_weight, grad.sum((0, 2, 3)) if wanted[2] else None, None, None


def _torch(grad: Tensor, x: Tensor, weight: Tensor, shape: ConvShape, wanted: tuple[bool, bool, bool]) -> Any:
    """Compute torch's gradients of (input, weight, bias); None for those that are not wanted."""
    if not any(wanted):
        return None, None, None
    return torch.ops.aten.convolution_backward(
        grad, x, weight, None, shape.stride, shape.padding, (1, 1), False, (0, 0), 1, wanted
    )
