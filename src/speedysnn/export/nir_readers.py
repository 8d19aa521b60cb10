"""Programs that read NIR files: how each opens one, and what it must be told that a NIR file cannot say."""

import contextlib
import importlib
import io
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

JUST_BELOW = float(np.nextafter(np.float32(1), np.float32(0)))  # what fires above this fires at 1
NO_LEAK = 2.0**40  # a time constant in steps: what leaks in one is below a float's last digit

Emit = Callable[[str, Tensor], Tensor | None]
"""Called as emit(neuron, spikes), with spikes (B, ...) of the step or (T, B, ...) of all; may return others instead."""


@dataclass
class Opened:
    """A NIR file as a reader's network.

    Attributes:
        module: the network in the reader's own layers.
        neurons: name in the file -> the layer that fires.
        starts: name -> the membrane that it starts with, of the shape of one image's neurons or broadcastable.
        settings: what was set after loading, one line each.
        timesteps: T.
        all_steps: the module takes (B T, ...), batch first, instead of one step after the other.
        begin: called as begin(batch) before a run; gives the module's first state.
    """

    module: nn.Module
    neurons: Mapping[str, nn.Module]
    starts: Mapping[str, Tensor]
    settings: tuple[str, ...] = ()
    timesteps: int = 1
    all_steps: bool = False
    begin: Callable[[int], Any] = field(default=lambda _: None)

    def run(self, x: Tensor, emit: Emit) -> Tensor:
        """Run all steps.

        Args:
            x: (T, B, ...).
            emit: is handed what each layer of neurons emits.

        Returns:
            The output of every step, (T, B, ...).
        """
        steps, batch = x.shape[:2]
        hooks = [layer.register_forward_hook(self._hook(name, batch, emit)) for name, layer in self.neurons.items()]
        state = self.begin(batch)
        try:
            with torch.no_grad(), quiet():
                if self.all_steps:
                    out = self.module(x.transpose(0, 1).flatten(0, 1))
                    whole: Tensor = out[0] if isinstance(out, tuple) else out
                    return whole.reshape(batch, steps, *whole.shape[1:]).transpose(0, 1)
                outputs = []
                for x_t in x:
                    out, state = self.module(x_t, state)
                    outputs.append(out[0] if isinstance(out, tuple) else out)
                return torch.stack(outputs)
        finally:
            for hook in hooks:
                hook.remove()

    def _hook(self, name: str, batch: int, emit: Emit) -> Callable[[nn.Module, Any, Any], Any]:
        def hand(_: nn.Module, __: Any, out: Any) -> Any:
            spikes = out[0] if isinstance(out, tuple) else out
            if self.all_steps:
                other = emit(name, spikes.unflatten(0, (batch, -1)).transpose(0, 1))
                other = None if other is None else other.transpose(0, 1).flatten(0, 1).to(spikes.dtype)
            else:
                other = emit(name, spikes)
            if other is None:
                return None
            return (other, *out[1:]) if isinstance(out, tuple) else other

        return hand


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep what readers print and warn of themselves from the terminal."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


# The functions below may print and warn as their readers do: `Reader.opened` calls them under `quiet`.


def open_nirtorch(path: Path, bare: bool = False) -> Opened:
    """Open with nirtorch: its own layers, and a neuron in plain torch where it has none.

    Args:
        path: the file.
        bare: exactly as the reader opens it, nothing set.
    """
    nir, nirtorch = importlib.import_module("nir"), importlib.import_module("nirtorch")
    graph = nir.read(str(path))
    mapped: dict[Any, Any] = {} if bare else {nir.IF: PlainIF, nir.Affine: _linear, nir.Scale: Times}
    module = nirtorch.nir_to_torch(graph, mapped)
    settings = ("the neuron, which it does not have: speedysnn.export.nir_readers.PlainIF",
                "the bias of nir.Affine, which it leaves random")  # fmt: skip
    return _opened(nir, graph, module, () if bare else settings)


def open_snntorch(path: Path, bare: bool = False) -> Opened:
    """Open with snnTorch's import; its Leaky neurons then keep their membrane, lose nothing, and have a start."""
    nir, reader = importlib.import_module("nir"), importlib.import_module("snntorch.import_nir")
    graph = nir.read(str(path))
    found = _opened(nir, graph, reader.import_from_nir(graph))
    if bare:
        return found
    for layer in found.neurons.values():
        neuron: Any = layer
        neuron.init_hidden, neuron.reset_delay = True, True
        neuron.beta, neuron.threshold = torch.tensor(1.0), torch.tensor(JUST_BELOW)

    def begin(batch: int) -> None:
        for name, layer in found.neurons.items():
            layer.mem = _start(found, graph, name, batch)

    found.begin = begin
    found.settings = ("init_hidden=True: its import leaves neurons whose membrane nothing keeps",
                      "beta=1: its import gives nir.IF a decay of 0.9",
                      "reset_delay=True: its import loses charge where a membrane is above twice its threshold",
                      _ABOVE, _START.format("mem"))  # fmt: skip
    return found


def open_sinabs(path: Path, bare: bool = False) -> Opened:
    """Open with sinabs' import; its IAF neurons then fire once a step, have no floor, and start where they must."""
    nir, reader = importlib.import_module("nir"), importlib.import_module("sinabs.nir")
    activation = importlib.import_module("sinabs.activation")
    graph = nir.read(str(path))
    steps = int(graph.metadata["timesteps"])
    found = _opened(nir, graph, reader.from_nir(graph, num_timesteps=steps))
    found.all_steps = True
    if bare:
        return found
    _in_order(found.module, graph)
    for layer in found.neurons.values():
        neuron: Any = layer
        neuron.spike_fn, neuron.min_v_mem = activation.SingleSpike, None

    def begin(batch: int) -> None:
        for name, layer in found.neurons.items():
            neuron: Any = layer
            neuron.init_state_with_shape((batch, *graph.nodes[name].r.shape))
            neuron.v_mem = _start(found, graph, name, batch)

    found.begin = begin
    found.settings = ("spike_fn=SingleSpike: its import lets nir.IF fire several times a step",
                      "min_v_mem=None: its import keeps the membrane of nir.IF above minus its threshold",
                      _ORDER, _START.format("v_mem"))  # fmt: skip
    return found


