"""Compile a function of arrays with numba where it is installed; what was compiled is kept in the user's cache folder.

Cache files beside the installed package would outlive its removal and shadow what is installed next, so they lie
elsewhere: in the folder of the setting "cache" ($SPEEDYSNN_CACHE), else in the user's cache folder of the system
($XDG_CACHE_HOME/speedysnn, ~/.cache/speedysnn on Linux).
"""

import hashlib
from collections.abc import Callable, Collection, Iterable
from functools import partial
from pathlib import Path
from typing import Any

from platformdirs import user_cache_path

from speedysnn import settings

numba: Any
try:
    import numba
except ImportError:  # pragma: no cover - a declared dependency, but it lags behind new Python releases
    numba = None

AVAILABLE = numba is not None


def cache_folder() -> Path:
    """Where compiled kernels and machine facts are kept."""
    given = settings.get("cache")
    return Path(given) if given else user_cache_path("speedysnn", appauthor=False)


def compiled(function: Callable[..., Any], version: str = "", fastmath: Collection[str] = ()) -> Any:
    """The function compiled without the interpreter lock, or as it is where numba is missing.

    What is kept is renewed when the function's own file changes, a kernel's does, or `version`; see `together`.
    `fastmath` names freedoms that LLVM has with its arithmetic; it has none by default.
    """
    if numba is None:
        return function
    out = numba.njit(nogil=True, error_model="numpy", fastmath=set(fastmath))(function)
    before = numba.config.CACHE_DIR
    try:
        numba.config.CACHE_DIR = str(cache_folder() / "kernels" / (version or KERNELS))
        out.enable_caching()
    except (OSError, RuntimeError):  # no folder may be written: compiled anew in every process
        return out
    finally:
        numba.config.CACHE_DIR = before
    return out


def together(files: Iterable[Path], fastmath: Collection[str] = ()) -> Callable[[Callable[..., Any]], Any]:
    """`compiled` for functions that call one another across files: kept for one state of all of them.

    numba looks for changes in the file of the function that is called, not in those that this one calls.
    """
    return partial(compiled, version=_state([*files, *OWN]), fastmath=fastmath)


def _state(files: Iterable[Path]) -> str:
    found = hashlib.sha256()
    for file in sorted(files):
        found.update(file.read_bytes())
    return found.hexdigest()[:16]


OWN = tuple(Path(__file__).parent.rglob("*.py"))  # with sub-packages: a stale kernel would load silently
KERNELS = _state(OWN)
