"""Run the three readings of a batch in passes that fit memory, and send sums between processes without pickle.

`SideBySide` reads batch after batch; passes are shared among threads, each with sums of its own. `gathered` gives every
process the tensors of all processes, one after the other.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from itertools import accumulate

import torch
import torch.distributed as dist
from safetensors.torch import load, save
from torch import Tensor, nn

from speedysnn.analysis.memory import Memory
from speedysnn.analysis.noise.layer import LayerSums
from speedysnn.analysis.output_metrics import OutputSums
from speedysnn.analysis.reference import Reference, batch_dims, device_of, images_in, part, run
from speedysnn.data.batches import Batch
from speedysnn.display import Done
from speedysnn.errors import InputError
from speedysnn.execution import scheduling
from speedysnn.execution.interpreter import Execution, Value
from speedysnn.execution.module import key_of, layer_module
from speedysnn.execution.observers import LayerRecord, needs_input
from speedysnn.execution.runner import accept, reuse_packed_weights
from speedysnn.graph.ir import Graph
from speedysnn.integer import rounded_weights
from speedysnn.network import SpikingNetwork
from speedysnn.torch_utils import hand_back


@dataclass(frozen=True)
class _Sums:
    """What some of the passes have added up."""

    layers: Mapping[str, LayerSums]
    outputs: OutputSums


def with_rounded_weights(snn: SpikingNetwork, bits: int, events: bool) -> SpikingNetwork:
    """Make a network with the weights that `to_integer` gives a chip.

    Args:
        snn: the network, which stays as it is.
        bits: of a weight.
        events: whether inputs are events.

    Returns:
        A network that shares neurons, histograms and all other layers with the given one.

    Raises:
        ConversionError: a part that has no integer form.
    """
    values = rounded_weights(snn, bits, events=events)
    out = deepcopy(snn, {id(one): one for one in (snn.layers, snn._neurons, snn.calibration)})
    nodes = {node.name: node for node in snn.graph.nodes}
    layers = dict(snn.layers.items())
    for name, value in values.items():
        own = dict(snn.tensors(name))
        own["weight"] = value.to(own["weight"])
        layers[key_of(name)] = layer_module(nodes[name], own, snn.BUFFERS, copy=True)
    out.layers = nn.ModuleDict(layers)
    return out


class _Unrounded:
    """What the weights before rounding make of the spikes that a network with rounded ones fired, layer by layer.

    Args:
        snn: the network before rounding.
        inputs: of the pass.
    """

    def __init__(self, snn: SpikingNetwork, inputs: Sequence[Tensor]) -> None:
        self._nodes, self._run, self._at = snn.graph.nodes, Execution.of(snn), 0
        self._places = {node.name: place for place, node in enumerate(self._nodes)}
        given = [Value(self._run.mean(accept(snn, x, i))) for i, x in enumerate(inputs)]
        self._values = {node.name: value for node, value in zip(snn.graph.inputs, given, strict=True)}

    @torch.no_grad()
    def drive(self, tap: LayerRecord) -> Tensor:
        """The mean over time of a layer's drive, (B, ...); to be asked of every layer, in the order of execution."""
        place = self._places[tap.name]
        self._values = self._run.part(self._values, "quantized", self._at, place)
        found = self._values[self._nodes[place].inputs[0]].tensor
        self._values[tap.name], self._at = Value(tap.mean_output()), place + 1
        return found


