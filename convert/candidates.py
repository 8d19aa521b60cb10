"""Candidates of a search: settings of one network, prepared on some images and scored on others."""

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from speedysnn.calibration import Calibration
from speedysnn.calibration.rules import GRADIENTS, needs_of
from speedysnn.convert.calibrate import collect
from speedysnn.convert.correct import correct_on
from speedysnn.data.batches import Batch
from speedysnn.errors import InputError
from speedysnn.execution.interpreter import Execution, Value
from speedysnn.execution.observers import LayerRecord, any_order, needs_input
from speedysnn.graph.fan_out import mean_fan_out
from speedysnn.kernels import bits_per_spike
from speedysnn.network import SpikingNetwork
from speedysnn.neurons.layer import IFNeuron
from speedysnn.neurons.parameters import Delay
from speedysnn.torch_utils import compare_outputs

FIT_BATCH = 64  # images of a calibration pass
ERROR_IMAGES = 64  # images by which layers are ranked
KEPT_VALUES = 2**25  # float32 values of all layers that the ranking keeps at once
Row = dict[str, Any]
SCORES = ("images", "agreement", "kl", "error", "spikes_per_neuron", "spikes_per_image", "bits_per_image",
          "synops_per_image")  # fmt: skip


@dataclass(frozen=True)
class Candidate:
    """One setting of a network.

    Attributes:
        timesteps: T.
        delay: look-ahead of every neuron in steps, or "full".
        spikes: spike kind of the layers that are not in `layers`.
        correct: the correction after the thresholds.
        layers: (layer, spike kind) of layers with spikes of their own.
    """

    timesteps: int
    delay: Delay
    spikes: str
    correct: str = "none"
    layers: tuple[tuple[str, str], ...] = ()

    def row(self) -> dict[str, Any]:
        """Give its settings as columns of a table."""
        layers = ", ".join(f"{name}={spikes}" for name, spikes in self.layers)
        return {"timesteps": self.timesteps, "delay": self.delay, "spikes": self.spikes, "correct": self.correct,
                "layers": layers}  # fmt: skip


@dataclass(frozen=True)
class Limits:
    """What a setting may cost; None for no limit."""

    max_latency: int | None = None
    max_spikes_per_image: float | None = None
    max_synops: float | None = None

    def __post_init__(self) -> None:
        """Raise InputError for a limit that nothing could keep."""
        for name, value in vars(self).items():
            if value is not None and (isinstance(value, bool) or not value > 0):
                raise InputError(f"{name}: expected a number above 0, or None for no limit, got {value!r}")

    def kept_by(self, row: Mapping[str, Any], slack: float = 1.0) -> bool:
        """Say whether what was measured is within the limits; those on spikes times a slack."""
        spikes, synops = self.max_spikes_per_image, self.max_synops
        return (
            (self.max_latency is None or row["latency"] <= self.max_latency)
            and (spikes is None or row["spikes_per_image"] <= slack * spikes)
            and (synops is None or row["synops_per_image"] <= slack * synops)
        )

    def given(self) -> dict[str, float]:
        """The limits that there are, by name."""
        return {name: value for name, value in vars(self).items() if value is not None}


