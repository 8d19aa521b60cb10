"""A mixed reading: each neuron layer is read as analog, quantized or spiking, whatever the others are.

A spiking layer hands on a train, (T*B, ...). An analog or quantized layer takes the mean over time of its input and
hands on one value that holds for all steps, (B, ...): affine operators keep the mean over T, and a rate operator's mean
is its value of the mean, so that what the layer is given is exactly what the train carries on average, and what a
spiking layer after it is given is the constant current that it would get from the source. Hence all layers analog is
the analog reading, all quantized the twin and all spiking the spiking network, and nothing is written to the network.
A `Fork` is a pass that has just run one layer: many branches, each with another output of that layer, share it.
"""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar, get_args

import torch
from torch import Tensor

from speedysnn.analysis.reference import batch_dims, device_of, images_in, naming_batch, pass_size
from speedysnn.data.batches import Batch
from speedysnn.display import counting
from speedysnn.errors import InputError
from speedysnn.execution import scheduling
from speedysnn.execution.interpreter import Execution, Value, run_graph, run_nodes
from speedysnn.graph.ir import Node, map_outputs
from speedysnn.network import SpikingNetwork
from speedysnn.neurons.layer import IFNeuron
from speedysnn.neurons.parameters import Reading

_MIN_IMAGES = 8  # of a pass
_T = TypeVar("_T")


@dataclass(frozen=True)
class Fork:
    """A pass that has just run a neuron layer.

    Attributes:
        position: of the layer in the graph.
        node: the layer.
        drive: its input.
        emitted: its output.
        values: all values that something later reads, the layer's own left out.
    """

    position: int
    node: Node
    drive: Value
    emitted: Value
    values: Mapping[str, Value]


class MixedRun(Execution):
    """A pass in which every layer has a reading of its own; `neurons` stand in for the network's."""

    def __init__(self, snn: SpikingNetwork, neurons: Mapping[str, IFNeuron] | None = None) -> None:
        super().__init__(snn.graph, neurons or snn.neurons, snn.layer, snn.timesteps, graph_info=snn.graph_info)
        self._snn = snn
        self.synchronous = all(neuron.synchronous for neuron in self.neurons.values())

    def with_neuron(self, name: str, neuron: IFNeuron) -> "MixedRun":
        """Copy the pass with one layer replaced."""
        out = copy.copy(self)
        out.neurons = {**self.neurons, name: neuron}
        return out

    def emit(self, name: str, drive: Value, reading: Reading) -> Value:
        """Compute what a layer hands on: a train, or one value for the mean of its drive."""
        neuron = self.neurons[name]
        if reading == "spiking" and not self.synchronous:
            return Value(neuron(drive.tensor, reading="spiking", constant=not drive.dynamic), True)
        return Value(neuron(self.mean(drive), reading="analog" if reading == "analog" else "quantized"))

    def forks(self, inputs: Sequence[Tensor], readings: Mapping[str, Reading] | Reading) -> Iterator[Fork]:
        """Run with these readings and stop after every neuron layer, so that branches can leave the pass there."""
        values, start, nodes = self._entering(inputs), 0, self.graph.nodes
        feed, handler = iter(()), _Mixed(self, readings)
        for position, node in enumerate(nodes):
            if node.op != "neuron":
                continue
            run_nodes(nodes, values, feed, handler, self.graph_info.last_uses, start, position)
            drive, start = values[node.inputs[0]], position + 1
            run_nodes(nodes, values, feed, handler, self.graph_info.last_uses, position, start)
            yield Fork(position, node, drive, values[node.name], {n: v for n, v in values.items() if n != node.name})
            del drive
        run_nodes(nodes, values, feed, handler, self.graph_info.last_uses, start)

    def outputs(self, fork: Fork, emitted: Value, reading: Reading) -> Any:
        """Compute the network's output where the layer hands on `emitted` and all later ones have one reading."""
        values = {**fork.values, fork.node.name: emitted}
        if reading != "spiking":
            values = {name: Value(self.mean(value)) for name, value in values.items()}
        handler, start = _Mixed(self, reading), fork.position + 1
        run_nodes(self.graph.nodes, values, iter(()), handler, self.graph_info.last_uses, start)
        return self.read_out(values)

    def read(self, inputs: Sequence[Tensor], readings: Mapping[str, Reading] | Reading) -> Any:
        """Compute the network's output, every layer in its own reading."""
        entering = self._entering(inputs).values()
        values = run_graph(self.graph, entering, _Mixed(self, readings), self.graph_info.last_uses)
        return self.read_out(values)

    def read_out(self, values: Mapping[str, Value]) -> Any:
        """Average the outputs over time, in the structure that the network returns."""
        return map_outputs(self.graph.outputs, {name: self.mean(values[name]) for name in self.graph.output_names})

    def _entering(self, inputs: Sequence[Tensor]) -> dict[str, Value]:
        """Name the inputs in order; events (T, B, ...) become trains."""
        shapes, steps = self._snn.input_shapes, self.timesteps
        fits = len(inputs) == len(shapes) and all(
            x.ndim == len(shape) + 1 or (x.ndim == len(shape) + 2 and x.shape[0] == steps)
            for x, shape in zip(inputs, shapes, strict=True)
        )
        if not fits:
            got = ", ".join(str(tuple(x.shape)) for x in inputs)
            wanted = ", ".join(f"(B, {', '.join(map(str, shape))})" for shape in shapes)
            raise InputError(f"inputs: expected {wanted}, or events with T = {steps} steps in front, got {got}")
        values = {}
        for node, x, timed in zip(self.graph.inputs, inputs, batch_dims(self._snn, inputs), strict=True):
            x = x.flatten(0, 1) if timed else x
            laid_out = x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x
            values[node.name] = Value(laid_out, bool(timed))
        return values


