"""A convolution as an autograd function: over the input's nonzero values alone, by Winograd tiles, or by torch."""

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
    """Sizes of a 2-d convolution, of its input and of its output, rows before columns."""

    channels: tuple[int, int]
    kernel: Size
    stride: Size
    padding: Size
    size: Size

    @classmethod
    def of(cls, x: Tensor, weight: Tensor, attrs: Mapping[str, Any]) -> "ConvShape":
        """The sizes of a node, from its attributes and tensors."""
        kernel, stride, padding = pair(weight.shape[2:]), pair(attrs["stride"]), pair(attrs["padding"])
        size = output_size(pair(x.shape[2:]), kernel, stride, padding)
        return cls((weight.shape[1], weight.shape[0]), kernel, stride, padding, size)

    @property
    def places(self) -> int:
        """Number of output pixels."""
        return self.size[0] * self.size[1]

    def numbers(self) -> tuple[int, ...]:
        """The numbers that identify a convolution, without the size of the picture."""
        return (*self.channels, *self.kernel, *self.stride, *self.padding)


@dataclass(frozen=True)
class Ways:
    """Which implementation computes a convolution and its gradients; None means torch.

    Attributes:
        plan: the convolution by events.
        points: weights for the convolution by tiles.
        turned: those for the gradient of its input.
        to_weight: the gradient of its weights, by "events" or "tiles".
    """

    plan: EventPlan | None = None
    points: Tensor | None = None
    turned: Tensor | None = None
    to_weight: str | None = None


def forward(x: Tensor, weight: Tensor, bias: Tensor | None, shape: ConvShape, ways: Ways) -> Tensor:
    """The convolution by events, by tiles or by torch."""
    if ways.plan is not None:
        return ways.plan.run(x)
    if ways.points is not None:
        return winograd.convolve(x, ways.points, bias)
    return F.conv2d(x, weight, bias, shape.stride, shape.padding)


def weight_gradient(x: Tensor, grad: Tensor, weight: Tensor, shape: ConvShape, way: str | None) -> Tensor:
    """Gradient of the weights by "events", by "tiles" or by torch."""
    if way == "events":
        return event_gradient.weight_gradient(x, grad, shape.kernel, shape.padding)
    if way == "tiles":
        return winograd.weight_gradients(x, grad)[0]
    out: Tensor = _torch(grad, x, weight, shape, (False, True, False))[1]
    return out


def input_gradient(
    grad: Tensor, weight: Tensor, shape: ConvShape, size: Sequence[int], turned: Tensor | None
) -> Tensor:
    """Gradient of what the convolution read, (N, C, H, W), by tiles or by torch."""
    if turned is not None:
        return winograd.convolve(grad, turned)
    out: Tensor = _torch(grad, _nothing(size), weight, shape, (True, False, False))[0]
    return out


def _nothing(size: Sequence[int]) -> Tensor:
    """A stand-in for the input where torch reads its size alone."""
    return torch.empty(size, memory_format=torch.channels_last)


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None, shape: ConvShape, ways: Ways) -> Tensor:
    """The convolution, recorded for its gradients.

    Args:
        x: (N, C, H, W) channels-last float32.
        weight: (O, C, kh, kw).
        bias: (O,) or None.
        shape: of all.
        ways: what does it.
    """
    out: Tensor = _Convolution.apply(x, weight, bias, shape, ways)
    return out


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, shape: ConvShape, ways: Ways) -> Tensor:
        out = forward(x, weight, bias, shape, ways)
        learns = ctx.needs_input_grad[1]  # else nothing of x but its size is needed
        spikes = pack(x) if learns else None
        ctx.save_for_backward(weight, *((spikes.words, spikes.values) if spikes else (x,) if learns else ()))
        ctx.given = shape, ways, x.shape
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        weight, *kept = ctx.saved_tensors
        (shape, ways, size), (to_x, to_weight, to_bias, *_) = ctx.given, ctx.needs_input_grad
        spikes = Packed(kept[0], kept[1], size) if len(kept) > 1 else None
        if torch.is_grad_enabled():
            x = _nothing(size) if not to_weight else kept[0] if spikes is None else None
            return _twice(grad, x, weight, shape, (to_x, to_weight, to_bias))
        grad = grad.contiguous(memory_format=torch.channels_last)
        own = input_gradient(grad, weight, shape, size, ways.turned) if to_x else None
        if to_weight and ways.to_weight == "tiles":  # which sum up the bias's as well
            by_weight, by_bias = winograd.weight_gradients(spikes or kept[0], grad)
            return own, by_weight, by_bias.clone() if to_bias else None, None, None
        whole = grad.sum((0, 2, 3)) if to_bias else None
        if not to_weight:
            return own, None, whole, None, None
        x = kept[0] if spikes is None else spikes.unpacked()
        return own, weight_gradient(x, grad, weight, shape, ways.to_weight), whole, None, None


def _twice(
    grad: Tensor, x: Tensor | None, weight: Tensor, shape: ConvShape, wanted: tuple[bool, bool, bool]
) -> tuple[Tensor | None, ...]:
    """Differentiable gradients, which torch alone provides.

    Raises:
        TrainingError: what the convolution read was kept as bits.
    """
    if x is None:
        raise TrainingError(
            "gradients of gradients: spikes have none; to have torch's, call it within "
            "`speedysnn.settings.using(events='never')` or set SPEEDYSNN_EVENTS=never"
        )
    by_x, by_weight, _ = _torch(grad, x, weight, shape, (*wanted[:2], False))
    return by_x, by_weight, grad.sum((0, 2, 3)) if wanted[2] else None, None, None


def _torch(grad: Tensor, x: Tensor, weight: Tensor, shape: ConvShape, wanted: tuple[bool, bool, bool]) -> Any:
    if not any(wanted):
        return None, None, None
    return torch.ops.aten.convolution_backward(
        grad, x, weight, None, shape.stride, shape.padding, (1, 1), False, (0, 0), 1, wanted
    )