class Trials:
    """A network that takes on one candidate after another, and the images that it is prepared and scored on.

    Args:
        snn: the network with the histograms of `fit_batches(images)`, changed in place.
        images: one tensor (N, ...) an input; every second image prepares, the others score.
    """

    def __init__(self, snn: SpikingNetwork, images: Sequence[Tensor]) -> None:
        self.snn, self.fit, self.held = snn, [x[::2] for x in images], [x[1::2] for x in images]
        self._thetas: dict[tuple[str, int, int], tuple[Tensor, Tensor | None]] = {}
        with torch.no_grad():
            self.source = [x.detach() for x in tree_leaves(snn.read("analog", *self._held(1)))]
            self.fan_out = mean_fan_out(snn.graph, _shapes(snn), snn.tensors)

    def _held(self, stride: int) -> list[Tensor]:
        device = next(self.snn.parameters()).device
        return [x[::stride].to(device) for x in self.held]

    def latency(self, candidate: Candidate) -> int:
        """Find the steps from the first input to the last output, without a run."""
        self.snn.timesteps = candidate.timesteps
        self.snn.set_delay(candidate.delay)
        return self.snn.latency

    def prepare(self, candidate: Candidate, stride: int = 1) -> SpikingNetwork:
        """Give the network a candidate's settings: thresholds from the histograms, then the correction.

        Args:
            candidate: the settings.
            stride: use every so-manieth of the images that prepare.

        Returns:
            The one network of these trials; the next call changes it.
        """
        snn = self.snn
        snn.uncorrect()
        snn.timesteps = candidate.timesteps
        snn.set_spikes(candidate.spikes)
        for name, spikes in candidate.layers:
            snn.neurons[name].spikes = spikes
        snn.set_delay(candidate.delay)
        for name, neuron in snn.neurons.items():
            self._choose(name, neuron)
        return correct_on(snn, [x[::stride] for x in self.fit], candidate.correct)

    def _choose(self, name: str, neuron: IFNeuron) -> None:
        """Choose a layer's theta again; the search over a histogram is done once for each T and number of levels."""
        key = (name, neuron.timesteps, neuron.levels_per_step)
        if key not in self._thetas:
            self.snn.calibration.choose_again(name, neuron)
            own = neuron.log_amplitude
            self._thetas[key] = neuron.log_threshold.data.clone(), None if own is None else own.data.clone()
        theta, amplitude = self._thetas[key]
        neuron.log_threshold.data = theta.clone()
        neuron.log_amplitude = None if amplitude is None else torch.nn.Parameter(amplitude.clone())

    def score(self, candidate: Candidate, stride: int = 1) -> dict[str, Any]:
        """Prepare a candidate on every `stride`-th image, and score it on every `stride`-th of the others."""
        self.prepare(candidate, stride)
        return self.measured(stride)

    def measured(self, stride: int = 1) -> dict[str, Any]:
        """Score the network as it is now."""
        events, inputs = _Events(), self._held(stride)
        with torch.no_grad():
            ours = tree_leaves(self.snn.read("spiking", *inputs, observer=events.count))
        images, fired = inputs[0].shape[0], sum(events.fired.values())
        synops = sum(count * self.fan_out[name] for name, count in events.fired.items())
        bits = sum(count * self._bits(name) for name, count in events.fired.items())
        compared = compare_outputs([ours], [[x[::stride] for x in self.source]])
        return {"images": images, **compared, "spikes_per_neuron": fired / max(1, events.neurons),
                "spikes_per_image": fired / images, "bits_per_image": bits / images,
                "synops_per_image": synops / images}  # fmt: skip

    def _bits(self, name: str) -> int:
        neuron = self.snn.neurons[name]
        return bits_per_spike(neuron.spikes, neuron.signed)

    def with_layer(self, name: str, spikes: str, stride: int) -> dict[str, Any]:
        """Score the network with another spike kind in one layer, whose gain and offset of a correction stay."""
        neuron = self.snn.neurons[name]
        kept = neuron.spikes, neuron.log_threshold.data, neuron.log_amplitude
        ratio = (neuron.threshold / neuron.amplitude).detach()
        try:
            neuron.spikes = spikes
            self._choose(name, neuron)
            if kept[2] is not None:
                theta = neuron.threshold.detach()
                neuron.set_amplitude(theta)
                neuron.set_threshold(theta * ratio)
            return self.measured(stride)
        finally:
            neuron.spikes, neuron.log_threshold.data, neuron.log_amplitude = kept

    def layer_errors(self) -> dict[str, float]:
        """Find the relative squared error of every layer's mean spiking output, as the network is now."""
        snn = self.snn
        features = sum(int(node.attrs.get("features", 1)) for node in snn.graph.neurons)
        size, device = max(1, KEPT_VALUES // max(1, features)), next(snn.parameters()).device
        pieces = zip(*(torch.split(x[:ERROR_IMAGES], size) for x in self.fit), strict=True)
        sums = {name: [0.0, 0.0] for name in snn.neurons}
        for piece in pieces:
            inputs, source = [x.to(device) for x in piece], dict[str, Tensor]()

            def keep(tap: LayerRecord, source: dict[str, Tensor] = source) -> None:
                source[tap.name] = tap.output

            def add(tap: LayerRecord, source: dict[str, Tensor] = source) -> None:
                target = source.pop(tap.name)
                sums[tap.name][0] += float((tap.mean_output() - target).square().sum(dtype=torch.float64))
                sums[tap.name][1] += float(target.square().sum(dtype=torch.float64))

            with torch.no_grad():
                snn.read("analog", *inputs, observer=keep, at_once=True)
                snn.read("spiking", *inputs, observer=add, at_once=True)
        return {name: error / max(power, 1e-30) for name, (error, power) in sums.items()}


@dataclass
class _Events:
    """Spike events by layer, and how many neurons could have fired; threads may count at once."""

    fired: dict[str, int] = field(default_factory=dict)
    neurons: int = 0
    lock: Any = field(default_factory=threading.Lock)

    @property
    def count(self) -> Any:
        """The observer."""

        @any_order
        @needs_input("nothing")
        def observe(tap: LayerRecord) -> None:
            found = int(tap.events())
            with self.lock:
                self.fired[tap.name] = self.fired.get(tap.name, 0) + found
                self.neurons += tap.neurons

        return observe


def fit_batches(images: Sequence[Tensor]) -> list[Batch]:
    """The images that prepare candidates, every second one, as calibration takes them."""
    return [Batch(piece) for piece in zip(*(torch.split(x[::2], FIT_BATCH) for x in images), strict=True)]


def calibrated_again(snn: SpikingNetwork, images: Sequence[Tensor]) -> SpikingNetwork:
    """Make a network's histograms again, in place, from the images that prepare alone; every layer keeps its rule."""
    snn.uncorrect()
    before = snn.calibration
    rules = [before.functions.get(rule, rule) for rule in before.rules.values()]
    by_layer = any(neuron.granularity == "layer" for neuron in snn.neurons.values())
    gradients = any(GRADIENTS in needs_of(rule) for rule in rules)
    count = collect(snn, fit_batches(images), "layer" if by_layer else "channel", gradients=gradients)
    snn.calibration = Calibration(snn.calibration.histograms, before.rules, before.functions)
    snn.provenance["calibration_images"] = count
    return snn


def _shapes(snn: SpikingNetwork) -> dict[str, tuple[int, ...]]:
    """The shape of every value of a network for one image, (1, ...)."""
    device = next(snn.parameters()).device
    run = Execution.of(snn)
    inputs = {node.name: Value(torch.zeros(1, *shape, device=device))
              for node, shape in zip(snn.graph.inputs, snn.input_shapes, strict=True)}  # fmt: skip
    found = run.part(inputs, "analog", 0, len(snn.graph.nodes), keep=True)
    return {name: tuple(value.tensor.shape) for name, value in found.items()}


def loss(row: Mapping[str, Any]) -> float:
    """What less of is better: the KL divergence, or the squared error where there are no classes."""
    return float(row["error"] if row["kl"] is None else row["kl"])


def quality(row: Mapping[str, Any]) -> tuple[float, float]:
    """What a better answer has less of: agreement turned round, then what tells equal ones apart."""
    return -(row["agreement"] or 0.0), loss(row)


def rank(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """What the best row has least of, in order."""
    return quality(row), row["latency"], row["bits_per_image"]


def fronts(candidates: Sequence[Candidate], rows: Mapping[Candidate, Row]) -> list[list[Candidate]]:
    """Pareto fronts, the best first: of the answers' quality, latency and bits an image."""
    points, left, out = {x: rank(rows[x]) for x in candidates}, list(candidates), list[list[Candidate]]()
    while left:
        front = [x for x in left if not any(_dominates(points[y], points[x]) for y in left)]
        out.append(front)
        left = [x for x in left if x not in front]
    return out


def _dominates(one: Sequence[Any], other: Sequence[Any]) -> bool:
    return one != other and all(a <= b for a, b in zip(one, other, strict=True))


def foremost(candidates: Sequence[Candidate], rows: Mapping[Candidate, Row], count: int) -> list[Candidate]:
    """The first of the candidates, front by front and best first within a front, in their own order."""
    order = [x for front in fronts(candidates, rows) for x in sorted(front, key=lambda x: rank(rows[x]))]
    chosen = set(order[:count])
    return [x for x in candidates if x in chosen]
