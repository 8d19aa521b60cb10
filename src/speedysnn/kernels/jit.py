"""Compile functions of arrays with numba and keep the machine code in the user's cache folder.

`compiled` and `together` turn a Python function into machine code. The code is not kept beside the package, where it
would outlive the package and shadow what is installed next, but in the folder of the setting "cache"
($SPEEDYSNN_CACHE), else in the user's cache folder of the system ($XDG_CACHE_HOME/speedysnn, ~/.cache/speedysnn on
Linux). The folder's name holds a hash of every kernel file, so that a changed kernel is compiled anew.

`Writer` writes LLVM instructions by hand for the few loops whose sums numba would keep in memory instead of in
registers. It needs parts of numba that are not public and may change with any version. A short trial is therefore
compiled and run at import; where it fails, `WORKS` is False, a warning says so, and plain numba code and torch's own
convolutions take over.
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
VECTOR_LANES = 8  # numbers in one vector


def cache_folder() -> Path:
    """Return the folder of compiled kernels and of what was measured on this machine."""
    given = settings.get("cache")
    return Path(given) if given else user_cache_path("speedysnn", appauthor=False)


def compiled(function: Callable[..., Any], version: str = "", fastmath: Collection[str] = ()) -> Any:
    """Compile a function that runs without the interpreter's lock; return it unchanged where numba is missing.

    The machine code is kept until the function's own file, any kernel file or `version` changes; see `together`.

    Args:
        function: of arrays and numbers.
        version: names the state of the files that the function calls; by default that of all kernel files.
        fastmath: freedoms that LLVM has with the arithmetic, by its own names; none by default.

    Returns:
        The compiled function.
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
    """Return `compiled` for functions that call one another across files.

    numba looks for changes only in the file of the function that is called, not in those of the functions it calls in
    turn; so the machine code is kept for one state of all these files and the kernels.

    Args:
        files: those that hold the functions.
        fastmath: as in `compiled`.

    Returns:
        A decorator.
    """
    return partial(compiled, version=state_of([*files, *KERNEL_FILES]), fastmath=fastmath)


def kernel_files(folder: Path) -> tuple[Path, ...]:
    """Return every Python file below a folder, also those of its sub-packages."""
    return tuple(folder.rglob("*.py"))


def state_of(files: Iterable[Path]) -> str:
    """Return a short hash of the files' contents; it names the folder that their machine code is kept in."""
    found = hashlib.sha256()
    for file in sorted(files):
        found.update(file.read_bytes())
    return found.hexdigest()[:16]


KERNEL_FILES = kernel_files(Path(__file__).parent)
KERNELS = state_of(KERNEL_FILES)
ir: Any = None
types: Any = None
intrinsic: Any = None
cgutils: Any = None


def _imported() -> bool:
    """Import the parts of numba and LLVM that vector code needs; tell whether they are where they are expected."""
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
        f"numba {import_module('numba').__version__} does not compile this package's vector code "
        f"({type(err).__name__}: {str(err)[:200]}): plain numba runs instead, slower; install a version that "
        "pyproject.toml names",
        RuntimeWarning,
        stacklevel=2,
    )


def _alignment(kind: Any) -> int:
    """Return the bytes of which a vector's address is a multiple, wherever in an array the vector begins."""
    return kind.element.width // 8 if isinstance(kind.element, ir.IntType) else 4


