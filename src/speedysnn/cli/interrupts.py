"""Ctrl-C where nothing can catch it: while torch is being imported, and after a command's last line."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress

INTERRUPTED = 130


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
