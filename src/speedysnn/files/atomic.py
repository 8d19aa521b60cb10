"""Files that are replaced whole, and sets of files that are replaced together.

One writer a place: a claim that other processes see, and the exchange of two folders in one step.

What exporters share: where a file may be written, and the warning about what a reader must know.
"""

from __future__ import annotations

import ctypes
import errno
import glob
import hashlib
import os
import shutil
import tempfile
from collections.abc import Collection, Iterable, Iterator, Mapping
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
    except BaseException:  # also on Ctrl-C, the first folder must come back
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


__all__ = ["replace_file", "replace_set"]


def replace_file(path: Path, content: bytes) -> None:
    """Write a file whole or not at all; what a killed write of it left beside it goes.

    Raises:
        OSError: it cannot be written; nothing of it is left.
    """
    target = path.absolute()
    with scratch_beside(target) as scratch:
        (scratch / "new").write_bytes(content)
        (scratch / "new").replace(target)


def replace_set(folder: Path, files: Mapping[str, bytes], own: Collection[str]) -> None:
    """Write files into a folder, so that whoever looks, and a kill at any moment, finds all new or all old.

    That holds for a new folder, and for one with nothing but files named in `own`: the set is made beside it and takes
    its name in one step, and what is not in the set goes. Elsewhere (other things in it, the working folder, a mount
    point) every file is written under another name first and all are renamed then: each is whole, other things stay,
    a full disk changes nothing, and only a kill between two renames leaves new files beside old ones.

    Raises:
        OSError: they cannot be written.
    """
    target = folder.resolve()
    target.parent.mkdir(parents=True, exist_ok=True)
    if _is_own(target, own):
        try:
            _whole(target, files)
        except OSError:
            if not target.is_dir():
                raise
        else:
            return
    with scratch_beside(target / "files") as scratch:
        _fill(scratch, files)
        for name in files:
            (scratch / name).replace(target / name)


def _is_own(target: Path, own: Collection[str]) -> bool:
    """Whether there is no folder yet, or one that may be replaced as a whole."""
    if not target.exists():
        return True
    here = Path.cwd()
    inside = (path.name in own and path.is_file() and not path.is_symlink() for path in target.iterdir())
    return target.is_dir() and target not in (here, *here.parents) and all(inside)


def _whole(target: Path, files: Mapping[str, bytes]) -> None:
    with scratch_beside(target) as scratch:
        fresh = scratch / "new"
        fresh.mkdir()
        _fill(fresh, files)
        if target.exists():
            shutil.copymode(target, fresh)
            exchange(fresh, target)
        else:
            fresh.replace(target)


def _fill(folder: Path, files: Mapping[str, bytes]) -> None:
    for name, content in files.items():
        (folder / name).write_bytes(content)


class ExportWarning(UserWarning):
    """Something that the reader of an exported file must know; the command line prints it as a note."""


def check_target(target: Path, suffix: str, overwrite: bool) -> None:
    """Refuse a file that cannot be written, before any work is done.

    Raises:
        ArtifactError: another suffix, a folder, or a file that is there while `overwrite` is off.
    """
    if target.suffix != suffix:
        raise ArtifactError(f"{target}: expected a file name that ends in {suffix}")
    if target.is_dir():
        raise ArtifactError(f"{target}: a folder is there; give a file name")
    if target.exists() and not overwrite:
        raise ArtifactError(f"{target}: a file is there already; choose another name, or pass overwrite")
    if not target.absolute().parent.is_dir():
        raise ArtifactError(f"{target}: its folder does not exist")
