"""Which convolutions of a call run event-driven, forward and for the gradient of their weights, and which by tiles.

Weights are laid out once for all passes of a call, small ones before these begin: threads that need them at the same
moment wait for each other, and waking costs more than laying out. Which way a layer goes is told by `sparse_rule`;
a stopwatch, `crossover`, decides only where `speedysnn.settings` asks for it, and never where gradients are recorded.
Tiles halve the time of what is not sparse, the gradient of the input among it, but round to some 1e-6, up to ten times
what torch does: they are taken only where the settings ask for them.
"""

import math
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor

from speedysnn import crossover, settings, sparse_rule
from speedysnn.kernels import event_gradient, events, tiles
from speedysnn.kernels.dispatch import recorded, traced
from speedysnn.kernels.event_conv import ConvShape, Ways, convolve, forward
from speedysnn.kernels.nonzero import density
from speedysnn.kernels.tables import Tables

Way = TypeVar("Way")
WORTH = 5e7  # multiplications of a layer in a call below which nothing is laid out or measured
PLACES = 4096  # results of a channel in a call, below which tiles save less than it takes to lay weights out for them
SMALL = 2**17  # weights of a layer that are laid out sooner than a thread wakes


@dataclass
class _Laid:
    """Weights laid out, for calls of so many images together."""

    images: int = 0
    plans: dict[tuple[str, ConvShape, bool], events.EventPlan] = field(default_factory=dict)
    points: dict[tuple[str, bool], Tensor] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def close(self) -> None:
        """Give their memory back."""
        while self.plans:
            self.plans.popitem()[1].close()
        self.points.clear()


