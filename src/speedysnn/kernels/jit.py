"""Compile a function of arrays with numba where it is installed; what was compiled is kept in the user's cache folder.

Cache files beside the installed package would outlive its removal and shadow what is installed next, so they lie
elsewhere: in the folder of the setting "cache" ($SPEEDYSNN_CACHE), else in the user's cache folder of the system
($XDG_CACHE_HOME/speedysnn, ~/.cache/speedysnn on Linux).

Vector code written for the compiler by hand, where numba's own keeps in memory what belongs in registers.

It stands on numba's own insides, which may change with any version: where a first piece of it does not compile and run,
none is used (`WORKS` is False), and the neuron's plain numba code and torch's convolutions do its work.
"""

import hashlib
import warnings
from collections.abc import Callable, Collection, Iterable
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
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


VECTOR_LANES = 8  # numbers a vector
ir: Any = None
types: Any = None
intrinsic: Any = None
cgutils: Any = None


def _imported() -> bool:
    """Whether numba's insides are where they were."""
    global ir, types, intrinsic, cgutils
    try:
        ir, types = import_module("llvmlite.ir"), import_module("numba.core.types")
        intrinsic, cgutils = import_module("numba.extending").intrinsic, import_module("numba.core.cgutils")
    except (ImportError, AttributeError) as err:
        _warn(err)
        return False
    return True


def _warn(err: Exception) -> None:
    warnings.warn(
        f"numba {import_module('numba').__version__} does not take this package's vector code ({type(err).__name__}: "
        f"{str(err)[:200]}): plain numba runs instead, slower; install a version that pyproject.toml names",
        RuntimeWarning,
        stacklevel=2,
    )


def _least(kind: Any) -> int:
    """Bytes of which a vector's address is a multiple, wherever it begins in an array."""
    return kind.element.width // 8 if isinstance(kind.element, ir.IntType) else 4