class SideBySide:
    """The three readings of batch after batch, in passes that are shared among threads with sums of their own.

    The place of a pass alone decides which thread takes it, so that the same sums come out of every run.

    Args:
        snn: the network.
        reference: what it is compared with.
        memory: says how large passes are, and how many run at once.
        layers: the sums to be made, of which each thread has its own, empty at first.
        bits: to which weights are rounded before the first batch is read; None where they are not.

    Attributes:
        snn: the network that is read, with rounded weights or as it was given.
    """

    def __init__(
        self, snn: SpikingNetwork, reference: Reference, memory: Memory, layers: Mapping[str, LayerSums],
        bits: int | None = None,
    ) -> None:  # fmt: skip
        self.snn, self._reference, self._memory, self._bits = snn, reference, memory, bits
        self._unrounded: SpikingNetwork | None = None
        self._parallel = device_of(snn).type == "cpu" and reference.module is None
        self._sums = [
            _Sums({name: layer.fresh() for name, layer in layers.items()}, OutputSums()) for _ in range(memory.at_once)
        ]

    def read(self, batch: Batch, done: Done) -> None:
        """Read one batch in passes: with n threads, each takes every n-th pass.

        Args:
            batch: images, with labels or without.
            done: is called with the images read, of which each reading counts as a third.
        """
        if self._bits is not None and self._unrounded is None:
            events = any(batch_dims(self.snn, batch.inputs))
            self._unrounded, self.snn = self.snn, with_rounded_weights(self.snn, self._bits, events)
        own = self._sums
        stops = list(accumulate(scheduling.cut(images_in(self.snn, batch.inputs), self._memory.images, len(own))))
        spans = list(zip([0, *stops], stops, strict=False))
        jobs = [
            partial(self._passes, batch, spans[i :: len(own)], sums, done) for i, sums in enumerate(own[: len(spans)])
        ]
        with reuse_packed_weights(self.snn, stops[-1]):
            scheduling.run(jobs, parallel=self._parallel)

    def put_together(self, layers: Mapping[str, LayerSums], outputs: OutputSums) -> None:
        """Add what all threads have read to these sums; to be called once.

        Args:
            layers: sums by layer.
            outputs: sums of the outputs.
        """
        while self._sums:
            own = self._sums.pop(0)
            for name, layer in own.layers.items():
                layers[name].merge(layer)
            outputs.merge(own.outputs)

    def _passes(self, batch: Batch, spans: Sequence[tuple[int, int]], sums: _Sums, done: Done) -> None:
        for start, stop in spans:
            self._pass(part(self.snn, batch, start, stop), sums, partial(done, (stop - start) / 3))

    def _pass(self, batch: Batch, sums: _Sums, done_one: Callable[[], None]) -> None:
        """Read one pass; what the first two readings leave of a layer is freed once the third has used it."""
        snn, sources = self.snn, self._reference.network.neurons
        drives: dict[str, Tensor] = {}
        twins: dict[str, Tensor] = {}
        plain = None if self._unrounded is None else _Unrounded(self._unrounded, batch.inputs)
        release = hand_back if self._memory.tight and device_of(snn).type == "cpu" else _nothing

        @needs_input("sum")
        def spiking(tap: LayerRecord) -> None:
            layer = sums.layers[tap.name]
            before = None if plain is None else plain.drive(tap)
            fired = layer.update(drives.pop(tap.name), sources[tap.name], twins.pop(tap.name), tap, before)
            sums.outputs.add_spikes(tap, fired)
            release()

        analog_out = self._reference.analog(batch.inputs, lambda tap: drives.update({tap.name: tap.drive}))
        done_one()
        release()
        twin_out = run(snn, "quantized", batch.inputs, lambda tap: twins.update({tap.name: tap.output}))
        done_one()
        release()
        spiking_out = run(snn, "spiking", batch.inputs, spiking)
        done_one()
        sums.outputs.update(analog_out, twin_out, spiking_out, batch.labels)


def _nothing() -> None:
    """Keep freed memory for the next layer, which is faster, where memory is not short or is a GPU's."""


def layer_shapes(snn: SpikingNetwork, batch: Batch) -> dict[str, tuple[int, ...]]:
    """Find every neuron layer's shape for one image.

    Args:
        snn: the network.
        batch: some images.

    Returns:
        Shapes without the batch by layer.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    one = part(snn, batch, 0, 1)
    run(snn, "analog", one.inputs, lambda tap: shapes.update({tap.name: tuple(tap.output.shape[1:])}))
    return shapes


def direct_inputs(graph: Graph) -> dict[str, tuple[str, ...]]:
    """Find for every neuron layer the neuron layers that reach it without passing another.

    Args:
        graph: of the network.

    Returns:
        Names by layer; empty for layers that read the input.
    """
    reach: dict[str, tuple[str, ...]] = {}
    out: dict[str, tuple[str, ...]] = {}
    for node in graph.nodes:
        before = tuple(dict.fromkeys(name for feed in node.inputs for name in reach[feed]))
        if node.op == "neuron":
            out[node.name] = before
        reach[node.name] = (node.name,) if node.op == "neuron" else before
    return out


def gathered(state: Mapping[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    """Give every process's tensors in the order of ranks, so that all processes add alike.

    Args:
        state: this process's tensors by name; names and shapes may differ between processes.

    Yields:
        Tensors by name, of one process after the other.

    Raises:
        InputError: torch.distributed is not initialised.
    """
    _require()
    device = torch.device("cuda" if dist.get_backend() == "nccl" else "cpu")
    for rank in range(dist.get_world_size()):
        sent = torch.empty(0, dtype=torch.uint8)
        if rank == dist.get_rank():
            data = save({name: x.contiguous() for name, x in state.items()})
            sent = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        size = torch.tensor([len(sent)], device=device)
        dist.broadcast(size, rank)
        data_there = sent.to(device) if len(sent) else torch.empty(int(size), dtype=torch.uint8, device=device)
        dist.broadcast(data_there, rank)
        yield load(data_there.cpu().numpy().tobytes())


def require_alike(names: Sequence[str]) -> None:
    """Refuse to go on where another process has other names, since processes would then wait for one another for ever.

    Args:
        names: this process's.

    Raises:
        InputError: names differ, or torch.distributed is not initialised.
    """
    own = torch.tensor(list(hashlib.sha256("\n".join(names).encode()).digest()), dtype=torch.uint8)
    if any(not torch.equal(state["names"], own) for state in list(gathered({"names": own}))):
        raise InputError("gather: expected the same network in every process, but the layers' names differ")


def _require() -> None:
    if not (dist.is_available() and dist.is_initialized()):
        raise InputError(
            "gather: expected torch.distributed to be initialised, as `torchrun` and `accelerate launch` do; in one "
            "process leave it out"
        )
