"""The integer reading: a program run exactly, for any number of images, all steps of a layer at once or step by step.

Sums of products are made in float64, where every number below 2^53 is exact and the order of adding says nothing;
`bounds` has proven that they stay below.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from speedysnn.integer.program import (
    Add,
    Concat,
    Conv,
    Gain,
    Input,
    Ints,
    Linear,
    MaxPool,
    Move,
    Neuron,
    Operation,
    Program,
    Readout,
    SumPool,
    Total,
    Windows,
)

_CONVOLUTIONS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


@dataclass
class Seen:
    """What a layer's states did: the range they would have taken, and how many updates were cut off.

    Attributes:
        low: the least value before saturation.
        high: the greatest.
        saturated: updates that were cut off.
        updates: all updates.
        spikes: absolute number of spikes.
    """

    low: int = 0
    high: int = 0
    saturated: int = 0
    updates: int = 0
    spikes: int = 0

    def add(self, raw: Tensor, kept: Tensor) -> None:
        """Count one update of the states."""
        if raw.numel():
            self.low, self.high = min(self.low, int(raw.min())), max(self.high, int(raw.max()))
        self.saturated += int((raw != kept).sum())
        self.updates += raw.numel()


def array(values: Ints) -> Tensor:
    """A program's numbers as an int64 tensor."""
    return torch.from_numpy(np.ascontiguousarray(values, dtype=np.int64))


