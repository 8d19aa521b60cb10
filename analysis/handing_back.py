"""Freed memory handed back to the system, so that a process holds what its tensors take and little more."""

import ctypes
from functools import cache
from typing import Any


@cache
def _libc() -> Any:
    """The C library with malloc_trim, glibc's; None elsewhere."""
    try:
        library = ctypes.CDLL("libc.so.6")
        library.malloc_trim.argtypes = (ctypes.c_size_t,)
    except (OSError, AttributeError):
        return None
    return library


def hand_back() -> None:
    """Return the free pages of all heaps, holes included; no setting of the process changes. Only glibc has this."""
    library = _libc()
    if library is not None:
        library.malloc_trim(0)
