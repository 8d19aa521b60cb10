"""LLVM code of the neuron and its adjoint: all steps of a group of neurons, with their state in vector registers.

`fire_all` and `adjoint_all` are called from the numba code of `numba_sequence`. Every value is read once and written
once. The adjoint covers binary spikes and the rectangle surrogate; it computes the membranes of one group again on the
way forward and reads them on the way back. The arithmetic is that of `kernels.reference`, in the same order, so that
every bit is the same. Without vector code (`WORKS` is False) both functions do nothing, and plain numba code takes all
neurons.
"""

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

from speedysnn.kernels.jit import WORKS, Writer, cgutils, compiled, intrinsic, ir, types

NEURON_LANES = 16  # values of a vector: one register of AVX-512, two of other processors, whose divisions overlap
VECTORS = 1  # vectors of a group
AT_ONCE = NEURON_LANES * VECTORS  # neurons of a group
AHEAD = 16 * AT_ONCE  # neurons that are prefetched ahead: a processor does not do that itself over so many rows
Flag = tuple[int, ...]  # one element if set, else empty: numba compiles a version for each length, without branches


class CallFlags(NamedTuple):
    """Options of the neuron's kernels; each combination is compiled on its own.

    Attributes:
        constant: the drive holds for every step.
        take_back: a neuron that fired may take spikes back, until its count is 0.
        half: drive and output are bfloat16, given as bits.
        input_sum: the drive's sum over all steps is written too.
        amplitude: spikes stand for an amplitude of their own instead of theta.
        powers: spikes are signed powers of two.
    """

    constant: Flag
    take_back: Flag
    half: Flag
    input_sum: Flag
    amplitude: Flag
    powers: Flag


@cache
def flags_of(
    constant: bool, take_back: bool, half: bool = False, input_sum: bool = False, amplitude: bool = False,
    powers: bool = False,
) -> CallFlags:  # fmt: skip
    """Return the flags for some truth values."""
    return CallFlags(*((0,) * bool(flag) for flag in (constant, take_back, half, input_sum, amplitude, powers)))


