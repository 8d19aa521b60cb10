"""Corrections after the thresholds: what the spiking reading gets wrong on average is put right, layer by layer.

One pass walks the graph in order, so that a layer is corrected for what the corrected layers before it emit. With z the
source's drive of a channel, z' what its neuron integrates (the mean over time), and g = mean output - mean activation:

    moments:    a = std(z) / std(z'), b = mean(z) - a mean(z');  theta <- theta / a, offset <- b / a, A stays
    bias:       offset <- offset - g
    potential:  v_init <- clip(v_init - T g / A, 0, 1)

A neuron that fires against theta / a and emits A = theta gives what it would give for the drive a z' + b. The analog
reading knows none of this, so it stays the source network. Half of the images choose a change and the other half check
it: a channel keeps its change only where its squared error against the source falls, and the whole correction is taken
back where the network then answers fewer of the checked images as its source does.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from speedysnn.data.batches import Batch, iter_batches
from speedysnn.display import track
from speedysnn.errors import InputError
from speedysnn.execution.interpreter import Execution, Value
from speedysnn.execution.runner import accept
from speedysnn.graph.blocks import Block, blocks, live_values
from speedysnn.graph.ir import Node, map_outputs
from speedysnn.network import SpikingNetwork
from speedysnn.neurons.layer import IFNeuron
from speedysnn.neurons.parameters import Reading
from speedysnn.settings import repeatable

CHANGES = ("moments", "bias", "potential")
KINDS = ("none", *CHANGES, "moments+bias", "moments+potential", "bias+potential", "moments+bias+potential")
MAX_IMAGES = 256
MAX_BYTES = 2**30  # of the values that are kept where blocks meet
CHUNK_VALUES = 2**25  # T times images times the largest layer, of what runs at once
GAIN_BOUNDS = (0.3, 3.0)


@repeatable
def apply_correction(snn: SpikingNetwork, calibration: object, kind: str, *, progress: bool = False) -> SpikingNetwork:
    """Correct a network in place for its present T, delay and spikes; an earlier correction is taken back first.

    "moments" matches mean and standard deviation of every channel's drive, "bias" and "potential" its mean output; see
    the module. What was done stands in `snn.provenance["correction"]`, in each activation's unit: by change and layer
    the squared error before and after on the checked images and how many channels were left alone, and whether the
    whole was taken back. `recalibrate` and `uncorrect` take it back.

    Args:
        snn: the network, changed in place.
        calibration: a loader, a dataset, a tensor (N, ...) or an iterable of batches; labels are ignored. The first 256
            images are used, and fewer where the values that cross between blocks would exceed 1 GiB.
        kind: "moments", "bias", "potential", several of them in this order joined by "+", or "none".
        progress: show progress.

    Returns:
        The same network.

    Raises:
        InputError: another kind.
        DataError: no data, NaN, or the wrong shape.

    Reference: li2021

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from speedysnn import convert
        >>> _ = torch.manual_seed(0)
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> images = torch.rand(64, 4)
        >>> snn = convert.apply_correction(convert.to_spiking(net, images, timesteps=4), images, "moments")
        >>> done = snn.provenance["correction"]
        >>> done["kind"], done["chosen_on"], done["checked_on"]
        ('moments', 32, 32)
        >>> layer = done["passes"]["moments"]["3"]
        >>> layer["error_after"] <= layer["error_before"]
        True
    """
    check_kind(kind)
    kept = FirstImages(MAX_IMAGES)
    for _ in islice(kept.passing(iter_batches(calibration)), MAX_IMAGES):
        if kept.left <= 0:
            break
    return correct_on(snn, kept.inputs(), kind, progress=progress)


def correct_on(
    snn: SpikingNetwork,
    inputs: Sequence[Tensor],
    kind: str,
    *,
    reading: Reading | None = None,
    progress: bool = False,
) -> SpikingNetwork:
    """`apply_correction` on given images, one tensor (B, ...) an input; for a given reading, or for the network's own."""
    snn.uncorrect()
    if kind == "none":
        return snn
    with torch.no_grad():
        walk = _Walk(snn, inputs, reading)
        before = walk.answers(snn)
        start = _settings(snn)
        passes: dict[str, Any] = {change: {} for change in kind.split("+")}
        for block in track(walk.blocks, f"correct ({kind})", enabled=progress, total=len(walk.blocks)):
            for name in block.neurons:
                for change, layers in passes.items():
                    layers[name] = walk.correct(block, name, change)
            walk.advance(block)
        after = walk.results()
    snn.provenance["correction"] = {"kind": kind, "images": walk.images, "chosen_on": walk.chosen,
                                    "checked_on": walk.checked, "timesteps": snn.timesteps, **start,
                                    "passes": passes, "output": {"before": before, "after": after}}  # fmt: skip
    if _worse(before, after):
        record = snn.provenance["correction"]
        snn.uncorrect()
        snn.provenance["correction"] = {**record, "taken_back": True}
    else:
        snn.provenance["correction"]["taken_back"] = False
    snn.reset()
    return snn


