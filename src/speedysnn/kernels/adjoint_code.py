"""Vector code of the neuron's adjoint, for binary spikes and the rectangle: state in registers, all steps of a group.

The membranes are computed again on the way forward and kept for one group at a time; the way back reads them.
"""

from typing import Any

from speedysnn.kernels.compiled import compiled
from speedysnn.kernels.neuron_code import AT_ONCE, NEURON_LANES, VECTORS, Neurons
from speedysnn.kernels.vector_code import WORKS, intrinsic, ir, types


class _Adjoint(Neurons):
    """A group's way forward and back; the arithmetic is that of `blocks.fire_and_note` and `blocks.adjoint`."""

    def __init__(self, context: Any, builder: Any, types_: Any, args: Any) -> None:
        super().__init__(context, builder, types_, args)
        self.grad, self.inverse, self.notes = self.pointer(13), self.pointer(14), self.pointer(18)
        self.half, self.slope, self.keep = (self.everywhere(args[i], self.reals) for i in (15, 16, 17))
        self.one, self.zero = (ir.Constant(self.reals, [value] * NEURON_LANES) for value in (1.0, 0.0))
        self.fabs = self.function("fabs")

    def note(self, t: Any, what: int) -> list[Any]:
        """Where a step's membranes (0) or counts (1) of the group are kept."""
        row = self.b.add(self.b.mul(t, self.number(2 * AT_ONCE)), self.number(what * AT_ONCE))
        return [self.b.add(row, k) for k in self.ahead]

    def note_down(self, t: Any, counts: list[Any], fired: list[Any]) -> None:
        """Note a step's membranes and the counts before it."""
        for count, (level, *_), membrane, place in zip(counts, fired, self.note(t, 0), self.note(t, 1), strict=True):
            self.store(self.b.fsub(level, count), self.notes, membrane)
            self.store(count, self.notes, place)

    def back(self, i: Any, reached: list[Any], own: list[Any], origin: list[Any]) -> tuple[list[Any], ...]:
        """All steps in reverse; (summed gradient of the drive, theta's, v_init's)."""
        b, before = self.b, self.b.block
        inverse, nothing = self.load(self.inverse, i), [self.zero] * VECTORS
        last = b.sub(self.steps, self.number(1))
        loop, hand, again, done = self.blocks("back", "hand", "again", "done")
        b.branch(loop)
        b.position_at_end(loop)
        (t,) = self.phis(self.index, [last], before)
        after = self.phis(self.reals, reached, before)
        state = [self.phis(self.reals, nothing, before) for _ in range(4)]
        factor = self.everywhere(self.at(self.factors, t), self.reals)
        row = self.coming(self.grad, t)
        counts = [self.vector(self.notes, place, self.reals) for place in self.note(t, 1)]
        turned: list[list[Any]] = [[], [], [], []]
        for n, place in enumerate(self.note(t, 0)):
            membrane = self.vector(self.notes, place, self.reals)
            of = tuple(values[n] for values in state)
            given = (row[n], membrane, counts[n], after[n], own[n], origin[n], inverse[n], factor)
            for values, value in zip(turned, self.step_back(of, given), strict=True):
                values.append(value)
        new = b.sub(b.add(t, self.seen), self.number(1))
        first = b.icmp_signed("==", t, self.number(0))
        rows = self.seen if self.constant else self.steps  # the drive's own
        b.cbranch(b.or_(first, b.icmp_signed(">=", new, rows)), again, hand)
        b.position_at_end(hand)
        self.write(turned[1], new)
        b.branch(again)
        b.position_at_end(again)
        carried, handed = ([value for values in parts for value in values] for parts in (state, turned))
        self.close([t, *after, *carried], [b.sub(t, self.number(1)), *counts, *handed], again)
        b.cbranch(first, done, loop)
        b.position_at_end(done)
        return turned[1], turned[2], turned[3]

    def step_back(self, state: tuple[Any, ...], given: tuple[Any, ...]) -> tuple[Any, ...]:
        """One step's part in (what later spikes hand back, the drive's sum, theta's, v_init's)."""
        b, (later, summed, to_theta, to_start) = self.b, state
        grad, membrane, count, after, theta, start, inverse, factor = given
        at_spike = b.fadd(grad, b.fmul(later, inverse))
        near = b.fcmp_ordered("<", b.call(self.fabs, [b.fsub(membrane, self.one)]), self.half)
        to_membrane = b.fmul(at_spike, b.select(near, self.slope, self.zero))
        own = b.fsub(b.fmul(grad, b.fsub(after, count)), to_membrane)
        own = b.fadd(own, b.fmul(to_membrane, b.fsub(start, count)))
        scaled = b.fmul(to_membrane, theta)
        return (b.fsub(later, b.fmul(scaled, self.keep)), b.fadd(summed, b.fmul(to_membrane, factor)),
                b.fadd(to_theta, own), b.fadd(to_start, scaled))  # fmt: skip

    def write_first(self, values: list[Any]) -> None:
        """The rows that the first step saw."""
        b, before = self.b, self.b.block
        loop, done = self.blocks("rows", "written")
        b.branch(loop)
        b.position_at_end(loop)
        (t,) = self.phis(self.index, [self.number(0)], before)
        self.write(values, t)
        later = b.add(t, self.number(1))
        self.close([t], [later], loop)
        b.cbranch(b.icmp_signed("<", later, self.seen), loop, done)
        b.position_at_end(done)


def _adjoint(context: Any, builder: Any, signature: Any, args: Any) -> Any:
    """Every group forward and back."""
    w = _Adjoint(context, builder, signature.args, args)

    def work(i: Any, totals: list[Any], own: list[Any], origin: list[Any]) -> None:
        summed, to_theta, to_start = w.back(i, w.steps_of(totals, own, origin, w.note_down), own, origin)
        w.write_first(summed)
        for array, values in ((19, to_theta), (20, to_start)):
            for value, place in zip(values, w.ahead, strict=True):
                w.store(value, w.pointer(array), builder.add(i, place))

    w.groups(work)
    return context.get_dummy_value()


if WORKS:

    @intrinsic  # type: ignore[untyped-decorator]
    def adjoint_all(
        _: Any, flags: Any, x: Any, first: Any, neurons: Any, steps: Any, seen: Any, factors: Any, theta: Any,
        start: Any, low: Any, high: Any, grad_x: Any, vectorized: Any, grad: Any, inverse: Any, half: Any, slope: Any,
        keep: Any, notes: Any, to_theta: Any, to_start: Any,
    ) -> Any:  # fmt: skip
        """Gradients of `vectorized` neurons from `first` on, arguments as those of `fire_all`.

        `inverse` holds 1/theta, the slope is `slope` within `half` of the threshold, `keep` is 0 without a gradient
        through the reset; `notes` has room for 2 * steps * AT_ONCE numbers. grad_x is written at every row; to_theta
        and to_start hold the neurons' own.
        """
        given = (flags, x, first, neurons, steps, seen, factors, theta, start, low, high, grad_x, vectorized, grad,
                 inverse, half, slope, keep, notes, to_theta, to_start)  # fmt: skip
        return types.void(*given), _adjoint

else:

    @compiled
    def adjoint_all(*_: Any) -> None:
        """Nothing: the plain code takes all neurons."""
