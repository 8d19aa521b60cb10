"""What reading a file of data may meet: missing, empty, damaged, or larger than it can be."""

from __future__ import annotations

import lzma
import struct
import tokenize
import zipfile
import zlib
from pathlib import Path

from speedysnn.errors import DataError

DAMAGED = (EOFError, OSError, zlib.error, lzma.LZMAError, zipfile.BadZipFile, ValueError, struct.error, LookupError,
            RuntimeError, TypeError, SyntaxError, ArithmeticError, tokenize.TokenError)  # fmt: skip
PACKED = 1032  # deflate makes nothing smaller than by this factor


def require_file(path: Path, what: str, spec: str) -> Path:
    """The path, if it is a file with something in it.

    Returns:
        The same path.

    Raises:
        DataError: missing, a folder, or empty.
    """
    if path.is_dir():
        raise DataError(f"{path} is a folder, expected {what}; give the file itself, '{spec}'")
    if not path.is_file():
        raise DataError(f"{path} does not exist, expected {what}; check the path, '{spec}' (nothing is downloaded)")
    if path.stat().st_size == 0:
        raise DataError(f"{path} is empty (0 bytes), expected {what}; copy or download it again")
    return path


def reason(err: BaseException) -> str:
    return str(err).strip().partition("\n")[0] or type(err).__name__
