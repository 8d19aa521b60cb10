"""One pass over the calibration data: a histogram of every activation, then a threshold for every neuron."""

import torch
from torch import Tensor

from speedysnn.data import iter_batches
from speedysnn.errors import DataError, InputError, SpeedySNNError
from speedysnn.executor import Tap
from speedysnn.histogram import ActivationHistogram
from speedysnn.network import Calibration, SpikingNetwork
from speedysnn.progress import track
from speedysnn.thresholds import choose, parse_rule

Threshold = str | dict[str, float | Tensor]


def rows_of(activation: Tensor, channel_dim: int, granularity: str) -> Tensor:
    """Activations as (C, M): one row a channel, or one row in all."""
    if granularity == "layer" or activation.ndim < 2:
        return activation.reshape(1, -1)
    return activation.movedim(channel_dim, 0).reshape(activation.shape[channel_dim], -1)


def collect(snn: SpikingNetwork, calibration: object, granularity: str, *, progress: bool = False) -> int:
    """Fill the network's histograms from the analog reading; returns the number of images seen.

    The result does not depend on the order of the data or on how it is split into batches.

    Raises:
        DataError: no data, NaN, or a batch of the wrong shape.
    """
    histograms: dict[str, ActivationHistogram] = {}

    def observe(tap: Tap) -> None:
        values = rows_of(tap.output, tap.neuron.channel_dim, granularity)
        if tap.neuron.signed:
            values = torch.cat([values, -values])
        try:
            histograms.setdefault(tap.name, ActivationHistogram(values.shape[0])).update(values)
        except DataError as err:
            raise DataError(f"layer {tap.name!r}: {err}") from None

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
    snn.calibration = Calibration(histograms, {})
    return images


def _device(snn: SpikingNetwork) -> torch.device:
    return next(snn.parameters()).device


def assign(snn: SpikingNetwork, threshold: Threshold, granularity: str) -> None:
    """Choose every neuron's theta by a named rule, or take the given ones (the others by "mse").

    Raises:
        InputError: an unknown rule or layer, or a given value of the wrong shape.
        ConversionError: a layer without positive activations.
    """
    given = threshold if isinstance(threshold, dict) else {}
    rule = "mse" if isinstance(threshold, dict) else threshold
    parse_rule(rule)
    unknown = [name for name in given if name not in snn.neurons]
    if unknown:
        raise InputError(f"threshold: no neuron is called {unknown[0]!r}; there are {', '.join(snn.neurons)}")
    for name, neuron in snn.neurons.items():
        hist = snn.calibration.histograms[name]
        channels = hist.channels // 2 if neuron.signed else hist.channels
        if name in given:
            value = torch.as_tensor(given[name], dtype=torch.float32)
            if value.ndim and value.shape != (channels,):
                raise InputError(
                    f"threshold of {name!r}: expected a number or {channels} values, got {tuple(value.shape)}"
                )
            neuron.set_threshold(value.expand(channels) if granularity == "channel" else value)
            snn.calibration.rules[name] = "given"
            continue
        theta = choose(
            hist, rule, neuron.v_init, snn.timesteps, neuron.levels_per_step, signed=neuron.signed, layer=name
        )
        neuron.set_threshold(theta if granularity == "channel" else theta.squeeze(0))
        snn.calibration.rules[name] = rule