def open_norse(path: Path, bare: bool = False) -> Opened:
    """Open with norse's import; its IF cannot subtract, so that it is given as a CubaLIF that does not leak."""
    nir, reader = importlib.import_module("nir"), importlib.import_module("norse.torch")
    graph = nir.read(str(path))
    if bare:
        return _opened(nir, graph, reader.from_nir(graph, ignore_warnings=True))
    subtract = importlib.import_module("norse.torch.functional.reset").reset_subtract
    box = importlib.import_module("norse.torch.functional.lif_box")
    nodes = {name: _as_cuba(nir, node) if isinstance(node, nir.IF) else node for name, node in graph.nodes.items()}
    given = nir.NIRGraph(nodes=nodes, edges=graph.edges, metadata=graph.metadata)
    found = _opened(nir, graph, reader.from_nir(given, reset_method=subtract, dt=1.0))
    _in_order(found.module, graph)
    executor = importlib.import_module("nirtorch.graph_executor")

    def begin(batch: int) -> Any:
        state = executor.GraphExecutorState()
        for name in found.neurons:
            membrane = box.LIFBoxFeedForwardState(v=_start(found, graph, name, batch))
            state.state[_name(name)] = ((None, membrane),)
        return state

    found.begin = begin
    found.settings = ("nir.IF given as nir.CubaLIF of tau_syn = dt and tau_mem = r = 2^40 dt, with reset_subtract: its "
                      "IF resets to zero", _ABOVE, _ORDER, _START.format("the state"))  # fmt: skip
    return found


_ABOVE = "threshold=1 - 2^-24: it fires above the threshold, a neuron here at it"
_ORDER = "execution_order: nirtorch.load runs a layer before all that it reads where paths meet"
_START = "{}=v_init of the file's metadata: NIR has no word for where a membrane starts"


def _opened(nir: Any, graph: Any, module: nn.Module, settings: tuple[str, ...] = ()) -> Opened:
    names = [name for name, node in graph.nodes.items() if isinstance(node, nir.IF)]
    neurons = {name: module.get_submodule(_name(name)) for name in names}
    starts = {name: start_of(graph.nodes[name]) for name in names}
    return Opened(module, neurons, starts, settings, int(graph.metadata["timesteps"]))


def start_of(node: Any) -> Tensor:
    """Where an IF node's membrane starts, of a shape that broadcasts against its neurons; 0 where nothing says it."""
    start = torch.from_numpy(np.atleast_1d(node.metadata.get("v_init", 0.0))).float()
    return start.view(-1, *(1,) * (node.r.ndim - 1)) if start.ndim == 1 else start


def _start(found: Opened, graph: Any, name: str, batch: int) -> Tensor:
    return found.starts[name].expand(batch, *graph.nodes[name].r.shape).clone()


def _name(name: str) -> str:
    """The name that nirtorch gives a node's module."""
    kept: str = importlib.import_module("nirtorch.nir_interpreter")._sanitize_name(name)
    return kept


def _in_order(executor: Any, graph: Any) -> None:
    """Every layer after all that it reads."""
    before: dict[str, set[str]] = {_name(name): set() for name in graph.nodes}
    for source, target in graph.edges:
        before[_name(target)].add(_name(source))
    nodes, order = {node.name: node for node in executor.execution_order}, []
    while before:
        ready = [name for name, sources in before.items() if not sources & set(before)]
        order += [nodes[name] for name in ready if name in nodes]
        before = {name: sources for name, sources in before.items() if name not in ready}
    executor.execution_order = order


def _as_cuba(nir: Any, node: Any) -> Any:
    one = np.ones_like(node.r)
    slow, none = NO_LEAK * one, np.zeros_like(one)
    return nir.CubaLIF(
        tau_syn=one, tau_mem=slow, r=slow, v_leak=none, v_threshold=JUST_BELOW * one, v_reset=none, w_in=one
    )


def _linear(node: Any) -> nn.Linear:
    layer = nn.Linear(node.weight.shape[1], node.weight.shape[0])
    layer.load_state_dict({"weight": torch.from_numpy(node.weight), "bias": torch.from_numpy(node.bias)})
    return layer


class Times(nn.Module):
    """nir.Scale."""

    factor: Tensor

    def __init__(self, node: Any) -> None:
        super().__init__()
        self.register_buffer("factor", torch.from_numpy(node.scale))

    def forward(self, x: Tensor) -> Any:
        """The input times a factor for each value."""
        return x * self.factor


class PlainIF(nn.Module):
    """nir.IF as its metadata has it: reset by subtraction, a start, a spike at the threshold and not only above."""

    threshold: Tensor
    start: Tensor

    def __init__(self, node: Any) -> None:
        super().__init__()
        self.register_buffer("threshold", torch.from_numpy(node.v_threshold))
        self.register_buffer("start", start_of(node))

    def forward(self, x: Tensor, state: Any = None) -> Any:
        """One step: (spikes, membrane)."""
        membrane = x + (self.start if state is None else state)
        spikes = (membrane >= self.threshold).to(x.dtype)
        return spikes, membrane - spikes * self.threshold