class Writer:
    """Writes the LLVM instructions that all vector code shares.

    Args:
        context: numba's, with which it lowers the call.
        builder: LLVM's, which appends instructions.
        types_: numba's types of the arguments.
        args: LLVM's values of the arguments.
    """

    def __init__(self, context: Any, builder: Any, types_: Any, args: Any) -> None:
        self.context, self.b, self.types, self.args = context, builder, types_, args
        self.index, self.word, self.real = ir.IntType(64), ir.IntType(32), ir.FloatType()
        self.reals, self.words = ir.VectorType(self.real, VECTOR_LANES), ir.VectorType(self.word, VECTOR_LANES)

    def blocks(self, *names: str) -> list[Any]:
        """Append basic blocks with these names and return them."""
        return [self.b.append_basic_block(name) for name in names]

    def pointer(self, i: int) -> Any:
        """Return the pointer to the first value of array argument i."""
        return self.context.make_array(self.types[i])(self.context, self.b, self.args[i]).data

    def number(self, value: int) -> Any:
        """Return a constant 64-bit integer."""
        return ir.Constant(self.index, value)

    def at(self, pointer: Any, index: Any) -> Any:
        """Load one value of an array."""
        return self.b.load(self.b.gep(pointer, [index]))

    def vector(self, pointer: Any, index: Any, kind: Any) -> Any:
        """Load a vector of type `kind` from an array, from any index on."""
        where = self.b.bitcast(self.b.gep(pointer, [index]), kind.as_pointer())
        return self.b.load(where, align=_alignment(kind))

    def store(self, value: Any, pointer: Any, index: Any) -> None:
        """Store a vector in an array, from any index on."""
        where = self.b.bitcast(self.b.gep(pointer, [index]), value.type.as_pointer())
        self.b.store(value, where, align=_alignment(value.type))

    def prefetch(self, pointer: Any, index: Any, near: int = 3) -> None:
        """Prefetch a value that will be read soon, into the first cache (`near` 3), the second (2) or the last (1)."""
        b, byte = self.b, ir.IntType(8).as_pointer()
        kind = ir.FunctionType(ir.VoidType(), [byte, *[self.word] * 3])
        function = cgutils.get_or_insert_function(b.module, kind, "llvm.prefetch.p0i8")
        how = (0, near, 1)  # for reading, cache level, data and not instructions
        address = b.bitcast(b.gep(pointer, [index]), byte)
        b.call(function, [address, *(ir.Constant(self.word, value) for value in how)])

    def broadcast(self, value: Any, kind: Any) -> Any:
        """Return a vector with one value in all its lanes."""
        empty, places = ir.Constant(kind, ir.Undefined), ir.VectorType(self.word, kind.count)
        one = self.b.insert_element(empty, value, ir.Constant(self.word, 0))
        return self.b.shuffle_vector(one, empty, ir.Constant(places, [0] * kind.count))

    def widened(self, value: Any) -> Any:
        """Convert a vector of bfloat16, given as bits, to float32."""
        lanes = value.type.count
        words, reals = ir.VectorType(self.word, lanes), ir.VectorType(self.real, lanes)
        return self.b.bitcast(self.b.shl(self.b.zext(value, words), ir.Constant(words, [16] * lanes)), reals)

    def rounded(self, value: Any) -> Any:
        """Round a vector of float32 to bfloat16, returned as bits: ties to even, NaN stays NaN."""
        b, lanes = self.b, value.type.count
        words = ir.VectorType(self.word, lanes)

        def constant(number: int) -> Any:
            return ir.Constant(words, [number] * lanes)

        bits = b.bitcast(value, words)
        odd = b.and_(b.lshr(bits, constant(16)), constant(1))
        near = b.lshr(b.add(b.add(bits, constant(0x7FFF)), odd), constant(16))
        bits = b.select(b.fcmp_unordered("uno", value, value), constant(0x7FC0), near)
        return b.trunc(bits, ir.VectorType(ir.IntType(16), lanes))

    def wide(self, vectors: int) -> tuple[Any, list[int]]:
        """Choose a vector type for VECTOR_LANES * `vectors` numbers: two vectors in one where they pair up.

        AVX-512 holds such a pair in one register; other processors use two registers for it.

        Returns:
            The type, and the offsets at which the vectors begin.
        """
        lanes = VECTOR_LANES if vectors % 2 else 2 * VECTOR_LANES
        return ir.VectorType(self.real, lanes), list(range(0, VECTOR_LANES * vectors, lanes))

    @staticmethod
    def close(phis: list[Any], values: list[Any], block: Any) -> None:
        """Give a loop's variables their values of the next round; `block` is where the round ends."""
        for phi, value in zip(phis, values, strict=True):
            phi.add_incoming(value, block)

    def phis(self, kind: Any, values: list[Any], block: Any) -> list[Any]:
        """Return a loop's variables of type `kind`; `values` are theirs where the loop is entered, from `block`."""
        out = []
        for value in values:
            phi = self.b.phi(kind)
            phi.add_incoming(value, block)
            out.append(phi)
        return out


def _trial(context: Any, builder: Any, signature: Any, args: Any) -> Any:
    """Write code that doubles an array's values in place, with the instructions that all vector code is made of."""
    w = Writer(context, builder, signature.args, args)
    x, before = w.pointer(0), builder.block
    loop, done = w.blocks("loop", "done")
    builder.branch(loop)
    builder.position_at_end(loop)
    (i,) = w.phis(w.index, [w.number(0)], before)
    w.prefetch(x, i)
    value = w.vector(x, i, w.reals)
    twice = w.broadcast(ir.Constant(w.real, 2.0), w.reals)
    w.store(builder.fmul(value, twice, flags=("contract",)), x, i)
    later = builder.add(i, w.number(VECTOR_LANES))
    w.close([i], [later], loop)
    builder.cbranch(builder.icmp_signed("<", later, args[1]), loop, done)
    builder.position_at_end(done)
    return context.get_dummy_value()


def _works() -> bool:
    """Compile and run the trial; warn and return False where it fails or gives wrong numbers."""
    if not AVAILABLE or not _imported():
        return False
    try:

        @intrinsic  # type: ignore[untyped-decorator]
        def double(_: Any, x: Any, size: Any) -> Any:
            return types.void(x, size), _trial

        @compiled
        def run(x: Any, size: int) -> None:  # pragma: no cover - compiled
            double(x, size)

        numbers = np.arange(2 * VECTOR_LANES, dtype=np.float32)
        run(numbers, numbers.size)
        if not (numbers == 2 * np.arange(2 * VECTOR_LANES)).all():
            raise ArithmeticError("its results are wrong")
    except Exception as err:  # another version of numba or LLVM may raise any class, also one of its own
        _warn(err)
        return False
    return True


WORKS = _works()
