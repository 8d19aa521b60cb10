"""Penalties on spikes and membranes in the loss, and the count of spikes on held-out images."""

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from speedysnn.execution.observers import LayerRecord, any_order, needs_input
from speedysnn.kernels.numba_backend import nonzero

_MARGIN = 0.97  # of the limit, above which the penalty acts


def membrane_penalty(tap: LayerRecord) -> Tensor:
    """Penalise membranes that end outside [0, theta): the mean square of how far outside, in units of theta.

    u = sum_t x[t] / theta + v_init - n is the membrane that is left after n spikes. It counts where it is below 0 after
    a spike (the neuron fired too early) and where it is 1 or more although the neuron could have spiked again (it fired
    too late). The rest of a saturated neuron is clipping error, and a silent neuron's negative rest is right:
    neither counts.

    Args:
        tap: what the layer received and emitted.

    Returns:
        One number with a gradient, 0 in a static pass.
    """
    if tap.static_output:
        return tap.output.new_zeros(())
    neuron, steps = tap.neuron, tap.neuron.timesteps
    z = neuron.corrected(tap.drive)
    total = z * steps if tap.static_drive else z.view(steps, -1, *z.shape[1:]).sum(0)
    theta, start = (neuron.per_channel(x, total.ndim) for x in (neuron.threshold, neuron.v_init))
    count = tap.mean_output() * steps / neuron.per_channel(neuron.amplitude, total.ndim)
    residual = total / theta + start - count
    early = (-residual).clamp_min(0) * (count.abs() > 0.5)
    late = (residual - 1).clamp_min(0) * (count < steps * neuron.levels_per_step - 0.5)
    return (early + late).square().mean()


@dataclass
class Budget:
    """Holds the spikes per neuron and image under a limit, by a linear penalty near and above it.

    penalty = weight 2^k r / limit while the running mean of r exceeds 0.97 limit, else 0. The margin allows for
    held-out images and for the lag of the running mean; k counts the stage's epochs that ended above the limit.
    r = sum_l f_l spikes_l / sum_l f_l neurons_l, f_l the layer's fan-out or 1.

    Attributes:
        limit: most spikes a neuron and image.
        weight: of the penalty in the first epoch.
        fan_out: f_l by neuron name; 1 where a layer is not named.
        running: running mean of r.
        doublings: k.

    Example:
        >>> from speedysnn.finetune.penalties import Budget
        >>> budget = Budget(limit=0.5, weight=1.0)
        >>> budget.begin([0.8, 0.7, 0.6])  # two epochs ended above the limit
        >>> budget.factor, round(budget.excess(0.6), 3)
        (8.0, 0.2)
        >>> budget.begin([0.8, 0.4])
        >>> budget.factor
        0.0
    """

    limit: float
    weight: float
    fan_out: Mapping[str, float] = field(default_factory=dict)
    running: float = 0.0
    doublings: int = 0

    def rates(self) -> "Rates":
        """Make what counts r in one pass under this limit.

        Returns:
            A fresh counter.
        """
        return Rates(self.fan_out, self.factor > 0)

    @property
    def factor(self) -> float:
        """The factor on r in the loss now."""
        return self.weight * 2.0**self.doublings / self.limit if self.running > _MARGIN * self.limit else 0.0

    def update(self, rate: float) -> None:
        """Take a batch's r into the running mean.

        Args:
            rate: r.
        """
        self.running += 0.1 * (rate - self.running)

    def begin(self, rates: list[float]) -> None:
        """Start an epoch.

        Args:
            rates: held-out rates of the stage so far: that of its first state, then one an epoch.
        """
        self.running = rates[-1]
        self.doublings = sum(rate > self.limit for rate in rates[1:])

    def excess(self, rate: float) -> float:
        """Compute the share by which the limit is exceeded: max(0, r / limit - 1).

        Args:
            rate: r.

        Returns:
            0 where the budget is met.
        """
        return max(0.0, rate / self.limit - 1)


class Rates:
    """Adds up r, and the membrane penalty, over the layers of one pass.

    Args:
        fan_out: f_l by neuron name; 1 where a layer is not named.
        trained: whether r counts in the loss and so needs a gradient.
    """

    def __init__(self, fan_out: Mapping[str, float], trained: bool = True) -> None:
        self.fan_out, self._trained = fan_out, trained
        self.spikes: list[Tensor] = []
        self.membranes: list[Tensor] = []
        self.neurons = 0.0

    def take(self, tap: LayerRecord, membrane: bool = False) -> None:
        """Add one layer.

        Args:
            tap: what the layer received and emitted.
            membrane: whether its membrane penalty counts too.
        """
        weight = self.fan_out.get(tap.name, 1.0)
        with torch.set_grad_enabled(self._trained and torch.is_grad_enabled()):
            self.spikes.append(weight * tap.spikes())
        self.neurons += weight * tap.neurons
        if membrane:
            self.membranes.append(membrane_penalty(tap))

    @property
    def rate(self) -> Tensor:
        """Spikes per neuron and image over the layers so far: r."""
        return torch.stack(self.spikes).sum() / max(self.neurons, 1e-12)

    @property
    def membrane(self) -> Tensor:
        """The membrane penalty's mean over the layers so far."""
        return torch.stack(self.membranes).mean()


class Events:
    """An observer that counts spikes of either sign, from any thread and in any order.

    Attributes:
        sums: spikes and neurons times images, then both weighted by fan-out.
    """

    def __init__(self, fan_out: Mapping[str, float]) -> None:
        self.sums, self._lock, self._fan_out = [0.0, 0.0, 0.0, 0.0], threading.Lock(), fan_out

    @any_order
    @needs_input("nothing")
    def count(self, tap: LayerRecord) -> None:
        """Add a layer's spikes and neurons.

        Args:
            tap: what the layer received and emitted.
        """
        neuron = tap.neuron
        if tap.static_output:
            events, neurons = float(neuron.counts(tap.drive).abs().sum()), tap.output.numel()
        else:
            events, neurons = _emitted(tap), tap.output.numel() // neuron.timesteps
        weight = self._fan_out.get(tap.name, 1.0)
        with self._lock:
            for i, value in enumerate((events, neurons, weight * events, weight * neurons)):
                self.sums[i] += value


def _emitted(tap: LayerRecord) -> float:
    """Count the spikes of a train, one of grade n as n of them."""
    if tap.neuron.levels_per_step == 1:
        return float(nonzero(tap.output))
    return float(tap.spikes())
