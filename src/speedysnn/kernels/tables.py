"""Memory for laid-out weights, kept from call to call: pages that are new cost more than what is written to them.

And which layers a kind of call laid out when it last ran, so that the next one can do so before its threads begin.
"""

import threading
from typing import Any

import numpy as np
import torch

Array = Any


class Tables:
    """Arrays that are free now, by size and type; copies of it, also in another process, begin with none."""

    def __init__(self) -> None:
        self._free: dict[tuple[int, Any], list[Array]] = {}
        self.last: dict[str, tuple[Any, ...]] = {}
        self.held: Any = None  # what calls share, see `speedysnn.eventwise.shared`
        self._lock = threading.Lock()

    def take(self, size: int, kind: Any) -> Array:
        """An array of so many numbers; torch's begin at a line of the cache, so that no vector lies in two."""
        with self._lock:
            free = self._free.get((size, np.dtype(kind)))
            if free:
                return free.pop()
        return torch.empty(size * np.dtype(kind).itemsize, dtype=torch.uint8).numpy().view(kind)

    def give(self, array: Array) -> None:
        """Take an array back that nobody reads any more."""
        with self._lock:
            self._free.setdefault((array.size, array.dtype), []).append(array)

    def __reduce__(self) -> tuple[Any, ...]:
        return Tables, ()
