"""Which convolutions of a call run event-driven, forward and for the gradient of their weights, and which by tiles.

Weights are laid out once for all passes of a call. The gradient of the input is not sparse; tiles halve its time.
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
from speedysnn.kernels import event_gradient, events, tiles
from speedysnn.kernels.dispatch import recorded, traced
from speedysnn.kernels.event_conv import Shape, Ways, convolve, input_gradient, weight_gradient
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
        self._points: dict[str, Tensor] = {}
        self._lock = threading.Lock()
        self._wanted = os.environ.get(VARIABLE, "")

    def conv2d(self, name: str, x: Tensor, attrs: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Tensor | None:
        """The node's result, or None where the usual convolution is to do it."""
        weight, bias = tensors["weight"], tensors.get("bias")
        given = (x, weight) if bias is None else (x, weight, bias)
        half = torch.is_autocast_enabled("cpu")
        if self._wanted == "never" or traced() or _transformed() or not events.takes(x, weight, attrs):
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
        ways = Ways(plan() if forward else None, *self._gradients(name, x, weight, shape, share))
        return None if ways == Ways() else convolve(x, weight, bias, shape, ways)

    def _gradients(
        self, name: str, x: Tensor, weight: Tensor, shape: Shape, share: float
    ) -> tuple[Tensor | None, str | None]:
        """How the gradients of input and weights are found; see `Ways`."""
        geometry = (shape.kernel, shape.stride, shape.padding)
        tiled = self._wanted != "always" and tiles.takes(shape.channels, *geometry, shape.size)
        points = self._tiled(name, weight) if tiled and x.requires_grad else None

        def to_input(own: Tensor | None, some: Tensor) -> Tensor:
            return input_gradient(_ones(some, shape), weight, shape, some.shape, own)

        def to_weight(way: str | None, some: Tensor) -> Tensor:
            return weight_gradient(some, _ones(some, shape), weight, shape, way)

        def faster(what: str, one: crossover.Call, other: crossover.Call) -> bool:
            with torch.no_grad():
                return crossover.quicker((what, *shape.numbers()), x.detach(), one, other)

        if points is not None and not faster("input gradient", partial(to_input, points), partial(to_input, None)):
            points = None
        if not weight.requires_grad:
            return points, None
        dense = "tiles" if tiled and faster("gradient", partial(to_weight, "tiles"), partial(to_weight, None)) else None
        calls = partial(to_weight, "events"), partial(to_weight, dense)
        sparse = event_gradient.takes(*geometry) and self._pays(f"gradient {dense}", shape, share, x.detach(), *calls)
        return points, "events" if sparse else dense

    def _tiled(self, name: str, weight: Tensor) -> Tensor:
        with self._lock, torch.no_grad():
            if name not in self._points:
                self._points[name] = tiles.laid_out(weight)
            return self._points[name]

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
        self._points.clear()


def _ones(x: Tensor, shape: Shape) -> Tensor:
    """Gradients of a convolution's results."""
    return torch.ones(len(x), shape.channels[1], *shape.size).contiguous(memory_format=torch.channels_last)


def _transformed() -> bool:
    """Whether one of torch.func's transforms runs, which take operators of torch alone."""
    return bool(torch._C._are_functorch_transforms_active())


def _dense(shape: Shape, weight: Tensor, x: Tensor) -> Tensor:
    return F.conv2d(x, weight, None, shape.stride, shape.padding)
