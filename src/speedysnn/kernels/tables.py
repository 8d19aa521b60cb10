"""Memory for laid-out weights, kept from call to call: pages that are new cost more than what is written to them."""

import threading
from typing import Any

import torch

Array = Any


class Tables:
    """Arrays that are free now, by size and type; copies of it, also in another process, begin with none."""

    def __init__(self) -> None:
        self._free: dict[tuple[int, torch.dtype], list[Array]] = {}
        self._lock = threading.Lock()

    def take(self, size: int, kind: torch.dtype) -> Array:
        """An array of so many numbers; torch's begin at a line of the cache, so that no vector lies in two."""
        with self._lock:
            free = self._free.get((size, kind))
            if free:
                return free.pop()
        return torch.empty(size, dtype=kind).numpy()

    def give(self, array: Array) -> None:
        """Take an array back that nobody reads any more."""
        kind = torch.from_numpy(array).dtype
        with self._lock:
            self._free.setdefault((array.size, kind), []).append(array)

    def __reduce__(self) -> tuple[Any, ...]:
        return Tables, ()
