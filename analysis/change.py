"""One change to one layer, and how it is carried out on a network."""

from dataclasses import dataclass
from typing import Any

from speedysnn.errors import InputError
from speedysnn.network import SpikingNetwork
from speedysnn.neurons import IFNeuron

CHANGES = {
    "bit": "one more bit: spikes of up to 2 N at once and half of theta, so that its steps are half as wide",
    "threshold": "theta of least squared error on the histogram of its activations, for the present T and v_init",
    "bit+threshold": "one more bit, and theta of least squared error for it",
    "bias": "a constant current a channel, which takes the mean error of its spiking output away",
    "look-ahead": "the layer sees one step more before it answers; one step of latency, no more spikes",
}


@dataclass(frozen=True, eq=False)
class Change:
    """One change of one layer.

    Attributes:
        layer: its name.
        kind: a key of `CHANGES`.
        neuron: the layer after the change, a copy.
        twin: what stands for it in the quantized reading.
    """

    layer: str
    kind: str
    neuron: IFNeuron
    twin: IFNeuron

    def apply(self, snn: SpikingNetwork) -> None:
        """Carry it out on a network in place; what the change is not about stays, so that two of them add up.

        Raises:
            InputError: the network has no such layer, or one with another number of thresholds.
        """
        if self.layer not in snn.neurons:
            raise InputError(
                f"apply: the network has no neuron layer {self.layer!r}; there are {', '.join(snn.neurons)}"
            )
        neuron, fresh = snn.neurons[self.layer], self.neuron
        if neuron.log_threshold.shape != fresh.log_threshold.shape:
            raise InputError(
                f"apply: layer {self.layer!r} has {neuron.log_threshold.numel()} thresholds, the one that was measured "
                f"{fresh.log_threshold.numel()}; measure this network itself"
            )
        if "bit" in self.kind or self.kind == "threshold":
            neuron.set_threshold(fresh.threshold.detach())
            neuron.spikes = fresh.spikes
        if self.kind == "look-ahead":
            neuron.delay = fresh.delay
        if self.kind == "bias" and fresh.offset is not None:
            neuron.offset = fresh.offset.detach().clone().to(neuron.log_threshold)
            snn.provenance.setdefault("correction", {"kind": "bias", "timesteps": snn.timesteps})  # see `uncorrect`
        made = {"layer": self.layer, "change": self.kind, "timesteps": snn.timesteps}
        snn.provenance = {**snn.provenance, "changed": [*snn.provenance.get("changed", []), made]}
        snn.reset()

    def settings(self) -> dict[str, Any]:
        """What the layer is set to, as JSON data."""
        offset = self.neuron.offset
        return {
            "theta": self.neuron.threshold.detach().tolist(),
            "spikes": self.neuron.spikes,
            "delay": self.neuron.delay,
            "offset": None if offset is None else offset.tolist(),
        }
