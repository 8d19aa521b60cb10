"""Vector code written for the compiler by hand, where numba's own keeps in memory what belongs in registers."""

from importlib import import_module
from typing import Any

from speedysnn.kernels.compiled import AVAILABLE

VECTOR_LANES = 8  # numbers a vector
ir: Any = None
types: Any = None
intrinsic: Any = None
cgutils: Any = None
if AVAILABLE:
    ir, types = import_module("llvmlite.ir"), import_module("numba.core.types")
    intrinsic, cgutils = import_module("numba.extending").intrinsic, import_module("numba.core.cgutils")


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