class Neurons(Writer):
    """Writes the neuron's forward pass; `args` are those of `fire_all`."""

    def __init__(self, context: Any, builder: Any, types_: Any, args: Any) -> None:
        super().__init__(context, builder, types_, args)
        flags = dict(zip(types_[0].fields, (len(flag) > 0 for flag in types_[0].types), strict=True))
        self.constant, self.take_back = flags["constant"], flags["take_back"]
        self.half_precision, self.with_input_sum = flags["half"], flags["input_sum"]
        self.separate, self.powers = flags["amplitude"], flags["powers"]
        self.input_sum: list[Any] = []
        self.real = context.get_value_type(types_[7].dtype)
        self.reals, self.words = ir.VectorType(self.real, NEURON_LANES), ir.VectorType(self.word, NEURON_LANES)
        self.ahead = [self.number(NEURON_LANES * i) for i in range(VECTORS)]
        self.x, self.factors, self.out = (self.pointer(i) for i in (1, 6, 11))
        self.neurons, self.steps, self.seen = args[3], args[4], args[5]
        self.limits = [self.broadcast(args[i], self.reals) for i in (9, 10)]
        self.at_group: Any = None
        self.floor = self.function("floor")

    def function(self, name: str) -> Any:
        """Return LLVM's own function of a vector by its name, such as "floor"."""
        full = f"llvm.{name}.v{NEURON_LANES}f{64 if isinstance(self.real, ir.DoubleType) else 32}"
        return cgutils.get_or_insert_function(self.b.module, ir.FunctionType(self.reals, [self.reals]), full)

    def place(self, t: Any) -> Any:
        """Return the index at which the group's part of row t begins."""
        return self.b.add(self.at_group, self.b.mul(t, self.neurons))

    def fetch_ahead(self, pointer: Any, t: Any) -> None:
        """Prefetch what later groups will read or write in row t."""
        self.prefetch(pointer, self.b.add(self.place(t), self.number(AHEAD)))

    def load(self, pointer: Any, index: Any) -> list[Any]:
        """Load a group's values."""
        return [self.vector(pointer, self.b.add(index, k), self.reals) for k in self.ahead]

    def inputs(self, index: Any) -> list[Any]:
        """Load a group's values of the drive; bfloat16 is widened to float32."""
        if not self.half_precision:
            return self.load(self.x, index)
        short = ir.VectorType(ir.IntType(16), NEURON_LANES)
        return [self.widened(self.vector(self.x, self.b.add(index, k), short)) for k in self.ahead]

    def row(self, t: Any) -> list[Any]:
        """Load the group's inputs of step t, and prefetch those of later groups."""
        self.fetch_ahead(self.x, t)
        return self.inputs(self.place(t))

    def coming(self, pointer: Any, t: Any) -> list[Any]:
        """Load the group's part of row t of an array, and prefetch that of later groups."""
        self.fetch_ahead(pointer, t)
        return self.load(pointer, self.place(t))

    def steps_of(
        self, totals: list[Any], own: list[Any], origin: list[Any], keep: Callable[[Any, list[Any], list[Any]], None]
    ) -> list[Any]:
        """Write the loop over the steps: fire, call keep(t, counts before, results of `step`), add the next row.

        Returns:
            The counts after the last step; `input_sum` then holds the drive's sum over all steps.
        """
        b, before = self.b, self.b.block
        firing, further, after = self.blocks("firing", "further", "after")
        b.branch(firing)
        b.position_at_end(firing)
        (t,), sums = self.phis(self.index, [self.number(0)], before), self.phis(self.reals, totals, before)
        counts = self.phis(self.reals, [ir.Constant(self.reals, [0.0] * NEURON_LANES)] * VECTORS, before)
        factor = self.broadcast(self.at(self.factors, t), self.reals)
        fired = [self.step(sums[n], factor, own[n], origin[n], counts[n]) for n in range(VECTORS)]
        keep(t, counts, fired)
        reached, later = [count for *_, count in fired], b.add(t, self.number(1))
        b.cbranch(b.icmp_signed("<", later, self.steps), further, after)
        b.position_at_end(further)
        self.close([t, *sums, *counts], [later, *self.seen_next(t, sums), *reached], further)
        b.branch(firing)
        b.position_at_end(after)
        self.input_sum = sums
        return reached

    def write(self, values: list[Any], t: Any) -> None:
        """Store the group's part of row t of the result."""
        self.fetch_ahead(self.out, t)
        for value, further in zip(values, self.ahead, strict=True):
            kept = self.rounded(value) if self.half_precision else value
            self.store(kept, self.out, self.b.add(self.place(t), further))

    def seen_next(self, t: Any, sums: list[Any]) -> list[Any]:
        """Return the sums with the next row added, if there is one."""
        if self.constant:
            return sums
        b = self.b
        new = b.add(t, self.seen)
        more = b.icmp_signed("<", new, self.steps)
        row = self.row(b.select(more, new, t))
        return [b.select(more, b.fadd(total, x), total) for total, x in zip(sums, row, strict=True)]

    def step(self, total: Any, factor: Any, theta: Any, start: Any, count: Any) -> tuple[Any, Any, Any]:
        """Return (level, spikes, count after them) of one step; comparisons treat NaN as the plain code does."""
        b, (low, high) = self.b, self.limits
        level = b.fadd(b.fdiv(b.fmul(total, factor), theta), start)
        if self.powers:
            spikes = self.nearest_power(level, count)
            return level, spikes, b.fadd(count, spikes)
        spikes = b.fsub(b.call(self.floor, [level]), count)
        spikes = b.select(b.fcmp_ordered(">", spikes, high), high, spikes)
        spikes = b.select(b.fcmp_ordered("<", spikes, low), low, spikes)
        if self.take_back:
            one, zero = (ir.Constant(self.reals, [value] * NEURON_LANES) for value in (1.0, 0.0))
            back = b.and_(b.fcmp_ordered("<", level, count), b.fcmp_ordered(">", count, zero))
            spikes = b.fsub(spikes, b.select(back, one, zero))
        return level, spikes, b.fadd(count, spikes)

    def nearest_power(self, level: Any, count: Any) -> Any:
        """Return the signed power of two nearest to u - 1/2; see `numba_neuron.nearest_power`."""
        b, high = self.b, self.limits[1]
        zero, half, one, more = (ir.Constant(self.reals, [value] * NEURON_LANES) for value in (0.0, 0.5, 1.0, 1.5))
        halves = b.fsub(b.call(self.floor, [b.fadd(level, level)]), b.fadd(count, count))
        back = b.fcmp_ordered("<", halves, zero)
        far = b.select(back, b.fsub(zero, halves), b.fsub(halves, one))
        below = self.leading(far)
        size = b.select(b.fcmp_ordered(">=", far, b.fmul(below, more)), below, b.fmul(below, half))
        size = b.select(b.fcmp_ordered("<", size, one), one, size)
        size = b.select(b.fcmp_ordered(">", size, high), high, size)
        size = b.select(b.fcmp_ordered(">=", far, one), size, zero)
        if self.take_back:
            sent = self.leading(count)
            size = b.select(b.and_(back, b.fcmp_ordered("<", sent, size)), sent, size)
        signed = b.select(back, b.fsub(zero, size), size)
        return b.select(b.fcmp_unordered("uno", halves, halves), halves, signed)

    def leading(self, values: Any) -> Any:
        """Return the largest power of two not above each number's size, with its sign: its sign and exponent bits."""
        b = self.b
        bits, fraction = (64, 52) if isinstance(self.real, ir.DoubleType) else (32, 23)
        words = ir.VectorType(ir.IntType(bits), NEURON_LANES)
        mask = ir.Constant(words, [(1 << bits) - (1 << fraction)] * NEURON_LANES)
        return b.bitcast(b.and_(b.bitcast(values, words), mask), self.reals)

    def groups(self, work: Callable[[Any, list[Any], list[Any], list[Any]], None]) -> None:
        """Write the loop over groups of neurons: sum the inputs that the first step sees, then call `work`."""
        b, before = self.b, self.b.block
        group, add, adding, ahead, fire, done = self.blocks("group", "add", "adding", "ahead", "fire", "done")
        b.branch(group)
        b.position_at_end(group)
        (i,) = self.phis(self.index, [self.number(0)], before)
        self.at_group = b.add(self.args[2], i)
        b.cbranch(b.icmp_signed("<", i, self.args[12]), add, done)
        b.position_at_end(add)
        own, origin = self.load(self.pointer(7), i), self.load(self.pointer(8), i)
        begin = self.inputs(self.at_group)
        b.branch(adding)
        b.position_at_end(adding)
        (k,), totals = self.phis(self.index, [self.number(1)], add), self.phis(self.reals, begin, add)
        b.cbranch(b.icmp_signed("<", k, self.seen), ahead, fire)
        b.position_at_end(ahead)
        self.close([k, *totals], [b.add(k, self.number(1)), *map(b.fadd, totals, self.row(k))], ahead)
        b.branch(adding)
        b.position_at_end(fire)
        work(i, totals, own, origin)
        self.close([i], [b.add(i, self.number(AT_ONCE))], b.block)
        b.branch(group)
        b.position_at_end(done)