class _Mixed:
    """Runs nodes with every layer in its own reading: "analog" where none is named, or one reading for all."""

    def __init__(self, run: MixedRun, readings: Mapping[str, Reading] | Reading) -> None:
        self.run, self.readings = run, readings

    def neuron(self, node: Node, drive: Value) -> Value:
        """Compute what the layer hands on in its reading."""
        named = self.readings if isinstance(self.readings, str) else self.readings.get(node.name, "analog")
        return self.run.emit(node.name, drive, named)

    def operator(self, node: Node, args: list[Value]) -> Value:
        """Run an operator on every step, or after the last neuron on the mean over time."""
        if node.name in self.run.graph_info.readout_nodes:
            args = [Value(self.run.mean(arg)) for arg in args]
        return self.run.timed_operator(node, args)


def read_mixed(snn: SpikingNetwork, readings: Mapping[str, Reading], *inputs: Tensor) -> Any:
    """Compute the network's output where every named layer has a reading of its own and all others are analog.

    Args:
        snn: the network; neither it nor its present reading changes.
        readings: layer -> "analog", "quantized" or "spiking".
        inputs: as in a call of the network, (B, ...) or events (T, B, ...).

    Returns:
        The output, averaged over time, in the structure that the network returns.

    Raises:
        InputError: no such layer, no such reading, or inputs of another rank.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from speedysnn import analysis, convert
        >>> _ = torch.manual_seed(0)
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> images = torch.rand(64, 4)
        >>> snn = convert.to_spiking(net, images, timesteps=4)
        >>> analog = snn.read("analog", images)
        >>> bool(torch.allclose(analysis.read_mixed(snn, {}, images), analog))
        True
        >>> one = analysis.read_mixed(snn, {"1": "spiking"}, images)
        >>> bool(0 < (one - analog).abs().mean() < 0.1)  # the noise of one layer at the output
        True
    """
    for name, reading in readings.items():
        if name not in snn.neurons:
            raise InputError(f"readings: no neuron layer is called {name!r}; there are {', '.join(snn.neurons)}")
        if reading not in get_args(Reading):
            raise InputError(f"readings: expected one of {', '.join(get_args(Reading))} for {name!r}, got {reading!r}")
    with torch.no_grad():
        return checked(lambda: MixedRun(snn).read(inputs, readings), inputs)


def checked(call: Callable[[], _T], inputs: Sequence[Tensor]) -> _T:
    """Make a call; what refuses its inputs becomes a DataError that names the shapes."""
    with naming_batch(inputs):
        return call()


def piece_size(snn: SpikingNetwork) -> int:
    """Count the images of one pass: what fits a core's caches and the memory, however the data is batched."""
    fits = scheduling.images_per_pass(snn.width, snn.timesteps, device_of(snn))
    return max(1, min(pass_size(snn), max(_MIN_IMAGES, fits)))


def map_pieces(
    snn: SpikingNetwork, pieces: Sequence[Batch], call: Callable[[Batch], _T], label: str, progress: bool,
    at_once: int | None = None,
) -> Iterator[_T]:  # fmt: skip
    """Call a function on every piece, and give the results in order; one piece a core at a time, or fewer at once."""
    parallel = device_of(snn).type == "cpu"
    together = at_once or (torch.get_num_threads() if parallel else 1)
    sizes = [images_in(snn, piece.inputs) for piece in pieces]
    with counting(label, total=sum(sizes), enabled=progress) as done:

        def one(piece: Batch, images: int) -> _T:
            found = checked(partial(call, piece), piece.inputs)
            done(images)
            return found

        calls = [partial(one, piece, images) for piece, images in zip(pieces, sizes, strict=True)]
        for start in range(0, len(calls), together):
            yield from scheduling.run(calls[start : start + together], parallel=parallel)
