"""Events of every source of an inference, by position, summed over steps and images."""

from collections.abc import Mapping

import torch
from torch import Tensor

from speedysnn.analysis.fanout import Flow, Shape, pool_graph
from speedysnn.executor import Execution, Value
from speedysnn.network import SpikingNetwork
from speedysnn.tap import Tap


class Tally:
    """Events of every source, by position, summed over steps and images."""

    def __init__(self, snn: SpikingNetwork, flow: Flow, shapes: Mapping[str, Shape]) -> None:
        self.snn, self.shapes = snn, shapes
        self.counts: dict[str, Tensor] = {}
        self._trains: dict[str, Tensor] = {}
        self._pools = pool_graph(snn.graph, flow)
        self._kept = {node.name for node in self._pools.inputs}
        thetas = [float(n.threshold.min()) for name, n in snn.neurons.items() if name in self._kept]
        self._smallest = 1e-4 * min(thetas, default=1.0)  # rounding of theta's multiples is far below this

    def observe(self, tap: Tap) -> None:
        """Observer of the spiking pass."""
        self._add(tap.name, tap.output != 0)
        if tap.name in self._kept:
            self._trains[tap.name] = tap.output

    def finish(self, inputs: Mapping[str, Tensor]) -> None:
        """Count the event inputs of the pass, (T*B, ...), and what max-pooling let through."""
        for name, train in inputs.items():
            self._add(name, train != 0)
        trains = [Value({**self._trains, **inputs}[node.name], True) for node in self._pools.inputs]
        run = Execution(self._pools, self.snn.neurons, self.snn.layer, self.snn.timesteps)
        for name, value in run.spiking(trains, per_step=True).items():
            self._add(name, value.tensor.abs() > self._smallest)
        self._trains.clear()

    def _add(self, name: str, fired: Tensor) -> None:
        found = fired.reshape(-1, *self.shapes[name]).count_nonzero(0).cpu()
        self.counts[name] = self.counts.get(name, torch.zeros_like(found)) + found