def _fire(context: Any, builder: Any, signature: Any, args: Any) -> Any:
    """Write the body of `fire_all`."""
    w = Neurons(context, builder, signature.args, args)

    def work(i: Any, totals: list[Any], own: list[Any], origin: list[Any]) -> None:
        units = w.load(w.pointer(14), i) if w.separate else own

        def keep(t: Any, _: list[Any], fired: list[Any]) -> None:
            w.write([builder.fmul(spikes, unit) for (_, spikes, _), unit in zip(fired, units, strict=True)], t)

        w.steps_of(totals, own, origin, keep)
        for total, further in zip(w.input_sum if w.with_input_sum else (), w.ahead, strict=False):
            w.store(total, w.pointer(13), builder.add(w.at_group, further))

    w.groups(work)
    return context.get_dummy_value()


if WORKS:

    @intrinsic  # type: ignore[untyped-decorator]
    def fire_all(
        _: Any, flags: Any, x: Any, first: Any, neurons: Any, steps: Any, seen: Any, factors: Any, theta: Any,
        start: Any, low: Any, high: Any, out: Any, vectorized: Any, input_sum: Any, amplitude: Any,
    ) -> Any:  # fmt: skip
        """Write theta * s[t] of all steps for `vectorized` neurons from `first` on, a multiple of AT_ONCE.

        Row t of x begins at t * neurons, and `out` may be `x`. The first step sees `seen` rows; theta and start hold
        the values of these neurons alone. With the flag `input_sum` the sum of all rows is written to the array of
        that name; with `half` x and out are bfloat16 as bits; with `amplitude` spikes are multiplied by the array of
        that name instead of theta.
        """
        given = (flags, x, first, neurons, steps, seen, factors, theta, start, low, high, out, vectorized, input_sum,
                 amplitude)  # fmt: skip
        return types.void(*given), _fire

