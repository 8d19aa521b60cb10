"""A spiking network as an integer program: every node's handler emits operations, and bounds prove that all sums fit.

`lower` walks the graph and lists every problem. `ranges` and `state_range` follow from the weights and T alone: they
say what any buffer and any state of the program can hold, whatever comes in.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from speedysnn.errors import ConversionError
from speedysnn.graph.ir import Node
from speedysnn.graph.operators import OPERATORS
from speedysnn.integer.operators import HANDLERS
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
    bits_of,
)
from speedysnn.integer.rounding import Follower
from speedysnn.integer.scales import Options, Scales
from speedysnn.integer.signals import Signal, UnfitError, fitted, neuron_values, settled
from speedysnn.integer.simulate import apply, array
from speedysnn.network import SpikingNetwork

SHOWN = 20  # problems that a message lists one by one
WIDEST = 2**31 - 1  # of a sum, as C adds it up


@dataclass(frozen=True)
class Pixels:
    """What comes in, and what it stands for: value = integer * unit + offset.

    Attributes:
        unit: broadcasts against the input's shape.
        offset: likewise.
        events: whether every step has its own counts.
        low: the least integer.
        high: the greatest.
    """

    unit: Any
    offset: Any
    events: bool = False
    low: int = 0
    high: int = 255


class _Lowering:
    """One walk over the graph; a dry one keeps signals and no operations."""

    def __init__(self, snn: SpikingNetwork, pixels: Pixels, scales: Scales | None, options: Options,
                 follower: Follower | None = None) -> None:  # fmt: skip
        self.snn, self.pixels, self.follower = snn, pixels, follower
        self.scales = scales or Scales(snn, options, self.predicted)
        self.dry = scales is None
        self.operations: list[Operation] = []
        self.signals: dict[str, Signal] = {}
        self.rounded: dict[str, torch.Tensor] = {}
        self.nodes = {node.name: node for node in snn.graph.nodes}
        self._taken = set(self.nodes)
        self._totals: dict[str, str] = {}
        self._open: set[str] = set()

    def predicted(self, name: str) -> Signal:
        """The signal that a node will give, found from what it reads."""
        if name not in self.signals:
            if name in self._open:
                raise UnfitError(
                    "a residual sum meets its own input again without neurons between; put an activation there"
                )
            self._open.add(name)
            node = self.nodes[name]
            inputs = [] if node.op == "neuron" else [self.predicted(each) for each in node.inputs]
            self.signals[name] = self.spikes(node) if node.op == "neuron" else self.signal(node, inputs)
            self._open.discard(name)
        return self.signals[name]

    def spikes(self, node: Node) -> Signal:
        """What a neuron layer gives, which depends on no scale."""
        shape = self.scales.shapes[node.name]
        return Signal(node.name, neuron_values(self.snn, node, "amplitude", len(shape)), np.zeros((1,) * len(shape)),
                      shape, "steps")  # fmt: skip

    def signal(self, node: Node, inputs: list[Signal]) -> Signal:
        """The node's signal, by its handler."""
        if node.op == "input":
            return self._input(node)
        return HANDLERS[node.op](self, node, inputs)

    def emit(self, operation: Operation) -> None:
        """Append an operation."""
        if not self.dry:
            self.operations.append(operation)
            if self.follower is not None:
                self.follower.emitted(operation)

    def fresh(self, name: str) -> str:
        """A buffer's name that is not taken, beginning with `name`."""
        number, out = 1, name
        while out in self._taken:
            number, out = number + 1, f"{name}{number + 1}"
        if not self.dry:
            self._taken.add(out)
        return out

    def counted(self, node: Node, signal: Signal) -> Signal:
        """The signal as the node reads it: summed over the steps, where the node comes after the last neuron."""
        return self.total(signal) if node.name in self.snn.graph_info.readout_nodes else signal

    def total(self, signal: Signal) -> Signal:
        """The signal summed over the steps."""
        if signal.timing == "total":
            return signal
        out = replace(signal, offset=signal.offset * self.snn.timesteps, timing="total")
        if signal.source is None:
            return out
        if signal.source not in self._totals:
            name = self.fresh(f"{signal.source}:total")
            self.emit(Total(name=name, sources=(signal.source,), shape=signal.shape, timing="total"))
            self._totals[signal.source] = name
        return replace(out, source=self._totals[signal.source])

    def _input(self, node: Node) -> Signal:
        shape = self.snn.input_shapes[0]
        timing = "steps" if self.pixels.events else "constant"
        given = self.pixels
        self.emit(Input(name=node.name, sources=(), shape=shape, timing=timing, low=given.low, high=given.high))  # type: ignore[arg-type]
        return Signal(node.name, fitted(given.unit, shape), fitted(given.offset, shape), shape, timing)  # type: ignore[arg-type]


