"""The walk of a correction: images on their way through the graph, what a layer gets wrong of them, and its changes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from speedysnn.execution.interpreter import Execution, Value, wide
from speedysnn.execution.runner import accept, value_sizes
from speedysnn.graph import Block, every_layer, live_values
from speedysnn.graph.ir import Node, map_outputs
from speedysnn.network import SpikingNetwork
from speedysnn.neurons.layer import IFNeuron
from speedysnn.neurons.parameters import Reading

MAX_IMAGES = 256
LONGEST = 4  # neuron layers of a block, whose layers are computed again and again; fewer images make it shorter
MAX_BYTES = 2**31  # of the values that are kept where blocks meet
MANY_VALUES, FEW_IMAGES = 2**18, 32  # a layer of so many values an image is measured on so many images of each half
CHUNK_VALUES = 2**25  # T times images times the largest value, of what runs at once
GAIN_BOUNDS = (0.3, 3.0)
MATCHED = 1e-8  # a channel whose moments are nearer than this share of its drive's power is left alone

Settings = dict[str, Tensor | None]


@dataclass
class Sums:
    """Sums over images and places of one layer, by channel, float64; a name with "^2" is the sum of squares."""

    count: float = 0.0
    values: dict[str, Tensor] = field(default_factory=dict)

    def add(self, channel_dim: int, **found: Tensor) -> None:
        """Add values (B, ...) to the sums of their names, and their squares."""
        for name, x in found.items():
            squares = channel_sums(x.square(), channel_dim)
            for key, part in ((name, channel_sums(x, channel_dim)), (f"{name}^2", squares)):
                self.values[key] = self.values[key] + part if key in self.values else part
        x = next(iter(found.values()))
        self.count += x.numel() / max(channel_sums(x[:1], channel_dim).numel(), 1)

    def mean(self, name: str) -> Tensor:
        """A sum over the number of its elements."""
        return self.values[name] / max(self.count, 1.0)

    def std(self, name: str) -> Tensor:
        """The standard deviation of the values of this name."""
        return (self.mean(f"{name}^2") - self.mean(name).square()).clamp_min(0).sqrt()

    def error(self) -> Tensor:
        """Squared error of the outputs by channel, in the power of the layer's activations."""
        return self.values["error^2"] / self.values["activation^2"].sum().clamp_min(1e-30)

    def moment_error(self, gain: Tensor | float = 1.0, shift: Tensor | float = 0.0) -> Tensor:
        """By channel (mean(z) - mean(a z' + b))^2 + (std(z) - std(a z' + b))^2, in the power of the source's drive."""
        mean = self.mean("source") - gain * self.mean("ours") - shift
        std = self.std("source") - gain * self.std("ours")
        return (mean.square() + std.square()) / self.mean("source^2").sum().clamp_min(1e-30)

    def matched(self) -> Tensor:
        """By channel, the moment error below which nothing is to be gained."""
        power = self.mean("source^2")
        return MATCHED * power / power.sum().clamp_min(1e-30)


@dataclass
class Part:
    """Some images on their way through the graph: the values that later nodes read, in the source and in ours."""

    checks: bool
    source: dict[str, Value]
    ours: dict[str, Value]

    @property
    def images(self) -> int:
        """How many."""
        return len(next(iter(self.source.values())).tensor)


