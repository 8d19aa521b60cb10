"""Step by step: one tick of the whole graph, with the state, delay lines and clocks that a chip would keep."""

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from functools import partial, reduce

import torch
from torch import Tensor, nn

from speedysnn.execution.interpreter import run_graph, run_node, wide
from speedysnn.graph.ir import Graph, GraphInfo, Node, lags
from speedysnn.graph.operators import OPERATORS
from speedysnn.neurons.layer import IFNeuron


class RateState:
    """Running totals of an operator that is not affine: emits the difference of t g(mean) from step to step."""

    def __init__(self, timesteps: int) -> None:
        self.timesteps, self.t = timesteps, 0
        self.totals: list[Tensor] = []
        self.reached: Tensor | None = None

    def step(self, args: Sequence[Tensor], run: Callable[[list[Tensor]], Tensor]) -> Tensor:
        """y[t] for the inputs of step t, in their dtype; after T steps the totals start again."""
        added = [wide(x) for x in args]
        self.totals = [a + b for a, b in zip(self.totals, added, strict=True)] if self.totals else added
        self.t += 1
        means = [(total / self.t).to(x.dtype) for total, x in zip(self.totals, args, strict=True)]
        reached = wide(run(means)) * self.t
        out = reached if self.reached is None else reached - self.reached
        self.reached = reached
        if self.t == self.timesteps:
            self.t, self.totals, self.reached = 0, [], None
        return out.to(reduce(torch.promote_types, (x.dtype for x in args)))


class Stream:
    """The streaming state of a network; one tick a call.

    Where branches meet, the one that looked ahead less waits in a delay line, so that all arrive in step.
    """

    def __init__(
        self,
        graph: Graph,
        neurons: Mapping[str, IFNeuron],
        layers: Callable[[str], nn.Module | None],
        timesteps: int,
        graph_info: GraphInfo,
    ) -> None:
        self.graph, self.neurons, self.layers, self.graph_info = graph, neurons, layers, graph_info
        trail = lags(graph, lambda name: neurons[name].lookahead)
        self.lines: dict[tuple[str, int], deque[Tensor | None]] = {}
        for node in graph.nodes:
            meets = max((trail[name] for name in node.inputs), default=0)
            for position, name in enumerate(node.inputs):
                if meets > trail[name]:
                    self.lines[node.name, position] = deque([None] * (meets - trail[name]))
        ends = max(trail[name] for name in graph.output_names)
        for position, name in enumerate(graph.output_names):
            if ends > trail[name]:
                self.lines["", position] = deque([None] * (ends - trail[name]))
        self.rates = {
            node.name: RateState(timesteps)
            for node in graph.nodes
            if node.op in OPERATORS and OPERATORS[node.op].behaviour == "rate"
        }
        for neuron in neurons.values():
            neuron.reset()

    def tick(self, inputs: Sequence[Tensor | None]) -> dict[str, Tensor | None]:
        """One step of every node; None stands for "nothing at this tick"."""
        values = run_graph(self.graph, inputs, self, self.graph_info.last_uses)
        return {
            name: self._delayed("", position, values[name]) for position, name in enumerate(self.graph.output_names)
        }

    def _delayed(self, name: str, position: int, value: Tensor | None) -> Tensor | None:
        line = self.lines.get((name, position))
        if line is None:
            return value
        line.append(value)
        return line.popleft()

    def neuron(self, node: Node, drive: Tensor | None) -> Tensor | None:
        """One step of a neuron layer."""
        out: Tensor | None = self.neurons[node.name](drive, one_step=True)
        return out

    def operator(self, node: Node, args: list[Tensor | None]) -> Tensor | None:
        """One step of any other node, once all it reads is there."""
        delayed = [self._delayed(node.name, i, arg) for i, arg in enumerate(args)]
        present = [arg for arg in delayed if arg is not None]
        if len(present) < len(args):
            return None
        run = partial(run_node, node, self.layers(node.name))
        return self.rates[node.name].step(present, run) if node.name in self.rates else run(present)


def flush(stream: Stream, inputs: int) -> dict[str, Tensor | None]:
    """A tick without input, for what is still under way."""
    with torch.no_grad():
        return stream.tick([None] * inputs)
