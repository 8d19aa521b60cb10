"""What a program may decide for its own process: how freed memory is kept, and how Ctrl-C ends it."""

import _thread
import ctypes
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from speedysnn import settings

INTERRUPTED = 130  # exit code
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3  # as in glibc's malloc.h
_KEEP = (2**30, 2**25, 2**26)  # bytes: the end of the heap that is kept, the smallest block that is mapped by itself,
# and what a thread's heap, of 64 MiB pieces, has free before it gives a piece back
_HAND_BACK = (2**17, 2**17, 2**17)  # glibc's own first values; a value that was set no longer grows by itself
VARIABLE = settings.SETTINGS["allocator"].variable
_program = _kept = False


def own_process() -> None:
    """Declare that this process is a program's own, so that what follows may be decided for it."""
    from speedysnn import torch_utils  # late: it imports torch, which takes seconds, and Ctrl-C may come before

    global _program
    _program = True
    torch_utils.install(torch_utils.malloc_trim)


def keep_freed_memory() -> None:
    """Keep freed memory, because small layers take less time than handing pages back and forth.

    In a process that is no program's own, or where the setting "allocator" says so, nothing happens.
    """
    global _kept
    if _program and not _kept and settings.get("allocator") != "system":
        _kept = True
        _set(*_KEEP)


def hand_freed_memory_back() -> None:
    """Hand freed memory back at once, for a limit of memory: every larger tensor then is a mapping of its own.

    This is slower. Where freed memory was not kept, and without glibc, nothing happens.
    """
    if _kept:
        _set(*_HAND_BACK)


def kept() -> bool:
    """Tell whether freed memory is kept.

    Returns:
        True once it is.
    """
    return _kept


def _set(trim: int, mmap: int, pad: int) -> None:
    with suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(_TRIM_THRESHOLD, trim)
        libc.mallopt(_MMAP_THRESHOLD, mmap)
        libc.mallopt(_TOP_PAD, pad)


def leave_at_once(code: int = INTERRUPTED) -> bool:
    """From now on let Ctrl-C end the process with this exit code, silently and without cleaning up.

    Returns:
        False, and nothing is changed, where the caller handles Ctrl-C or this is not the main thread.
    """
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        return False
    with suppress(ValueError):  # beside the main thread
        signal.signal(signal.SIGINT, lambda *_: os._exit(code))
        return True
    return False


@contextmanager
def leaving_at_once() -> Iterator[None]:
    """`leave_at_once` for as long as nothing is open, as during imports; Ctrl-C is what it was afterwards."""
    changed = leave_at_once()
    try:
        yield
    finally:
        if changed:
            signal.signal(signal.SIGINT, signal.default_int_handler)


@contextmanager
def coming_again() -> Iterator[None]:
    """A Ctrl-C that falls into a callback from C (numba compiling), where Python drops it, comes again a bit later."""
    before = sys.unraisablehook

    def hook(dropped: "sys.UnraisableHookArgs") -> None:
        if not issubclass(dropped.exc_type, KeyboardInterrupt):
            before(dropped)
            return
        again = threading.Timer(0.05, _thread.interrupt_main)
        again.daemon = True
        again.start()

    sys.unraisablehook = hook
    try:
        yield
    finally:
        sys.unraisablehook = before