class Writer:
    """Instructions that the functions share; arrays come as pointers to their values."""

    def __init__(self, context: Any, builder: Any, types_: Any, args: Any) -> None:
        self.context, self.b, self.types, self.args = context, builder, types_, args
        self.index, self.word, self.real = ir.IntType(64), ir.IntType(32), ir.FloatType()
        self.reals, self.words = ir.VectorType(self.real, VECTOR_LANES), ir.VectorType(self.word, VECTOR_LANES)

    def blocks(self, *names: str) -> list[Any]:
        """New places to jump to."""
        return [self.b.append_basic_block(name) for name in names]

    def pointer(self, i: int) -> Any:
        """To the first value of an array argument."""
        return self.context.make_array(self.types[i])(self.context, self.b, self.args[i]).data

    def number(self, value: int) -> Any:
        """A whole number that the compiler knows."""
        return ir.Constant(self.index, value)

    def at(self, pointer: Any, index: Any) -> Any:
        """One value of an array."""
        return self.b.load(self.b.gep(pointer, [index]))

    def vector(self, pointer: Any, index: Any, kind: Any) -> Any:
        """VECTOR_LANES values of an array from an index on, wherever they lie."""
        where = self.b.bitcast(self.b.gep(pointer, [index]), kind.as_pointer())
        return self.b.load(where, align=_least(kind))

    def store(self, value: Any, pointer: Any, index: Any) -> None:
        """Write a vector to an array."""
        where = self.b.bitcast(self.b.gep(pointer, [index]), value.type.as_pointer())
        self.b.store(value, where, align=_least(value.type))

    def prefetch(self, pointer: Any, index: Any, near: int = 3) -> None:
        """Have a value fetched that will be read: into the first cache (3), the second (2), or the last (1)."""
        b, byte = self.b, ir.IntType(8).as_pointer()
        kind = ir.FunctionType(ir.VoidType(), [byte, *[self.word] * 3])
        function = cgutils.get_or_insert_function(b.module, kind, "llvm.prefetch.p0i8")
        how = (0, near, 1)  # for reading, how near, of data
        address = b.bitcast(b.gep(pointer, [index]), byte)
        b.call(function, [address, *(ir.Constant(self.word, value) for value in how)])

    def everywhere(self, value: Any, kind: Any) -> Any:
        """A vector with one value in all its lanes."""
        empty, places = ir.Constant(kind, ir.Undefined), ir.VectorType(self.word, kind.count)
        one = self.b.insert_element(empty, value, ir.Constant(self.word, 0))
        return self.b.shuffle_vector(one, empty, ir.Constant(places, [0] * kind.count))

    def widened(self, value: Any) -> Any:
        """Float32 of a vector of bfloat16 as bits."""
        lanes = value.type.count
        words, reals = ir.VectorType(self.word, lanes), ir.VectorType(self.real, lanes)
        return self.b.bitcast(self.b.shl(self.b.zext(value, words), ir.Constant(words, [16] * lanes)), reals)

    def rounded(self, value: Any) -> Any:
        """To bfloat16 as bits, ties to even; NaN stays NaN."""
        b, lanes = self.b, value.type.count
        words = ir.VectorType(self.word, lanes)

        def every(number: int) -> Any:
            return ir.Constant(words, [number] * lanes)

        bits = b.bitcast(value, words)
        odd = b.and_(b.lshr(bits, every(16)), every(1))
        near = b.lshr(b.add(b.add(bits, every(0x7FFF)), odd), every(16))
        bits = b.select(b.fcmp_unordered("uno", value, value), every(0x7FC0), near)
        return b.trunc(bits, ir.VectorType(ir.IntType(16), lanes))

    def wide(self, vectors: int) -> tuple[Any, list[int]]:
        """(kind, where each begins) for VECTOR_LANES * `vectors` numbers: two vectors in one where they pair up.

        AVX-512 holds that in one register; other processors take it as the two that it is made of.
        """
        lanes = VECTOR_LANES if vectors % 2 else 2 * VECTOR_LANES
        return ir.VectorType(self.real, lanes), list(range(0, VECTOR_LANES * vectors, lanes))

    @staticmethod
    def close(phis: list[Any], values: list[Any], block: Any) -> None:
        """What the values are when a loop comes round."""
        for phi, value in zip(phis, values, strict=True):
            phi.add_incoming(value, block)

    def phis(self, kind: Any, values: list[Any], block: Any) -> list[Any]:
        """Values that change from round to round of a loop, and what they are where it is entered."""
        out = []
        for value in values:
            phi = self.b.phi(kind)
            phi.add_incoming(value, block)
            out.append(phi)
        return out


def _trial(context: Any, builder: Any, signature: Any, args: Any) -> Any:
    """Twice what an array begins with, by what all vector code is made of."""
    w = Writer(context, builder, signature.args, args)
    x, before = w.pointer(0), builder.block
    loop, done = w.blocks("loop", "done")
    builder.branch(loop)
    builder.position_at_end(loop)
    (i,) = w.phis(w.index, [w.number(0)], before)
    w.prefetch(x, i)
    value = w.vector(x, i, w.reals)
    twice = w.everywhere(ir.Constant(w.real, 2.0), w.reals)
    w.store(builder.fmul(value, twice, flags=("contract",)), x, i)
    later = builder.add(i, w.number(VECTOR_LANES))
    w.close([i], [later], loop)
    builder.cbranch(builder.icmp_signed("<", later, args[1]), loop, done)
    builder.position_at_end(done)
    return context.get_dummy_value()


def _works() -> bool:
    """Whether the trial compiles and gives what it should."""
    if not AVAILABLE or not _imported():
        return False
    try:

        @intrinsic  # type: ignore[untyped-decorator]
        def double(_: Any, x: Any, many: Any) -> Any:
            return types.void(x, many), _trial

        @compiled
        def run(x: Any, many: int) -> None:  # pragma: no cover - compiled
            double(x, many)

        numbers = np.arange(2 * VECTOR_LANES, dtype=np.float32)
        run(numbers, numbers.size)
    except Exception as err:  # whatever another version of numba or LLVM raises: its own classes change as well
        _warn(err)
        return False
    return bool((numbers == 2 * np.arange(2 * VECTOR_LANES)).all())


WORKS = _works()
