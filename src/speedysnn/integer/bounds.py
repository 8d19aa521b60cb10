"""Bounds proven from the weights and T: what any buffer and any state of a program can hold, whatever comes in."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from speedysnn.errors import ConversionError
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
    SumPool,
    Total,
    bits_of,
)
from speedysnn.integer.simulate import apply, array

EXACT = 2.0**53
WIDEST = 2**31 - 1  # of a sum, as C adds it up


@dataclass(frozen=True)
class Range:
    """The least and greatest value of every element, (shape) each."""

    low: torch.Tensor
    high: torch.Tensor

    @property
    def ends(self) -> tuple[int, int]:
        """The least and greatest of all."""
        return (int(self.low.min()), int(self.high.max())) if self.low.numel() else (0, 0)

    @property
    def bits(self) -> int:
        """Bits of a number that holds any of them."""
        return bits_of(*self.ends)


def ranges(program: Program) -> dict[str, Range]:
    """The range of every buffer, at every step.

    Args:
        program: the integer network.

    Raises:
        ConversionError: sums of products that would pass 2^31, all of them.
    """
    known: dict[str, Range] = {}
    wide: list[str] = []
    for op in program.operations:
        found = _range(program, op, [known[name] for name in op.sources])
        reach = _reach(op, known)
        if max(*map(abs, found.ends), reach) > WIDEST:
            wide.append(f"  {op.name}: its sums can reach {max(*map(abs, found.ends), reach):.3g}")
            found = Range(found.low.clamp(-WIDEST, WIDEST), found.high.clamp(-WIDEST, WIDEST))
        known[op.name] = found
    if wide:
        raise ConversionError(
            "to_integer: a sum of 32 bits could overflow; use fewer weight_bits, or put a neuron between the layers:\n"
            + "\n".join(wide)
        )
    return known


def _reach(op: Operation, known: Mapping[str, Range]) -> int:
    """What a partial sum of products can reach, in whatever order it is made."""
    if not isinstance(op, Conv | Linear):
        return 0
    source = known[op.sources[0]]
    largest = torch.maximum(source.low.abs(), source.high.abs())
    reached = _with_weight(op, np.abs(op.weight).astype(np.int64), largest)
    return int(reached.max()) if reached.numel() else 0


def _with_weight(op: Conv | Linear, weight: np.ndarray, x: torch.Tensor) -> torch.Tensor:
    from dataclasses import replace

    return apply(replace(op, weight=weight), [x[None]])[0]


def _range(program: Program, op: Operation, sources: Sequence[Range]) -> Range:
    if isinstance(op, Input):
        return Range(*(torch.full(op.shape, value, dtype=torch.int64) for value in (op.low, op.high)))
    first = sources[0]
    if isinstance(op, Neuron):
        return Range(*(torch.full(op.shape, value, dtype=torch.int64) for value in (op.lowest, op.highest)))
    if isinstance(op, Conv | Linear):
        up, down = (np.maximum(sign * op.weight.astype(np.int64), 0) for sign in (1, -1))
        low = _with_weight(op, up, first.low) - _with_weight(op, down, first.high)
        high = _with_weight(op, up, first.high) - _with_weight(op, down, first.low)
        return Range(low, high)
    if isinstance(op, Gain):
        ends = [apply(op, [value[None]])[0] for value in (first.low, first.high)]
        return Range(torch.minimum(*ends), torch.maximum(*ends))
    if isinstance(op, Add):
        low = sum(
            (r.low if sign > 0 else -r.high for sign, r in zip(op.signs, sources, strict=True)),
            start=torch.zeros((), dtype=torch.int64),
        )
        high = sum(
            (r.high if sign > 0 else -r.low for sign, r in zip(op.signs, sources, strict=True)),
            start=torch.zeros((), dtype=torch.int64),
        )
        return Range(torch.as_tensor(low), torch.as_tensor(high))
    if isinstance(op, Total):
        return Range(first.low * program.timesteps, first.high * program.timesteps)
    if isinstance(op, MaxPool) and op.timing == "steps":
        return Range(-apply(op, [-first.low[None]])[0], apply(op, [first.high[None]])[0])
    assert isinstance(op, SumPool | MaxPool | Concat | Move | Operation)
    return Range(*(apply(op, [getattr(r, end)[None] for r in sources])[0] for end in ("low", "high")))


def state_range(program: Program, op: Neuron, drive: Range) -> Range:
    """The range that a layer's states can reach before they saturate, element by element.

    Without look-ahead a membrane that can fire is brought below its threshold, or down by as many spikes as a step
    allows; with look-ahead the sum of all inputs is kept.

    Args:
        program: says T.
        op: the layer.
        drive: the range of what it adds up, without its bias.
    """
    bias = array(op.bias)
    low, high = ((value + bias).clamp(*clip) for value, clip in ((drive.low, (None, 0)), (drive.high, (0, None))))
    if op.lookahead:
        return Range(low * program.timesteps, high * program.timesteps)
    threshold, start = array(op.threshold), array(op.start)
    most, least = start + torch.zeros_like(high), start + torch.zeros_like(low)
    top, bottom = most.clone(), least.clone()
    for _ in range(program.timesteps):
        most, least = most + high, least + low
        top, bottom = torch.maximum(top, most), torch.minimum(bottom, least)
        most = torch.maximum(torch.minimum(most, threshold - 1), most - op.highest * threshold)
        least = torch.minimum(least + op.highest * threshold if op.signed else least, torch.zeros_like(least))
    return Range(bottom, top)
