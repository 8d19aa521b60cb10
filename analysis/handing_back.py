"""Freed memory handed back to the system where a limit binds, by whatever the program at hand has installed for it.

How a process keeps freed memory is its program's to decide: the command line installs the C library's function, a
library installs nothing.
"""

from collections.abc import Callable

_release: Callable[[], None] | None = None


def install(release: Callable[[], None] | None) -> None:
    """Have `hand_back` call a function; None: nothing."""
    global _release
    _release = release


def hand_back() -> None:
    """Return what is free to the system, where the program has said how."""
    if _release is not None:
        _release()
