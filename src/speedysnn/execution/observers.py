"""What a network hands an observer of a pass: one record a neuron layer.

An observer is any function of one `LayerRecord`. Two marks make it cheaper: `any_order`, for one that may be called
from several threads, and `needs_input`, for one that does not read every step of a layer's input.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from speedysnn.kernels.numba_backend import nonzero
from speedysnn.neurons.layer import IFNeuron


@dataclass(frozen=True)
class LayerRecord:
    """What one layer of neurons received and emitted in one pass.

    Attributes:
        name: the layer's name in the network.
        neuron: the layer itself.
        drive: the layer's input, in the activation's unit: (B, ...) if `static_drive`, else (T*B, ...) time-major. For
            an observer marked with `needs_input` it is the sum over all steps, (B, ...), or an empty tensor (0,).
        output: what the layer emitted: (B, ...) if `static_output`, else (T*B, ...).
        static_drive: the drive is the same in every step.
        static_output: the output is the mean over time (analog or quantized reading).
        is_sum: the drive is the sum over all steps, with the neuron's offset in it.

    Example:
        >>> import torch
        >>> from speedysnn.execution.observers import LayerRecord
        >>> from speedysnn.neurons import IFNeuron
        >>> neuron = IFNeuron(1.0, timesteps=2)
        >>> drive = torch.tensor([[0.9], [0.2]])  # T = 2 steps of one image with one value
        >>> record = LayerRecord("relu", neuron, drive, neuron(drive), static_drive=False, static_output=False)
        >>> record.counts().flatten().tolist(), record.events(), record.mean_output().tolist()
        ([1.0, 0.0], 1, [[0.5]])
    """

    name: str
    neuron: IFNeuron
    drive: Tensor
    output: Tensor
    static_drive: bool
    static_output: bool
    is_sum: bool = False

    @property
    def neurons(self) -> int:
        """Neurons of the layer times images."""
        return self.output.numel() // (1 if self.static_output else self.neuron.timesteps)

    def steps(self) -> Tensor:
        """What was emitted in every step, (T, B, ...); what holds for all of them repeated."""
        return self._over_steps(self.output, self.static_output)

    def drive_steps(self) -> Tensor:
        """What was received in every step, (T, B, ...); what holds for all of them repeated."""
        return self._over_steps(self.drive, self.static_drive)

    def _over_steps(self, x: Tensor, static: bool) -> Tensor:
        steps = self.neuron.timesteps
        return x.expand(steps, *x.shape) if static else x.view(steps, x.shape[0] // steps, *x.shape[1:])

    def mean_output(self) -> Tensor:
        """The output averaged over the steps, (B, ...), with its gradient."""
        return self.output if self.static_output else self.steps().mean(0)

    def counts(self) -> Tensor:
        """Spikes in every step, signed and graded, (T, B, ...) whole numbers."""
        return torch.round(self.steps() / self.neuron.per_channel(self.neuron.amplitude, self.output.ndim))

    def received(self) -> tuple[Tensor, bool]:
        """What the neuron integrated, (B, ...), offset included: (sum over all steps, False) or (constant drive, True).

        The sum is built step by step, as the neuron builds it, so that a neuron that saw all of its input has the same
        count to the last tie.
        """
        if self.static_drive:
            return self.neuron.corrected(self.drive), True
        return (self.drive if self.is_sum else self.neuron.total(self.drive)), False

    def events(self) -> int | Tensor:
        """Spike events: steps in which a neuron emitted anything, whatever its sign or grade.

        A GPU may still be counting them.
        """
        out, neuron = self.output, self.neuron
        if not self.static_output:
            return nonzero(out) if out.device.type == "cpu" else torch.count_nonzero(out)
        step = neuron.per_channel(neuron.amplitude.detach(), out.ndim).to(torch.float64) / neuron.timesteps
        counts = torch.round(out.to(torch.float64) / step).abs()
        return int(counts.clamp_max(neuron.timesteps).sum())  # constant drive: one a step before any second one

    def spikes(self) -> Tensor:
        """Spikes of either sign, one of grade n as n of them: one number with its gradient."""
        neuron = self.neuron
        positive = not neuron.signed and (self.static_output or neuron.spikes == "binary")
        out = self.output if positive else self.output.abs()
        unit = neuron.per_channel(neuron.amplitude, out.ndim)
        along = [dim for dim, size in enumerate(unit.shape) if size == 1 < out.shape[dim]]
        total = ((out.sum(along, keepdim=True) if along else out) / unit).sum()  # one division a channel
        return total * neuron.timesteps if self.static_output else total


Tap = LayerRecord  # the name that the class had before; it goes in 0.3
Observer = Callable[[LayerRecord], None]
_Some = TypeVar("_Some", bound=Callable[..., None])


def any_order(observer: _Some) -> _Some:
    """Mark an observer that takes a batch in parts, from several threads and in any order.

    Args:
        observer: a function of one `LayerRecord`; what it changes must be safe to change from several threads.

    Returns:
        The same function, marked. A network may then cut the batch into passes.
    """
    observer.any_order = True  # type: ignore[attr-defined]
    return observer


def needs_input(drive: str) -> Callable[[_Some], _Some]:
    """Mark an observer that does not read every step of a layer's input, so that spikes may be written over it.

    Args:
        drive: "sum" for an observer that reads the input's sum over all steps, "nothing" for one that reads none of it.

    Returns:
        A decorator, which gives the same function back, marked.

    Example:
        >>> import torch
        >>> from speedysnn import convert
        >>> from speedysnn.assets.digits import load_digits_net
        >>> from speedysnn.execution.observers import needs_input
        >>> snn = convert.to_spiking(load_digits_net(), torch.rand(4, 1, 8, 8), timesteps=2)
        >>> @needs_input("nothing")
        ... def count(record):
        ...     events.append(record.events())
        >>> events = []
        >>> with torch.no_grad():
        ...     _ = snn(torch.rand(4, 1, 8, 8), observer=count)
        >>> len(events) == len(snn.neurons)
        True
    """

    def mark(observer: _Some) -> _Some:
        observer.needs_input = drive  # type: ignore[attr-defined]
        return observer

    return mark


def input_needed(observer: Observer | None) -> str:
    """What an observer reads of an input that varies: "steps" unless it is marked, else its "sum", or "nothing"."""
    return "nothing" if observer is None else str(getattr(observer, "needs_input", "steps"))
