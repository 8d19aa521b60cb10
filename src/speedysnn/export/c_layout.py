"""How an integer program lies in a C program's memory: the order of every buffer, stages, and places in static arrays.

A stage is what is done for one layer of neurons: for each step the operations that lead to it, then the neurons. Only
spike trains are kept for all T steps; everything between two layers is made again for each step in the same place.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from speedysnn.errors import ConversionError
from speedysnn.integer.lower import Range
from speedysnn.integer.program import (
    Add,
    Concat,
    Conv,
    Gain,
    Input,
    Linear,
    MaxPool,
    Move,
    Neuron,
    Operation,
    Program,
    Readout,
    SumPool,
    Total,
)

Order = NDArray[np.int64]
BYTES = {"uint8_t": 1, "int8_t": 1, "int16_t": 2, "int32_t": 4}


@dataclass
class Buffer:
    """A place in memory.

    Attributes:
        name: of the operation whose result it holds.
        kind: its C type.
        size: values of one step.
        order: the flat position, in the program's order, of each value as it lies there.
        steps: steps that it holds.
        first: position in the list of stages from which it is needed.
        last: position until which it is.
        offset: in the static array of its type.
    """

    name: str
    kind: str
    size: int
    order: Order
    steps: int = 1
    first: int = 0
    last: int = 0
    offset: int = -1


@dataclass
class Call:
    """One operation on buffers: `kind` names the kernel."""

    kind: str
    op: Operation
    sources: tuple[Buffer, ...]
    out: Buffer
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass
class Stage:
    """What runs together, once or for every step; `cells` fires at its end, `kept` goes into a buffer of all steps."""

    timed: bool
    calls: list[Call] = field(default_factory=list)
    cells: Call | None = None
    kept: Call | None = None


def channels_last(shape: Sequence[int]) -> Order:
    """The order in which the channels, the first axis, are innermost."""
    if len(shape) < 2:
        return np.arange(int(np.prod(shape)), dtype=np.int64)
    return np.moveaxis(np.arange(int(np.prod(shape)), dtype=np.int64).reshape(shape), 0, -1).reshape(-1)


def smallest(low: int, high: int) -> str:
    """The smallest C type that holds both."""
    for kind, bits in (("int8_t", 7), ("int16_t", 15)):
        if low >= -(1 << bits) and high < 1 << bits:
            return kind
    return "int32_t"


class Layout:
    """The stages of a program, and where everything lies.

    Args:
        program: the integer network.
        ranges: of its buffers.

    Raises:
        ConversionError: an operation that has no kernel.
    """

    def __init__(self, program: Program, ranges: dict[str, Range]) -> None:
        self.program, self.ranges = program, ranges
        self.by_name = program.by_name
        self.buffers: dict[str, Buffer] = {}
        self.stages: list[Stage] = []
        self.all: list[Buffer] = []
        self._transient = self._transients()
        for op in program.operations:
            self._take(op)
        self._live()
        self.sizes = _place(self.all)

    def _transients(self) -> set[str]:
        """Values of each step that a single stage needs: they are made there, for the step at hand."""
        needs: dict[str, set[str]] = {}
        for op in reversed(self.program.operations):
            own = {op.name} if isinstance(op, Neuron | Total) else needs.get(op.name, set())
            if op.timing == "steps" and not isinstance(op, Neuron | Input) and len(own) > 1:
                own = {op.name}  # several stages need it: it is kept for all steps, in a stage of its own
            for name in op.sources:
                needs.setdefault(name, set()).update(own)
            if op.timing == "steps" and not isinstance(op, Neuron | Input):
                needs[op.name] = own
        return {name for name, own in needs.items() if self.by_name[name].timing == "steps" and name not in own
                and not isinstance(self.by_name[name], Neuron | Input)}  # fmt: skip

    def _take(self, op: Operation) -> None:
        """Make the operation's calls, in the stage they belong to."""
        if isinstance(op, Input):
            order = channels_last(op.shape)
            steps = self.program.timesteps if op.timing == "steps" else 1
            self._keep(Buffer(op.name, "uint8_t", op.size, order, steps))
            return
        if op.name in self._transient:
            return
        if isinstance(op, Neuron | Total) or op.timing == "steps":
            stage = Stage(self.by_name[op.sources[0]].timing == "steps" or isinstance(op, Neuron))
            made: dict[str, Buffer] = {}
            source = self._made(op.sources[0], stage, made) if isinstance(op, Neuron | Total) else None
            if isinstance(op, Neuron):
                assert source is not None
                self._cells(op, stage, source)
            elif isinstance(op, Total):
                assert source is not None
                out = self._buffer(op, source.order, "int32_t")
                stage.kept = Call("total", op, (source,), out, {"times": 1 if stage.timed else self.program.timesteps})
            else:
                value = self._call(op, stage, made)
                out = self._buffer(op, value.order, smallest(*self.ranges[op.name].ends), self.program.timesteps)
                stage.kept = Call("keep", op, (value,), out)
            self.stages.append(stage)
            return
        stage = Stage(False)
        self.buffers[op.name] = self._call(op, stage, {})
        self.stages.append(stage)

    def _keep(self, buffer: Buffer) -> Buffer:
        self.all.append(buffer)
        self.buffers[buffer.name] = buffer
        return buffer

    def _buffer(self, op: Operation, order: Order, kind: str, steps: int = 1) -> Buffer:
        return self._keep(Buffer(op.name, kind, op.size, order, steps))

    def _scratch(self, op: Operation, order: Order, kind: str = "int32_t", size: int | None = None) -> Buffer:
        out = Buffer(op.name, kind, op.size if size is None else size, order)
        self.all.append(out)
        return out

    def _made(self, name: str, stage: Stage, made: dict[str, Buffer]) -> Buffer:
        """The buffer of a value, which the stage makes if nothing keeps it."""
        if name in self.buffers:
            return self.buffers[name]
        if name not in made:
            made[name] = self._call(self.by_name[name], stage, made)
        return made[name]

    def _cells(self, op: Neuron, stage: Stage, source: Buffer) -> None:
        drive = source if source.kind == "int32_t" and source.steps == 1 else self._widened(op, stage, source)
        bits = self.program.state_bits
        state = self._scratch(op, source.order, "int8_t" if bits <= 8 else "int16_t" if bits <= 16 else "int32_t")
        count = self._scratch(op, source.order) if op.ternary or op.powers or op.lookahead else None
        out = self._buffer(op, source.order, smallest(op.lowest, op.highest), self.program.timesteps)
        stage.cells = Call("cells", op, (drive,), out, {"state": state, "count": count})

    def _widened(self, op: Operation, stage: Stage, source: Buffer) -> Buffer:
        out = self._scratch(op, source.order, size=source.size)
        stage.calls.append(Call("widen", op, (source,), out))
        return out

    def _ordered(self, op: Operation, stage: Stage, source: Buffer, order: Order) -> Buffer:
        """The buffer with its values in another order."""
        if np.array_equal(source.order, order):
            return source
        place = np.empty_like(source.order)
        place[source.order] = np.arange(len(place))
        out = self._scratch(op, order, size=source.size)
        stage.calls.append(Call("gather", op, (source,), out, {"index": place[order]}))
        return out

    def _call(self, op: Operation, stage: Stage, made: dict[str, Buffer]) -> Buffer:
        """Append the calls of an operation; its result."""
        sources = [self._made(name, stage, made) for name in op.sources]
        shapes = [self.by_name[name].shape for name in op.sources]
        if isinstance(op, Move) and op.index is None:
            return sources[0]
        out: Buffer
        if isinstance(op, Linear):
            return self._linear(op, stage, sources[0], shapes[0])
        if isinstance(op, Conv | SumPool | MaxPool):
            _require_flat(op)
            source = self._ordered(op, stage, sources[0], channels_last(shapes[0]))
            out = self._scratch(op, channels_last(op.shape))
            extra: dict[str, Any] = {"shape": shapes[0]}
            if isinstance(op, MaxPool) and op.timing == "steps":
                summed = self._scratch(op, source.order, size=source.size)
                extra |= {"summed": summed, "before": self._scratch(op, out.order)}
            stage.calls.append(Call("conv" if isinstance(op, Conv) else "pool", op, (source,), out, extra))
            return out
        if isinstance(op, Move):
            assert op.index is not None
            order, place = channels_last(op.shape), np.empty(sources[0].size + 1, np.int64)
            place[sources[0].order], place[-1] = np.arange(sources[0].size), -1
            out = self._scratch(op, order)
            stage.calls.append(Call("gather", op, (sources[0],), out, {"index": place[op.index[order]]}))
            return out
        if isinstance(op, Concat):
            each = [self._ordered(op, stage, s, channels_last(shape)) for s, shape in zip(sources, shapes, strict=True)]
            out = self._scratch(op, channels_last(op.shape))
            stage.calls.append(Call("concat", op, tuple(each), out, {"shapes": shapes}))
            return out
        if isinstance(op, Add):
            each = [self._ordered(op, stage, source, sources[0].order) for source in sources]
            out = each[0] if self._own(op, stage, each[0], made) else self._scratch(op, sources[0].order)
            stage.calls.append(Call("add", op, tuple(each), out))
            return out
        assert isinstance(op, Gain | Readout)
        out = sources[0] if self._own(op, stage, sources[0], made) else self._scratch(op, sources[0].order)
        stage.calls.append(Call("gain" if isinstance(op, Gain) else "readout", op, (sources[0],), out))
        return out

    def _own(self, op: Operation, stage: Stage, buffer: Buffer, made: dict[str, Buffer]) -> bool:
        """Whether a result may be written over its first source, which nothing else reads, now or at the next step."""
        name = op.sources[0]
        readers = sum(other.sources.count(name) for other in self.program.operations)
        mine = buffer.name == name and buffer.kind == "int32_t" and buffer.steps == 1 and readers == 1
        return mine and (name in made or not stage.timed)

    def _linear(self, op: Linear, stage: Stage, source: Buffer, shape: tuple[int, ...]) -> Buffer:
        rows = source.size // shape[-1]
        if rows > 1:
            source = self._ordered(op, stage, source, np.arange(source.size, dtype=np.int64))
        out = self._scratch(op, np.arange(op.size, dtype=np.int64))
        stage.calls.append(Call("linear", op, (source,), out, {"rows": rows}))
        return out

    def _live(self) -> None:
        """From which stage until which every buffer is needed."""
        for buffer in self.all:
            buffer.first, buffer.last = 1 << 40, 0
        position = 1
        for stage in self.stages:
            begin, end = position, position + len(stage.calls) + 1
            for here, buffer, lasting in _touched(stage):
                span = (
                    (begin, end)
                    if lasting or buffer.steps > 1 or buffer in self.buffers.values()
                    else [begin + here] * 2
                )
                buffer.first, buffer.last = min(buffer.first, span[0]), max(buffer.last, span[1])
            position = end + 1
        self.buffers[self.program.input.name].first = 0
        self.output.last = position

    @property
    def output(self) -> Buffer:
        """The logits."""
        return self.buffers[self.program.operations[-1].name]