class Walk:
    """Images on their way through a graph, in the source and in ours, and what is put right in the layers they reach.

    Args:
        snn: the network.
        source: the network whose analog reading is matched.
        reading: the one that is put right.
        parts: the images, with the values that enter at `here`.
        here: position of the next node.
        sizes: elements of every value for one image.
    """

    def __init__(
        self,
        snn: SpikingNetwork,
        source: SpikingNetwork,
        reading: Reading,
        parts: list[Part],
        here: int,
        sizes: Mapping[str, int],
    ) -> None:
        self.snn, self.run, self.source_run = snn, Execution.of(snn), Execution.of(source)
        self.reading, self.parts, self._here, self._sizes = reading, parts, here, sizes
        self._live = [sum(sizes[name] for name in names) for names in live_values(snn.graph)]

    @property
    def steps(self) -> int:
        """Values that a neuron layer's output has in time."""
        return self.snn.timesteps if self.reading == "spiking" else 1

    def parts_for(self, node: Node) -> list[Part]:
        """The images that a layer is measured on: all, or `FEW_IMAGES` of each half where they have many places."""
        if self._sizes[node.inputs[0]] < MANY_VALUES:
            return self.parts
        some, seen = [], {True: 0, False: 0}
        for part in self.parts:
            if seen[part.checks] < FEW_IMAGES:
                some.append(part)
                seen[part.checks] += part.images
        return some

    def correct(self, block: Block, name: str, change: str) -> dict[str, float]:
        """Change one layer, keep the change in the channels that it makes better, and say what came of it."""
        node = next(node for node in block.nodes if node.name == name)
        neuron = self.snn.neurons[name]
        chosen, checked = self._measure(node, outputs=change != "moments")
        settings = settings_of(neuron)
        if change == "moments":
            gain, shift = match_moments(neuron, chosen)
            before, after = checked.moment_error(), checked.moment_error(gain, shift)
            better = (after < before) & (before > checked.matched())
        else:
            (take_off_bias if change == "bias" else move_potential)(neuron, chosen)
            before, after = checked.error(), self._measure(node, outputs=True)[1].error()
            better = after < before
        if change == "moments" and neuron.granularity == "layer":  # one theta: all channels or none
            better = (after.sum() < before.sum()).expand_as(better)
        put_back(neuron, settings, better)
        return {"error_before": float(before.sum()), "error_after": float(torch.where(better, after, before).sum()),
                "channels": better.numel(), "left_alone": int((~better).sum())}  # fmt: skip

    def _measure(self, node: Node, *, outputs: bool) -> tuple[Sums, Sums]:
        """Sums of a layer's drives, or of its outputs, over the images that choose and over those that check."""
        neuron, position = self.snn.neurons[node.name], self.come_near(node)
        both = Sums(), Sums()
        for part in self.parts_for(node):
            source, ours = (
                run.part(values, reading, self._here, position)[node.inputs[0]]
                for run, values, reading in self._both(part)
            )
            sums = both[part.checks]
            if outputs:
                out, activation = wide(self._emit(node, ours)), wide(neuron.analog(source.tensor))
                sums.add(neuron.channel_dim, output=out, activation=activation, error=out - activation)
            else:
                drive = wide(neuron.corrected(self.run.mean(ours)))
                drive = drive * neuron.per_channel(_gain(neuron), drive.ndim).to(drive.dtype)
                sums.add(neuron.channel_dim, source=wide(source.tensor), ours=drive)
        return both

    def come_near(self, node: Node) -> int:
        """Take all images to a node, where the values that cross there fit, and give its position."""
        position, images = self.snn.graph.nodes.index(node), sum(part.images for part in self.parts)
        if position and self._live[position - 1] * 4 * (self.steps + 1) * images <= MAX_BYTES:
            self._go(position)
        return position

    def around(self, part: Part, node: Node, position: int) -> tuple[Tensor, Tensor]:
        """What a layer reads in our network, its mean over time, and what it gives in the source."""
        ours = self.run.part(part.ours, self.reading, self._here, position)
        theirs = self.source_run.part(part.source, "analog", self._here, position + 1)
        goal = theirs[node.name].tensor
        other = self._added_to(node)
        if other in ours and other in theirs:
            goal = goal + theirs[other].tensor - self.run.mean(ours[other])
        return self.run.mean(ours[node.inputs[0]]), goal

    def only_reader(self, node: Node, op: str) -> Node | None:
        """The node that alone reads a node's output, where there is one and it is of this operator."""
        readers = [reader for reader in self.snn.graph.nodes if node.name in reader.inputs]
        alone = len(readers) == 1 and node.name not in self.snn.graph.output_names
        return readers[0] if alone and readers[0].op == op else None

    def _added_to(self, node: Node) -> str | None:
        """What a sum adds to a layer's output, where nothing else reads that."""
        reader = self.only_reader(node, "add")
        return None if reader is None else next((name for name in reader.inputs if name != node.name), None)

    def _both(self, part: Part) -> tuple[tuple[Execution, dict[str, Value], Reading], ...]:
        """The source's values and ours, each with its run and reading."""
        return (self.source_run, part.source, "analog"), (self.run, part.ours, self.reading)

    def _emit(self, node: Node, drive: Value) -> Tensor:
        """A layer's mean output, (B, ...)."""
        if self.reading == "quantized":
            return self.run.quantized_neuron(node, drive.tensor)
        spikes = self.run.spiking_neuron(node, drive.tensor, constant=not drive.dynamic, inplace=False)
        return self.run.mean(Value(spikes, True))

    def advance(self, block: Block) -> None:
        """Take all images through a block whose layers are corrected."""
        self._go(block.stop)

    def _go(self, position: int) -> None:
        """Take all images to a node of this position: what stands before it is computed once, where that fits."""
        for part in self.parts:
            for run, values, reading in self._both(part):
                found = run.part(values, reading, self._here, position)
                values.clear()
                values.update(found)
        self._here = position


