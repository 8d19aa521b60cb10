"""What the C library keeps of freed memory: a program may decide this for its own process, a library may not."""

import ctypes
from contextlib import suppress

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8  # as in glibc's malloc.h
_KEEP = (2**30, 2**25)  # bytes: the end of the heap that is kept, and the smallest block that is mapped by itself
_HAND_BACK = (2**17, 2**17)  # glibc's own first values; a value that was set no longer grows by itself
_program = False


def keep_freed_memory() -> None:
    """For fast small layers: handing pages back and forth costs more than they do. This process is a program's own."""
    global _program
    _program = True
    _set(*_KEEP)


def hand_freed_memory_back() -> None:
    """For a limit of memory: every larger tensor is a mapping of its own, which freeing hands back. Slower.

    In a process that is no program's own, and without glibc, nothing happens.
    """
    if _program:
        _set(*_HAND_BACK)


def _set(trim: int, mmap: int) -> None:
    with suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(_ARENA_MAX, 1)  # a thread's own heap hands back what it freed whatever the threshold
        libc.mallopt(_TRIM_THRESHOLD, trim)
        libc.mallopt(_MMAP_THRESHOLD, mmap)
