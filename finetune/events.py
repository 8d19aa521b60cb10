"""Spikes and neurons counted while a network is evaluated, plain and weighted by fan-out."""

import threading
from collections.abc import Mapping

from speedysnn.tap import Tap, any_order


class Events:
    """Counts spikes (of either sign) and neurons times images, plain and weighted by fan-out, in `sums`."""

    def __init__(self, fan_out: Mapping[str, float]) -> None:
        self.sums, self._lock, self._fan_out = [0.0, 0.0, 0.0, 0.0], threading.Lock(), fan_out

    @any_order
    def count(self, tap: Tap) -> None:
        """Add a layer's spikes and neurons: an observer, from any thread and in any order."""
        neuron = tap.neuron
        if tap.static_output:
            fired, neurons = neuron.counts(tap.drive), tap.output.numel()
        else:
            fired = tap.output / neuron.per_channel(neuron.threshold, tap.output.ndim)
            neurons = tap.output.numel() // neuron.timesteps
        events, weight = float(fired.abs().sum()), self._fan_out.get(tap.name, 1.0)
        with self._lock:
            for i, value in enumerate((events, neurons, weight * events, weight * neurons)):
                self.sums[i] += value
