"""Which convolutions of a call run event-driven, forward and for the gradient of their weights.

Weights are laid out once for all passes of a call. The gradient of the input is not sparse, so it is left to torch.
"""

import os
import threading
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from speedysnn import crossover
from speedysnn.kernels import event_gradient, events
from speedysnn.kernels.dispatch import recorded, traced
from speedysnn.kernels.event_conv import Shape, convolve, weight_gradient
from speedysnn.kernels.nonzero import density
from speedysnn.kernels.tables import Tables

VARIABLE = "SPEEDYSNN_EVENTS"  # never, always; anything else: where it pays
WORTH = 5e7  # multiplications of a layer in a call below which nothing is laid out or measured


class Eventwise:
    """The event-driven convolutions of one call.

    Args:
        pictures: images times steps of the whole call.
        tables: memory for its weights; see `close`.
    """

    def __init__(self, pictures: int, tables: Tables | None = None) -> None:
        self.pictures, self.tables = pictures, tables
        self._plans: dict[str, events.Plan] = {}
        self._lock = threading.Lock()
        self._wanted = os.environ.get(VARIABLE, "")

    def conv2d(self, name: str, x: Tensor, attrs: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Tensor | None:
        """The node's result, or None where the usual convolution is to do it."""
        weight, bias = tensors["weight"], tensors.get("bias")
        given = (x, weight) if bias is None else (x, weight, bias)
        half = torch.is_autocast_enabled("cpu")
        if self._wanted == "never" or traced() or not events.takes(x, weight, attrs):
            return None
        if half and (recorded(*given) or torch.get_autocast_dtype("cpu") != torch.bfloat16):
            return None
        if not half and x.dtype != weight.dtype:
            return None
        shape = Shape.of(x, weight, attrs)
        if self._wanted != "always" and self.pictures * shape.places * weight.numel() < WORTH:
            return None
        plan, share = partial(self._plan, name, weight, bias, shape, half), density(x)
        kind = f"forward {x.dtype}" if half else "forward"
        forward = self._pays(kind, shape, share, x, lambda some: plan().run(some), partial(_dense, shape, weight))
        if not recorded(*given):
            return plan().run(x) if forward else None
        backward = weight.requires_grad and self._gradient_pays(shape, share, x, weight)
        return convolve(x, weight, bias, shape, plan() if forward else None, backward) if forward or backward else None

    def _gradient_pays(self, shape: Shape, share: float, x: Tensor, weight: Tensor) -> bool:
        if not event_gradient.takes(shape.kernel, shape.stride, shape.padding):
            return False

        def call(sparse: bool, some: Tensor) -> Tensor:
            grad = torch.ones(len(some), len(weight), *shape.size).contiguous(memory_format=torch.channels_last)
            return weight_gradient(some, grad, weight, shape, sparse=sparse)

        return self._pays("gradient", shape, share, x.detach(), partial(call, True), partial(call, False))

    def _pays(
        self, what: str, shape: Shape, share: float, x: Tensor, sparse: crossover.Call, dense: crossover.Call
    ) -> bool:
        if self._wanted == "always":
            return True
        with torch.no_grad():
            return share <= crossover.crossover((what, *shape.numbers()), x, sparse, dense)

    def _plan(self, name: str, weight: Tensor, bias: Tensor | None, shape: Shape, half: bool) -> events.Plan:
        with self._lock:
            if name not in self._plans:
                self._plans[name] = events.Plan(
                    weight, bias, shape.stride, shape.padding, shape.size[1], half, self.tables
                )
            return self._plans[name]

    def close(self) -> None:
        """The call is over: its memory serves the next one."""
        while self._plans:
            self._plans.popitem()[1].close()


def _dense(shape: Shape, weight: Tensor, x: Tensor) -> Tensor:
    return F.conv2d(x, weight, None, shape.stride, shape.padding)
