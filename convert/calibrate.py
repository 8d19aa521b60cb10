"""One pass over the calibration data: a histogram of every activation, then a threshold for every neuron."""

import warnings
from collections.abc import Iterator, Mapping, Sequence, Sized
from contextlib import contextmanager
from typing import Any, TypeGuard

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves
from torch.utils.data import DataLoader, Dataset

from speedysnn.calibration import GIVEN, Calibration
from speedysnn.calibration.histogram import ActivationHistogram, HistogramCollector
from speedysnn.calibration.rules import (
    CLIP,
    GRADIENTS,
    RULES,
    Choose,
    Rule,
    ThresholdRule,
    as_rule,
    needs_of,
    parse_rule,
)
from speedysnn.data.batches import iter_batches
from speedysnn.display import track
from speedysnn.errors import ConversionError, DataError, InputError, SpeedySNNError
from speedysnn.execution.observers import LayerRecord, any_order
from speedysnn.network import SpikingNetwork
from speedysnn.neurons.layer import IFNeuron
from speedysnn.torch_utils import float_type

_LISTED = 10  # layers that a warning names
BATCH_SIZE = 64  # images that `iter_batches` takes at a time where the data is not in batches yet
Entry = float | Tensor | Rule
Threshold = Rule | dict[str, Entry]


def collect(
    snn: SpikingNetwork, calibration: object, granularity: str, *, gradients: bool = False, progress: bool = False,
    total: int | None = None,
) -> int:  # fmt: skip
    """Fill the network's histograms from the analog reading.

    The counts do not depend on the order of the data or on how it is split into batches. Gradients do, within the error
    of their random signs; see `speedysnn.calibration.rules.Request.gradient_histogram`.

    Args:
        snn: the network.
        calibration: the data.
        granularity: "channel" or "layer".
        gradients: collect squared gradients at the output too, which takes a backward pass for every batch.
        progress: show a progress bar.
        total: batches that there will be, for the time left; None where the data does not say. See `batches_in`.

    Returns:
        The number of images seen.

    Raises:
        DataError: no data, NaN, or a batch of the wrong shape.
    """
    counting = GradientCount(snn, granularity) if gradients else Count(snn, granularity)
    images, device = 0, _device(snn)
    taken: dict[str, Any] = {"inputs": len(snn.input_shapes), "dtype": float_type(snn)}
    with snn.reading("analog"):
        for batch in track(iter_batches(calibration, **taken), "calibrating", total=total, enabled=progress):
            try:
                counting.add([x.to(device) for x in batch.inputs])
            except SpeedySNNError as err:
                raise DataError(f"calibration data: {err}") from None
            except RuntimeError as err:
                shapes = ", ".join(str(tuple(x.shape)) for x in batch.inputs)
                raise DataError(f"calibration data: the network does not run on a batch {shapes}: {err}") from None
            images += batch.inputs[0].shape[0]
    snn.calibration = Calibration(counting.histograms(), {})
    return images