def lower(snn: SpikingNetwork, pixels: Pixels, options: Options, facts: dict[str, Any],
          images: torch.Tensor | None = None) -> Program:  # fmt: skip
    """The network as an integer program.

    Args:
        snn: the network.
        pixels: what comes in.
        options: bits and granularity.
        facts: what is kept with it.
        images: for rounding by reconstruction, as the program takes them; None rounds to the nearest.

    Raises:
        ConversionError: parts that have no integer form, all of them.
    """
    _refuse_unknown(snn)
    dry = _Lowering(snn, pixels, None, options)
    follower = None
    if images is not None:
        values = torch.from_numpy(images.numpy() * pixels.unit + pixels.offset).float()
        follower = Follower(snn, images, values, options, pixels.events)
    low = _Lowering(snn, pixels, dry.scales, options, follower)
    problems: list[tuple[Node, str]] = []
    for position, node in enumerate(snn.graph.nodes):
        if follower is not None:
            follower.advance(position, low.signals)
        if any(name not in low.signals for name in node.inputs):
            continue  # it reads what has a problem already
        try:
            low.signals[node.name] = low.signal(node, [low.signals[name] for name in node.inputs])
        except UnfitError as err:
            problems.append((node, str(err)))
    if problems:
        raise ConversionError(listed(problems))
    scale = _readout(low)
    return Program(tuple(low.operations), snn.timesteps, options.weight_bits, options.state_bits, scale, facts)


def rounded(snn: SpikingNetwork, pixels: Pixels, options: Options) -> dict[str, torch.Tensor]:
    """The weights that `lower` gives each layer, in the network's own unit, float64; arguments as there.

    Raises:
        ConversionError: a part that has no integer form.
    """
    _refuse_unknown(snn)
    dry = _Lowering(snn, pixels, None, options)
    for node in snn.graph.nodes:
        dry.predicted(node.name)
    return dry.rounded


def _readout(low: _Lowering) -> Any:
    """Append the read-out; returns what 1 of each logit stands for."""
    out = low.total(low.signals[low.snn.graph.output_names[0]])
    if out.source is None:
        raise ConversionError(
            "to_integer: the network's output does not depend on its input; nothing is to be computed"
        )
    bias = settled(np.asarray(np.broadcast_to(np.round(out.offset / out.unit), out.shape))).astype(np.int64)
    low.emit(Readout(name=low.fresh("logits"), sources=(out.source,), shape=out.shape, timing="total", bias=bias))
    return np.array(np.broadcast_to(out.unit / low.snn.timesteps, out.shape))


def _refuse_unknown(snn: SpikingNetwork) -> None:
    """Refuse what no integers can do, by name.

    Raises:
        ConversionError: several inputs or outputs, or operators without a handler; all of them.
    """
    if len(snn.graph.inputs) != 1 or not isinstance(snn.graph.outputs, str):
        raise ConversionError(
            f"to_integer: expected a network of one input and one output, got {len(snn.graph.inputs)} inputs and "
            f"{len(snn.graph.output_names)} outputs; convert the part with one of each"
        )
    problems = [(node, _why_unknown(node)) for node in snn.graph.nodes if node.op not in ("input", *HANDLERS)]
    if problems:
        raise ConversionError(listed(problems))


def _why_unknown(node: Node) -> str:
    if OPERATORS[node.op].hybrid:
        return "it needs an analog unit; use an activation that becomes neurons (ReLU), or keep this part off the chip"
    return "it has no integer form"


def listed(problems: list[tuple[Node, str]]) -> str:
    """The message that lists problems, one a line."""
    lines = [f"to_integer: {len(problems)} of the network's operators cannot be computed in whole numbers:"]
    for node, why in problems[:SHOWN]:
        where = f" ({node.source})" if node.source else ""
        lines.append(f"  {node.name}: {node.op}{where}: {why}")
    if len(problems) > SHOWN:
        lines.append(f"  and {len(problems) - SHOWN} more")
    return "\n".join(lines)


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
    allows; of powers of two up to M it keeps at most M/4 thresholds more or less than 1/2. With look-ahead the sum of
    all inputs is kept.

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
    over = (op.highest + 2) * threshold // 4 + 1  # what powers of two leave of a membrane at most
    for _ in range(program.timesteps):
        most, least = most + high, least + low
        top, bottom = torch.maximum(top, most), torch.minimum(bottom, least)
        kept = over if op.powers else torch.minimum(most, threshold - 1)
        most = torch.maximum(kept, most - op.highest * threshold)
        kept = (2 - op.highest) * threshold // 4 if op.powers else torch.zeros_like(least)
        least = torch.minimum(least + op.highest * threshold if op.signed else least, kept)
    return Range(bottom, top)
