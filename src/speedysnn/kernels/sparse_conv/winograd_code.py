"""LLVM code of Winograd convolutions: the transforms of a tile, and products of small matrices.

Winograd's minimal filtering F(4 x 4, 3 x 3) over the points 0, 1, -1, 2, -2 and infinity needs 36 products for a tile
of 4 x 4 results instead of 144. Channels lie side by side, so that every step works on whole vectors.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

from speedysnn.kernels.jit import WORKS, Writer, intrinsic, ir, types

TILE_LANES = 16  # channels of a vector
ALIKE = 7  # the point (1, 1), whose value is added to all results of a tile
Vectors = list[Any]


class Tiles(Writer):
    """Writes the arithmetic of one tile."""

    def __init__(self, context: Any, builder: Any, types_: Any, args: Any) -> None:
        super().__init__(context, builder, types_, args)
        self.reals = ir.VectorType(self.real, TILE_LANES)

    def plus(self, a: Any, factor: float, b: Any) -> Any:
        """Return a + factor * b, rounded once where the processor can."""
        if factor in (1.0, -1.0):
            return self.b.fadd(a, b) if factor > 0 else self.b.fsub(a, b)
        times = self.b.fmul(ir.Constant(self.reals, [factor] * TILE_LANES), b, flags=("contract",))
        return self.b.fadd(a, times, flags=("contract",))

    def input_transform(self, d: Vectors) -> Vectors:
        """Transform six inputs of a row to the six points, B^T d."""
        plus = self.plus
        first, last = (plus(plus(d[i + 4], -5, d[i + 2]), 4, d[i]) for i in (0, 1))
        even, odd = plus(d[4], -4, d[2]), plus(d[3], -4, d[1])
        near, far = plus(d[4], -1, d[2]), plus(d[3], -1, d[1])
        return [first, plus(even, 1, odd), plus(even, -1, odd), plus(near, 2, far), plus(near, -2, far), last]

    def gradient_transform(self, g: Vectors) -> Vectors:
        """Transform four gradients of a row to the six points, A g."""
        plus = self.plus
        even, odd = plus(g[0], 1, g[2]), plus(g[1], 1, g[3])
        near, far = plus(g[0], 4, g[2]), plus(g[1], 4, g[3])
        return [g[0], plus(even, 1, odd), plus(even, -1, odd), plus(near, 2, far), plus(near, -2, far), g[3]]

    def result_transform(self, m: Vectors) -> Vectors:
        """Transform the six points' products to four results of a row, A^T m."""
        plus = self.plus
        one, two = plus(m[1], 1, m[2]), plus(m[3], 1, m[4])
        odd, twice = plus(m[1], -1, m[2]), plus(m[3], -1, m[4])
        whole, last = plus(plus(m[0], 1, one), 1, two), plus(plus(odd, 8, twice), 1, m[5])
        return [whole, plus(odd, 2, twice), plus(one, 4, two), last]

    def both(self, rows: list[Vectors], turn: Callable[[Vectors], Vectors]) -> list[Vectors]:
        """Apply a transform along the columns and then along the rows."""
        columns = [turn(list(column)) for column in zip(*rows, strict=True)]
        return [turn(list(row)) for row in zip(*columns, strict=True)]

    def count(self, end: Any, step: int, work: Callable[[Any], None]) -> None:
        """Write a loop that calls work(i) for i = 0, step, 2 step, ... below the end, which is above 0."""
        b, before = self.b, self.b.block
        body, done = self.blocks("body", "done")
        b.branch(body)
        b.position_at_end(body)
        (i,) = self.phis(self.index, [self.number(0)], before)
        work(i)
        later = b.add(i, self.number(step))
        self.close([i], [later], b.block)
        b.cbranch(b.icmp_signed("<", later, end), body, done)
        b.position_at_end(done)


def _places(w: Tiles, at: Any, row: Any, column: Any, size: int) -> list[list[Any]]:
    """Return the indices at which the channels of a tile's places begin."""
    b = w.b
    return [
        [b.add(b.add(at, b.mul(row, w.number(i))), b.mul(column, w.number(j))) for j in range(size)]
        for i in range(size)
    ]


