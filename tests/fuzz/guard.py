"""One case under guard: what it raises, writes, starts, needs of memory and time; nothing is left unexplained."""

import os
import resource
import signal
import sys
import warnings
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from speedysnn.errors import SpeedySNNError
from speedysnn.kernels.jit import cache_folder

SECONDS, MEGABYTES = 20, 600
_ACTIONS = ("os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess.Popen", "socket.connect", "os.mkdir",
            "os.remove", "os.rename", "os.rmdir", "os.symlink", "os.link", "os.chmod", "os.truncate", "shutil.rmtree",
            "os.kill", "os.putenv", "webbrowser.open")  # fmt: skip
_CACHE = f"{cache_folder()}{os.sep}"  # kernels are compiled when first called
_watched: list[str] | None = None
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if _watched is None or (arguments and str(arguments[0]).startswith(_CACHE)):
        return
    if event in _ACTIONS:
        _watched.append(f"{event} {arguments[:2]!r}")
    elif event == "open" and isinstance(arguments[0], str | bytes | Path) and int(arguments[2] or 0) & _WRITES:
        _watched.append(f"wrote {arguments[0]!r}")


sys.addaudithook(_hook)


class TooSlow(BaseException):
    """The case did not end in time."""


def _alarm(*_: object) -> None:
    raise TooSlow


@contextmanager
def _under_watch(actions: list[str]):
    global _watched
    before = signal.signal(signal.SIGALRM, _alarm)
    signal.alarm(SECONDS)
    _watched = actions
    try:
        yield
    finally:
        _watched = None
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def peak() -> float:
    """Most memory that this process has held, in megabytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def outcome(call: Callable[[], object], *, writes: bool = False) -> tuple[str, str]:
    """("loaded" or "refused", message), or ("failed", why): any other exception, an action, memory, or time.

    Args:
        call: the case.
        writes: whether it may write (a whole command does).
    """
    actions: list[str] = []
    before, kind, message = peak(), "loaded", ""
    compiled, sys.dont_write_bytecode = sys.dont_write_bytecode, True  # Python's own cache beside a user's file
    try:
        with _under_watch(actions), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            call()
    except SpeedySNNError as err:
        kind, message = "refused", str(err)
        if len(message) < 15 or len(message) > 3000:
            kind, message = "failed", f"a message of {len(message)} characters: {message[:200]}"
    except TooSlow:
        kind, message = "failed", f"it ran for more than {SECONDS} s"
    except (Exception, SystemExit) as err:
        kind, message = "failed", f"{type(err).__module__}.{type(err).__name__}: {err}"[:300] + _place(err)
    finally:
        sys.dont_write_bytecode = compiled
    if actions and not writes:
        return "failed", f"it acted: {actions[:3]}"
    if peak() - before > MEGABYTES:
        return "failed", f"memory grew by {peak() - before:.0f} MB: {message[:200]}"
    return kind, message


def _place(err: BaseException) -> str:
    trace, lines = err.__traceback__, []
    while trace is not None:
        lines.append(f"{Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno}")
        trace = trace.tb_next
    return f" [{' < '.join(reversed(lines[-5:]))}]"
