"""Which convolutions of a call run event-driven; their weights are laid out once for all passes of the call."""

import os
import threading
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from speedysnn import crossover
from speedysnn.kernels import events
from speedysnn.kernels.dispatch import recorded

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
        if self._wanted == "never" or recorded(x, weight) or torch.is_autocast_enabled("cpu"):
            return None
        if not events.takes(x, weight, attrs):
            return None
        stride, padding = events.pair(attrs["stride"]), events.pair(attrs["padding"])
        kernel = events.pair(weight.shape[2:])
        rows, columns = events.output_size(events.pair(x.shape[2:]), kernel, stride, padding)
        plan = partial(self._plan, name, weight, bias, stride, padding, columns)
        if self._wanted != "always":
            if self.pictures * rows * columns * weight.numel() < WORTH:
                return None
            sizes = (weight.shape[1], weight.shape[0], *kernel, *stride, *padding)
            limit = crossover.crossover(sizes, x, plan, lambda some: F.conv2d(some, weight, bias, stride, padding))
            if crossover.density(x) > limit:
                return None
        return plan().run(x)

    def _plan(self, name: str, weight: Tensor, bias: Tensor | None, *rest: Any) -> events.Plan:
        with self._lock:
            if name not in self._plans:
                self._plans[name] = events.Plan(weight, bias, *rest)
            return self._plans[name]
