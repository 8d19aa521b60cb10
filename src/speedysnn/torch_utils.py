"""A network's training and evaluation modes, given back as they were.

Freed memory handed back to the system where a limit binds, by whatever the program at hand has installed for it.

How a process keeps freed memory is its program's to decide: the command line installs `malloc_trim`, a library installs
nothing. A benchmark calls it in its own process, before it measures a peak.
"""

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from typing import Any

from torch import nn


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside the block; every module's own mode comes back afterwards."""
    before = {module: module.training for module in model.modules()}
    try:
        with suppress(NotImplementedError):  # an exported program has no modes
            model.eval()
        yield
    finally:
        for module, mode in before.items():
            module.training = mode


_release: Callable[[], None] | None = None


def install(release: Callable[[], None] | None) -> None:
    """Have `hand_back` call a function; None: nothing."""
    global _release
    _release = release


def hand_back() -> None:
    """Return what is free to the system, where the program has said how."""
    if _release is not None:
        _release()


def malloc_trim() -> None:
    """Return the free pages of all heaps, holes included; no setting of the process changes. Only glibc has this."""
    library = glibc()
    if library is not None:
        library.malloc_trim(0)


@cache
def glibc() -> Any:
    """Load the C library, if it is glibc, which has malloc_trim.

    Returns:
        The library, or None.
    """
    try:
        library = ctypes.CDLL("libc.so.6")
        library.malloc_trim.argtypes = (ctypes.c_size_t,)
    except (OSError, AttributeError):
        return None
    return library
