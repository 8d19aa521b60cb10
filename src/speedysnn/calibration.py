"""What calibration leaves with a network: histograms and rules, from which every theta can be chosen again."""

from dataclasses import dataclass, field

import torch

from speedysnn import thresholds
from speedysnn.histogram import ActivationHistogram
from speedysnn.neurons import IFNeuron
from speedysnn.thresholds import CLIP


@dataclass
class Calibration:
    """What `recalibrate` needs: the activations' histograms and the rule that chose each layer's theta."""

    histograms: dict[str, ActivationHistogram] = field(default_factory=dict)
    rules: dict[str, str] = field(default_factory=dict)

    def choose_again(self, name: str, neuron: IFNeuron) -> None:
        """Choose the named layer's theta for its present T, v_init and spikes; one given as a value stays.

        A learned clip stays the full scale N theta.
        """
        rule, hist, highest = self.rules.get(name, "given"), self.histograms.get(name), neuron.levels_per_step
        if rule == CLIP and neuron.ceiling is not None:
            neuron.set_threshold(torch.full_like(neuron.threshold, neuron.ceiling / highest))
            return
        if rule == "given" or hist is None:
            return
        theta = thresholds.choose(
            hist, rule, neuron.v_init, neuron.timesteps, highest, signed=neuron.signed, layer=name
        )
        neuron.set_threshold(theta if neuron.granularity == "channel" else theta.squeeze(0))

    def predicted_rate(self, name: str, neuron: IFNeuron) -> float | None:
        """Spikes per neuron and step under constant drive on the calibration data; None without a histogram."""
        hist = self.histograms.get(name)
        if hist is None:
            return None
        theta = neuron.threshold.detach()
        return thresholds.predicted_rate(
            hist, theta, neuron.v_init, neuron.timesteps, neuron.levels_per_step, signed=neuron.signed
        )
