"""The same network run by other simulators: our graph and weights, their neurons with our thresholds.

Only what computes the same is timed: outputs are compared first. A peer's own converter would choose other thresholds,
or refuse the network; its cost is in its neurons and in how it steps, and both are here.
"""

from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from torch import Tensor, nn

from speedysnn.errors import InputError
from speedysnn.network import SpikingNetwork
from speedysnn.operators import OPERATORS


def installed(package: str) -> str | None:
    """The version of a package, None where it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


class SpikingJelly(nn.Module):
    """A network's graph with SpikingJelly's soft-reset IFNode between two scalings, as its converter builds them.

    Args:
        snn: binary, look-ahead 0.
        mode: "s" steps through time one step after the other, "m" hands all steps to each layer.
        surrogate: with their sigmoid surrogate of slope alpha = 4, for training.
    """

    def __init__(self, snn: SpikingNetwork, mode: str) -> None:
        super().__init__()
        from spikingjelly.activation_based import neuron

        if any(n.spikes != "binary" or n.lookahead or n.signed for n in snn.neurons.values()):
            raise InputError("spikingjelly: expected binary spikes without look-ahead or negative values")
        if any(op.op in OPERATORS and OPERATORS[op.op].behaviour == "rate" for op in snn.graph.nodes):
            raise InputError("spikingjelly: a max-pool or analog unit acts on single spikes: not the same network")
        self.snn, self.mode, self.steps = snn, mode, snn.timesteps
        options: dict[str, Any] = {"v_threshold": 1.0, "v_reset": None, "step_mode": mode}
        self.cells = nn.ModuleDict({name.replace(".", "/"): neuron.IFNode(**options) for name in snn.neurons})

    def forward(self, x: Tensor) -> Tensor:
        """Mean output over T steps, (B, ...)."""
        for cell in self.cells.values():
            cell.reset()  # type: ignore[operator]
        if self.mode == "m":
            out = self._pass(x.expand(self.steps, *x.shape).flatten(0, 1))
            return out.view(self.steps, -1, *out.shape[1:]).mean(0)
        total = self._pass(x)
        for _ in range(self.steps - 1):
            total = total + self._pass(x)
        return total / self.steps

    def _pass(self, x: Tensor) -> Tensor:
        values: dict[str, Tensor] = {}
        for node in self.snn.graph.nodes:
            if node.op == "input":
                values[node.name] = x
            elif node.op == "neuron":
                values[node.name] = self._cell(node.name, values[node.inputs[0]])
            else:
                args = [values[name] for name in node.inputs]
                values[node.name] = OPERATORS[node.op].run(args, node.attrs, self.snn.tensors(node.name))
        return values[self.snn.graph.output_names[0]]

    def _cell(self, name: str, drive: Tensor) -> Tensor:
        neuron, cell = self.snn.neurons[name], self.cells[name.replace(".", "/")]
        theta = neuron.per_channel(neuron.threshold, drive.ndim)
        if isinstance(cell.v, float):
            first = drive[: drive.shape[0] // self.steps] if self.mode == "m" else drive
            cell.v = neuron.per_channel(neuron.v_init, drive.ndim).expand_as(first).to(first).clone()
        scaled = drive / theta
        if self.mode == "m":
            scaled = scaled.view(self.steps, -1, *scaled.shape[1:])
        spikes: Tensor = cell(scaled)
        return (spikes.flatten(0, 1) if self.mode == "m" else spikes) * theta


PEERS: dict[str, tuple[str, Callable[[SpikingNetwork], nn.Module]]] = {
    "spikingjelly single-step": ("spikingjelly", lambda snn: SpikingJelly(snn, "s")),
    "spikingjelly multi-step": ("spikingjelly", lambda snn: SpikingJelly(snn, "m")),
}


def available(snn: SpikingNetwork, x: Tensor, tolerance: float = 0.1) -> tuple[dict[str, nn.Module], list[str]]:
    """The peers that are installed and compute the same logits, and a line on each that is left out.

    Spike counts may differ where a membrane meets its threshold to the last bit, so outputs agree within `tolerance`
    of their norm.
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
            with torch.no_grad():
                ours, theirs = snn(x), peer(x)
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
    return {name: installed(name) for name in ("speedysnn", "torch", "spikingjelly", "numba")}
