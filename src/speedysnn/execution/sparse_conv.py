"""Which convolutions of a call run event-driven, forward and for the gradient of their weights, and which by tiles.

Weights are laid out once for all passes of a call, small ones before these begin: threads that need them at the same
moment wait for each other, and waking costs more than laying out. Which way a layer goes is told by `sparse_rule`;
a stopwatch, `crossover`, decides only where `speedysnn.settings` asks for it, and never where gradients are recorded.
Tiles halve the time of what is not sparse, the gradient of the input among it, but round to some 1e-6, up to ten times
what torch does: they are taken only where the settings ask for them.

When a convolution multiplies its events only: a rule by shape and density, the same on every machine of a kind.

The event-driven way costs a fixed part (finding the events, writing the sums) and a part in proportion to them, so that
it pays below some share of values that are not zero. The shares below are the lower end of what the stopwatch
measures for the shapes of ResNet-20 (32 px) and ResNet-18 (224 px) on x86-64 with AVX2, one thread. Near them both ways
take about the same time, so that little is lost where a machine would have decided otherwise. Nothing but the call
enters: the layer's sizes, the pictures of the call and the share of nonzero values in what the layer reads.

Which way of a convolution pays on this machine: measured once a shape, where `speedysnn.settings` says "measure".

Event-driven work does below some density of its input: both ways are timed on a few pictures, the event-driven one also
on none but zeros, since its cost is that floor and a part in proportion to the events. What was found is kept in the
user's cache folder, so that later runs decide alike.
"""

import json
import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor

from speedysnn import settings
from speedysnn.files.atomic import replace_file
from speedysnn.kernels import sparse_conv as events
from speedysnn.kernels.dispatch import recorded, traced
from speedysnn.kernels.jit import cache_folder
from speedysnn.kernels.numba_backend import density
from speedysnn.kernels.sparse_conv import WeightBuffers, autograd, winograd
from speedysnn.kernels.sparse_conv.autograd import ConvMethods, ConvShape, convolve, forward

# (fewest channels read or written, largest share of nonzero values)
FORWARD = ((32, 0.3), (16, 0.22), (0, 0.15))
GRADIENT = ((64, 0.6), (32, 0.5), (16, 0.45), (0, 0.05))  # of the weights, kernels of more than one place
POINTWISE_GRADIENT = 0.05  # a product of matrices is hard to beat
BESIDE_TILES = 0.5  # tiles take about half of torch's time, and so halve the share up to which events pay


def forward_density(shape: ConvShape, tiled: bool) -> float:
    """The share of nonzero inputs up to which a convolution runs by events; `tiled`: else it would run by tiles."""
    return _largest(FORWARD, shape) * (BESIDE_TILES if tiled else 1)


def gradient_density(shape: ConvShape, tiled: bool) -> float:
    """The same for the gradient of its weights."""
    share = POINTWISE_GRADIENT if shape.kernel == (1, 1) else _largest(GRADIENT, shape)
    return share * (BESIDE_TILES if tiled else 1)


def _largest(table: tuple[tuple[int, float], ...], shape: ConvShape) -> float:
    return next(share for fewest, share in table if min(shape.channels) >= fewest)


Call = Callable[[Tensor], Tensor]
PICTURES, VALUES, ROUNDS = 16, 2**18, 5  # that are timed at least, so that no call's own cost counts, and how often
_known: dict[str, float] = {}
_lock = threading.Lock()


def crossover(sizes: Sequence[int | str], x: Tensor, sparse: Call, dense: Call) -> float:
    """The density (share of values that are not zero) up to which `sparse` is at most as slow as `dense`.

    Args:
        sizes: of the work, which with the picture's tell it from others.
        x: what it reads, channels-last.
        sparse: the event-driven way; called where nothing is known yet.
        dense: the usual way.
    """
    return _kept(sizes, x, lambda some: _density(some, sparse, dense))


def quicker(sizes: Sequence[int | str], x: Tensor, one: Call, other: Call) -> bool:
    """Whether `one` takes less time than `other`; arguments as in `crossover`."""

    def measure(some: Tensor) -> float:
        one(some), other(some)
        rounds = [(_seconds(partial(one, some)), _seconds(partial(other, some))) for _ in range(ROUNDS)]
        first, second = (min(times) for times in zip(*rounds, strict=True))
        return float(second / first)

    return _kept(sizes, x, measure) > 1


