"""What a network's provenance says was done to it: corrections, which can be taken back, and tuning."""

from collections.abc import Mapping
from typing import Any

from speedysnn.neurons import IFNeuron
from speedysnn.parts import Parts


def uncorrected(neurons: Mapping[str, IFNeuron], provenance: dict[str, Any]) -> None:
    """Take a correction back: no offsets, and v_init as it was before where the correction changed it."""
    made = provenance.pop("correction", None)
    if made is None:
        return
    for name, neuron in neurons.items():
        neuron.offset = None
        if "potential" in made["kind"]:
            neuron.v_init.data = neuron.v_init.new_tensor(made["v_init"][name])


def weights_tuned(snn: Parts) -> bool:
    """Whether tuning changed weights or biases, so that the analog reading is no longer the source network."""
    return any({"weights", "biases"} & set(run["config"]["train"]) for run in snn.provenance.get("finetuned", []))
