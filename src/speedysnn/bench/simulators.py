"""The same network run by other simulators: our graph and weights, their neurons with our thresholds.

A peer's own converter would choose other thresholds, or refuse the network; its cost is in its neurons and in how it
steps, and both are here. Each neuron stands between two scalings, drive / theta and spikes * amplitude, and starts at
v_init.

Which other simulators can be timed: installed, and found to compute the same.
"""

from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from torch import Tensor, nn

from speedysnn.errors import InputError
from speedysnn.execution.interpreter import run_graph, run_node
from speedysnn.graph.ir import Node
from speedysnn.graph.operators import OPERATORS
from speedysnn.network import SpikingNetwork


class Simulator(nn.Module):
    """A network's graph with a peer's soft-reset integrate-and-fire neurons.

    Args:
        snn: binary, look-ahead 0.
        mode: "s" steps the whole network through time one step after the other; "m" hands all steps to each layer.
    """

    package = ""
    time_first = True  # how (time, batch, ...) lie where all steps are handed over

    def __init__(self, snn: SpikingNetwork, mode: str) -> None:
        super().__init__()
        if any(n.spikes != "binary" or n.lookahead or n.signed for n in snn.neurons.values()):
            raise InputError(f"{self.package}: expected binary spikes without look-ahead or negative values")
        if any(op.op in OPERATORS and OPERATORS[op.op].behaviour == "rate" for op in snn.graph.nodes):
            raise InputError(f"{self.package}: a max-pool or analog unit acts on single spikes: not the same network")
        self.snn, self.mode, self.steps = snn, mode, snn.timesteps
        self.cells = {name: self.cell() for name in snn.neurons}
        self.begun: set[str] = set()

    def cell(self) -> Any:
        """A new neuron layer of threshold 1."""
        raise NotImplementedError

    def fire(self, cell: Any, scaled: Tensor, start: Tensor | None) -> Tensor:
        """Spikes of one step, or of all; `start` is the membrane to begin with, at the first call only."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """Mean output over T steps, (B, ...)."""
        self.begun.clear()
        if self.mode == "m":
            dim = 0 if self.time_first else 1
            whole = x.unsqueeze(dim).expand(*x.shape[:dim], self.steps, *x.shape[dim:]).flatten(0, 1)
            return self._unfold(self._pass(whole)).mean(dim)
        total = self._pass(x)
        for _ in range(self.steps - 1):
            total = total + self._pass(x)
        return total / self.steps

    def _unfold(self, x: Tensor) -> Tensor:
        return x.view(*((self.steps, -1) if self.time_first else (-1, self.steps)), *x.shape[1:])

    def _pass(self, x: Tensor) -> Tensor:
        graph = self.snn.graph
        return run_graph(graph, [x] * len(graph.inputs), self)[graph.output_names[0]]

    def operator(self, node: Node, args: list[Tensor]) -> Tensor:
        """The network's own layer."""
        return run_node(node, self.snn.layer(node.name), args)

    def neuron(self, node: Node, drive: Tensor) -> Tensor:
        """The peer's spikes times their amplitude."""
        name, start = node.name, None
        neuron = self.snn.neurons[name]
        theta = neuron.per_channel(neuron.threshold, drive.ndim)
        if name not in self.begun:
            images = drive.shape[0] // (self.steps if self.mode == "m" else 1)
            start = neuron.per_channel(neuron.v_init, drive.ndim).expand_as(drive[:images]).to(drive).clone()
            self.begun.add(name)
        scaled = drive / theta
        spikes = self.fire(self.cells[name], self._unfold(scaled) if self.mode == "m" else scaled, start)
        unit = neuron.per_channel(neuron.amplitude, drive.ndim)
        return (spikes.flatten(0, 1) if self.mode == "m" else spikes) * unit


class SpikingJelly(Simulator):
    """IFNode of spikingjelly, with its sigmoid surrogate of slope 4 for training."""

    package = "spikingjelly"

    def cell(self) -> Any:
        """An IFNode that subtracts its threshold."""
        from spikingjelly.activation_based import neuron

        return neuron.IFNode(v_threshold=1.0, v_reset=None, step_mode=self.mode)

    def fire(self, cell: Any, scaled: Tensor, start: Tensor | None) -> Tensor:
        """(T, B, ...) or (B, ...) -> the same."""
        if start is not None:
            cell.reset()
            cell.v = start
        out: Tensor = cell(scaled)
        return out


class SnnTorch(Simulator):
    """Leaky of snntorch without a leak, step by step: it has no call for all steps."""

    package = "snntorch"

    def cell(self) -> Any:
        """[neuron, membrane]."""
        from snntorch import Leaky

        return [Leaky(beta=1.0, threshold=1.0, reset_mechanism="subtract"), None]

    def fire(self, cell: Any, scaled: Tensor, start: Tensor | None) -> Tensor:
        """(B, ...) -> the same; it subtracts at the next step, which comes to the same spikes."""
        spikes, cell[1] = cell[0](scaled, cell[1] if start is None else start)
        out: Tensor = spikes
        return out


class Sinabs(Simulator):
    """IAF of sinabs with at most one spike a step and no floor; all steps in one call, (batch, time, ...)."""

    package, time_first = "sinabs", False

    def cell(self) -> Any:
        """An IAF that subtracts its threshold."""
        from sinabs.activation import SingleSpike
        from sinabs.layers import IAF

        return IAF(spike_fn=SingleSpike)

    def fire(self, cell: Any, scaled: Tensor, start: Tensor | None) -> Tensor:
        """(B, T, ...) -> the same."""
        cell.reset_states()
        cell.v_mem = start
        out: Tensor = cell(scaled)
        return out


def installed(package: str) -> str | None:
    """The version of a package, None where it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


PEERS: dict[str, tuple[str, Callable[[SpikingNetwork], nn.Module]]] = {
    "spikingjelly single-step": ("spikingjelly", lambda snn: SpikingJelly(snn, "s")),
    "spikingjelly multi-step": ("spikingjelly", lambda snn: SpikingJelly(snn, "m")),
    "snntorch": ("snntorch", lambda snn: SnnTorch(snn, "s")),
    "sinabs": ("sinabs", lambda snn: Sinabs(snn, "m")),
}


def available(
    snn: SpikingNetwork, x: Tensor, tolerance: float = 0.1, *, learning: bool = False
) -> tuple[dict[str, nn.Module], list[str]]:
    """The peers that are installed and compute the same logits, and a line on each that is left out.

    Spike counts may differ where a membrane meets its threshold to the last bit, so outputs agree within `tolerance`
    of their norm. With `learning` they are compared as they are found while training.
    """
    out: dict[str, nn.Module] = {}
    left: list[str] = []
    for name, (package, make) in PEERS.items():
        found = installed(package)
        if found is None:
            left.append(f"{name}: not installed (pip install 'speedysnn[bench]')")
            continue
        try:
            peer = make(snn)
            with torch.set_grad_enabled(learning):
                ours, theirs = snn(x).detach(), peer(x).detach()
        except InputError as err:
            left.append(str(err))
            continue
        error = float((ours - theirs).norm() / ours.norm().clamp_min(1e-30))
        if error <= tolerance:
            out[name] = peer
        verdict = "" if error <= tolerance else ": left out"
        left.append(f"{name} {found}: outputs differ by {error:.1e} of their norm{verdict}")
    return out, left


def facts() -> dict[str, Any]:
    """Versions of what was timed."""
    return {name: installed(name) for name in ("speedysnn", "torch", "spikingjelly", "snntorch", "sinabs", "numba")}
