"""What an observer of a pass is handed, layer by layer."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from speedysnn.kernels.elementwise import nonzero
from speedysnn.neurons.layer import IFNeuron


@dataclass(frozen=True)
class Tap:
    """What a neuron received and emitted in one pass, handed to an observer.

    Attributes:
        name: the neuron's name.
        neuron: the layer itself.
        drive: its input; (B, ...) if `static_drive`, else (T*B, ...), or what the observer `sees` of that: the sum over
            all steps, (B, ...), as the neuron adds it up, or nothing, (0,).
        output: what it emitted, (B, ...) in a static pass, else (T*B, ...).
        static_drive: the drive holds for every step.
        static_output: the output is the mean over time (analog or quantized reading).
        total: the drive is the sum over all steps, with the neuron's offset in it.
    """

    name: str
    neuron: IFNeuron
    drive: Tensor
    output: Tensor
    static_drive: bool
    static_output: bool
    total: bool = False

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
        return torch.round(self.steps() / self.neuron.per_channel(self.neuron.threshold, self.output.ndim))

    def received(self) -> tuple[Tensor, bool]:
        """What the neuron integrated, (B, ...), offset included: (sum over all steps, False) or (constant drive, True).

        The sum is built step by step, as the neuron builds it, so that a neuron that saw all of its input has the same
        count to the last tie.
        """
        if self.static_drive:
            return self.neuron.corrected(self.drive), True
        return (self.drive if self.total else self.neuron.total(self.drive)), False

    def events(self) -> int | Tensor:
        """Spike events: steps in which a neuron emitted anything, whatever its sign or grade.

        A GPU may still be counting them.
        """
        out, neuron = self.output, self.neuron
        if not self.static_output:
            return nonzero(out) if out.device.type == "cpu" else torch.count_nonzero(out)
        step = neuron.per_channel(neuron.threshold.detach(), out.ndim).to(torch.float64) / neuron.timesteps
        counts = torch.round(out.to(torch.float64) / step).abs()
        return int(counts.clamp_max(neuron.timesteps).sum())  # constant drive: one a step before any second one

    def spikes(self) -> Tensor:
        """Spikes of either sign, one of grade n as n of them: one number with its gradient."""
        neuron = self.neuron
        positive = not neuron.signed and (self.static_output or neuron.spikes == "binary")
        out = self.output if positive else self.output.abs()
        theta = neuron.per_channel(neuron.threshold, out.ndim)
        along = [dim for dim, size in enumerate(theta.shape) if size == 1 < out.shape[dim]]
        total = ((out.sum(along, keepdim=True) if along else out) / theta).sum()  # one division a channel
        return total * neuron.timesteps if self.static_output else total


Observer = Callable[[Tap], None]
_Some = TypeVar("_Some", bound=Callable[..., None])


def any_order(observer: _Some) -> _Some:
    """Mark an observer that takes a batch in parts, from several threads and in any order."""
    observer.any_order = True  # type: ignore[attr-defined]
    return observer


def sees(drive: str) -> Callable[[_Some], _Some]:
    """Mark an observer that needs no steps of a drive, only their "total" or "nothing": spikes may take its place."""

    def mark(observer: _Some) -> _Some:
        observer.sees = drive  # type: ignore[attr-defined]
        return observer

    return mark


def seen_by(observer: Observer | None) -> str:
    """What an observer needs of a drive that varies: "steps", if it does not say, their "total", or "nothing"."""
    return "nothing" if observer is None else str(getattr(observer, "sees", "steps"))
