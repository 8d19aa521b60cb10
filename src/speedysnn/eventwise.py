"""Which convolutions of a call run event-driven; their weights are laid out once for all passes of the call."""

import os
import threading
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import _get_current_dispatch_mode

from speedysnn import crossover
from speedysnn.kernels import events

VARIABLE = "SPEEDYSNN_EVENTS"  # never, always; anything else: where it pays
WORTH = 1e8  # multiplications of a layer in a call below which nothing is laid out or measured


class Eventwise:
    """The event-driven convolutions of one call.

    Args:
        pictures: images times steps of the whole call.
    """

    def __init__(self, pictures: int) -> None:
        self.pictures = pictures
        self._plans: dict[str, events.Plan] = {}
        self._lock = threading.Lock()
        self._wanted = os.environ.get(VARIABLE, "")

    def conv2d(self, name: str, x: Tensor, attrs: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Tensor | None:
        """The node's result, or None where the usual convolution is to do it."""
        weight, bias = tensors["weight"], tensors.get("bias")
        if self._wanted == "never" or not self._may(x, weight) or not events.takes(x, weight, attrs):
            return None
        stride, padding = events.pair(attrs["stride"]), events.pair(attrs["padding"])
        columns = (x.shape[3] + 2 * padding[1] - weight.shape[3]) // stride[1] + 1
        rows = (x.shape[2] + 2 * padding[0] - weight.shape[2]) // stride[0] + 1
        always = self._wanted == "always"
        if not always and self.pictures * rows * columns * weight.numel() < WORTH:
            return None
        plan = self._plan(name, weight, bias, stride, padding, columns)
        if not always:
            limit = crossover.crossover(plan, x, lambda some: F.conv2d(some, weight, bias, stride, padding))
            if crossover.density(x) > limit:
                return None
        return plan.run(x)

    def _plan(self, name: str, weight: Tensor, bias: Tensor | None, *rest: Any) -> events.Plan:
        with self._lock:
            if name not in self._plans:
                self._plans[name] = events.Plan(weight, bias, *rest)
            return self._plans[name]

    @staticmethod
    def _may(x: Tensor, weight: Tensor) -> bool:
        recorded = torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad)
        traced = torch.compiler.is_compiling() or _get_current_dispatch_mode() is not None
        return not (recorded or traced or torch.is_autocast_enabled("cpu"))