else:

    @compiled
    def fire_all(*_: Any) -> None:
        """Do nothing: plain numba code takes all neurons."""


class _Adjoint(Neurons):
    """Writes the adjoint: a group's steps forward, then back, as `numba_neuron.fire_and_note` and `adjoint` do them."""

    def __init__(self, context: Any, builder: Any, types_: Any, args: Any) -> None:
        super().__init__(context, builder, types_, args)
        self.grad, self.inverse, self.notes = self.pointer(13), self.pointer(14), self.pointer(18)
        self.half, self.slope, self.keep = (self.broadcast(args[i], self.reals) for i in (15, 16, 17))
        self.one, self.zero = (ir.Constant(self.reals, [value] * NEURON_LANES) for value in (1.0, 0.0))
        self.fabs = self.function("fabs")

    def note(self, t: Any, what: int) -> list[Any]:
        """Return the indices in `notes` of the group's membranes (`what` 0) or counts (1) of step t."""
        row = self.b.add(self.b.mul(t, self.number(2 * AT_ONCE)), self.number(what * AT_ONCE))
        return [self.b.add(row, k) for k in self.ahead]

    def note_down(self, t: Any, counts: list[Any], fired: list[Any]) -> None:
        """Store a step's membranes and the counts before it in `notes`."""
        for count, (level, *_), membrane, place in zip(counts, fired, self.note(t, 0), self.note(t, 1), strict=True):
            self.store(self.b.fsub(level, count), self.notes, membrane)
            self.store(count, self.notes, place)

    def back(self, i: Any, reached: list[Any], own: list[Any], origin: list[Any]) -> tuple[list[Any], ...]:
        """Write the loop over the steps in reverse.

        Returns:
            The gradients of the first inputs, theta and v_init, and of an amplitude of its own.
        """
        b, before, parts = self.b, self.b.block, 5 if self.separate else 4
        inverse, nothing = self.load(self.inverse, i), [self.zero] * VECTORS
        ratio = self.load(self.pointer(21), i) if self.separate else inverse
        last = b.sub(self.steps, self.number(1))
        loop, hand, again, done = self.blocks("back", "hand", "again", "done")
        b.branch(loop)
        b.position_at_end(loop)
        (t,) = self.phis(self.index, [last], before)
        after = self.phis(self.reals, reached, before)
        state = [self.phis(self.reals, nothing, before) for _ in range(parts)]
        factor = self.broadcast(self.at(self.factors, t), self.reals)
        row = self.coming(self.grad, t)
        counts = [self.vector(self.notes, place, self.reals) for place in self.note(t, 1)]
        turned: list[list[Any]] = [[] for _ in range(parts)]
        for n, place in enumerate(self.note(t, 0)):
            membrane = self.vector(self.notes, place, self.reals)
            of = tuple(values[n] for values in state)
            given = (row[n], membrane, counts[n], after[n], own[n], origin[n], inverse[n], factor, ratio[n])
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
        carried, handed = ([value for values in each for value in values] for each in (state, turned))
        self.close([t, *after, *carried], [b.sub(t, self.number(1)), *counts, *handed], again)
        b.cbranch(first, done, loop)
        b.position_at_end(done)
        return tuple(turned[1:])

    def step_back(self, state: tuple[Any, ...], given: tuple[Any, ...]) -> tuple[Any, ...]:
        """Return the state after one step back: gradients of the count, the drive's sum, theta, v_init, amplitude."""
        b, (later, summed, to_theta, to_start, *to_amplitude) = self.b, state
        grad, membrane, count, after, theta, start, inverse, factor, ratio = given
        at_spike = b.fadd(b.fmul(grad, ratio) if self.separate else grad, b.fmul(later, inverse))
        near = b.fcmp_ordered("<", b.call(self.fabs, [b.fsub(membrane, self.one)]), self.half)
        to_membrane = b.fmul(at_spike, b.select(near, self.slope, self.zero))
        emitted = b.fmul(grad, b.fsub(after, count))
        own = b.fsub(self.zero if self.separate else emitted, to_membrane)
        own = b.fadd(own, b.fmul(to_membrane, b.fsub(start, count)))
        scaled = b.fmul(to_membrane, theta)
        return (b.fsub(later, b.fmul(scaled, self.keep)), b.fadd(summed, b.fmul(to_membrane, factor)),
                b.fadd(to_theta, own), b.fadd(to_start, scaled),
                *(b.fadd(each, emitted) for each in to_amplitude))  # fmt: skip

    def write_first(self, values: list[Any]) -> None:
        """Write the gradient of the rows that the first step saw."""
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
    """Write the body of `adjoint_all`."""
    w = _Adjoint(context, builder, signature.args, args)

    def work(i: Any, totals: list[Any], own: list[Any], origin: list[Any]) -> None:
        summed, *found = w.back(i, w.steps_of(totals, own, origin, w.note_down), own, origin)
        w.write_first(summed)
        for array, values in zip((19, 20, 22), found, strict=False):  # of theta, v_init and an amplitude of its own
            for value, place in zip(values, w.ahead, strict=True):
                w.store(value, w.pointer(array), builder.add(i, place))

    w.groups(work)
    return context.get_dummy_value()