def _in_points(size: int, transform: Callable[[Tiles, Vectors], Vectors]) -> Callable[..., Any]:
    """Return what writes the transform of a tile to the 36 points, by a method of `Tiles`."""

    def write(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        w = Tiles(context, builder, signature.args, args)
        x, out = w.pointer(0), w.pointer(4)
        _, at, row, column, _, to, apart, channels = args
        places = _places(w, at, row, column, size)

        def work(c: Any) -> None:
            tile = [[w.vector(x, builder.add(place, c), w.reals) for place in line] for line in places]
            points = w.both(tile, partial(transform, w))
            for p, value in enumerate(value for line in points for value in line):
                w.store(value, out, builder.add(builder.add(to, c), builder.mul(apart, w.number(p))))

        w.count(channels, TILE_LANES, work)
        return context.get_dummy_value()

    return write


def _copy(context: Any, builder: Any, signature: Any, args: Any) -> Any:
    """Write the body of `copy_run`."""
    w = Tiles(context, builder, signature.args, args)
    x, out = w.pointer(0), w.pointer(2)
    kind = ir.VectorType(ir.IntType(16), TILE_LANES) if _is_bfloat16(signature.args[0]) else w.reals
    _, since, _, to, length = args

    def work(i: Any) -> None:
        value = w.vector(x, builder.add(since, i), kind)
        w.store(value if kind is w.reals else w.widened(value), out, builder.add(to, i))

    w.count(length, TILE_LANES, work)
    return context.get_dummy_value()


def _is_bfloat16(array: Any) -> bool:
    """Tell whether an array holds bfloat16 as bits."""
    return bool(array.dtype == types.uint16)


def _from_points(context: Any, builder: Any, signature: Any, args: Any) -> Any:
    """Write the body of `results_of_points`."""
    w = Tiles(context, builder, signature.args, args)
    m, bias, out = w.pointer(0), w.pointer(3), w.pointer(4)
    _, since, apart, _, _, at, row, column, channels = args
    half = _is_bfloat16(signature.args[4])
    places = _places(w, at, row, column, 4)

    def work(c: Any) -> None:
        begin = builder.add(since, c)
        values = [w.vector(m, builder.add(begin, builder.mul(apart, w.number(p))), w.reals) for p in range(36)]
        values[ALIKE] = builder.fadd(values[ALIKE], w.vector(bias, c, w.reals))
        tile = w.both([values[i : i + 6] for i in range(0, 36, 6)], w.result_transform)
        for place, value in zip((p for line in places for p in line), (v for line in tile for v in line), strict=True):
            w.store(w.rounded(value) if half else value, out, builder.add(place, c))

    w.count(channels, TILE_LANES, work)
    return context.get_dummy_value()


def _multiply(context: Any, builder: Any, signature: Any, args: Any) -> Any:
    """Write the body of `multiply`; its sums stay in registers."""
    w, b = Tiles(context, builder, signature.args, args), builder
    rows, columns, more = (len(signature.args[i]) for i in (0, 1, 2))
    left, right, out = (w.pointer(i) for i in (3, 7, 11))
    begin, apart, along, start, down, length, first, further = (args[i] for i in (4, 5, 6, 8, 9, 10, 12, 13))
    ends = [
        b.add(b.add(first, b.mul(further, w.number(i))), w.number(TILE_LANES * j))
        for i in range(rows) for j in range(columns)
    ]  # fmt: skip
    zero = ir.Constant(w.reals, [0.0] * TILE_LANES)
    sums = [w.vector(out, end, w.reals) if more > 1 else zero for end in ends]
    before = b.block
    body, done = w.blocks("body", "done")
    b.branch(body)
    b.position_at_end(body)
    (k,), carried = w.phis(w.index, [w.number(0)], before), w.phis(w.reals, sums, before)
    here, there = b.add(begin, b.mul(k, along)), b.add(start, b.mul(k, down))
    vectors = [w.vector(right, b.add(there, w.number(TILE_LANES * j)), w.reals) for j in range(columns)]
    added = []
    for i in range(rows):
        value = w.broadcast(w.at(left, b.add(here, b.mul(apart, w.number(i)))), w.reals)
        for j in range(columns):
            times = b.fmul(value, vectors[j], flags=("contract",))
            added.append(b.fadd(carried[i * columns + j], times, flags=("contract",)))
    later = b.add(k, w.number(1))
    w.close([k, *carried], [later, *added], body)
    b.cbranch(b.icmp_signed("<", later, length), body, done)
    b.position_at_end(done)
    for end, total in zip(ends, added, strict=True):
        w.store(total, out, end)
    return context.get_dummy_value()


if WORKS:

    @intrinsic  # type: ignore[untyped-decorator]
    def copy_run(_: Any, x: Any, since: Any, out: Any, to: Any, length: Any) -> Any:
        """Copy: out[to + i] = x[since + i] for i < length, a multiple of TILE_LANES; x may be bfloat16 as bits."""
        return types.void(x, since, out, to, length), _copy

    @intrinsic  # type: ignore[untyped-decorator]
    def inputs_at_points(
        _: Any, x: Any, at: Any, row: Any, column: Any, out: Any, to: Any, apart: Any, channels: Any
    ) -> Any:  # fmt: skip
        """Set out[to + (6 i + j) * apart + c] = (B^T d B)[i, j] for the 6 x 6 inputs d of every channel c.

        The inputs are x[at + i * row + j * column + c]; channels are a multiple of TILE_LANES.
        """
        return types.void(x, at, row, column, out, to, apart, channels), _in_points(6, Tiles.input_transform)

    @intrinsic  # type: ignore[untyped-decorator]
    def gradients_at_points(
        _: Any, x: Any, at: Any, row: Any, column: Any, out: Any, to: Any, apart: Any, channels: Any
    ) -> Any:  # fmt: skip
        """Set out[to + (6 i + j) * apart + c] = (A g A^T)[i, j] for the 4 x 4 gradients g of every channel c."""
        return types.void(x, at, row, column, out, to, apart, channels), _in_points(4, Tiles.gradient_transform)

    @intrinsic  # type: ignore[untyped-decorator]
    def results_of_points(
        _: Any, m: Any, since: Any, apart: Any, bias: Any, out: Any, at: Any, row: Any, column: Any, channels: Any
    ) -> Any:  # fmt: skip
        """Set out[at + i row + j column + c] = bias[c] + (A^T m A)[i, j], m[i, j] = m[since + (6 i + j) apart + c].

        The results are rounded to bfloat16 where `out` holds its bits.
        """
        return types.void(m, since, apart, bias, out, at, row, column, channels), _from_points

    @intrinsic  # type: ignore[untyped-decorator]
    def multiply(
        _: Any, rows: Any, columns: Any, more: Any, left: Any, begin: Any, apart: Any, along: Any, right: Any,
        start: Any, down: Any, length: Any, out: Any, first: Any, further: Any,
    ) -> Any:  # fmt: skip
        """Set out[first + i * further + j] to the sum over k < length of left[begin + i * apart + k * along] *
        right[start + k * down + j], for i < len(rows) and j < TILE_LANES * len(columns); add the sum where len(more)
        is 2.
        """
        given = (rows, columns, more, left, begin, apart, along, right, start, down, length, out, first, further)
        return types.void(*given), _multiply
