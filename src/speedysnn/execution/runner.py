"""One call of a network: in a reading, cut into passes that fit the caches, or step by step as a stream.

`read` accepts the inputs and runs them in passes. `Stream` runs one tick of the whole graph at a time, with the state,
delay lines and clocks that a chip would keep.
"""

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial, reduce
from typing import Any, Literal

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn

from speedysnn.errors import InputError, SizeError
from speedysnn.execution import scheduling
from speedysnn.execution.interpreter import Execution, Value, run_graph, run_node, wide
from speedysnn.execution.module import NetworkModule
from speedysnn.execution.observers import LayerRecord, Observer
from speedysnn.execution.scheduling import single_threaded
from speedysnn.execution.sparse_conv import SparseConvContext, shared
from speedysnn.graph.ir import Graph, GraphInfo, Node, lags, map_outputs
from speedysnn.graph.operators import OPERATORS
from speedysnn.neurons.layer import IFNeuron
from speedysnn.neurons.parameters import Reading
from speedysnn.torch_utils import float_type


@dataclass(frozen=True)
class Call:
    """What all passes of one call share, found once.

    Attributes:
        snn: the network.
        reading: of this call.
        per_step: the running mean after each step is wanted.
        observer: sees every neuron.
        neurons: by name.
        graph_info: of its graph.
        synchronous: every layer sees its whole input before it fires: counts are the quantizer's, one pass gives them.
        sparse_conv: its convolutions on the CPU; None where a compiler follows the call, which is to see torch's own.
    """

    snn: NetworkModule
    reading: Reading
    per_step: bool
    observer: Observer | None
    neurons: Mapping[str, IFNeuron]
    graph_info: GraphInfo
    synchronous: bool
    sparse_conv: SparseConvContext | None


def read(
    snn: NetworkModule,
    reading: Reading,
    inputs: Sequence[Any],
    per_step: bool,
    observer: Observer | None,
    at_once: bool = False,
) -> Any:
    """The outputs of one call, whatever the network's present reading is; see `SpikingNetwork.forward`.

    Raises:
        InputError: an input of another rank than the network was converted with, or no tensor.
    """
    dynamic = [is_events(snn, x, i) for i, x in enumerate(inputs)]
    neurons = snn.neurons
    synchronous = snn.synchronous
    steps = 1 if reading != "spiking" or synchronous else snn.timesteps
    passes = _passes(snn, inputs, dynamic, observer, steps, at_once)
    pictures = sum(passes) * steps  # of one step where counts are the quantizer's: both then run the same kernels
    own = inputs[0].device.type != "cpu" or torch.compiler.is_compiling()  # torch's own convolutions
    sparse_conv = None if own else SparseConvContext(pictures, snn.weight_buffers, reading)
    call = Call(snn, reading, per_step, observer, neurons, snn.graph_info, synchronous, sparse_conv)
    try:
        return one_pass(call, inputs) if len(passes) == 1 else _in_passes(call, inputs, passes)
    finally:
        if sparse_conv is not None:
            sparse_conv.close()


def _in_passes(call: Call, inputs: Sequence[Tensor], passes: Sequence[int]) -> Any:
    if call.sparse_conv is not None:
        with single_threaded():
            call.sparse_conv.prepare(call.snn.plain_tensors)
    batch_dims = [x.ndim - len(shape) - 1 for x, shape in zip(inputs, call.snn.input_shapes, strict=True)]
    pieces = zip(*(torch.split(x, list(passes), dim) for x, dim in zip(inputs, batch_dims, strict=True)), strict=True)
    parts = [partial(one_pass, call, piece) for piece in pieces]
    return join(scheduling.run(parts, parallel=inputs[0].device.type == "cpu"), dim=int(call.per_step))


@contextmanager
def reuse_packed_weights(snn: NetworkModule, images: int) -> Iterator[None]:
    """Calls lay the network's weights out once for so many images; nothing may change a weight meanwhile."""
    with ExitStack() as stack:
        with single_threaded():
            stack.enter_context(shared(snn.weight_buffers, snn.plain_tensors, ("quantized", "spiking"), images))
        yield


def one_pass(call: Call, inputs: Sequence[Tensor]) -> Any:
    """The outputs for images that run at once."""
    return _run(call, [accept(call.snn, x, i) for i, x in enumerate(inputs)])


def accept(snn: NetworkModule, x: Tensor, position: int) -> Value:
    """An input as the executor takes it: (B, ...) static, or events (T, B, ...) with time folded into the batch.

    Raises:
        InputError: another rank, or no tensor.
    """
    dynamic = is_events(snn, x, position)
    return Value(channels_last(x.flatten(0, 1).to(float_type(snn)) if dynamic else x), dynamic)


def value_sizes(snn: NetworkModule, example: Sequence[Tensor]) -> dict[str, int]:
    """Count the elements of every value of a network for one image.

    Args:
        snn: the network.
        example: one image, (1, ...) or events (T, 1, ...) an input.

    Returns:
        Elements by node name.
    """
    run = Execution.of(snn)
    ready = [Value(run.mean(accept(snn, x, i))) for i, x in enumerate(example)]
    values = dict(zip((node.name for node in snn.graph.inputs), ready, strict=True))
    found = run.part(values, "analog", 0, len(snn.graph.nodes), keep=True)
    return {name: value.tensor.numel() for name, value in found.items()}


