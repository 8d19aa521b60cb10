"""One pass over the calibration data: a histogram of every activation, then a threshold for every neuron."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from speedysnn.collecting import Collecting
from speedysnn.data import iter_batches
from speedysnn.errors import DataError, InputError, SpeedySNNError
from speedysnn.histogram import ActivationHistogram
from speedysnn.network import Calibration, SpikingNetwork
from speedysnn.neurons import IFNeuron
from speedysnn.progress import track
from speedysnn.tap import Tap, any_order
from speedysnn.thresholds import CLIP, choose, parse_rule

Threshold = str | dict[str, float | str | Tensor]


def collect(snn: SpikingNetwork, calibration: object, granularity: str, *, progress: bool = False) -> int:
    """Fill the network's histograms from the analog reading; returns the number of images seen.

    The result does not depend on the order of the data or on how it is split into batches.

    Raises:
        DataError: no data, NaN, or a batch of the wrong shape.
    """
    layers = {name: Collecting(neuron.signed) for name, neuron in snn.neurons.items()}

    @any_order
    def observe(tap: Tap) -> None:
        with _named(tap.name):
            layers[tap.name].add(tap.output, None if granularity == "layer" else tap.neuron.channel_dim)

    images, device = 0, _device(snn)
    with torch.no_grad(), snn.reading("analog"):
        for batch in track(iter_batches(calibration), "calibrating", enabled=progress):
            try:
                snn(*(x.to(device) for x in batch.inputs), observer=observe)
            except SpeedySNNError as err:
                raise DataError(f"calibration data: {err}") from None
            except RuntimeError as err:
                shapes = ", ".join(str(tuple(x.shape)) for x in batch.inputs)
                raise DataError(f"calibration data: the network does not run on a batch {shapes}: {err}") from None
            images += batch.inputs[0].shape[0]
    snn.calibration = Calibration({name: _found(name, layer) for name, layer in layers.items()}, {})
    return images


@contextmanager
def _named(layer: str) -> Iterator[None]:
    """Faults say which layer's data they are of."""
    try:
        yield
    except DataError as err:
        raise DataError(f"layer {layer!r}: {err}") from None


def _found(name: str, layer: Collecting) -> ActivationHistogram:
    with _named(name):
        return layer.histogram()


def _device(snn: SpikingNetwork) -> torch.device:
    return next(snn.parameters()).device


def assign(snn: SpikingNetwork, threshold: Threshold, granularity: str) -> None:
    """Choose every neuron's theta by a named rule, or by its own entry: a value, or another rule.

    A learned clip (of a quantization-trained activation) is theta N whatever the rule, unless the layer has an entry of
    its own. The rule "clip" takes a fixed ceiling (ReLU6) too; layers without one, and those that a dictionary leaves
    out, are chosen by "mse".

    Raises:
        InputError: an unknown rule or layer, or a given value of the wrong shape.
        ConversionError: a layer without positive activations.
    """
    given = threshold if isinstance(threshold, dict) else {}
    rule = "mse" if isinstance(threshold, dict) else threshold
    for name in (rule, *(value for value in given.values() if isinstance(value, str))):
        parse_rule(name)
    unknown = [name for name in given if name not in snn.neurons]
    if unknown:
        raise InputError(f"threshold: no neuron is called {unknown[0]!r}; there are {', '.join(snn.neurons)}")
    learned = {node.name for node in snn.graph.neurons if node.attrs.get("learned")}
    for name, neuron in snn.neurons.items():
        entry = given.get(name, CLIP if name in learned else rule)
        theta, used = _theta(snn, name, neuron, entry)
        neuron.set_threshold(theta if granularity == "channel" else _one(theta))
        snn.calibration.rules[name] = used


def _theta(snn: SpikingNetwork, name: str, neuron: IFNeuron, entry: float | str | Tensor) -> tuple[Tensor, str]:
    """Theta (C,), or as given, and the rule it came by."""
    hist = snn.calibration.histograms[name]
    channels = hist.channels // 2 if neuron.signed else hist.channels
    if not isinstance(entry, str):
        value = torch.as_tensor(entry, dtype=torch.float32)
        if value.ndim and value.shape != (channels,):
            raise InputError(f"threshold of {name!r}: expected a number or {channels} values, got {tuple(value.shape)}")
        return value.expand(channels), "given"
    highest = neuron.levels_per_step
    if entry == CLIP and neuron.ceiling is not None:
        return torch.full((channels,), neuron.ceiling / highest), CLIP
    rule = "mse" if entry == CLIP else entry
    return choose(hist, rule, neuron.v_init, snn.timesteps, highest, signed=neuron.signed, layer=name), rule


def _one(theta: Tensor) -> Tensor:
    """The layer's one theta, ()."""
    return theta.reshape(-1)[0]
