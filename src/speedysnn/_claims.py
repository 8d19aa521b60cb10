"""One writer a place: a claim that other processes see, and the exchange of two folders in one step."""

from __future__ import annotations

import ctypes
import errno
import glob
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import ModuleType

from speedysnn.errors import ArtifactError

fcntl: ModuleType | None
try:
    import fcntl
except ImportError:  # where there is none, nothing is claimed
    fcntl = None

__all__ = ["claimed", "exchange", "left_beside", "scratch_beside", "take_away", "try_writing"]

_HERE, _EXCHANGE = -100, 2  # AT_FDCWD and RENAME_EXCHANGE of Linux
_lent: set[Path] = set()


@contextmanager
def claimed(path: Path, what: str = "", *, lend: bool = False) -> Iterator[None]:
    """Hold `path` for this process; the system lets go when the process ends, however it ends.

    The claim is a locked file .NAME.lock beside the path, which may not exist yet; both that file and folders made
    for it are gone afterwards, where nothing else came into them. Where nothing can be written there, the folder itself
    is locked.

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
        made: list[Path] = [lock]
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            handle = _locked(lock)
        except OSError:
            made, handle = [], _locked_folder(target)
        if handle is None:
            raise ArtifactError(f"{what}{path}: another run is writing there now; wait for it, or choose another name")
        if handle:
            after.callback(os.close, handle)
            after.callback(take_away, made)
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


def _locked(lock: Path) -> int | None:
    """A descriptor of the lock file, held; None where another holds it; 0 where nothing can be held here."""
    while fcntl is not None:
        handle = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        if not _hold(handle):
            os.close(handle)
            return None
        with suppress(FileNotFoundError):
            if lock.stat().st_ino == os.fstat(handle).st_ino:
                return handle
        os.close(handle)  # its holder took it away meanwhile
    return 0


def _locked_folder(folder: Path) -> int | None:
    """The same for the folder itself; whoever writes into it says what is wrong where it cannot be opened."""
    try:
        handle = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return 0
    if _hold(handle):
        return handle
    os.close(handle)
    return None


def _hold(handle: int) -> bool:
    """Whether the open file or folder could be locked; True too on a file system that knows no locks."""
    if fcntl is None:
        return True
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


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
    """Folders that `scratch_beside` made for this target and that are still there."""
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
    """Lock the folder, if no other process has."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        yield False
        return
    try:
        yield _hold(handle)
    finally:
        os.close(handle)
