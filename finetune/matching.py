"""Layer-wise matching: every neuron's mean output against the source activation it stands for."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from speedysnn.network import SpikingNetwork
from speedysnn.neurons import Reading
from speedysnn.tap import Tap


class Recorder:
    """An observer that keeps every neuron's mean output, (B, ...) by name."""

    def __init__(self) -> None:
        self.outputs: dict[str, Tensor] = {}

    def __call__(self, tap: Tap) -> None:
        """Keep one neuron's output, averaged over its steps."""
        self.outputs[tap.name] = mean_output(tap)


def mean_output(tap: Tap) -> Tensor:
    """A neuron's output averaged over its steps, (B, ...)."""
    return tap.mean_output()


def outputs_and_layers(
    snn: SpikingNetwork, inputs: Sequence[Tensor], reading: Reading | None = None
) -> tuple[Any, dict[str, Tensor]]:
    """(output, every neuron's mean output) for a batch, in the present reading or the one given."""
    recorder = Recorder()
    with snn.reading(reading or snn.present_reading):
        out = snn(*inputs, observer=recorder)
    return out, recorder.outputs


def powers(source: Mapping[str, Tensor]) -> Tensor:
    """Sum of squares of every layer's source activation over the batch, (layers,)."""
    sums = [x.square().sum().clamp_min(torch.finfo(x.dtype).tiny) for x in source.values()]
    return torch.stack(sums) if sums else torch.zeros(0)


def layer_distance(ours: Mapping[str, Tensor], source: Mapping[str, Tensor], total: Tensor | None = None) -> Tensor:
    """Mean over layers of sum (r - a)^2 / sum a^2; r mean output, a source activation, both (B, ...).

    `total` holds the denominators of the whole batch where these images are a part of it. The distance is the mean
    noise-to-signal power ratio: 0.1 stands for an SQNR of 10 dB.
    """
    total = powers(source) if total is None else total
    return torch.stack([(ours[name] - x).square().sum() for name, x in source.items()]).div(total).mean()
