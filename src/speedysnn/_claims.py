"""One writer a place: a claim that other processes see, and the exchange of two folders in one step."""

from __future__ import annotations

import ctypes
import errno
import glob
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from speedysnn.errors import ArtifactError

__all__ = ["claimed", "exchange", "left_beside", "scratch_beside", "take_away", "try_writing"]

_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, errno.EINVAL)  # of flock, on some network file systems
LOCK = ".lock"
_HERE, _EXCHANGE = -100, 2  # AT_FDCWD and RENAME_EXCHANGE of Linux
_lent: set[Path] = set()


@contextmanager
def claimed(path: Path, what: str = "", *, lend: bool = False) -> Iterator[None]:
    """Hold `path` for this process; the system lets go when the process ends, however it ends.

    The claim is a locked file .NAME.lock beside the path, which may not exist yet; both that file and folders made
    for it are gone afterwards, where nothing else came into them. Where nothing can be written there, the locked file
    lies in the system's folder for temporary files.

    Args:
        path: a file or folder.
        what: what to call it in the message, before the path.
        lend: let one further claim of it in this process pass: that of the call for which a command holds it.

    Raises:
        ArtifactError: another process, or another claim of this one, holds it.
    """
    target = path.absolute()
    if target in _lent:
        _lent.discard(target)
        yield
        return
    with ExitStack() as after:
        after.callback(take_away, [folder for folder in target.parents if not folder.exists()])
        lock = target.parent / f".{target.name}.lock"
        try:
            try:
                target.parent.mkdir(parents=True, exist_ok=True)
                held = _locked(lock)
            except OSError:
                lock = _elsewhere(target)
                held = _hold(lock)
        except _TakenError:
            raise ArtifactError(
                f"{what}{path}: another run is writing there now; wait for it, or choose another name"
            ) from None
        if held is not None:
            after.callback(held.release)
            after.callback(take_away, [lock])
        if lend:
            _lent.add(target)
            after.callback(_lent.discard, target)
        yield


def try_writing(folder: Path) -> None:
    """Make a file in the folder that is gone at once.

    Raises:
        OSError: nothing can be written there.
    """
    with tempfile.TemporaryFile(dir=folder):
        pass


def take_away(paths: Iterable[Path]) -> None:
    """Remove a file, or folders that are empty, the innermost first."""
    with suppress(OSError):
        for path in paths:
            path.rmdir() if path.is_dir() else path.unlink()


class _TakenError(Exception):
    """Another process, or another claim of this one, holds the lock."""


def _locked(lock: Path) -> FileLock | None:
    """The file, made and locked; None on a file system that knows no locks.

    Raises:
        OSError: it cannot be made.
        _TakenError: another holds it.
    """
    held = FileLock(lock, thread_local=False)
    while True:
        try:
            held.acquire(blocking=False)
        except Timeout:
            if lock.exists():
                raise _TakenError from None  # else its holder took it away meanwhile
        except NotImplementedError:
            return None
        except OSError as err:
            if err.errno in _NO_LOCKS:
                take_away([lock])
                return None
            raise
        else:
            return held


def _hold(lock: Path) -> FileLock | None:
    """`_locked`; None also where the file cannot be made."""
    try:
        return _locked(lock)
    except OSError:
        return None


def _elsewhere(target: Path) -> Path:
    """A lock file for a path beside which nothing can be written; whoever writes there says what is wrong."""
    digest = hashlib.sha256(os.fsencode(target.resolve())).hexdigest()[:32]
    return Path(tempfile.gettempdir()) / f"speedysnn-{digest}.lock"


def exchange(one: Path, other: Path) -> None:
    """Let two folders change names, so that there is one at either name at every moment.

    Where the system cannot, `other` is moved aside first; killed just then, it lies beside `one` as "old".

    Raises:
        OSError: a folder cannot be moved.
    """
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None) if os.name == "posix" else None
    if rename is not None:
        if rename(_HERE, os.fsencode(one), _HERE, os.fsencode(other), _EXCHANGE) == 0:
            return
        number = ctypes.get_errno()
        if number not in (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP):
            raise OSError(number, os.strerror(number), str(other))
    aside = one.with_name("old")
    other.replace(aside)
    try:
        one.replace(other)
    except BaseException:
        aside.replace(other)
        raise
    aside.replace(one)


def left_beside(target: Path) -> list[Path]:
    """Folders that `scratch_beside` made for this target and that are still there.

    Returns:
        Their paths in order.
    """
    return sorted(target.parent.glob(f"{glob.escape(_prefix(target))}*"))


@contextmanager
def scratch_beside(target: Path) -> Iterator[Path]:
    """A folder beside the target that is gone afterwards; what a killed process left of its own goes too.

    Raises:
        OSError: it cannot be made.
    """
    for left in left_beside(target):
        with _held(left) as free:
            if free and not (left / "old").exists():  # that may be the only copy, see `exchange`
                shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=_prefix(target)) as scratch, _held(Path(scratch)):
        yield Path(scratch)


def _prefix(target: Path) -> str:
    return f".{target.name}.part-"


@contextmanager
def _held(folder: Path) -> Iterator[bool]:
    """Lock a file in the folder, if no other process has."""
    try:
        held = _locked(folder / LOCK)
    except (OSError, _TakenError):
        yield False
        return
    try:
        yield True
    finally:
        if held is not None:
            held.release()
