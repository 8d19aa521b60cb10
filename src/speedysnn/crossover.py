"""Which way of a convolution pays on this machine: measured once a shape, where `speedysnn.settings` says "measure".

Event-driven work does below some density of its input: both ways are timed on a few pictures, the event-driven one also
on none but zeros, since its cost is that floor and a part in proportion to the events. What was found is kept in the
user's cache folder, so that later runs decide alike.
"""

import json
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from speedysnn._replace import replace_file
from speedysnn.kernels.compiled import cache_folder

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
