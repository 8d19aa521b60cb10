"""What the C library keeps of freed memory: a program may decide this for its own process, a library may not."""

import ctypes
import os
from contextlib import suppress

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3  # as in glibc's malloc.h
_KEEP = (2**30, 2**25, 2**26)  # bytes: the end of the heap that is kept, the smallest block that is mapped by itself,
# and what a thread's heap, of 64 MiB pieces, has free before it gives a piece back
_HAND_BACK = (2**17, 2**17, 2**17)  # glibc's own first values; a value that was set no longer grows by itself
VARIABLE = "SPEEDYSNN_ALLOCATOR"  # system: the C library decides for itself
_program = _kept = False


def own_process() -> None:
    """This process is a program's own: what follows may be decided for it."""
    global _program
    _program = True


def keep_freed_memory() -> None:
    """For fast small layers: handing pages back and forth costs more than they do.

    In a process that is no program's own, or where $SPEEDYSNN_ALLOCATOR says so, nothing happens.
    """
    global _kept
    if _program and not _kept and os.environ.get(VARIABLE) != "system":
        _kept = True
        _set(*_KEEP)


def hand_freed_memory_back() -> None:
    """For a limit of memory: every larger tensor is a mapping of its own, which freeing hands back. Slower.

    Where it was not kept, and without glibc, nothing happens.
    """
    if _kept:
        _set(*_HAND_BACK)


def kept() -> bool:
    """Whether freed memory is kept."""
    return _kept


def _set(trim: int, mmap: int, pad: int) -> None:
    with suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(_TRIM_THRESHOLD, trim)
        libc.mallopt(_MMAP_THRESHOLD, mmap)
        libc.mallopt(_TOP_PAD, pad)
