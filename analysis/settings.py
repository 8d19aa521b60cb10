"""One setting of a network moved."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

from speedysnn.errors import InputError
from speedysnn.network import SpikingNetwork

Case = tuple[str, Any]


def apply(snn: SpikingNetwork, case: Case) -> None:
    """Set a knob in place."""
    name, value = case
    if name == "timesteps":
        snn.timesteps = value
    elif name == "delay":
        snn.set_delay(value)
    elif name == "spikes":
        snn.set_spikes(value)
    else:
        for neuron in snn.neurons.values():
            if name == "theta_scale":
                neuron.log_threshold.data = neuron.log_threshold.data + math.log(value)
            else:
                neuron.v_init.data = torch.full_like(neuron.v_init.data, value)


def check(snn: SpikingNetwork, cases: Sequence[Case], reset: Callable[[], None]) -> None:
    """Refuse values out of range before any work."""
    for name, value in cases:
        if name == "theta_scale" and not value > 0:
            raise InputError(f"theta_scale: expected factors above 0, got {value!r}")
        if name == "v_init" and not 0 <= value <= 1:
            raise InputError(f"v_init: expected fractions of theta in 0..1, got {value!r}")
        apply(snn, (name, value))
        reset()