def what_was_done(record: dict[str, Any]) -> str:
    """Say in a sentence what a correction kept and what it took back.

    Args:
        record: `snn.provenance["correction"]`.

    Returns:
        One or two sentences.
    """
    before, after = record["output"]["before"], record["output"]["after"]
    words = []
    for change, layers in record["passes"].items():
        channels = sum(row["channels"] for row in layers.values())
        kept = channels - sum(row["left_alone"] for row in layers.values())
        words.append(f"{change} kept in {kept} of {channels} channels")
    measure = "agreement with the source" if "agreement" in before else "relative squared error"
    key = "agreement" if "agreement" in before else "error"
    found = f"{measure} on {record['checked_on']} checked images {before[key]:.3g} -> {after[key]:.3g}"
    end = "; the whole was taken back, since the output became worse" if record["taken_back"] else ""
    return f"correction: {', '.join(words)}; {found}{end}"


def check_kind(kind: str) -> None:
    """Refuse a kind of correction that is not in `KINDS`.

    Raises:
        InputError: it is another.
    """
    if kind not in KINDS:
        raise InputError(f"correct: expected one of {', '.join(map(repr, KINDS))}, got {kind!r}")


class FirstImages:
    """The first images of the calibration data, kept while they pass by."""

    def __init__(self, max_count: int) -> None:
        self.left, self.parts = max_count, list[tuple[Tensor, ...]]()

    def passing(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """Yield the batches as they are and remember their first images."""
        for batch in batches:
            if self.left > 0:
                self.parts.append(tuple(x[: self.left] for x in batch.inputs))
                self.left -= self.parts[-1][0].shape[0]
            yield batch

    def inputs(self) -> list[Tensor]:
        """The remembered images: one tensor (B, ...) for each input of the network."""
        return [torch.cat(pieces) for pieces in zip(*self.parts, strict=True)]


@dataclass
class _Part:
    """Some images on their way through the graph: the values that later nodes read, in the source and in ours."""

    checks: bool
    source: dict[str, Value]
    ours: dict[str, Value]


@dataclass
class _Sums:
    """Sums over images and places of one layer, by channel: of the drives z and z', the outputs, and squared errors."""

    count: float = 0.0
    values: dict[str, Tensor] = field(default_factory=dict)

    def add(self, name: str, x: Tensor) -> None:
        """Add to a sum."""
        self.values[name] = self.values[name] + x if name in self.values else x

    def mean(self, name: str) -> Tensor:
        """A sum over the number of its elements."""
        return self.values[name] / max(self.count, 1.0)

    def std(self, name: str) -> Tensor:
        """The standard deviation of the values whose sum and sum of squares are known by this name."""
        return (self.mean(f"{name}^2") - self.mean(name).square()).clamp_min(0).sqrt()

    def error(self) -> Tensor:
        """Squared error of the outputs by channel, in the power of the layer's activations."""
        return self.values["error"] / self.values["power"].sum().clamp_min(1e-30)

    def moment_error(self, gain: Tensor | float = 1.0, shift: Tensor | float = 0.0) -> Tensor:
        """By channel, (mean(z) - mean(a z' + b))^2 + (std(z) - std(a z' + b))^2, in the power of the source's drive."""
        off = (self.mean("z") - gain * self.mean("z'") - shift).square() + (
            self.std("z") - gain * self.std("z'")
        ).square()
        return off / self.mean("z^2").sum().clamp_min(1e-30)


class _Walk:
    """The images between two blocks of a network, and the corrections of the layers in the next one."""

    def __init__(self, snn: SpikingNetwork, inputs: Sequence[Tensor], reading: Reading | None) -> None:
        self.snn, self.run = snn, Execution(snn.graph, snn.neurons, snn.layer, snn.timesteps, graph_info=snn.graph_info)
        together = all(neuron.lookahead == snn.timesteps for neuron in snn.neurons.values())
        self.reading: Reading = reading or ("quantized" if together else "spiking")
        device = next(snn.parameters()).device
        sizes = value_sizes(snn, [x[:1].to(device) for x in inputs])
        self.blocks, self.images = _cut(snn, sizes, self.reading, inputs[0].shape[0])
        chosen = [x[: self.images : 2] for x in inputs]
        checked = [x[1 : self.images : 2] if self.images > 1 else x[:1] for x in inputs]
        self.chosen, self.checked = chosen[0].shape[0], checked[0].shape[0]
        steps = snn.timesteps if self.reading == "spiking" else 1
        size = max(1, CHUNK_VALUES // (steps * max(sizes.values())))
        self.check_inputs = [[x.to(device) for x in piece] for piece in _pieces(checked, size)]
        self.parts = [self._part([x.to(device) for x in piece], False) for piece in _pieces(chosen, size)]
        self.parts += [self._part(piece, True) for piece in self.check_inputs]

    def _part(self, inputs: Sequence[Tensor], checks: bool) -> _Part:
        values = {node.name: accept(self.snn, x, i) for i, (node, x) in enumerate(zip(self.snn.graph.inputs, inputs))}
        means = {name: Value(self.run.mean(value)) for name, value in values.items()}
        return _Part(checks, means, dict(values) if self.reading == "spiking" else dict(means))

    def correct(self, block: Block, name: str, change: str) -> dict[str, float]:
        """Change one layer, keep the change in the channels that it makes better, and say what came of it."""
        node = next(node for node in block.nodes if node.name == name)
        neuron, position = self.snn.neurons[name], self.snn.graph.nodes.index(node)
        chosen, checked = self._measure(block, position, node)
        settings = _kept(neuron)
        if change == "moments":
            gain, shift = _moments(neuron, chosen)
            before, after = checked.moment_error(), checked.moment_error(gain, shift)
        else:
            (_bias if change == "bias" else _potential)(neuron, chosen)
            before, after = checked.error(), self._measure(block, position, node)[1].error()
        better = after < before
        if not bool(better.all()):
            _mix(neuron, settings, better)
        return {"error_before": float(before.sum()), "error_after": float(torch.where(better, after, before).sum()),
                "channels": better.numel(), "left_alone": int((~better).sum())}  # fmt: skip

    def _measure(self, block: Block, position: int, node: Node) -> tuple[_Sums, _Sums]:
        """Sums of a layer over the images that choose, and over those that check."""
        neuron, drive_name = self.snn.neurons[node.name], node.inputs[0]
        both = _Sums(), _Sums()
        for part in self.parts:
            source = self._until(block, position, part.source, "analog")[drive_name].tensor
            drive = self._until(block, position, part.ours, self.reading)[drive_name]
            total = neuron.total(drive.tensor) / self.snn.timesteps if drive.dynamic else neuron.corrected(drive.tensor)
            sums, activation = both[part.checks], neuron.analog(source)
            out = self._emit(node, drive)
            found = {"z": source, "z^2": source.square(), "z'": total, "z'^2": total.square(), "out": out,
                     "activation": activation, "power": activation.square(),
                     "error": (out - activation).square()}  # fmt: skip
            for key, x in found.items():
                sums.add(key, channel_sums(x, neuron.channel_dim))
            sums.count += activation.numel() / sums.values["z"].numel()
        return both

    def _until(self, block: Block, stop: int, values: dict[str, Value], reading: Reading) -> dict[str, Value]:
        """The values before position `stop` in a block; those that crossed its border stay as they are."""
        return self.run.part(values, reading, block.start, stop)

    def _emit(self, node: Node, drive: Value) -> Tensor:
        """A layer's mean output, (B, ...)."""
        if self.reading == "quantized":
            return self.run.quantized_neuron(node, drive.tensor)
        spikes = self.run.spiking_neuron(node, drive.tensor, constant=not drive.dynamic, inplace=False)
        return self.run.mean(Value(spikes, True))

    def advance(self, block: Block) -> None:
        """Take all images through a block whose layers are corrected."""
        for part in self.parts:
            for values, reading in ((part.source, "analog"), (part.ours, self.reading)):
                found = self.run.part(values, reading, block.start, block.stop)
                values.clear()
                values.update({name: found[name] for name in block.outputs})

    def answers(self, snn: SpikingNetwork) -> dict[str, float]:
        """How the network's outputs for the checked images compare with the source's."""
        pairs = []
        for inputs in self.check_inputs:
            ours, source = (snn.read(reading, *inputs, at_once=True) for reading in (self.reading, "analog"))
            pairs.append((_tensors(ours), _tensors(source)))
        return _scores(pairs)

    def results(self) -> dict[str, float]:
        """The same, of the outputs that the walk ended in."""
        graph = self.snn.graph
        pairs = []
        for part in self.parts:
            if part.checks:
                both = (
                    {name: self.run.mean(values[name]) for name in graph.output_names}
                    for values in (part.ours, part.source)
                )
                ours, source = (_tensors(map_outputs(graph.outputs, found)) for found in both)
                pairs.append((ours, source))
        return _scores(pairs)


def _moments(neuron: IFNeuron, sums: _Sums) -> tuple[Tensor, Tensor]:
    """Let the neuron fire as if its drive were a z' + b, with the source's mean and standard deviation; a and b."""
    ours, theirs = sums.std("z'"), sums.std("z")
    if neuron.granularity == "layer":
        ours, theirs = ours.square().mean().sqrt(), theirs.square().mean().sqrt()
    gain = torch.where((ours > 0) & (theirs > 0), theirs / ours, torch.ones_like(ours)).clamp(*GAIN_BOUNDS)
    theta, offset = neuron.threshold.detach(), _offset(neuron, sums.mean("z"))
    neuron.set_amplitude(neuron.amplitude.detach())
    neuron.set_threshold((theta.to(torch.float64) / gain).to(theta.dtype))
    _set_offset(neuron, sums.mean("z") / gain - sums.mean("z'") + offset)
    assert neuron.offset is not None
    shift = gain * (neuron.offset.to(torch.float64) - offset)
    return gain, shift


def _bias(neuron: IFNeuron, sums: _Sums) -> None:
    """Take the mean error off the input."""
    gap = sums.mean("out") - sums.mean("activation")
    _set_offset(neuron, _offset(neuron, gap) - gap)


def _potential(neuron: IFNeuron, sums: _Sums) -> None:
    """Start the membrane so much lower as makes up for the mean error, within 0 and 1."""
    gap = sums.mean("out") - sums.mean("activation")
    unit = neuron.amplitude.detach().to(torch.float64)
    moved = neuron.v_init.detach().to(torch.float64) - neuron.timesteps * gap / unit
    neuron.v_init.data = moved.clamp(0, 1).to(neuron.v_init.dtype)


def _offset(neuron: IFNeuron, like: Tensor) -> Tensor:
    """The present offset, float64."""
    return torch.zeros_like(like) if neuron.offset is None else neuron.offset.to(torch.float64)


def _set_offset(neuron: IFNeuron, offset: Tensor) -> None:
    """Set the offset, at most as large as the layer's largest output: what is larger follows a fault, and grows."""
    bound = neuron.levels_per_step * neuron.threshold.detach().to(torch.float64)
    neuron.offset = torch.maximum(torch.minimum(offset, bound), -bound).to(neuron.log_threshold.dtype)


def _kept(neuron: IFNeuron) -> dict[str, Tensor | None]:
    """What a change may change, as it is now."""
    return {"threshold": neuron.threshold.detach().clone(), "v_init": neuron.v_init.detach().clone(),
            "amplitude": None if neuron.log_amplitude is None else neuron.amplitude.detach().clone(),
            "offset": neuron.offset}  # fmt: skip


def _mix(neuron: IFNeuron, old: dict[str, Tensor | None], better: Tensor) -> None:
    """Put back the old settings of the channels that a change did not make better; of a layer's theta, if most."""

    def mixed(now: Tensor, before: Tensor) -> Tensor:
        if now.ndim == 0 and better.ndim:
            return now if bool(better.any()) else before
        return torch.where(better, now, before.to(now).expand_as(now))

    theta, amplitude = old["threshold"], old["amplitude"]
    assert theta is not None and old["v_init"] is not None
    if neuron.log_amplitude is not None:
        neuron.set_amplitude(mixed(neuron.amplitude.detach(), theta if amplitude is None else amplitude))
    neuron.set_threshold(mixed(neuron.threshold.detach(), theta))
    neuron.v_init.data = mixed(neuron.v_init.detach(), old["v_init"])
    if neuron.offset is not None:
        before = torch.zeros_like(neuron.offset) if old["offset"] is None else old["offset"]
        neuron.offset = mixed(neuron.offset, before)


def _settings(snn: SpikingNetwork) -> dict[str, Any]:
    """What `uncorrect` needs to take a correction back."""
    neurons = snn.neurons
    logs = {name: None if n.log_amplitude is None else n.log_amplitude.detach().tolist() for name, n in neurons.items()}
    return {"v_init": {name: n.v_init.detach().tolist() for name, n in neurons.items()},
            "log_threshold": {name: n.log_threshold.detach().tolist() for name, n in neurons.items()},
            "offset": {name: None if n.offset is None else n.offset.tolist() for name, n in neurons.items()},
            "log_amplitude": logs}  # fmt: skip


def channel_sums(x: Tensor, channel_dim: int) -> Tensor:
    """(C,) float64 sums over all images and places; () where there are no channels."""
    if x.ndim < 2:
        return x.sum(dtype=torch.float64)
    return x.sum([dim for dim in range(x.ndim) if dim != channel_dim], dtype=torch.float64)


def value_sizes(snn: SpikingNetwork, example: Sequence[Tensor]) -> dict[str, int]:
    """Count the elements of every value of a network for one image.

    Args:
        snn: the network.
        example: one image, (1, ...) an input.

    Returns:
        Elements by node name.
    """
    run = Execution(snn.graph, snn.neurons, snn.layer, snn.timesteps, graph_info=snn.graph_info)
    ready = [Value(run.mean(accept(snn, x, i))) for i, x in enumerate(example)]
    values = dict(zip((node.name for node in snn.graph.inputs), ready, strict=True))
    found = run.part(values, "analog", 0, len(snn.graph.nodes), keep=True)
    return {name: value.tensor.numel() for name, value in found.items()}


def _cut(snn: SpikingNetwork, sizes: dict[str, int], reading: Reading, images: int) -> tuple[list[Block], int]:
    """Blocks of as few layers as fit, which cost least, and how many images their borders hold."""
    wanted, live = min(images, MAX_IMAGES), live_values(snn.graph)
    steps = snn.timesteps if reading == "spiking" else 1
    for layers in (1, 2, 3, 4, 6):
        found = blocks(snn.graph, sizes, layers)
        crossing = max(sum(sizes[name] for name in live[block.stop - 1]) for block in found)
        fits = max(2, MAX_BYTES // (4 * (steps + 1) * crossing))
        if fits >= wanted:
            return found, wanted
    return found, min(wanted, fits)


def _pieces(inputs: Sequence[Tensor], size: int) -> list[tuple[Tensor, ...]]:
    return list(zip(*(torch.split(x, size) for x in inputs), strict=True))


def _tensors(outputs: Any) -> list[Tensor]:
    """The tensors of a structure of outputs."""
    if isinstance(outputs, Tensor):
        return [outputs]
    return [x for part in (outputs.values() if isinstance(outputs, dict) else outputs) for x in _tensors(part)]


def _scores(pairs: Sequence[tuple[list[Tensor], list[Tensor]]]) -> dict[str, float]:
    """Relative squared error of outputs, and for classes the share of images with the same answer."""
    error = sum(float((a - b).square().sum()) for ours, source in pairs for a, b in zip(ours, source, strict=True))
    power = sum(float(b.square().sum()) for _, source in pairs for b in source)
    out = {"error": error / max(power, 1e-30)}
    if all(len(source) == 1 and source[0].ndim == 2 and source[0].shape[1] > 1 for _, source in pairs):
        same = sum(int((ours[0].argmax(1) == source[0].argmax(1)).sum()) for ours, source in pairs)
        out["agreement"] = same / sum(len(source[0]) for _, source in pairs)
    return out


def _worse(before: dict[str, float], after: dict[str, float]) -> bool:
    """Whether fewer images are answered as the source does; where there are no classes, whether the error rose."""
    if "agreement" in before:
        return after["agreement"] < before["agreement"]
    return not after["error"] <= before["error"]
