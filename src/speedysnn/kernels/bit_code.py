"""Vector code of spikes as bits: one for a value, sixteen channels that lie side by side in a word."""

from typing import Any

from speedysnn.kernels.vector_code import WORKS, Writer, intrinsic, ir, types

BIT_LANES = 16  # channels a word


class _Bits(Writer):
    """Words of one group of channels, pixel after pixel."""

    def __init__(self, context: Any, builder: Any, types_: Any, args: Any) -> None:
        super().__init__(context, builder, types_, args)
        self.reals, self.bits = ir.VectorType(self.real, BIT_LANES), ir.VectorType(ir.IntType(1), BIT_LANES)
        self.zero = ir.Constant(self.reals, [0.0] * BIT_LANES)


def _pack(context: Any, builder: Any, signature: Any, args: Any) -> Any:
    """The loop over pixels; the largest and smallest spikes, compared as their bits, stay in registers."""
    w, b = _Bits(context, builder, signature.args, args), builder
    x, words, ends = w.pointer(0), w.pointer(3), w.pointer(6)
    first, apart, to, spread, c, many = (args[i] for i in (1, 2, 4, 5, 7, 8))
    places = [c, b.add(c, args[9])]
    words_, before = ir.VectorType(w.word, BIT_LANES), b.block
    begun, none = [w.vector(ends, place, words_) for place in places], ir.Constant(words_, [2**31 - 1] * BIT_LANES)
    body, done = w.blocks("body", "done")
    b.branch(body)
    b.position_at_end(body)
    (i,), (high, low) = w.phis(w.index, [w.number(0)], before), w.phis(words_, begun, before)
    value = w.vector(x, b.add(first, b.mul(i, apart)), w.reals)
    fired = b.fcmp_unordered("!=", value, w.zero)
    b.store(b.bitcast(fired, ir.IntType(BIT_LANES)), b.gep(words, [b.add(to, b.mul(i, spread))]))
    bits = b.bitcast(value, words_)
    some = b.select(fired, bits, none)
    higher = b.select(b.icmp_signed(">", bits, high), bits, high)
    lower = b.select(b.icmp_signed("<", some, low), some, low)
    later = b.add(i, w.number(1))
    w.close([i, high, low], [later, higher, lower], body)
    b.cbranch(b.icmp_signed("<", later, many), body, done)
    b.position_at_end(done)
    for result, place in zip((higher, lower), places, strict=True):
        w.store(result, ends, place)
    return context.get_dummy_value()


def _unpack(context: Any, builder: Any, signature: Any, args: Any) -> Any:
    """The loop over pixels."""
    w, b = _Bits(context, builder, signature.args, args), builder
    words, values, out = w.pointer(0), w.pointer(3), w.pointer(5)
    first, spread, c, to, apart, many = (args[i] for i in (1, 2, 4, 6, 7, 8))
    spike, before = w.vector(values, c, w.reals), b.block
    body, done = w.blocks("body", "done")
    b.branch(body)
    b.position_at_end(body)
    (i,) = w.phis(w.index, [w.number(0)], before)
    fired = b.bitcast(b.load(b.gep(words, [b.add(first, b.mul(i, spread))])), w.bits)
    w.store(b.select(fired, spike, w.zero), out, b.add(to, b.mul(i, apart)))
    later = b.add(i, w.number(1))
    w.close([i], [later], body)
    b.cbranch(b.icmp_signed("<", later, many), body, done)
    b.position_at_end(done)
    return context.get_dummy_value()


if WORKS:

    @intrinsic  # type: ignore[untyped-decorator]
    def pack_run(
        _: Any, x: Any, first: Any, apart: Any, words: Any, to: Any, spread: Any, ends: Any, c: Any, many: Any,
        channels: Any,
    ) -> Any:  # fmt: skip
        """words[to + i * spread] = bits of x[first + i * apart + k] != 0, k < 16, for i < many, at least one.

        The bits of the largest and, of those that are not 0, of the smallest go to ends[c + k] and
        ends[channels + c + k], compared as whole numbers, which puts NaN beyond infinity.
        """
        return types.void(x, first, apart, words, to, spread, ends, c, many, channels), _pack

    @intrinsic  # type: ignore[untyped-decorator]
    def unpack_run(
        _: Any, words: Any, first: Any, spread: Any, values: Any, c: Any, out: Any, to: Any, apart: Any, many: Any
    ) -> Any:  # fmt: skip
        """out[to + i * apart + k] = values[c + k] where bit k of words[first + i * spread] is set, else 0; k < 16."""
        return types.void(words, first, spread, values, c, out, to, apart, many), _unpack
