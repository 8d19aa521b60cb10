"""What a file given as weights or as a network must pass before anything is read from it.

What reading a file of data may meet: missing, empty, damaged, or larger than it can be.

Find and call a user's own function, named as 'FILE.py:FUNCTION' or 'package.module:FUNCTION'.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib
import importlib.util
import inspect
import lzma
import struct
import sys
import tokenize
import traceback
import zipfile
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from speedysnn.errors import DataError, SourceError, SpeedySNNError

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


DAMAGED = (EOFError, OSError, zlib.error, lzma.LZMAError, zipfile.BadZipFile, ValueError, struct.error, LookupError,
            RuntimeError, TypeError, SyntaxError, ArithmeticError, tokenize.TokenError)  # fmt: skip
PACKED = 1032  # deflate makes nothing smaller than by this factor


def require_data_file(path: Path, what: str, spec: str) -> Path:
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


__all__ = ["FILE", "MODULE", "UserFunction", "closest", "kind_of"]

FILE = "FILE.py:FUNCTION"
MODULE = "package.module:FUNCTION"


def kind_of(spec: str, known: Collection[str] = ()) -> str:
    """The known kind before the first colon; else `FILE` or `MODULE` where the text has that form; else that word."""
    kind = spec.partition(":")[0]
    where, _, function = spec.rpartition(":")
    if kind in known:
        return kind
    if where.endswith(".py"):
        return FILE
    dotted = where.split(".")
    if function.isidentifier() and all(part.isidentifier() for part in dotted):
        return MODULE if len(dotted) > 1 or _importable(where) else kind
    return kind


def _importable(name: str) -> bool:
    here = Path.cwd()
    if (here / f"{name}.py").is_file() or (here / name).is_dir():
        return True
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):  # a module that was not imported as others are, such as __main__
        return False


def closest(name: str, known: list[str]) -> str:
    """', did you mean ...' with the closest known names, or nothing."""
    matches = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    return f"; did you mean {' or '.join(map(repr, matches))}?" if matches else ""


class UserFunction:
    """One function of the user's; everything that goes wrong in it becomes `error`, with its file and line.

    Args:
        spec: 'FILE.py:FUNCTION' or 'package.module:FUNCTION'.
        error: the error class to raise.
    """

    def __init__(self, spec: str, error: type[SpeedySNNError]) -> None:
        self.spec, self._error = spec, error
        self._where, _, self._name = spec.rpartition(":")
        self._is_file = kind_of(spec) == FILE
        path = expanded(self._where) if self._is_file else None
        if path is not None and not path.is_file():
            what = "is a folder" if path.is_dir() else "does not exist"
            raise error(f"{spec}: the file {self._where} {what}; give the path of a Python file and a function in it")
        self._path = path.resolve() if path is not None else None
        with self._guard("importing it"):
            module = self._import_file(self._path) if self._path else importlib.import_module(self._where)
        self._function = self._find(module)

    def accepts(self, name: str) -> bool:
        """Whether the function can be called with this keyword."""
        keywords = (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        return any(
            parameter.kind is inspect.Parameter.VAR_KEYWORD or (parameter.name == name and parameter.kind in keywords)
            for parameter in self._parameters()
        )

    def required(self, given: dict[str, Any]) -> list[str]:
        """Parameters without a default that `given` does not fill."""
        variadic = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
        return [
            parameter.name
            for parameter in self._parameters()
            if parameter.kind not in variadic
            and parameter.default is inspect.Parameter.empty
            and parameter.name not in given
        ]

    def __call__(self, **given: Any) -> Any:
        """Call the function; its exceptions are raised as `error`."""
        missing = self.required(given)
        if missing:
            called = f"with {', '.join(f'{key}={value!r}' for key, value in given.items())}" if given else "without any"
            raise self._error(
                f"{self.spec}: {self._name} is called {called} arguments, but needs {', '.join(missing)}; "
                "give these defaults"
            )
        with self._guard(f"calling {self._name}"):
            return self._function(**given)

    def _parameters(self) -> list[inspect.Parameter]:
        try:
            return list(inspect.signature(self._function).parameters.values())
        except (TypeError, ValueError):  # some builtins have no signature
            return []

    def _find(self, module: ModuleType) -> Callable[..., Any]:
        found = getattr(module, self._name, None)
        if callable(found):
            return found  # type: ignore[no-any-return]
        if found is not None:
            raise self._error(f"{self.spec}: {self._name} is a {type(found).__name__}, expected a function")
        own = [
            name
            for name, value in vars(module).items()
            if inspect.isroutine(value) and not name.startswith("_") and value.__module__ == module.__name__
        ]
        listed = f"it defines {', '.join(own[:8])}" if own else "it defines no functions"
        raise self._error(
            f"{self.spec}: {self._where} has no function {self._name!r} ({listed}){closest(self._name, own)}"
        )

    @staticmethod
    def _import_file(path: Path) -> ModuleType:
        digest = hashlib.sha256(str(path).encode()).hexdigest()[:8]
        spec = importlib.util.spec_from_file_location(f"speedysnn_user_{path.stem}_{digest}", path)
        if spec is None or spec.loader is None:
            raise ImportError(f"{path.name} cannot be imported as Python")
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module  # dataclasses and pickling look a class's module up
        spec.loader.exec_module(module)
        return module

    @contextmanager
    def _guard(self, doing: str) -> Iterator[None]:
        """Let the function import its neighbours, and turn what it raises into one message."""
        folder = str(self._path.parent if self._path else Path.cwd())
        sys.path.insert(0, folder)
        try:
            yield
        except (Exception, SystemExit) as err:  # the user's function may raise anything
            raise self._error(f"{self.spec}: {doing} failed{self._place(err)}: {_reason(err)}") from err
        finally:
            if folder in sys.path:
                sys.path.remove(folder)

    def _place(self, err: BaseException) -> str:
        if isinstance(err, SyntaxError) and err.filename:
            return f" at {Path(err.filename).name}:{err.lineno}"
        frames = [frame for frame in traceback.extract_tb(err.__traceback__) if frame.filename != __file__]
        frames = [frame for frame in frames if not frame.filename.startswith("<frozen")]
        own = [frame for frame in frames if self._path and Path(frame.filename) == self._path] or frames
        if not own or Path(own[-1].filename).parent.name == "importlib":
            return ""
        return f" at {Path(own[-1].filename).name}:{own[-1].lineno}"


def _reason(err: BaseException) -> str:
    if isinstance(err, SystemExit):
        return "it calls sys.exit; keep what runs as a script below `if __name__ == '__main__':`"
    text = str(err).strip().partition("\n")[0]
    return f"{type(err).__name__}: {text}" if text else type(err).__name__
