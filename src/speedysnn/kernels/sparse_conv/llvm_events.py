"""LLVM code of the convolution by events, which keeps its sums in vector registers.

numba has no arrays in registers, and a sum that goes to memory after every event costs three times the addition.
"""

from typing import Any

import numpy as np

from speedysnn.kernels.jit import VECTOR_LANES, WORKS, Writer, intrinsic, ir, types


def lanes_of_masks() -> Any:
    """Return the positions of the ones of every mask of 8 bits, in order, as (256 * 8,) int32; the rest is not used."""
    table = np.zeros((256, VECTOR_LANES), np.int32)
    for mask in range(256):
        ones = [i for i in range(VECTOR_LANES) if mask >> i & 1]
        table[mask, : len(ones)] = ones
    return table.reshape(-1)


def _pack(context: Any, builder: Any, signature: Any, args: Any) -> Any:
    """Write the body of `pack`: in each block of 8 values, the mask of nonzero ones selects the positions to store."""
    w = Writer(context, builder, signature.args, args)
    values, offset, groups, column, places, columns, count = args
    values, places, columns = w.pointer(0), w.pointer(4), w.pointer(5)
    before = builder.block
    head, body, done = w.blocks("head", "body", "done")
    builder.branch(head)
    builder.position_at_end(head)
    i, n = w.phis(w.index, [w.number(0), count], before)
    builder.cbranch(builder.icmp_signed("<", i, groups), body, done)
    builder.position_at_end(body)
    first = builder.mul(i, w.number(VECTOR_LANES))
    eight = w.vector(values, builder.add(offset, first), w.reals)
    fired = builder.fcmp_unordered("!=", eight, ir.Constant(w.reals, [0.0] * VECTOR_LANES))
    mask = builder.bitcast(fired, ir.IntType(VECTOR_LANES))
    row = builder.mul(builder.zext(mask, w.index), w.number(VECTOR_LANES))
    base = w.broadcast(builder.trunc(builder.add(column, first), w.word), w.words)
    w.store(builder.add(w.vector(places, row, w.words), base), columns, n)
    ones = builder.zext(builder.ctpop(mask), w.index)
    w.close([i, n], [builder.add(i, w.number(1)), builder.add(n, ones)], body)
    builder.branch(head)
    builder.position_at_end(done)
    return n


def _add_event(
    w: Writer, event: tuple[Any, Any], sums: list[Any], value: Any, rows: list[Any], done: Any
) -> list[Any]:
    """Add value * rows to the sums and end the block of one event (its number, the end of its run)."""
    b, (i, end), block, added = w.b, event, w.b.block, []
    for total, row in zip(sums, rows, strict=True):  # "contract": rounded once where the processor can
        product = b.fmul(value, row, flags=("contract",))
        added.append(b.fadd(total, product, flags=("contract",)))
    later = b.add(i, w.number(1))
    w.close([i, *sums], [later, *added], block)
    b.cbranch(b.icmp_signed("<", later, end), block, done)
    return added


def _two_in_one(w: Writer, rows: Any, place: Any, kind: Any) -> tuple[Any, Any]:
    """Load words of two bfloat16 and return their lower and upper halves as two vectors of float32."""
    words = ir.VectorType(w.word, kind.count)
    both = w.vector(rows, place, words)
    low = w.b.shl(both, ir.Constant(words, [16] * kind.count))
    high = w.b.and_(both, ir.Constant(words, [0xFFFF0000] * kind.count))
    return w.b.bitcast(low, kind), w.b.bitcast(high, kind)