class ImageWalk(Walk):
    """A walk of whole images from the inputs to the outputs, block by block.

    Args:
        snn: the network.
        inputs: one tensor an input, (B, ...) or events (T, B, ...).
        reading: the one that is corrected; None for "quantized" where every layer looks ahead to the end, which gives
            the same counts, else "spiking".
        source: the network whose analog reading is matched; None for `snn` itself.
        most: images that are used.

    Attributes:
        blocks: of the graph; walk them in order, `correct` the layers of each, then `advance`.
        images: used in all; one half of them chooses (`chosen`) and the other checks (`checked`), see `halves`.
    """

    def __init__(
        self,
        snn: SpikingNetwork,
        inputs: Sequence[Tensor],
        reading: Reading | None = None,
        source: SpikingNetwork | None = None,
        most: int = MAX_IMAGES,
    ) -> None:
        reading = reading or ("quantized" if snn.synchronous else "spiking")
        device = next(snn.parameters()).device
        dims = [x.ndim - len(shape) - 1 for x, shape in zip(inputs, snn.input_shapes, strict=True)]
        there = inputs[0].shape[dims[0]]
        sizes = value_sizes(snn, [x.narrow(dim, 0, 1).to(device) for x, dim in zip(inputs, dims, strict=True)])
        super().__init__(snn, source or snn, reading, [], 0, sizes)
        self.blocks, self.images = _cut(snn, sizes, self.steps, min(there, most))
        both = halves(there, self.images)
        self.chosen, self.checked = map(len, both)
        size = chunk(sizes, self.steps)
        for checks, half in zip((False, True), both, strict=True):
            for piece in torch.split(half, size):
                some = (x.index_select(dim, piece.to(x.device)) for x, dim in zip(inputs, dims, strict=True))
                self.parts.append(self._part([x.to(device) for x in some], checks))

    def _part(self, inputs: Sequence[Tensor], checks: bool) -> Part:
        names = [node.name for node in self.snn.graph.inputs]
        values = {name: accept(self.snn, x, i) for i, (name, x) in enumerate(zip(names, inputs, strict=True))}
        means = {name: Value(self.run.mean(value)) for name, value in values.items()}
        return Part(checks, means, dict(values) if self.reading == "spiking" else dict(means))

    def answers(self) -> list[list[Tensor]]:
        """The network's outputs for the checked images from here to the end, which leaves the images where they are."""
        end = len(self.snn.graph.nodes)
        found = (self.run.part(part.ours, self.reading, self._here, end) for part in self._checks())
        return [self._outputs(values) for values in found]

    def results(self) -> tuple[list[list[Tensor]], list[list[Tensor]]]:
        """What the walk ended in for the checked images: the network's outputs and the source's."""
        pairs = [(self._outputs(part.ours), self._outputs(part.source)) for part in self._checks()]
        return [ours for ours, _ in pairs], [source for _, source in pairs]

    def _checks(self) -> list[Part]:
        return [part for part in self.parts if part.checks]

    def _outputs(self, values: dict[str, Value]) -> list[Tensor]:
        graph = self.snn.graph
        means = {name: wide(self.run.mean(values[name])) for name in graph.output_names}
        return [x for x in tree_leaves(map_outputs(graph.outputs, means)) if isinstance(x, Tensor)]


def halves(there: int, used: int) -> tuple[Tensor, Tensor]:
    """Positions of the images that choose and of those that check, at random but the same in every call.

    Neither sorted data nor classes that take turns leave a class out of a half.

    Args:
        there: how many images there are.
        used: how many of them are taken; a single one does both.
    """
    order = torch.randperm(there, generator=torch.Generator().manual_seed(1))[:used]
    return order[::2].sort().values, (order[1::2] if used > 1 else order).sort().values


def match_moments(neuron: IFNeuron, sums: Sums) -> tuple[Tensor, Tensor]:
    """Let the neuron fire as if its drive were a z' + b, with the source's mean and standard deviation; a and b."""
    ours, theirs = sums.std("ours"), sums.std("source")
    if neuron.granularity == "layer":
        ours, theirs = ours.square().mean().sqrt(), theirs.square().mean().sqrt()
    gain = torch.where((ours > 0) & (theirs > 0), theirs / ours.clamp_min(1e-30), 1.0).clamp(*GAIN_BOUNDS)
    theta, offset, present = neuron.threshold.detach(), _offset(neuron, sums.mean("source")), _gain(neuron)
    neuron.set_amplitude(neuron.amplitude.detach())
    neuron.set_threshold((theta.to(torch.float64) / gain).to(theta.dtype))
    _set_offset(neuron, sums.mean("source") / (present * gain) - sums.mean("ours") / present + offset)
    return gain, present * gain * (_offset(neuron, offset) - offset)


