"""Vector code of the sums over a train: all steps of a few elements, their sums in registers, one read a value."""

from typing import Any

from speedysnn.kernels.compiled import AVAILABLE
from speedysnn.kernels.vector_code import Writer, intrinsic, ir, types

LANES = 16  # elements at once: a register of AVX-512, two of others
_HALF = LANES // 2  # of which float64 sums take one each


class _Trains(Writer):
    """Sum, first spike and spikes a step of elements that lie side by side, step by step."""

    def __init__(self, context: Any, builder: Any, types_: Any, args: Any) -> None:
        super().__init__(context, builder, types_, args)
        self.out, self.total, self.when, self.pulses = (self.pointer(i) for i in (0, 5, 6, 7))
        self.first, self.n, self.steps, self.many = args[1:5]
        self.reals, self.words = ir.VectorType(self.real, LANES), ir.VectorType(self.word, LANES)
        self.sums = ir.VectorType(ir.DoubleType(), _HALF)

    def halves(self, x: Any) -> list[Any]:
        """The values in float64."""
        b, out = self.b, list[Any]()
        for start in (0, _HALF):
            places = ir.Constant(ir.VectorType(self.word, _HALF), list(range(start, start + _HALF)))
            out.append(b.fpext(b.shuffle_vector(x, x, places), self.sums))
        return out

    def step(self, at: Any, t: Any, sums: list[Any], when: Any) -> tuple[list[Any], Any]:
        """One step of the elements at `at`: their sums and first steps with a spike after it."""
        b, zero = self.b, ir.Constant(self.words, [0] * LANES)
        own = b.add(at, b.mul(t, self.n))
        x = self.vector(self.out, own, self.reals)
        fired = b.fcmp_unordered("!=", x, ir.Constant(self.reals, [0.0] * LANES))
        place = b.gep(self.pulses, [t])
        ones = b.zext(b.ctpop(b.bitcast(fired, ir.IntType(LANES))), self.index)
        b.store(b.add(b.load(place), ones), place)
        now = self.everywhere(b.trunc(b.add(t, self.number(1)), self.word), self.words)
        soonest = b.select(b.and_(fired, b.icmp_signed("==", when, zero)), now, when)
        return [b.fadd(total, half) for total, half in zip(sums, self.halves(x), strict=True)], soonest

    def group(self, i: Any) -> None:
        """All steps of the elements from i on."""
        b, before, at = self.b, self.b.block, self.b.add(self.first, i)
        stepping, after = self.blocks("stepping", "after")
        b.branch(stepping)
        b.position_at_end(stepping)
        (t,), (when,) = (
            self.phis(self.index, [self.number(0)], before),
            self.phis(self.words, [ir.Constant(self.words, [0] * LANES)], before),
        )
        sums = self.phis(self.sums, [ir.Constant(self.sums, [0.0] * _HALF)] * 2, before)
        added, soonest = self.step(at, t, sums, when)
        later = b.add(t, self.number(1))
        self.close([t, when, *sums], [later, soonest, *added], stepping)
        b.cbranch(b.icmp_signed("<", later, self.steps), stepping, after)
        b.position_at_end(after)
        for k, total in enumerate(added):
            self.store(total, self.total, b.add(i, self.number(_HALF * k)))
        self.store(soonest, self.when, i)


def _sum(context: Any, builder: Any, signature: Any, args: Any) -> Any:
    """Every group's steps."""
    w = _Trains(context, builder, signature.args, args)
    before = builder.block
    head, body, done = w.blocks("head", "body", "done")
    builder.branch(head)
    builder.position_at_end(head)
    (i,) = w.phis(w.index, [w.number(0)], before)
    builder.cbranch(builder.icmp_signed("<", i, w.many), body, done)
    builder.position_at_end(body)
    w.group(i)
    w.close([i], [builder.add(i, w.number(LANES))], builder.block)
    builder.branch(head)
    builder.position_at_end(done)
    return context.get_dummy_value()


if AVAILABLE:

    @intrinsic  # type: ignore[untyped-decorator]
    def sum_trains(
        _: Any, out: Any, first: Any, n: Any, steps: Any, many: Any, total: Any, when: Any, pulses: Any
    ) -> Any:  # fmt: skip
        """Sums over the steps and first steps with a spike (0: none) of `many` elements, a multiple of LANES.

        Row t of `out` begins at t * n, the elements at `first` of it; `pulses` takes their spikes a step.
        """
        given = (out, first, n, steps, many, total, when, pulses)
        return types.void(*given), _sum
