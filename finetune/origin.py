"""What a run began with, so that only the same run is resumed, on whatever processor."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from speedysnn.finetune.config import Config
from speedysnn.network import SpikingNetwork

CLOSE = 1e-4  # of a tensor's summed magnitudes: another processor calibrates thresholds that differ in their last bits


@dataclass(frozen=True)
class Origin:
    """The settings of a run, exactly, and the network it began with, up to rounding.

    Attributes:
        settings: a digest of the settings, T, spikes and look-ahead.
        tensors: of each tensor by name: its size, summed magnitudes and two weighted sums.
    """

    settings: str
    tensors: Mapping[str, list[float]]

    @staticmethod
    def of(snn: SpikingNetwork, config: Config) -> "Origin":
        """What a run of this network with these settings begins with."""
        digest = hashlib.sha256(json.dumps([config.to_json(), snn.timesteps], sort_keys=True).encode())
        for name, neuron in snn.neurons.items():
            digest.update(repr((name, neuron.spikes, neuron.delay, neuron.surrogate, neuron.width)).encode())
        return Origin(digest.hexdigest(), {name: _figures(x) for name, x in sorted(snn.state_dict().items())})

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> "Origin":
        """What `to_json` wrote."""
        return Origin(str(data["settings"]), {str(k): [float(x) for x in v] for k, v in data["tensors"].items()})

    def to_json(self) -> dict[str, Any]:
        """As JSON data."""
        return {"settings": self.settings, "tensors": dict(self.tensors)}

    def odd(self, other: "Origin") -> str | None:
        """In words what differs in another, None where they are the same run's."""
        if self.settings != other.settings:
            return "other settings, T, spikes or look-ahead"
        if self.tensors.keys() != other.tensors.keys():
            return "a network of other layers"
        for name, own in self.tensors.items():
            theirs = other.tensors[name]
            far = any(not abs(a - b) <= CLOSE * own[1] for a, b in zip(own[1:], theirs[1:], strict=True))
            if own[0] != theirs[0] or far:
                return f"another network ({name!r} differs)"
        return None


def _figures(x: Tensor) -> list[float]:
    """Size, summed magnitudes, and the sums of the values and of them under weights that no order of them repeats."""
    values = x.detach().cpu().to(torch.float64).reshape(-1)
    weights = torch.arange(values.numel(), dtype=torch.float64).cos()
    return [values.numel(), float(values.abs().sum()), float(values.sum()), float(values @ weights)]
