"""An integer network as data: operations on named buffers of whole numbers, which every reader runs in this order.

The simulator, the NumPy reference of the tests and the writer of C read this same list.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[Any]
Floats = NDArray[np.float64]
Timing = Literal["constant", "steps", "total"]
Windows = tuple[tuple[tuple[int, int], ...] | None, ...]


@dataclass(frozen=True, kw_only=True)
class Operation:
    """One operation; its result is the buffer of its name.

    Attributes:
        name: unique in the program.
        sources: the buffers it reads.
        shape: of its result, for one image.
        timing: "constant" (one value an image), "steps" (one a step), or "total" (summed over the T steps).
    """

    name: str
    sources: tuple[str, ...]
    shape: tuple[int, ...]
    timing: Timing

    @property
    def size(self) -> int:
        """Values of its result, for one image and step."""
        return int(np.prod(self.shape, dtype=np.int64))


@dataclass(frozen=True, kw_only=True)
class Input(Operation):
    """What comes in: pixels, which hold for all steps, or counts of events, which vary.

    Attributes:
        low: the smallest value there can be.
        high: the largest.
    """

    low: int = 0
    high: int = 255


@dataclass(frozen=True, kw_only=True)
class Conv(Operation):
    """y = 2^shift (weight * x), a convolution over the axes after the first; padded with zeros.

    Attributes:
        weight: (out channels, in channels / groups, kernel...).
        stride: one number an axis.
        padding: zeros before the first element of an axis; those behind follow from the shape.
        dilation: one number an axis.
        groups: groups of channels.
        shift: the weights' common exponent.
    """

    weight: Ints
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int
    shift: int = 0


@dataclass(frozen=True, kw_only=True)
class Linear(Operation):
    """y = 2^shift (weight x) over the last axis.

    Attributes:
        weight: (out, in).
        shift: the weights' common exponent.
    """

    weight: Ints
    shift: int = 0


@dataclass(frozen=True, kw_only=True)
class Gain(Operation):
    """y = 2^shift factor x, element by element: a shortcut's weight.

    Attributes:
        factor: broadcasts against the shape.
        shift: the factors' common exponent.
    """

    factor: Ints
    shift: int = 0


@dataclass(frozen=True, kw_only=True)
class SumPool(Operation):
    """Sums over windows.

    Attributes:
        windows: for each axis None, where it stays, or the first and last + 1 position of every window.
    """

    windows: Windows


@dataclass(frozen=True, kw_only=True)
class MaxPool(Operation):
    """Maxima over windows: of a constant, or of the sums over the steps so far, whose increase comes out.

    Attributes:
        windows: as in `SumPool`.
        dilation: distance of the positions in a window, one number an axis.
    """

    windows: Windows
    dilation: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Add(Operation):
    """The sum of its sources, each with its sign.

    Attributes:
        signs: 1 or -1 for each source.
    """

    signs: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Concat(Operation):
    """Its sources one behind the other along an axis.

    Attributes:
        axis: of the shape.
    """

    axis: int


@dataclass(frozen=True, kw_only=True)
class Move(Operation):
    """Values at other places.

    Attributes:
        index: for each value of the result, flat, the position it comes from, -1 for a zero; None keeps their order.
    """

    index: Ints | None


@dataclass(frozen=True, kw_only=True)
class Neuron(Operation):
    """Integrate-and-fire neurons with soft reset.

    With S[k] the sum of (x + bias) over the first k = min(t + lookahead, T) steps and n the spikes so far:
    s[t] = clip(floor((t S[k] + k start) / (k threshold)) - n, lowest, highest). Without look-ahead the state is the
    membrane start + S - n threshold, else S; it is kept within `state_bits`, where it saturates as inputs arrive.
    With `powers` it emits the signed power of two up to `highest` that lies nearest to u - 1/2, with u what is inside
    floor less n, told by floor(2 u) as `kernels.Rule` says; it takes no more back than it sent where it is not signed.

    Attributes:
        threshold: integers above 0 that broadcast against the shape.
        start: the membrane before the first step, likewise.
        bias: what is added to the drive at every step, likewise.
        highest: most spikes in one step.
        signed: spikes may be negative, down to -highest.
        ternary: a neuron that fired takes a spike back where its membrane is below zero.
        powers: spikes are signed powers of two, of size up to `highest`.
        lookahead: steps, 0 to T.
        unit: what 1 of the drive stands for in the source network, for reports.
    """

    threshold: Ints
    start: Ints
    bias: Ints
    highest: int
    signed: bool
    ternary: bool
    lookahead: int
    unit: Floats
    powers: bool = False

    @property
    def lowest(self) -> int:
        """Fewest spikes in one step."""
        return -self.highest if self.signed or self.powers else -1 if self.ternary else 0


@dataclass(frozen=True, kw_only=True)
class Total(Operation):
    """The sum over the T steps; T times a constant."""


@dataclass(frozen=True, kw_only=True)
class Readout(Operation):
    """The logits: a total plus a bias.

    Attributes:
        bias: integers that broadcast against the shape.
    """

    bias: Ints


KINDS: dict[str, type[Operation]] = {
    kind.__name__: kind
    for kind in (Input, Conv, Linear, Gain, SumPool, MaxPool, Add, Concat, Move, Neuron, Total, Readout)
}


@dataclass(frozen=True)
class Program:
    """An integer network: its operations in order, the last of which is the read-out.

    Attributes:
        operations: in execution order; the first is the input.
        timesteps: T.
        weight_bits: of every weight and factor, with its sign.
        state_bits: of every neuron's state, with its sign.
        scale: what 1 of a logit stands for in the source network, (classes,).
        facts: where it came from, JSON data.
    """

    operations: tuple[Operation, ...]
    timesteps: int
    weight_bits: int
    state_bits: int
    scale: Floats
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def input(self) -> Input:
        """The operation that takes the images."""
        first = self.operations[0]
        assert isinstance(first, Input)
        return first

    @property
    def neurons(self) -> tuple[Neuron, ...]:
        """The layers of neurons in execution order."""
        return tuple(op for op in self.operations if isinstance(op, Neuron))

    @property
    def by_name(self) -> dict[str, Operation]:
        """Operations by name."""
        return {op.name: op for op in self.operations}

    @property
    def state_range(self) -> tuple[int, int]:
        """The least and greatest value of a state."""
        return -(1 << (self.state_bits - 1)), (1 << (self.state_bits - 1)) - 1

    def lags(self) -> dict[str, int]:
        """Steps by which each buffer trails the input: the look-aheads summed along its longest path."""
        out: dict[str, int] = {}
        for op in self.operations:
            before = max((out[name] for name in op.sources), default=0)
            out[op.name] = before + (op.lookahead if isinstance(op, Neuron) else 0)
        return out

    @property
    def latency(self) -> int:
        """Steps from the first input to the last output."""
        return self.timesteps + max(self.lags().values())


def weights_of(operations: Sequence[Operation]) -> Iterator[tuple[Operation, Ints, int]]:
    """Operations with weights, their weights, and their shift."""
    for op in operations:
        if isinstance(op, Conv | Linear):
            yield op, op.weight, op.shift
        elif isinstance(op, Gain):
            yield op, op.factor, op.shift


def bits_of(low: int, high: int) -> int:
    """Bits of a two's complement number that may be `low` or `high`.

    Args:
        low: the least value.
        high: the greatest.

    Returns:
        The least number of bits, sign included.

    Example:
        >>> from speedysnn.integer.program import bits_of
        >>> bits_of(-128, 127), bits_of(0, 128)
        (8, 9)
    """
    return 1 + max(int(high).bit_length() if high >= 0 else 0, int(~low).bit_length() if low < 0 else 0)
