"""Ctrl-C in a process that has imported the command line, each case in a fork of it: `interrupts.py FOLDER`.

Leaves FOLDER/CASE.code, CASE.out and CASE.err of every case.
"""

import atexit
import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path


def stop(*_: object) -> None:
    """Ctrl-C."""
    os.kill(os.getpid(), signal.SIGINT)


def twice() -> None:
    """The command is interrupted, and once more while that is being said."""
    where = sys.modules["speedysnn.cli.main"]
    where.app, where.release = stop, stop
    sys.argv[1:] = ["--version"]
    where.main()


def after() -> None:
    """After the command's last line."""
    atexit.register(stop)
    sys.argv[1:] = ["--version"]
    sys.modules["speedysnn.cli.main"].main()


def amid() -> None:
    """While the command works."""
    threading.Timer(0.5, stop).start()
    sys.exit(sys.modules["speedysnn.cli.main"].main(["demo", "-o", "demo"]))


def dropped() -> None:
    """In a callback from C, where Python ignores what is raised."""
    where = sys.modules["speedysnn.cli.main"]

    def app(*_: object, **__: object) -> None:
        ctypes.CFUNCTYPE(None)(stop)()
        for _second in range(200):
            time.sleep(0.05)

    where.app = app
    sys.argv[1:] = ["--version"]
    where.main()


CASES: dict[str, Callable[[], None]] = {"twice": twice, "after": after, "amid": amid, "dropped": dropped}


def handlers_are_kept() -> None:
    """A program that handles Ctrl-C itself keeps its handler; importing with Python's own gives that back."""
    signal.signal(signal.SIGINT, handler := lambda *_: print("mine"))
    import speedysnn.cli
    from speedysnn.cli.process import leaving_at_once

    assert speedysnn.cli.main
    assert signal.getsignal(signal.SIGINT) is handler
    with leaving_at_once():
        assert signal.getsignal(signal.SIGINT) is handler
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with leaving_at_once():
        assert signal.getsignal(signal.SIGINT) is not signal.default_int_handler
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def forked(folder: Path) -> Callable[[], None] | None:
    """In a fork the case to run, its output in files; in this process none, once all have ended."""
    for name, case in CASES.items():
        child = os.fork()
        if child == 0:
            for number, ending in ((1, "out"), (2, "err")):
                os.dup2(os.open(folder / f"{name}.{ending}", os.O_WRONLY | os.O_CREAT), number)
            os.chdir(folder)
            return case
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        (folder / f"{name}.code").write_text(str(code))
    return None


if __name__ == "__main__":
    handlers_are_kept()
    case = forked(Path(sys.argv[1]))
    if case is not None:
        case()  # and then the interpreter ends as after any command
