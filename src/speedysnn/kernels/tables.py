"""Buffers for packed weights, reused from call to call: touching new memory pages costs more than filling them.

It also remembers which layers the last call packed, so that the next call can pack them before its threads start.
"""

import threading
from typing import Any

import numpy as np
import torch

Array = Any


class Tables:
    """A pool of free arrays by size and type. A copy, also in another process, starts empty."""

    def __init__(self) -> None:
        self._free: dict[tuple[int, Any], list[Array]] = {}
        self.last: dict[str, tuple[Any, ...]] = {}
        self.held: Any = None  # what calls share, see `speedysnn.eventwise.shared`
        self._lock = threading.Lock()

    def take(self, size: int, kind: Any) -> Array:
        """Take an array of `size` numbers, aligned to a cache line as torch aligns its memory."""
        with self._lock:
            free = self._free.get((size, np.dtype(kind)))
            if free:
                return free.pop()
        return torch.empty(size * np.dtype(kind).itemsize, dtype=torch.uint8).numpy().view(kind)

    def give(self, array: Array) -> None:
        """Return an array that nobody reads any more."""
        with self._lock:
            self._free.setdefault((array.size, array.dtype), []).append(array)

    def __reduce__(self) -> tuple[Any, ...]:
        return Tables, ()