def take_off_bias(neuron: IFNeuron, sums: Sums) -> None:
    """Take the mean error of the outputs off the input."""
    gap = sums.mean("output") - sums.mean("activation")
    _set_offset(neuron, _offset(neuron, gap) - gap / _gain(neuron))


def move_potential(neuron: IFNeuron, sums: Sums) -> None:
    """Start the membrane so much lower as makes up for the mean error, within 0 and 1."""
    gap = sums.mean("output") - sums.mean("activation")
    unit = neuron.amplitude.detach().to(torch.float64)
    moved = neuron.v_init.detach().to(torch.float64) - neuron.timesteps * gap / unit
    neuron.v_init.data = moved.clamp(0, 1).to(neuron.v_init.dtype)


def _gain(neuron: IFNeuron) -> Tensor:
    """A / theta, float64: the neuron emits what stands for so many times its drive."""
    ratio = neuron.amplitude.detach().to(torch.float64) / neuron.threshold.detach().to(torch.float64)
    return ratio if neuron.log_amplitude is not None else torch.ones_like(ratio)


def _offset(neuron: IFNeuron, like: Tensor) -> Tensor:
    """The present offset, float64."""
    return torch.zeros_like(like) if neuron.offset is None else neuron.offset.to(torch.float64)


def _set_offset(neuron: IFNeuron, offset: Tensor) -> None:
    """Set the offset, at most as large as the drive of the layer's largest output: more follows a fault, and grows."""
    bound = neuron.levels_per_step * neuron.threshold.detach().to(torch.float64)
    neuron.offset = torch.maximum(torch.minimum(offset, bound), -bound).to(neuron.log_threshold.dtype)


def settings_of(neuron: IFNeuron) -> Settings:
    """What a change may change, as it is now."""
    return {"log_threshold": neuron.log_threshold.detach().clone(), "v_init": neuron.v_init.detach().clone(),
            "log_amplitude": None if neuron.log_amplitude is None else neuron.log_amplitude.detach().clone(),
            "offset": None if neuron.offset is None else neuron.offset.clone()}  # fmt: skip


def put_back(neuron: IFNeuron, old: Settings, better: Tensor) -> None:
    """Put back the settings of the channels that a change did not make better, bit for bit."""
    if bool(better.all()):
        return
    none = not bool(better.any())

    def mixed(now: Tensor, before: Tensor) -> Tensor:
        return before if none or now.ndim == 0 else torch.where(better, now, before.to(now).expand_as(now))

    theta, amplitude, v_init = old["log_threshold"], old["log_amplitude"], old["v_init"]
    assert theta is not None
    assert v_init is not None
    if none and amplitude is None:
        neuron.set_amplitude(None)
    elif neuron.log_amplitude is not None:
        neuron.log_amplitude.data = mixed(neuron.log_amplitude.data, theta if amplitude is None else amplitude)
    neuron.log_threshold.data = mixed(neuron.log_threshold.data, theta)
    neuron.v_init.data = mixed(neuron.v_init.data, v_init)
    if none:
        neuron.offset = old["offset"]
    elif neuron.offset is not None:
        before = torch.zeros_like(neuron.offset) if old["offset"] is None else old["offset"]
        neuron.offset = mixed(neuron.offset, before)


def channel_sums(x: Tensor, channel_dim: int) -> Tensor:
    """(C,) float64 sums over all images and places; () where there are no channels."""
    if x.ndim < 2:
        return x.sum(dtype=torch.float64)
    return x.sum([dim for dim in range(x.ndim) if dim != channel_dim % x.ndim], dtype=torch.float64)


def chunk(sizes: Mapping[str, int], steps: int) -> int:
    """How many images run at once."""
    return max(1, CHUNK_VALUES // (steps * max(sizes.values())))


def _cut(snn: SpikingNetwork, sizes: dict[str, int], steps: int, wanted: int) -> tuple[list[Block], int]:
    """Cut behind every layer where the values of all images fit, and of fewer images if blocks get too long."""
    images, room = wanted, MAX_BYTES // (4 * (steps + 1))
    while True:
        found = every_layer(snn.graph, sizes, room // images)
        if images <= 2 or max(len(block.neurons) for block in found) <= LONGEST:
            return found, images
        images = max(2, images * 7 // 8)
