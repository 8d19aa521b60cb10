"""Spikes counted and limited: a budget, a penalty on membranes that end outside [0, theta), and the held-out count."""

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from speedysnn.execution.observers import LayerRecord, any_order, needs_input
from speedysnn.finetune.objectives import mean_output
from speedysnn.kernels.elementwise import nonzero


def spikes_of(tap: LayerRecord) -> Tensor:
    """Spikes of either sign that a layer emitted for a batch, one differentiable number.

    Returns:
        One number.
    """
    return tap.spikes()


def neurons_of(tap: LayerRecord) -> int:
    """Neurons of a layer times images.

    Returns:
        A count.
    """
    return tap.neurons


def membrane_penalty(tap: LayerRecord) -> Tensor:
    """Mean square of how far membranes end outside [0, theta), in thetas; 0 in a static pass.

    u = sum_t x[t] / theta + v_init - n counts where it is below 0 after a spike (fired too early) and where it is 1 or
    more with spikes left (fired too late); a saturated neuron's is clipping, a silent one's below 0 is right.

    Returns:
        One number with a gradient.
    """
    if tap.static_output:
        return tap.output.new_zeros(())
    neuron, steps = tap.neuron, tap.neuron.timesteps
    z = neuron.corrected(tap.drive)
    total = z * steps if tap.static_drive else z.view(steps, -1, *z.shape[1:]).sum(0)
    theta, start = (neuron.per_channel(x, total.ndim) for x in (neuron.threshold, neuron.v_init))
    count = mean_output(tap) * steps / theta
    residual = total / theta + start - count
    early = (-residual).clamp_min(0) * (count.abs() > 0.5)
    late = (residual - 1).clamp_min(0) * (count < steps * neuron.levels_per_step - 0.5)
    return (early + late).square().mean()


_AIM = 0.97


@dataclass
class Budget:
    """Holds the spikes a neuron and image under a limit: a linear penalty near and above it.

    penalty = weight 2^k r / limit while the running mean of r exceeds 0.97 limit, else 0: the margin is for held-out
    images and for what the running mean lags; k counts the stage's epochs that ended above the limit.
    r = sum_l f_l spikes_l / sum_l f_l neurons_l, f_l the layer's fan-out or 1.

    Attributes:
        limit: most spikes a neuron and image.
        weight: of the penalty in the first epoch.
        fan_out: f_l by neuron name; 1 where a layer is not named.
        running: running mean of r.
        doublings: k.
    """

    limit: float
    weight: float
    fan_out: Mapping[str, float] = field(default_factory=dict)
    running: float = 0.0
    doublings: int = 0

    def rates(self) -> "Rates":
        """What counts r in one pass under this limit.

        Returns:
            A fresh counter.
        """
        return Rates(self.fan_out, self.factor > 0)

    @property
    def factor(self) -> float:
        """What r is multiplied by in the loss now."""
        return self.weight * 2.0**self.doublings / self.limit if self.running > _AIM * self.limit else 0.0

    def update(self, rate: float) -> None:
        """Take in a batch's r."""
        self.running += 0.1 * (rate - self.running)

    def begin(self, rates: list[float]) -> None:
        """Start an epoch of a stage whose states so far, the first included, had these held-out rates."""
        self.running = rates[-1]
        self.doublings = sum(rate > self.limit for rate in rates[1:])

    def excess(self, rate: float) -> float:
        """max(0, r / limit - 1).

        Returns:
            0 where the budget is met.
        """
        return max(0.0, rate / self.limit - 1)


class Rates:
    """Adds up r, and the membrane penalty, over the layers of one pass.

    r has a gradient only where it counts in the loss (`trained`).
    """

    def __init__(self, fan_out: Mapping[str, float], trained: bool = True) -> None:
        self.fan_out, self._trained = fan_out, trained
        self.spikes: list[Tensor] = []
        self.membranes: list[Tensor] = []
        self.neurons = 0.0

    def take(self, tap: LayerRecord, membrane: bool = False) -> None:
        """One layer."""
        weight = self.fan_out.get(tap.name, 1.0)
        with torch.set_grad_enabled(self._trained and torch.is_grad_enabled()):
            self.spikes.append(weight * spikes_of(tap))
        self.neurons += weight * neurons_of(tap)
        if membrane:
            self.membranes.append(membrane_penalty(tap))

    @property
    def rate(self) -> Tensor:
        """R of the pass."""
        return torch.stack(self.spikes).sum() / max(self.neurons, 1e-12)

    @property
    def membrane(self) -> Tensor:
        """Mean over layers."""
        return torch.stack(self.membranes).mean()


class Events:
    """Counts spikes (of either sign) and neurons times images, plain and weighted by fan-out, in `sums`."""

    def __init__(self, fan_out: Mapping[str, float]) -> None:
        self.sums, self._lock, self._fan_out = [0.0, 0.0, 0.0, 0.0], threading.Lock(), fan_out

    @any_order
    @needs_input("nothing")
    def count(self, tap: LayerRecord) -> None:
        """Add a layer's spikes and neurons: an observer, from any thread and in any order."""
        neuron = tap.neuron
        if tap.static_output:
            events, neurons = float(neuron.counts(tap.drive).abs().sum()), tap.output.numel()
        else:
            events, neurons = _grades(tap), tap.output.numel() // neuron.timesteps
        weight = self._fan_out.get(tap.name, 1.0)
        with self._lock:
            for i, value in enumerate((events, neurons, weight * events, weight * neurons)):
                self.sums[i] += value


def _grades(tap: LayerRecord) -> float:
    """Spikes of a train, one of grade n as n of them."""
    if tap.neuron.levels_per_step == 1:
        return float(nonzero(tap.output))
    return float(spikes_of(tap))