def _touched(stage: Stage) -> Iterator[tuple[int, Buffer, bool]]:
    """Position in the stage, buffer, and whether it is needed from the stage's first step to its last."""
    for here, call in enumerate((*stage.calls, stage.cells, stage.kept)):
        if call is not None:
            at = min(here, len(stage.calls))
            yield from ((at, buffer, False) for buffer in (*call.sources, call.out))
            yield from ((at, value, True) for value in call.extra.values() if isinstance(value, Buffer))


def _require_flat(op: Operation) -> None:
    """Refuse operations over more than two axes beside the channels.

    Raises:
        ConversionError: the operation.
    """
    if len(op.shape) > 3:
        raise ConversionError(
            f"C: {op.name!r} ({type(op).__name__}) runs over {len(op.shape) - 1} axes beside the channels; the kernels "
            "have two; run this network with the simulator, or use 2-d layers"
        )


def _place(buffers: Sequence[Buffer]) -> dict[str, int]:
    """Give every buffer a place in its type's array, the largest first, apart from those needed at the same time."""
    sizes = dict.fromkeys(BYTES, 0)
    placed: list[Buffer] = []
    for buffer in sorted(buffers, key=lambda b: -b.size * b.steps):
        taken = sorted((b.offset, b.offset + b.size * b.steps) for b in placed
                       if b.kind == buffer.kind and b.first <= buffer.last and buffer.first <= b.last)  # fmt: skip
        start = 0
        for first, stop in taken:
            if start + buffer.size * buffer.steps <= first:
                break
            start = max(start, stop)
        buffer.offset = start
        sizes[buffer.kind] = max(sizes[buffer.kind], start + buffer.size * buffer.steps)
        placed.append(buffer)
    return sizes
