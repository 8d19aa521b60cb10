"""What a file given as weights or as a network must pass before anything is read from it."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Iterable
from pathlib import Path

from speedysnn.errors import SourceError

__all__ = ["DOWNLOAD", "ODD", "checksum", "expanded", "require_file", "require_unpacks", "start_of"]

DOWNLOAD = "download or copy it again"
_PAGES = (b"<!doctype", b"<html", b"<?xml", b"<head")
_LISTED = {".pth", ".pt", ".th", ".ckpt", ".safetensors", ".pt2", ".onnx"}
# What reading a document of another form than expected may end in; RecursionError is a RuntimeError.
ODD = (LookupError, TypeError, ValueError, AttributeError, RuntimeError, ArithmeticError, AssertionError, StopIteration,
       MemoryError, SystemError)  # fmt: skip
_PACKED = 200  # a zip archive of weights never shrinks them as far as this


def expanded(path: str | Path) -> Path:
    """The path with ~ as the home folder; as it came where there is no such user, or no file can have that name.

    Returns:
        The path.
    """
    try:
        return Path(path).expanduser()
    except (RuntimeError, ValueError):
        return Path(path)


def require_unpacks(file: Path, what: str) -> None:
    """Refuse a zip archive whose members claim to be far larger than the file could hold.

    Raises:
        SourceError: it would fill the memory.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            claimed = sum(info.file_size for info in archive.infolist())
    except (zipfile.BadZipFile, OSError, ValueError, LookupError, NotImplementedError):
        return  # no archive, or one that its own reader will refuse
    size = file.stat().st_size
    if claimed > _PACKED * size + 2**20:
        raise SourceError(
            f"{what} {file} was not opened: {size:,} bytes claim to unpack to {claimed:,}, which would fill the "
            f"memory; {DOWNLOAD} from a source you trust"
        )


def require_file(file: Path, what: str) -> None:
    """Refuse what is no file, or an empty one; `what` is "checkpoint" or "network".

    Raises:
        SourceError: a folder, missing, or empty.
    """
    if file.is_dir():
        inside = sorted(path.name for path in file.iterdir() if path.suffix in _LISTED)
        listed = f"; it holds {', '.join(inside[:5])}" if inside else ""
        raise SourceError(f"{what} {file} is a folder, expected a file{listed}; give the {what} file itself")
    if not file.exists():
        raise SourceError(f"{what} {file} does not exist; check the path (nothing is downloaded)")
    if file.stat().st_size == 0:
        raise SourceError(f"{what} {file} is empty (0 bytes); {DOWNLOAD}")


def start_of(file: Path, what: str) -> bytes:
    """The file's first bytes, once it is sure that they are no web page and no pointer to the real file.

    Returns:
        At most 512 bytes.

    Raises:
        SourceError: the file cannot be opened, or is one of those.
    """
    try:
        with file.open("rb") as handle:
            start = handle.read(512)
    except OSError as err:
        raise SourceError(f"{what} {file} cannot be read: {err.strerror}") from err
    contents = "weights" if what == "checkpoint" else f"a {what}"
    head = start.lstrip().lower()
    if head.startswith(_PAGES):
        raise SourceError(
            f"{what} {file} is a web page, not {contents}: the download saved an error or login page; "
            "fetch the file itself (its 'raw' or 'download' link)"
        )
    if head.startswith(b"version ") and b"git-lfs" in head:
        raise SourceError(f"{what} {file} is a Git LFS pointer, not {contents}; run `git lfs pull` where it came from")
    return start


def checksum(files: Iterable[Path]) -> str:
    """The sha256 of the files' bytes one after the other, as hexadecimal digits.

    Returns:
        64 digits.
    """
    digest = hashlib.sha256()
    for each in files:
        with each.open("rb") as handle:
            hashlib.file_digest(handle, lambda: digest)
    return digest.hexdigest()
