"""DelayChoice: the look-aheads that a search found, and how it found them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from speedysnn.analysis.strict import plain
from speedysnn.errors import InputError
from speedysnn.network import SpikingNetwork

SCORES = ("images", "accuracy", "agreement", "sqnr_db", "spikes_per_neuron", "spikes_per_inference")
TRIED = ("step", "layer", "latency", "lookahead", "kept", *SCORES)


@dataclass(frozen=True)
class DelayChoice:
    """The look-aheads that `choose_delay` found.

    Attributes:
        delays: look-ahead of every neuron layer, in steps.
        latency: T plus the look-aheads along the longest path, in steps.
        uniform_latency: the least latency at which one look-ahead for all layers keeps the targets.
        timesteps: T it was chosen for.
        targets: what had to be kept, by name.
        figures: accuracy, agreement, SQNR and spikes at the choice, on the images it was chosen on.
        temporal_db: by layer, 10 log10(sum r^2 / sum (r - Q(z'))^2) without look-ahead; +inf where time does no harm.
        tried: one row a setting, columns `TRIED` and one "delay NAME" a layer; `lookahead` is the sum over all layers.
    """

    delays: Mapping[str, int]
    latency: int
    uniform_latency: int
    timesteps: int
    targets: Mapping[str, float]
    figures: Mapping[str, Any]
    temporal_db: Mapping[str, float]
    tried: pd.DataFrame

    def apply(self, snn: SpikingNetwork) -> None:
        """Give the network these look-aheads.

        Raises:
            InputError: a network with other neuron layers, or at another T.
        """
        if set(snn.neurons) != set(self.delays):
            raise InputError(f"apply: expected the network of the choice ({len(self.delays)} neuron layers), got one "
                             f"of {len(snn.neurons)} with other names; choose for this network")  # fmt: skip
        if snn.timesteps != self.timesteps:
            raise InputError(f"apply: chosen for T = {self.timesteps}, the network runs T = {snn.timesteps}; "
                             "set snn.timesteps, or choose again")  # fmt: skip
        snn.set_delay(self.delays)

    def to_json(self) -> dict[str, Any]:
        """The choice as strict JSON data; infinities are words, what was not measured is null."""
        rows = [{str(name): plain(value) for name, value in row.items()} for row in self.tried.to_dict("records")]
        return {
            "delays": dict(self.delays),
            "latency": self.latency,
            "uniform_latency": self.uniform_latency,
            "timesteps": self.timesteps,
            "targets": dict(self.targets),
            "figures": {name: plain(value) for name, value in self.figures.items()},
            "temporal_db": {name: plain(value) for name, value in self.temporal_db.items()},
            "tried": rows,
        }
