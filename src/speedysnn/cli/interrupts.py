"""Ctrl-C where nothing can catch it: amid torch's import, in a callback from C, and after a command's last line."""

import _thread
import os
import signal
import sys
import threading
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
