"""Thresholds from data: `Calibration` is the record of histograms and rules, from which all can be chosen again."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from speedysnn.calibration.distributions import least_squares as least_squares
from speedysnn.calibration.histogram import ActivationHistogram as ActivationHistogram
from speedysnn.calibration.rules import CLIP as CLIP
from speedysnn.calibration.rules import RULES as RULES
from speedysnn.calibration.rules import Request as Request
from speedysnn.calibration.rules import Rule as Rule
from speedysnn.calibration.rules import ThresholdRule as ThresholdRule
from speedysnn.calibration.rules import choose as choose
from speedysnn.calibration.rules import predicted_rate as predicted_rate
from speedysnn.errors import ArtifactError, InputError
from speedysnn.neurons.layer import IFNeuron

GIVEN = "given"  # in place of a rule: the user gave theta as a value, which stays


@dataclass
class Calibration:
    """What a network needs to choose its thresholds again: each layer's histogram and rule.

    Attributes:
        histograms: by layer.
        rules: by layer, the name of a rule in `speedysnn.calibration.rules.RULES` or `functions`; "given" for a value.
        functions: rules that came as functions, by name; they are not saved with the network.

    Example:
        >>> import torch
        >>> from speedysnn import IFNeuron
        >>> from speedysnn.calibration import ActivationHistogram, Calibration
        >>> hist = ActivationHistogram()
        >>> hist.update(torch.tensor([[1.0, 2.0, 4.0]]))
        >>> calibration = Calibration({"relu": hist}, {"relu": "max"})
        >>> neuron = IFNeuron(threshold=1.0, timesteps=8)
        >>> calibration.choose_again("relu", neuron)
        >>> neuron.threshold.item()
        4.0
    """

    histograms: dict[str, ActivationHistogram] = field(default_factory=dict)
    rules: dict[str, str] = field(default_factory=dict)
    functions: dict[str, ThresholdRule] = field(default_factory=dict)

    def choose_again(self, name: str, neuron: IFNeuron) -> None:
        """Choose a layer's theta for its present T, v_init and spikes; one that was given as a value stays.

        A learned clip stays the full scale N theta. An amplitude belongs to the theta that it was set for: where theta
        is chosen again, a spike stands for theta again.

        Args:
            name: of the layer.
            neuron: the layer, whose theta is set.

        Raises:
            InputError: the layer's rule was a function, which is not saved with a network.
        """
        if self.rules.get(name) == CLIP and neuron.ceiling is not None:
            neuron.set_threshold(torch.full_like(neuron.threshold, neuron.ceiling / neuron.levels_per_step))
            neuron.set_amplitude(None)
            return
        theta = self.theta(name, neuron, neuron.timesteps)
        if theta is not None:
            neuron.set_threshold(theta if neuron.granularity == "channel" else theta[0])
            neuron.set_amplitude(None)

    def theta(self, name: str, neuron: IFNeuron, timesteps: int) -> Tensor | None:
        """Return the theta that a layer's rule chooses for a number of steps, without setting it.

        Args:
            name: of the layer.
            neuron: the layer.
            timesteps: T.

        Returns:
            Theta (C,), or None where it was given as a value, or where no activation says what it should be.

        Raises:
            InputError: the layer's rule was a function, which is not saved with a network.
        """
        rule, hist = self.rules.get(name, GIVEN), self.histograms.get(name)
        if rule == GIVEN or hist is None or (rule not in self.functions and self.silent(name)):
            return None
        return choose(
            hist, self._known_rule(name, rule), neuron.v_init, timesteps, neuron.levels_per_step,
            signed=neuron.signed, layer=name,
        )  # fmt: skip

    def silent(self, name: str) -> bool:
        """Whether no activation of a layer was other than zero (or positive, where it is not signed) on the data."""
        hist = self.histograms.get(name)
        return hist is not None and not bool((hist.maximum > 0).any())

    def _known_rule(self, layer: str, rule: str) -> Rule:
        own = self.functions.get(rule)
        if own is None and rule != CLIP and rule.partition(":")[0] not in RULES:
            raise InputError(
                f"layer {layer!r}: its threshold rule {rule!r} is not known here, as functions are not saved with a "
                f"network; add it again, speedysnn.calibration.RULES[{rule!r}] = ..., or convert with another rule"
            )
        return own or rule

    def predicted_rate(self, name: str, neuron: IFNeuron) -> float | None:
        """Predict a layer's spikes per neuron and step under constant drive on the calibration data.

        Args:
            name: of the layer.
            neuron: the layer.

        Returns:
            The rate, or None without a histogram.
        """
        hist = self.histograms.get(name)
        if hist is None:
            return None
        theta = neuron.threshold.detach()
        return predicted_rate(
            hist, theta, neuron.v_init, neuron.timesteps, neuron.levels_per_step, signed=neuron.signed
        )


def check_histograms(histograms: Mapping[str, ActivationHistogram], neurons: Mapping[str, IFNeuron]) -> None:
    """Refuse histograms of another number of channels than the thresholds they are kept for.

    Raises:
        ArtifactError: the layer, and both numbers.
    """
    for name, histogram in histograms.items():
        neuron = neurons.get(name)
        if neuron is None:
            raise ArtifactError(f"histogram {name!r}: no neuron is called so")
        rows = histogram.channels // 2 if neuron.signed else histogram.channels
        if neuron.log_threshold.numel() not in (1, rows) or neuron.v_init.numel() not in (1, rows):
            raise ArtifactError(
                f"histogram {name!r} has {rows} channels, its neuron {neuron.log_threshold.numel()} thresholds and "
                f"{neuron.v_init.numel()} initial membranes"
            )