class Eventwise:
    """The event-driven convolutions of one call.

    Args:
        pictures: images times steps of the whole call.
        tables: memory for its weights; see `close`.
        kind: calls that lay out alike, see `prepare`.
    """

    def __init__(self, pictures: int, tables: Tables | None = None, kind: str = "") -> None:
        self.tables, self.kind = tables or Tables(), kind
        self._laid: _Laid = self.tables.held or _Laid()
        self.pictures = max(pictures, self._laid.images)
        self._used: set[tuple[str, ConvShape | None, bool]] = set()  # without a shape: by tiles
        self._wanted, self._by_tiles = settings.get("events"), settings.get("tiles")

    def prepare(self, tensors: Callable[[str], Mapping[str, Tensor]]) -> None:
        """Lay out small weights of the layers that the last call of this kind ran by events or by tiles."""
        if self._wanted == "never":
            return
        for name, shape, half in self.tables.last.get(self.kind, ()):
            own = tensors(name)
            weight, bias = own.get("weight"), own.get("bias")
            if weight is None:  # the layer was pruned, wrapped or replaced since
                continue
            if weight.numel() > SMALL or weight.device.type != "cpu" or weight.dtype != torch.float32:
                continue
            if shape is not None:
                self._plan(name, weight, bias, shape, half)
            elif self._by_tiles != "never":
                self._tiled(name, weight)

    def conv2d(self, name: str, x: Tensor, attrs: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Tensor | None:
        """The node's result, or None where the usual convolution is to do it."""
        weight, bias = tensors["weight"], tensors.get("bias")
        given = (x, weight) if bias is None else (x, weight, bias)
        half = torch.is_autocast_enabled("cpu")
        if self._wanted == "never" or (self._wanted != "always" and self._little(x, weight)):
            return None
        if traced() or _transformed() or not events.supports(x, weight, attrs):
            return None
        if half and (recorded(*given) or torch.get_autocast_dtype("cpu") != torch.bfloat16):
            return None
        if not half and x.dtype != weight.dtype:
            return None
        shape = ConvShape.of(x, weight, attrs)
        if self._wanted != "always" and self.pictures * shape.places * weight.numel() < WORTH:
            return None
        share = density(x)
        if recorded(*given):
            ways = self._ways(name, x, weight, bias, shape, share)
            return None if ways == Ways() else convolve(x, weight, bias, shape, ways)
        ways = self._forward(name, x, weight, bias, shape, share, half, self._tiles(shape), True)
        return None if ways == Ways() else forward(x, weight, bias, shape, ways)

    def _little(self, x: Tensor, weight: Tensor) -> bool:
        """Whether a layer multiplies too little for any of this, told before its shape is worked out."""
        return 4 * self.pictures * math.prod(x.shape[2:]) * weight.numel() < WORTH

    def _ways(self, name: str, x: Tensor, weight: Tensor, bias: Tensor | None, shape: ConvShape, share: float) -> Ways:
        """How a convolution is done whose gradients are wanted, and how these are."""
        tiled, turned, to_weight = self._by_tiles == "always" and self._tiles(shape), None, None
        ways = self._forward(name, x.detach(), weight, bias, shape, share, False, tiled, False)
        if tiled and x.requires_grad:
            turned = self._tiled(name, weight, turned=True)
        if weight.requires_grad:
            to_weight = self._to_weight(shape, share, tiled)
        return replace(ways, turned=turned, to_weight=to_weight)

    def _forward(
        self, name: str, x: Tensor, weight: Tensor, bias: Tensor | None, shape: ConvShape, share: float, half: bool,
        tiled: bool, timed: bool,
    ) -> Ways:  # fmt: skip
        """How the convolution itself is done; `timed`: a stopwatch may say so, where the settings ask for one."""
        kind, points = f" {x.dtype}" if half else "", partial(self._tiled, name, weight)
        if timed and tiled and self._by_tiles == "measure":
            tiled = self._quicker(f"forward tiles{kind}", shape, x, points, partial(_dense, weight, shape))
        plan = partial(self._plan, name, weight, bias, shape, half)
        what = "forward or tiles" if tiled else "forward"
        calls = (lambda some: plan().run(some)), lambda some: _dense(weight, shape, points() if tiled else None, some)
        if timed and self._wanted == "measure":
            pays = self._measured(f"{what}{kind}", shape, share, x, *calls)
        else:
            pays = self._wanted == "always" or share <= sparse_rule.forward_density(shape, tiled)
        if pays:
            self._used.add((name, shape, half))
            return Ways(plan())
        if tiled:
            self._used.add((name, None, half))
        return Ways(points=points() if tiled else None)

    def _tiles(self, shape: ConvShape) -> bool:
        geometry = (shape.kernel, shape.stride, shape.padding)
        worth = self.pictures * shape.places >= PLACES and self._by_tiles != "never"
        return worth and self._wanted != "always" and tiles.supports(shape.channels, *geometry, shape.size)

    def _to_weight(self, shape: ConvShape, share: float, tiled: bool) -> str | None:
        """How the gradient of the weights is found; see `Ways`."""
        takes = event_gradient.supports(shape.kernel, shape.stride, shape.padding)
        if takes and (self._wanted == "always" or share <= sparse_rule.gradient_density(shape, tiled)):
            return "events"
        return "tiles" if tiled else None

    def _quicker(
        self, what: str, shape: ConvShape, x: Tensor, way: Callable[[], Way],
        call: Callable[[Way | None, Tensor], Tensor],
    ) -> bool:  # fmt: skip
        """Whether `call` takes less time with what `way` gives than with None."""
        with torch.no_grad():
            return crossover.quicker((what, *shape.numbers()), x, lambda some: call(way(), some), partial(call, None))

    def _tiled(self, name: str, weight: Tensor, turned: bool = False) -> Tensor:
        points = self._laid.points
        if (name, turned) not in points:
            with self._laid.lock, torch.no_grad(), torch.autocast("cpu", enabled=False):
                if (name, turned) not in points:
                    points[name, turned] = tiles.laid_out(tiles.turned(weight) if turned else weight)
        return points[name, turned]

    def _measured(
        self, what: str, shape: ConvShape, share: float, x: Tensor, sparse: crossover.Call, dense: crossover.Call
    ) -> bool:
        """Whether a stopwatch finds events at most as slow at that share."""
        with torch.no_grad():
            return share <= crossover.crossover((what, *shape.numbers()), x, sparse, dense)

    def _plan(self, name: str, weight: Tensor, bias: Tensor | None, shape: ConvShape, half: bool) -> events.EventPlan:
        key, plans = (name, shape, half), self._laid.plans
        if key not in plans:
            with self._laid.lock:
                if key not in plans:
                    geometry = shape.stride, shape.padding, shape.size[1]
                    plans[key] = events.EventPlan(weight, bias, *geometry, half, self.tables)
        return plans[key]

    def close(self) -> None:
        """The call is over: its memory serves the next one, which begins with what this one used."""
        if self._used or self.kind in self.tables.last:
            self.tables.last[self.kind] = tuple(self._used)
        if self._laid is not self.tables.held:
            self._laid.close()


@contextmanager
def shared(
    tables: Tables, tensors: Callable[[str], Mapping[str, Tensor]], kinds: Sequence[str], images: int
) -> Iterator[None]:
    """Calls of these kinds share what they lay out, for as long as nothing changes a weight; the small ones at once."""
    before = tables.held
    laid = tables.held = before or _Laid(images)
    try:
        for kind in kinds:
            Eventwise(0, tables, kind).prepare(tensors)
        yield
    finally:
        if laid is not before:  # not closed: a call of another thread may still read what lies there
            tables.held = None


def _transformed() -> bool:
    """Whether one of torch.func's transforms runs, which take operators of torch alone."""
    return bool(torch._C._are_functorch_transforms_active())


def _dense(weight: Tensor, shape: ConvShape, points: Tensor | None, x: Tensor) -> Tensor:
    return forward(x, weight, None, shape, Ways(points=points))
