"""Spikes and neurons counted while a network is evaluated, plain and weighted by fan-out."""

import threading
from collections.abc import Mapping

from speedysnn.finetune.penalties import spikes_of
from speedysnn.kernels.nonzero import nonzero
from speedysnn.tap import Tap, any_order, sees


class Events:
    """Counts spikes (of either sign) and neurons times images, plain and weighted by fan-out, in `sums`."""

    def __init__(self, fan_out: Mapping[str, float]) -> None:
        self.sums, self._lock, self._fan_out = [0.0, 0.0, 0.0, 0.0], threading.Lock(), fan_out

    @any_order
    @sees("nothing")
    def count(self, tap: Tap) -> None:
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


def _grades(tap: Tap) -> float:
    """Spikes of a train, one of grade n as n of them."""
    if tap.neuron.levels_per_step == 1:
        return float(nonzero(tap.output))
    return float(spikes_of(tap))