if WORKS:

    @intrinsic  # type: ignore[untyped-decorator]
    def adjoint_all(
        _: Any, flags: Any, x: Any, first: Any, neurons: Any, steps: Any, seen: Any, factors: Any, theta: Any,
        start: Any, low: Any, high: Any, grad_x: Any, vectorized: Any, grad: Any, inverse: Any, half: Any, slope: Any,
        keep: Any, notes: Any, to_theta: Any, to_start: Any, ratio: Any, to_amplitude: Any,
    ) -> Any:  # fmt: skip
        """Write the gradients of `vectorized` neurons from `first` on; arguments as those of `fire_all`.

        `inverse` holds 1/theta; the surrogate's slope is `slope` within `half` of the threshold, else 0; `keep` is 0
        without a gradient through the reset, else 1; `notes` has room for 2 * steps * AT_ONCE values. Every row of
        grad_x is written; to_theta and to_start take the gradients of each neuron's theta and v_init. With the flag
        `amplitude`, whose quotient by theta is `ratio`, to_amplitude takes its gradient.
        """
        given = (flags, x, first, neurons, steps, seen, factors, theta, start, low, high, grad_x, vectorized, grad,
                 inverse, half, slope, keep, notes, to_theta, to_start, ratio, to_amplitude)  # fmt: skip
        return types.void(*given), _adjoint

else:

    @compiled
    def adjoint_all(*_: Any) -> None:
        """Do nothing: plain numba code takes all neurons."""
