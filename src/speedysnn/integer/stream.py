"""Step by step: one tick of a program, with the states, delay lines and clocks that a chip would keep."""

from collections import deque

import torch
from torch import Tensor

from speedysnn.integer.program import Input, MaxPool, Neuron, Operation, Program, Readout, Total
from speedysnn.integer.simulate import Cells, Seen, apply, max_pool


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