def batches_in(calibration: object) -> int | None:
    """Count the batches that `iter_batches` will make of the data, without reading any of it.

    Args:
        calibration: the data.

    Returns:
        The number of batches; None for an iterator or anything else that does not say how long it is.
    """
    whole = calibration
    if isinstance(calibration, tuple) and calibration:
        whole = calibration[0]
    elif isinstance(calibration, Mapping):
        whole = next((value for value in calibration.values() if isinstance(value, Tensor)), None)
    if not isinstance(whole, Sized):
        return None
    in_batches = isinstance(whole, DataLoader) or not isinstance(whole, Tensor | Dataset)
    try:
        return len(whole) if in_batches else -(-len(whole) // BATCH_SIZE)
    except (TypeError, NotImplementedError):  # a loader of a stream, or a tensor without dimensions
        return None


class Count:
    """Histograms of all layers, filled batch by batch; several threads may add to them at once."""

    def __init__(self, snn: SpikingNetwork, granularity: str) -> None:
        self._snn, self._granularity = snn, granularity
        self._layers = {name: HistogramCollector(neuron.signed) for name, neuron in snn.neurons.items()}

    def add(self, inputs: Sequence[Tensor]) -> None:
        """Add the activations of one batch."""

        @any_order
        def observe(tap: LayerRecord) -> None:
            with _named(tap.name):
                by_layer = self._granularity == "layer"
                self._layers[tap.name].add(tap.output, None if by_layer else tap.neuron.channel_dim)

        with torch.no_grad():
            self._snn(*inputs, observer=observe)

    def histograms(self) -> dict[str, ActivationHistogram]:
        """The histograms of all layers, by name."""
        return {name: _found(name, layer) for name, layer in self._layers.items()}


class GradientCount:
    """The same histograms with squared gradients at the output, from one forward and one backward pass a batch.

    The gradient is that of v . y, y the network's output and v random signs: its square is, in expectation over v, the
    squared norm of the Jacobian's column, the sum over outputs of (dy/dz)^2 (Hutchinson's estimator).

    Reference: hutchinson1989
    """

    def __init__(self, snn: SpikingNetwork, granularity: str) -> None:
        self._snn, self._granularity = snn, granularity
        self._signs = torch.Generator().manual_seed(0)
        self._layers: dict[str, ActivationHistogram] = {}

    def add(self, inputs: Sequence[Tensor]) -> None:
        """Add the activations of one batch and the gradients at them."""
        taps: list[LayerRecord] = []
        seen = [x.detach().requires_grad_(x.is_floating_point()) for x in inputs]
        with torch.enable_grad():
            out = self._snn(*seen, observer=taps.append)
            total = torch.stack([self._signed_sum(y) for y in tree_leaves(out)]).sum()
            gradients = torch.autograd.grad(total, [tap.output for tap in taps], allow_unused=True)
        for tap, gradient in zip(taps, gradients, strict=True):
            with _named(tap.name):
                self._count(tap, torch.zeros_like(tap.output) if gradient is None else gradient)

    def _signed_sum(self, y: Tensor) -> Tensor:
        signs = torch.randint(0, 2, y.shape, generator=self._signs) * 2 - 1
        return (y * signs.to(y)).sum()

    def _count(self, tap: LayerRecord, gradient: Tensor) -> None:
        values, slopes = self._rows(tap, tap.output.detach()), self._rows(tap, gradient)
        if tap.neuron.signed:
            values, slopes = torch.cat([values, -values]), torch.cat([slopes, slopes])
        histogram = self._layers.setdefault(tap.name, ActivationHistogram(len(values)))
        histogram.update(values)
        histogram.add_gradients(values, slopes)

    def _rows(self, tap: LayerRecord, x: Tensor) -> Tensor:
        """The values as (C, M), a row for each channel; as (1, M) where the layer has one threshold."""
        if self._granularity == "layer" or x.ndim < 2:
            return x.reshape(1, -1)
        return x.movedim(tap.neuron.channel_dim, 0).flatten(1)

    def histograms(self) -> dict[str, ActivationHistogram]:
        """The histograms of all layers, by name."""
        return self._layers


def needs_gradients(threshold: Threshold) -> bool:
    """Whether a rule among those that were asked for reads gradients."""
    rules = threshold.values() if isinstance(threshold, dict) else (threshold,)
    return any(GRADIENTS in needs_of(rule) for rule in rules if isinstance(rule, str) or callable_rule(rule))


def callable_rule(entry: object) -> TypeGuard[ThresholdRule | Choose]:
    """Whether an entry is a rule rather than a name or a value."""
    return isinstance(entry, ThresholdRule) or (callable(entry) and not isinstance(entry, Tensor))


def assign(snn: SpikingNetwork, threshold: Threshold, granularity: str) -> None:
    """Choose every neuron's theta by a rule, or by its own entry: a value, or another rule.

    A learned clip (of a quantization-trained activation) is theta N whatever the rule, unless the layer has an entry of
    its own. The rule "clip" takes a fixed ceiling (ReLU6) too; layers without one, and those that a dictionary leaves
    out, are chosen by "mse".

    A layer that was silent on all of the calibration data gets its ceiling, or 1, as its full scale, with a warning.

    Raises:
        InputError: an unknown rule or layer, or a given value of the wrong shape.
        ConversionError: no layer had a positive activation.
    """
    check_rules(threshold)
    given = threshold if isinstance(threshold, dict) else {}
    rule = "mse" if isinstance(threshold, dict) else threshold
    unknown = [name for name in given if name not in snn.neurons]
    if unknown:
        raise InputError(f"threshold: no neuron is called {unknown[0]!r}; there are {', '.join(snn.neurons)}")
    learned = {node.name for node in snn.graph.neurons if node.attrs.get("learned")}
    for name, neuron in snn.neurons.items():
        entry = given.get(name, CLIP if name in learned else rule)
        theta, used = _theta(snn, name, neuron, entry)
        neuron.set_threshold(theta if granularity == "channel" else _one(theta))
        snn.calibration.rules[name] = used
    chosen = (name for name, used in snn.calibration.rules.items() if used not in (GIVEN, CLIP))
    _warn_of_silence([name for name in chosen if snn.calibration.silent(name)])


class CalibrationWarning(UserWarning):
    """The calibration data says nothing of some layers."""


def _warn_of_silence(layers: Sequence[str]) -> None:
    if not layers:
        return
    more = f" and {len(layers) - _LISTED} more" if len(layers) > _LISTED else ""
    warnings.warn(
        f"no activation of {', '.join(map(repr, layers[:_LISTED]))}{more} was above zero on the calibration data: a "
        "threshold of 1, or of the activation's ceiling, was taken. Other images may need another: give more "
        "calibration images, or threshold={layer: value}",
        CalibrationWarning,
        stacklevel=5,
    )


def check_rules(threshold: Threshold) -> None:
    """Refuse a rule that is not known, before the calibration data is read.

    Raises:
        InputError: an unknown name, or a function that is named as a rule of `RULES`.
    """
    for entry in threshold.values() if isinstance(threshold, dict) else (threshold,):
        if isinstance(entry, str):
            parse_rule(entry)
        elif callable_rule(entry) and _name_of(entry) in (*RULES, CLIP, GIVEN):
            raise InputError(
                f"threshold: the function is called {_name_of(entry)!r}, as a rule of speedysnn.calibration.RULES is; "
                "give it another name, under which the network can remember it"
            )


def _name_of(rule: ThresholdRule | Choose) -> str:
    """The name under which a network remembers a rule that came as a function."""
    function = rule.choose if isinstance(rule, ThresholdRule) else rule
    return str(getattr(function, "__name__", type(function).__name__))


def _theta(snn: SpikingNetwork, name: str, neuron: IFNeuron, entry: Entry) -> tuple[Tensor, str]:
    """Theta (C,), or as given, and the name of the rule it came by."""
    calibration = snn.calibration
    hist = calibration.histograms[name]
    channels = hist.channels // 2 if neuron.signed else hist.channels
    if callable_rule(entry):
        rule = _name_of(entry)
        calibration.functions[rule] = as_rule(entry)
    elif isinstance(entry, str):
        if entry == CLIP and neuron.ceiling is not None:
            return torch.full((channels,), neuron.ceiling / neuron.levels_per_step), CLIP
        rule = "mse" if entry == CLIP else entry
    else:
        value = torch.as_tensor(entry, dtype=torch.float32)
        if value.ndim and value.shape != (channels,):
            raise InputError(f"threshold of {name!r}: expected a number or {channels} values, got {tuple(value.shape)}")
        return value.expand(channels), GIVEN
    calibration.rules[name] = rule
    theta = calibration.theta(name, neuron, snn.timesteps)
    if theta is not None:
        return theta, rule
    if all(map(calibration.silent, snn.neurons)):
        raise ConversionError(
            f"layer {name!r}: no activation was {'other than zero' if neuron.signed else 'positive'} on the "
            "calibration data, nor was any in the other layers, so no threshold can be chosen; check the checkpoint "
            "and the input's normalisation, or give the thresholds yourself"
        )
    return torch.full((channels,), (neuron.ceiling or 1.0) / neuron.levels_per_step), rule


def _one(theta: Tensor) -> Tensor:
    """The one theta of a layer, as a tensor without dimensions."""
    return theta.reshape(-1)[0]


@contextmanager
def _named(layer: str) -> Iterator[None]:
    """Put the layer's name before the message of an error in its data."""
    try:
        yield
    except DataError as err:
        raise DataError(f"layer {layer!r}: {err}") from None


def _found(name: str, layer: HistogramCollector) -> ActivationHistogram:
    with _named(name):
        return layer.histogram()


def _device(snn: SpikingNetwork) -> torch.device:
    return next(snn.parameters()).device