def is_events(snn: NetworkModule, x: Tensor, position: int) -> bool:
    """Whether an input is (T, B, ...); it is left where it lies, see `accept`.

    Raises:
        InputError: another rank or size, or no tensor.
    """
    expected = snn.input_shapes[position]
    if not isinstance(x, Tensor):
        raise InputError(f"input {position}: expected a tensor (B, {_shape(expected)}), got {type(x).__name__}")
    require_size(snn, x, position)
    if x.ndim == len(expected) + 1:
        return False
    if x.ndim == len(expected) + 2 and x.shape[0] == snn.timesteps:
        return True
    raise InputError(
        f"input {position}: expected (B, {_shape(expected)}), or ({snn.timesteps}, B, {_shape(expected)}) for "
        f"T={snn.timesteps} steps of events, got {tuple(x.shape)}"
    )


def require_size(snn: NetworkModule, x: Tensor, position: int) -> None:
    """Refuse another size than the traced one where the network was fixed to it.

    Raises:
        SizeError: names the sizes; a tensor of another rank passes.
    """
    expected, free = snn.input_shapes[position], snn.free_sizes
    sizes = tuple(x.shape[x.ndim - len(expected) :])
    if free is None or sizes == expected or x.ndim not in (len(expected) + 1, len(expected) + 2):
        return
    pairs = enumerate(zip(sizes, expected, strict=True))
    if any(own != size and dim not in free[position] for dim, (own, size) in pairs):
        wanted = ", ".join("any" if dim in free[position] else str(size) for dim, size in enumerate(expected))
        raise SizeError(
            f"input {position}: expected (B, {wanted}), got {tuple(x.shape)}; the network was fixed to this size when "
            "it was converted: give it inputs of this size, or convert again with others"
        )


def _passes(
    snn: NetworkModule,
    inputs: Sequence[Tensor],
    dynamic: Sequence[bool],
    observer: Observer | None,
    steps: int,
    at_once: bool,
) -> list[int]:
    """Images of each pass; all in one where that is asked, or gradients, an observer or hooks need them together."""
    together = at_once or (observer is not None and not getattr(observer, "any_order", False))
    images = inputs[0].shape[int(dynamic[0])]
    if torch.is_grad_enabled() or together or torch.compiler.is_compiling():
        return [images]
    parts = torch.get_num_threads() if inputs[0].device.type == "cpu" else 1
    size = images_at_once(snn, steps, inputs[0], images)
    worth = images * steps * snn.multiplications >= parts * scheduling.WORTH * len(snn.graph.nodes)
    if worth and not snn.images_per_pass and not scheduling.asked():
        size = min(size, -(-images // parts))
    sizes = scheduling.cut(images, size, parts)
    return [images] if len(sizes) > 1 and snn.watched else sizes


def images_at_once(snn: NetworkModule, steps: int, x: Tensor, enough: int | None = None) -> int:
    """The number of images of one pass through `steps` steps: what was asked for, else what the caches hold.

    Args:
        snn: the network.
        steps: steps that run at once.
        x: its input, for device and type.
        enough: a number of images above which the answer does not matter; small calls are then told sooner.
    """
    if snn.images_per_pass:
        return snn.images_per_pass
    item = x.element_size() if x.is_floating_point() else 4
    if torch.is_autocast_enabled(x.device.type):  # halves what a pass holds, so that twice the images fit
        item = torch.get_autocast_dtype(x.device.type).itemsize
    size = scheduling.images_per_pass(snn.width, steps, x.device, item)
    if enough is not None and size >= enough:
        return size
    return scheduling.images_per_pass(snn.width, steps, x.device, item, snn.weight_bytes)


def _run(call: Call, values: Sequence[Value]) -> Any:
    snn, reading = call.snn, call.reading
    run = Execution(
        snn.graph, call.neurons, snn.layer, snn.timesteps, call.observer, None, call.sparse_conv, call.graph_info
    )
    if reading != "spiking" or (not call.per_step and call.synchronous):
        static: Literal["analog", "quantized"] = "analog" if reading == "analog" else "quantized"
        out = run.static([run.mean(value) for value in values], static)
        return _finish(run, {name: Value(out[name]) for name in snn.graph.output_names}, call.per_step)
    if call.synchronous:
        return _finish(run, _replay(run, values), call.per_step)
    return _finish(run, run.spiking(values, call.per_step), call.per_step)


def _replay(run: Execution, values: Sequence[Value]) -> dict[str, Value]:
    """Spike trains of a layer-synchronous network: drives from one quantized pass, then paced over the steps."""
    drives: dict[str, Tensor] = {}

    def record(tap: LayerRecord) -> None:
        drives[tap.name] = tap.drive

    means = [run.mean(value) for value in values]
    known = Execution(run.graph, run.neurons, run.layers, run.timesteps, record, None, run.sparse_conv, run.graph_info)
    known.static(means, "quantized")
    paced = Execution(
        run.graph, run.neurons, run.layers, run.timesteps, run.observer, drives, graph_info=run.graph_info
    )
    return paced.spiking(values, per_step=True)


def _finish(run: Execution, values: Mapping[str, Value], per_step: bool) -> Any:
    take = run.running_mean if per_step else run.mean
    return map_outputs(run.graph.outputs, {name: take(values[name]) for name in run.graph.output_names})


def join(pieces: Sequence[Any], dim: int) -> Any:
    """Outputs of one structure, concatenated leaf by leaf."""
    return pytree.tree_map(lambda *leaves: torch.cat(leaves, dim), *pieces)


def channels_last(x: Tensor) -> Tensor:
    """Pictures with their channels innermost, as convolutions run fastest; other tensors as they are."""
    return x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x


def _shape(shape: Sequence[int]) -> str:
    return ", ".join(map(str, shape))


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
