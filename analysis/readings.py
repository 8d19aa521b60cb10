"""Run the readings side by side: the reference, the quantized twin, and spikes with every event counted."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from speedysnn.analysis.images import batch_dims
from speedysnn.errors import DataError, InputError, SpeedySNNError
from speedysnn.kernels.quantizer import levels
from speedysnn.modes import evaluating
from speedysnn.network import SpikingNetwork
from speedysnn.neurons import IFNeuron, Reading
from speedysnn.tap import Observer


def run(snn: SpikingNetwork, reading: Reading, inputs: Sequence[Tensor], observer: Observer | None = None) -> Any:
    """The network's output in one reading; the reading chosen outside stays.

    Raises:
        DataError: the network does not run on these inputs.
    """
    try:
        return snn.read(reading, *inputs, observer=observer)
    except SpeedySNNError:
        raise
    except RuntimeError as err:
        shapes = ", ".join(str(tuple(x.shape)) for x in inputs)
        reason = str(err).partition("\n")[0]
        raise DataError(f"data: the network does not run on a batch {shapes}: {reason}") from err


@dataclass(frozen=True)
class Reference:
    """What a network is compared with.

    Attributes:
        network: its analog reading gives the layers' activations, and the outputs where `module` is None.
        module: the original network, which gives the outputs.
        outputs: what the outputs are compared with, in words.
        layers: what the layers are compared with, in words.
    """

    network: SpikingNetwork
    module: nn.Module | None
    outputs: str
    layers: str

    @staticmethod
    def of(snn: SpikingNetwork, source: nn.Module | None) -> "Reference":
        """The reference that a `source` argument stands for.

        Raises:
            InputError: neither a module nor None, or a spiking network with other neurons.
        """
        own = "analog reading of the network itself"
        if source is None:
            return Reference(snn, None, own, own)
        if isinstance(source, SpikingNetwork):
            if list(source.neurons) != list(snn.neurons):
                odd = sorted(set(source.neurons) ^ set(snn.neurons)) or ["the order"]
                raise InputError(
                    f"source: expected a network with the same neurons, but {', '.join(odd[:4])} differ; "
                    "give the network as it was before tuning, or the original nn.Module"
                )
            other = "analog reading of the source network"
            return Reference(source, None, other, other)
        if isinstance(source, nn.Module):
            return Reference(snn, source, "source module", own + ": a plain module can be compared at its outputs only")
        raise InputError(f"source: expected a SpikingNetwork, an nn.Module or None, got {type(source).__name__}")

    def analog(self, inputs: Sequence[Tensor], observer: Observer | None = None) -> Any:
        """The reference output; the observer sees the network's analog taps. One forward, two with a module."""
        if self.module is None:
            return run(self.network, "analog", inputs, observer)
        if observer is not None:
            run(self.network, "analog", inputs, observer)
        device = next((p.device for p in self.module.parameters()), inputs[0].device)
        means = [x.mean(0) if dim else x for x, dim in zip(inputs, batch_dims(self.network, inputs), strict=True)]
        with evaluating(self.module):
            return self.module(*(x.to(device) for x in means))


def mean_of(outs: Sequence[Tensor]) -> Tensor:
    """Mean over time of what a neuron emitted, step by step or already the mean; float64, the activation's unit."""
    total = outs[0].to(torch.float64)
    for emitted in outs[1:]:
        total = total + emitted
    return total / len(outs)


def reached_counts(drive: Tensor, constant: bool, theta: Tensor, start: Tensor, neuron: IFNeuron) -> Tensor:
    """Spikes that the time mean of the drive, held for all steps, would have given; whole numbers.

    Shapes: drive (..., C) as `Tap.received` gives it, theta and start () or (C,), or any that broadcast.
    """
    if constant:
        return levels(drive, theta, start, neuron.timesteps, neuron.levels_per_step, neuron.signed)
    most = neuron.timesteps * neuron.levels_per_step
    return torch.floor(drive / theta + start).clamp_(-most if neuron.signed else 0, most)


def leaves(out: Any) -> list[Tensor]:
    """The tensors of a network's output, nested tuples and dicts opened in order."""
    if isinstance(out, Tensor):
        return [out]
    items = [out[key] for key in sorted(out, key=str)] if isinstance(out, Mapping) else list(out)
    return [leaf for item in items for leaf in leaves(item)]