def _nearest_powers(halves: Tensor, sent: Tensor, most: int) -> Tensor:
    """The signed power of two nearest to u - 1/2, from floor(2 u) and what may be taken back."""
    back = halves < 0
    far = torch.where(back, -halves, halves - 1)  # 1 at the first threshold, then 3, 6, 12, ...
    size, power = torch.zeros_like(halves), 1
    while power <= most:
        reached = (far >= (1 if power == 1 else power * 3 // 2)) & (~back | (sent >= power))
        size = torch.where(reached, power, size)
        power *= 2
    return torch.where(back, -size, size)


class Cells:
    """The neurons of a layer: their state, for a batch; every reader of the program does the same.

    Args:
        op: the layer.
        program: says T and the width of a state.
        seen: counts what the states do.
    """

    def __init__(self, op: Neuron, program: Program, seen: Seen) -> None:
        self.op, self.seen = op, seen
        self.timesteps, (self.least, self.most) = program.timesteps, program.state_range
        self.threshold, self.start, self.bias = (array(values) for values in (op.threshold, op.start, op.bias))
        self.state: Tensor | None = None
        self.count: Tensor | None = None

    def arrive(self, drive: Tensor) -> None:
        """Add the drive of one step, (B, ...), to the state, which saturates."""
        if self.state is None:
            start = self.start.clamp(self.least, self.most) if self.op.lookahead == 0 else torch.zeros(())
            self.state = torch.zeros_like(drive) + start.to(torch.int64)
            self.count = torch.zeros_like(drive)
        raw = self.state + drive + self.bias
        self.state = raw.clamp(self.least, self.most)
        self.seen.add(raw, self.state)

    def emit(self, t: int) -> Tensor:
        """The spikes of step t = 1..T."""
        assert self.state is not None
        assert self.count is not None
        if self.op.lookahead == 0:
            level, threshold = self.state, self.threshold
        else:
            k = min(t + self.op.lookahead, self.timesteps)
            threshold = k * self.threshold
            level = t * self.state + k * self.start - threshold * self.count
        spikes = self._fired(level, threshold)
        self.count = self.count + spikes
        if self.op.lookahead == 0:
            self.state = self.state - spikes * self.threshold
        self.seen.spikes += int(spikes.abs().sum())
        return spikes

    def _fired(self, level: Tensor, threshold: Tensor) -> Tensor:
        op = self.op
        if op.powers:
            assert self.count is not None
            sent = torch.full_like(self.count, op.highest) if op.signed else self.count
            return _nearest_powers(torch.div(2 * level, threshold, rounding_mode="floor"), sent, op.highest)
        if op.highest == 1 and not op.signed:
            spikes = (level >= threshold).to(torch.int64)
        else:
            spikes = torch.div(level, threshold, rounding_mode="floor").clamp(
                -op.highest if op.signed else 0, op.highest
            )
        if op.ternary:
            assert self.count is not None
            spikes = spikes - ((level < 0) & (self.count > 0)).to(torch.int64)
        return spikes


def run(program: Program, images: Tensor, seen: dict[str, Seen] | None = None,
        tap: Callable[[Operation, Tensor], None] | None = None) -> Tensor:  # fmt: skip
    """The logits of a batch, all steps of a layer at once.

    Args:
        program: the integer network.
        images: whole numbers, (B, ...), or (T, B, ...) where they are events.
        seen: by layer, is added to.
        tap: is called with every operation and its result, (B, ...) or (T, B, ...).

    Returns:
        (B, classes), int64.
    """
    seen = {} if seen is None else seen
    values: dict[str, Tensor] = {}
    by_name = program.by_name
    last = {name: position for position, op in enumerate(program.operations) for name in op.sources}
    for position, op in enumerate(program.operations):
        if not op.sources:
            values[op.name] = images.to(torch.int64)
        else:
            args = [(values[name], by_name[name].timing == "steps") for name in op.sources]
            values[op.name] = value_of(program, op, args, seen)
        if tap is not None:
            tap(op, values[op.name])
        for name in op.sources:
            if last[name] == position:
                values.pop(name, None)
    return values[program.operations[-1].name]


def value_of(
    program: Program, op: Operation, args: Sequence[tuple[Tensor, bool]], seen: dict[str, Seen]
) -> Tensor:
    """The result of an operation for all steps.

    Args:
        program: says T and the width of a state.
        op: the operation.
        args: what it reads, and whether that varies in time, (T, B, ...), else (B, ...).
        seen: by layer, is added to.
    """
    first, timed = args[0]
    if isinstance(op, Neuron):
        return _neurons(program, op, first, timed, seen)
    if isinstance(op, Total):
        return first.sum(0) if timed else first * program.timesteps
    if isinstance(op, MaxPool) and timed:
        reached = max_pool(op, first.cumsum(0).flatten(0, 1)).reshape(*first.shape[:2], *op.shape)
        return torch.cat([reached[:1], reached.diff(dim=0)])
    if not any(varies for _, varies in args):
        return apply(op, [value for value, _ in args])
    steps = program.timesteps
    flat = [value.flatten(0, 1) if varies else value.repeat(steps, *[1] * (value.ndim - 1)) for value, varies in args]
    return apply(op, flat).reshape(steps, -1, *op.shape) if len(flat[0]) else flat[0].new_zeros(steps, 0, *op.shape)


def _neurons(program: Program, op: Neuron, drive: Tensor, timed: bool, seen: dict[str, Seen]) -> Tensor:
    cells = Cells(op, program, seen.setdefault(op.name, Seen()))
    arrived, out = 0, []
    for t in range(1, program.timesteps + 1):
        while arrived < min(t + op.lookahead, program.timesteps):
            cells.arrive(drive[arrived] if timed else drive)
            arrived += 1
        out.append(cells.emit(t))
    return torch.stack(out)


def apply(op: Operation, args: Sequence[Tensor]) -> Tensor:
    """An operation without state on values (N, ...)."""
    x = args[0]
    if isinstance(op, Conv):
        return _conv(op, x)
    if isinstance(op, Linear):
        weight = array(op.weight).to(torch.float64)
        return (x.to(torch.float64) @ weight.T).to(torch.int64) * (1 << op.shift)
    if isinstance(op, Gain):
        return x * (array(op.factor) * (1 << op.shift))
    if isinstance(op, SumPool):
        return _sum_pool(op.windows, x)
    if isinstance(op, MaxPool):
        return max_pool(op, x)
    if isinstance(op, Add):
        return torch.stack([sign * value for sign, value in zip(op.signs, args, strict=True)]).sum(0)
    if isinstance(op, Concat):
        return torch.cat(list(args), op.axis + 1)
    if isinstance(op, Move):
        return _move(op, x)
    assert isinstance(op, Readout)
    return x + array(op.bias)


def _conv(op: Conv, x: Tensor) -> Tensor:
    pads: list[int] = []
    for axis in reversed(range(len(op.stride))):
        reach = (op.shape[axis + 1] - 1) * op.stride[axis] + op.dilation[axis] * (op.weight.shape[axis + 2] - 1) + 1
        pads += [op.padding[axis], reach - x.shape[axis + 2] - op.padding[axis]]
    wide = F.pad(x.to(torch.float64), pads)
    weight = array(op.weight).to(torch.float64)
    out = _CONVOLUTIONS[len(op.stride)](wide, weight, None, op.stride, 0, op.dilation, op.groups)
    return out.to(torch.int64) * (1 << op.shift)


def _sum_pool(windows: Windows, x: Tensor) -> Tensor:
    for axis, window in enumerate(windows):
        if window is not None:
            before = F.pad(x.movedim(axis + 1, -1), (1, 0)).cumsum(-1)
            first, stop = (torch.tensor(ends) for ends in zip(*window, strict=True))
            x = (before[..., stop] - before[..., first]).movedim(-1, axis + 1)
    return x


def max_pool(op: MaxPool, x: Tensor) -> Tensor:
    """Maxima over the windows, axis by axis."""
    for axis, window in enumerate(op.windows):
        if window is not None:
            step = op.dilation[axis]
            parts = [x.movedim(axis + 1, -1)[..., first:stop:step].amax(-1) for first, stop in window]
            x = torch.stack(parts, -1).movedim(-1, axis + 1)
    return x


def _move(op: Move, x: Tensor) -> Tensor:
    if op.index is None:
        return x.reshape(len(x), *op.shape)
    flat = F.pad(x.flatten(1), (0, 1))  # the last one is the zero that -1 stands for
    return flat[:, array(op.index)].reshape(len(x), *op.shape)


class _Layer:
    """A layer of neurons between ticks: how many inputs came and how many outputs went."""

    def __init__(self, op: Neuron, program: Program, seen: Seen) -> None:
        self.cells, self.op, self.timesteps = Cells(op, program, seen), op, program.timesteps
        self.arrived = self.emitted = 0

    def tick(self, drive: Tensor | None) -> Tensor | None:
        if drive is not None:
            self.cells.arrive(drive)
            self.arrived += 1
        late = drive is None and self.arrived == self.timesteps  # all is there, and the rest follows tick by tick
        if self.emitted == self.timesteps or not (late or self.arrived - self.op.lookahead > self.emitted):
            return None
        if drive is None and not late:
            return None
        self.emitted += 1
        return self.cells.emit(self.emitted)


class Stream:
    """The streaming state of a program for T steps of one batch; where branches meet, the earlier one waits."""

    def __init__(self, program: Program, seen: dict[str, Seen]) -> None:
        self.program = program
        trail = program.lags()
        self.lines: dict[tuple[str, int], deque[Tensor | None]] = {}
        for op in program.operations:
            meets = max((trail[name] for name in op.sources), default=0)
            for position, name in enumerate(op.sources):
                self.lines[op.name, position] = deque([None] * (meets - trail[name]))
        self.layers = {op.name: _Layer(op, program, seen.setdefault(op.name, Seen())) for op in program.neurons}
        self.sums: dict[str, Tensor] = {}
        self.ticks = 0

    def answer(self, images: Tensor) -> Tensor:
        """The logits of a batch after all of its steps: static (B, ...), or events (T, B, ...)."""
        events, out = self.program.input.timing == "steps", None
        for t in range(self.program.latency):
            given = None if t >= self.program.timesteps else images[t] if events else images
            out = self.tick(given)
        assert out is not None
        return out

    def tick(self, images: Tensor | None) -> Tensor | None:
        """One step of every operation; None stands for "nothing at this tick"."""
        values: dict[str, Tensor | None] = {}
        for op in self.program.operations:
            if isinstance(op, Input):
                values[op.name] = None if images is None else images.to(torch.int64)
                continue
            args = [self._delayed(op.name, i, values[name]) for i, name in enumerate(op.sources)]
            values[op.name] = self._value(op, args)
        return values[self.program.operations[-1].name]

    def _delayed(self, name: str, position: int, value: Tensor | None) -> Tensor | None:
        line = self.lines[name, position]
        line.append(value)
        return line.popleft()

    def _value(self, op: Operation, args: list[Tensor | None]) -> Tensor | None:
        if isinstance(op, Neuron):
            return self.layers[op.name].tick(args[0])
        present = [value for value in args if value is not None]
        if len(present) < len(args):
            return None
        if isinstance(op, Total):
            return self._summed(op.name, present[0])
        if isinstance(op, MaxPool) and op.timing == "steps":
            before = self.sums.get(op.name)
            summed = self._summed(op.name, present[0])
            reached = max_pool(op, summed)
            return reached if before is None else reached - max_pool(op, before)
        if isinstance(op, Readout):
            return apply(op, present)
        return apply(op, present)

    def _summed(self, name: str, value: Tensor) -> Tensor:
        before = self.sums.get(name)
        self.sums[name] = value if before is None else before + value
        return self.sums[name]