def _kept(sizes: Sequence[int | str], x: Tensor, measure: Callable[[Tensor], float]) -> float:
    """What was measured for work of these sizes, or is now, on some of the pictures."""
    key = " ".join(map(str, (torch.__version__, torch.get_num_threads(), *sizes, *x.shape[2:])))
    if key not in _known:
        with _lock:  # others wait: what they did meanwhile would be in the measurement
            if not _known:
                _known.update(_read())
            if key not in _known:
                some = x[: max(PICTURES, VALUES // max(1, x[:1].numel()))]
                _known[key] = measure(some.contiguous(memory_format=torch.channels_last))
                _write()
    return _known[key]


def _density(x: Tensor, sparse: Call, dense: Call) -> float:
    share = int(torch.count_nonzero(x)) / max(1, x.numel())
    zeros = torch.zeros_like(x)
    calls: tuple[Callable[[], Tensor], ...] = (lambda: dense(x), lambda: sparse(x), lambda: sparse(zeros))
    for call in calls:
        call()
    rounds = [[_seconds(call) for call in calls] for _ in range(ROUNDS)]
    whole, some, floor = (min(times) for times in zip(*rounds, strict=True))
    slope = max(some - floor, 1e-9) / max(share, 1e-3)
    return float(min(1.0, max(0.0, (whole - floor) / slope)))


def _seconds(call: Callable[[], Tensor]) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def _read() -> dict[str, float]:
    try:
        found: Any = json.loads((cache_folder() / "crossover.json").read_text(encoding="utf-8"))
        return {str(key): float(value) for key, value in found.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def _write() -> None:
    try:
        cache_folder().mkdir(parents=True, exist_ok=True)
        replace_file(cache_folder() / "crossover.json", json.dumps({**_read(), **_known}, indent=0).encode())
    except OSError:  # measured anew in every process
        return


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


class SparseConvContext:
    """The event-driven convolutions of one call.

    Args:
        pictures: images times steps of the whole call.
        buffers: memory for its weights; see `close`.
        kind: calls that lay out alike, see `prepare`.
    """

    def __init__(self, pictures: int, buffers: WeightBuffers | None = None, kind: str = "") -> None:
        self.buffers, self.kind = buffers or WeightBuffers(), kind
        self._laid: _Laid = self.buffers.held or _Laid()
        self.pictures = max(pictures, self._laid.images)
        self._used: set[tuple[str, ConvShape | None, bool]] = set()  # without a shape: by tiles
        self._wanted, self._by_tiles = settings.get("events"), settings.get("tiles")

    def prepare(self, tensors: Callable[[str], Mapping[str, Tensor]]) -> None:
        """Lay out small weights of the layers that the last call of this kind ran by events or by tiles."""
        if self._wanted == "never":
            return
        for name, shape, half in self.buffers.last.get(self.kind, ()):
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
            methods = self._methods(name, x, weight, bias, shape, share)
            return None if methods == ConvMethods() else convolve(x, weight, bias, shape, methods)
        methods = self._forward(name, x, weight, bias, shape, share, half, self._tiles(shape), True)
        return None if methods == ConvMethods() else forward(x, weight, bias, shape, methods)

    def _little(self, x: Tensor, weight: Tensor) -> bool:
        """Whether a layer multiplies too little for any of this, told before its shape is worked out."""
        return 4 * self.pictures * math.prod(x.shape[2:]) * weight.numel() < WORTH

    def _methods(
        self, name: str, x: Tensor, weight: Tensor, bias: Tensor | None, shape: ConvShape, share: float
    ) -> ConvMethods:
        """How a convolution is done whose gradients are wanted, and how these are."""
        tiled, turned, to_weight = self._by_tiles == "always" and self._tiles(shape), None, None
        methods = self._forward(name, x.detach(), weight, bias, shape, share, False, tiled, False)
        if tiled and x.requires_grad:
            turned = self._tiled(name, weight, turned=True)
        if weight.requires_grad:
            to_weight = self._to_weight(shape, share, tiled)
        return replace(methods, turned=turned, to_weight=to_weight)

    def _forward(
        self, name: str, x: Tensor, weight: Tensor, bias: Tensor | None, shape: ConvShape, share: float, half: bool,
        tiled: bool, timed: bool,
    ) -> ConvMethods:  # fmt: skip
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
            pays = self._wanted == "always" or share <= forward_density(shape, tiled)
        if pays:
            self._used.add((name, shape, half))
            return ConvMethods(plan())
        if tiled:
            self._used.add((name, None, half))
        return ConvMethods(points=points() if tiled else None)

    def _tiles(self, shape: ConvShape) -> bool:
        geometry = (shape.kernel, shape.stride, shape.padding)
        worth = self.pictures * shape.places >= PLACES and self._by_tiles != "never"
        return worth and self._wanted != "always" and winograd.supports(shape.channels, *geometry, shape.size)

    def _to_weight(self, shape: ConvShape, share: float, tiled: bool) -> str | None:
        """How the gradient of the weights is found; see `ConvMethods`."""
        takes = autograd.supports_gradient(shape.kernel, shape.stride, shape.padding)
        if takes and (self._wanted == "always" or share <= gradient_density(shape, tiled)):
            return "events"
        return "tiles" if tiled else None

    def _quicker(
        self, what: str, shape: ConvShape, x: Tensor, way: Callable[[], Way],
        call: Callable[[Way | None, Tensor], Tensor],
    ) -> bool:  # fmt: skip
        """Whether `call` takes less time with what `way` gives than with None."""
        with torch.no_grad():
            return quicker((what, *shape.numbers()), x, lambda some: call(way(), some), partial(call, None))

    def _tiled(self, name: str, weight: Tensor, turned: bool = False) -> Tensor:
        points = self._laid.points
        if (name, turned) not in points:
            with self._laid.lock, torch.no_grad(), torch.autocast("cpu", enabled=False):
                if (name, turned) not in points:
                    points[name, turned] = winograd.laid_out(winograd.turned(weight) if turned else weight)
        return points[name, turned]

    def _measured(
        self, what: str, shape: ConvShape, share: float, x: Tensor, sparse: Call, dense: Call
    ) -> bool:
        """Whether a stopwatch finds events at most as slow at that share."""
        with torch.no_grad():
            return share <= crossover((what, *shape.numbers()), x, sparse, dense)

    def _plan(self, name: str, weight: Tensor, bias: Tensor | None, shape: ConvShape, half: bool) -> events.EventPlan:
        key, plans = (name, shape, half), self._laid.plans
        if key not in plans:
            with self._laid.lock:
                if key not in plans:
                    geometry = shape.stride, shape.padding, shape.size[1]
                    plans[key] = events.EventPlan(weight, bias, *geometry, half, self.buffers)
        return plans[key]

    def close(self) -> None:
        """The call is over: its memory serves the next one, which begins with what this one used."""
        if self._used or self.kind in self.buffers.last:
            self.buffers.last[self.kind] = tuple(self._used)
        if self._laid is not self.buffers.held:
            self._laid.close()


@contextmanager
def shared(
    buffers: WeightBuffers, tensors: Callable[[str], Mapping[str, Tensor]], kinds: Sequence[str], images: int
) -> Iterator[None]:
    """Calls of these kinds share what they lay out, for as long as nothing changes a weight; the small ones at once."""
    before = buffers.held
    laid = buffers.held = before or _Laid(images)
    try:
        for kind in kinds:
            SparseConvContext(0, buffers, kind).prepare(tensors)
        yield
    finally:
        if laid is not before:  # not closed: a call of another thread may still read what lies there
            buffers.held = None


def _transformed() -> bool:
    """Whether one of torch.func's transforms runs, which take operators of torch alone."""
    return bool(torch._C._are_functorch_transforms_active())


def _dense(weight: Tensor, shape: ConvShape, points: Tensor | None, x: Tensor) -> Tensor:
    return forward(x, weight, None, shape, ConvMethods(points=points))
