"""A spiking network as an integer program: walk the graph, let each node's handler emit operations, list problems."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from speedysnn.errors import ConversionError
from speedysnn.graph.ir import Node
from speedysnn.graph.operators import OPERATORS
from speedysnn.integer.operators import HANDLERS
from speedysnn.integer.program import Input, Operation, Program, Readout, Total
from speedysnn.integer.scales import Options, Scales, neuron_values
from speedysnn.integer.signals import Signal, UnfitError, fitted, settled
from speedysnn.network import SpikingNetwork

SHOWN = 20  # problems that a message lists one by one


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

    def __init__(self, snn: SpikingNetwork, pixels: Pixels, scales: Scales | None, options: Options) -> None:
        self.snn, self.pixels = snn, pixels
        self.scales = scales or Scales(snn, options, self.predicted)
        self.dry = scales is None
        self.operations: list[Operation] = []
        self.signals: dict[str, Signal] = {}
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


def lower(snn: SpikingNetwork, pixels: Pixels, options: Options, facts: dict[str, Any]) -> Program:
    """The network as an integer program.

    Args:
        snn: the network.
        pixels: what comes in.
        options: bits and granularity.
        facts: what is kept with it.

    Raises:
        ConversionError: parts that have no integer form, all of them.
    """
    _refuse_unknown(snn)
    dry = _Lowering(snn, pixels, None, options)
    low = _Lowering(snn, pixels, dry.scales, options)
    problems: list[tuple[Node, str]] = []
    for node in snn.graph.nodes:
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