def _row(w: Writer, half: bool, rows: Any, place: Any, ahead: list[Any], kind: Any) -> list[Any]:
    """Load the weights of one event, a vector for every sum."""
    if not half:
        return [w.vector(rows, w.b.add(place, k), kind) for k in ahead]
    pairs = [_two_in_one(w, rows, w.b.add(place, k), kind) for k in ahead[: len(ahead) // 2]]
    return [vector for pair in pairs for vector in pair]


def _add_rows(context: Any, builder: Any, signature: Any, args: Any) -> Any:
    """Write the body of `add_rows`: over several runs of events, sum += value * row of weights, all in registers."""
    w = Writer(context, builder, signature.args, args)
    kind, offsets = w.wide(len(signature.args[0]))
    ahead, half = [w.number(place) for place in offsets], signature.args[6].dtype != types.float32
    init, out, inputs, weights, columns = (w.pointer(i) for i in (1, 3, 5, 6, 7))
    begins, ends, values, rows = (w.pointer(i) for i in (8, 9, 10, 11))
    start, first, runs = args[2], args[4], args[12]
    width = w.number(VECTOR_LANES * len(signature.args[0]) // (1 + half))
    before, sums = builder.block, [w.vector(init, builder.add(start, k), kind) for k in ahead]
    run, begin, event, following, done = w.blocks("run", "begin", "event", "following", "done")
    builder.branch(run)
    builder.position_at_end(run)
    (j,), held = w.phis(w.index, [w.number(0)], before), w.phis(kind, sums, before)
    builder.cbranch(builder.icmp_signed("<", j, runs), begin, done)
    builder.position_at_end(begin)
    low, high, row = (w.at(p, j) for p in (begins, ends, rows))
    where = builder.gep(inputs, [w.at(values, j)])
    builder.cbranch(builder.icmp_signed("<", low, high), event, following)
    builder.position_at_end(event)
    (i,), running = w.phis(w.index, [low], begin), w.phis(kind, held, begin)
    column = builder.sext(w.at(columns, i), w.index)
    value, place = w.broadcast(w.at(where, column), kind), builder.add(builder.mul(column, width), row)
    added = _add_event(w, (i, high), running, value, _row(w, half, weights, place, ahead, kind), following)
    builder.position_at_end(following)
    joined = w.phis(kind, held, begin)
    w.close(joined, added, event)
    w.close([j, *held], [builder.add(j, w.number(1)), *joined], following)
    builder.branch(run)
    builder.position_at_end(done)
    for total, k in zip(held, ahead, strict=True):
        w.store(total, out, builder.add(first, k))
    return context.get_dummy_value()


def _add_taps(context: Any, builder: Any, signature: Any, args: Any) -> Any:
    """Write the body of `add_taps`: the sums of one row of a channel's weights over its events, all in registers."""
    w, b = Writer(context, builder, signature.args, args), builder
    sums, grads, values, places = (w.pointer(i) for i in (2, 5, 7, 9))
    first, apart, shift, origin, begin, end = (args[i] for i in (3, 4, 6, 8, 10, 11))
    kind, begins = w.wide(len(signature.args[0]))
    ahead = [
        b.add(b.mul(apart, w.number(tap)), w.number(place))
        for tap in range(len(signature.args[1])) for place in begins
    ]  # fmt: skip
    before, held = b.block, [w.vector(sums, b.add(first, k), kind) for k in ahead]
    event, done = w.blocks("event", "done")
    b.cbranch(b.icmp_signed("<", begin, end), event, done)
    b.position_at_end(event)
    (i,), running = w.phis(w.index, [begin], before), w.phis(kind, held, before)
    place = b.sext(w.at(places, i), w.index)
    value = w.broadcast(w.at(values, b.add(origin, place)), kind)
    at = b.add(b.mul(place, apart), shift)
    added = _add_event(w, (i, end), running, value, _row(w, False, grads, at, ahead, kind), done)
    b.position_at_end(done)
    totals = w.phis(kind, held, before)
    w.close(totals, added, event)
    for total, k in zip(totals, ahead, strict=True):
        w.store(total, sums, b.add(first, k))
    return context.get_dummy_value()


def _turn(context: Any, builder: Any, signature: Any, args: Any) -> Any:
    """Write the body of `turn`: transpose eight rows by exchanging pairs of rows in steps of 1, 2 and 4."""
    w, b = Writer(context, builder, signature.args, args), builder
    x, out = w.pointer(0), w.pointer(3)
    rows = [w.vector(x, b.add(args[1], b.mul(args[2], w.number(i))), w.reals) for i in range(VECTOR_LANES)]
    kind = ir.VectorType(w.word, VECTOR_LANES)
    for step in (1, 2, 4):
        low = ir.Constant(kind, [i if not i & step else i - step + VECTOR_LANES for i in range(VECTOR_LANES)])
        high = ir.Constant(kind, [i + step if not i & step else i + VECTOR_LANES for i in range(VECTOR_LANES)])
        turned = list(rows)
        for i in range(VECTOR_LANES):
            if not i & step:
                turned[i] = b.shuffle_vector(rows[i], rows[i + step], low)
                turned[i + step] = b.shuffle_vector(rows[i], rows[i + step], high)
        rows = turned
    for i, row in enumerate(rows):
        w.store(row, out, b.add(args[4], b.mul(args[5], w.number(i))))
    return context.get_dummy_value()


if WORKS:

    @intrinsic  # type: ignore[untyped-decorator]
    def add_taps(
        _: Any, lanes: Any, taps: Any, sums: Any, first: Any, apart: Any, grads: Any, shift: Any, values: Any,
        origin: Any, places: Any, begin: Any, end: Any,
    ) -> Any:  # fmt: skip
        """Add to sums[first + j * apart + k] the sum over begin <= i < end, p = places[i], of values[origin + p] *
        grads[p * apart + shift + j * apart + k], for j < len(taps) and k < 8 * len(lanes).
        """
        given = (lanes, taps, sums, first, apart, grads, shift, values, origin, places, begin, end)
        return types.void(*given), _add_taps

    @intrinsic  # type: ignore[untyped-decorator]
    def turn(_: Any, x: Any, first: Any, apart: Any, out: Any, to: Any, spread: Any) -> Any:
        """Transpose: out[to + j * spread + i] = x[first + i * apart + j], for i and j < 8."""
        return types.void(x, first, apart, out, to, spread), _turn

    @intrinsic  # type: ignore[untyped-decorator]
    def pack(_: Any, values: Any, offset: Any, groups: Any, column: Any, places: Any, columns: Any, count: Any) -> Any:
        """Append `column` + i of every values[offset + i] != 0, i < 8 * groups, to columns[count:].

        Returns the new count; up to 8 entries beyond it are overwritten.
        """
        return types.int64(values, offset, groups, column, places, columns, count), _pack

    @intrinsic  # type: ignore[untyped-decorator]
    def add_rows(
        _: Any, lanes: Any, init: Any, start: Any, out: Any, first: Any, inputs: Any, weights: Any, columns: Any,
        begins: Any, ends: Any, values: Any, rows: Any, runs: Any,
    ) -> Any:  # fmt: skip
        """Set out[first + k] = init[start + k] + sum over j < runs and begins[j] <= i < ends[j], c = columns[i], of
        inputs[values[j] + c] * weights[rows[j] + c * width + k], for k < width = 8 * len(lanes).

        A uint32 weight holds two in bfloat16, so that a row is half as long: of every 32 outputs the first 16 are in
        the lower halves.
        """
        given = (lanes, init, start, out, first, inputs, weights, columns, begins, ends, values, rows, runs)
        return types.void(*given), _add_rows
