"""What a run of tuning did: its history, what changed in every layer, and its entry in the provenance."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import pandas as pd
import torch

from speedysnn.finetune.checkpoint import RunState
from speedysnn.finetune.config import Config
from speedysnn.network import SpikingNetwork
from speedysnn.notebook import block


@dataclass(frozen=True)
class Result:
    """What a run did.

    Attributes:
        history: one row an epoch; epoch 0 of a stage is the state before it.
        best_epoch: epoch of the last stage whose state was kept, 0 if none was better than the start.
        best_score: its held-out figure, by `Config.keep` (far less where it exceeds the budget); higher is better.
        seconds: wall time of this call.
        config: the settings.
        layers: one row a layer: mean ratio of theta after to before, v_init and spikes a neuron before and after (on
            up to 64 held-out images).
    """

    history: pd.DataFrame
    best_epoch: int
    best_score: float
    seconds: float
    config: Config
    layers: pd.DataFrame = field(default_factory=pd.DataFrame)

    def __repr__(self) -> str:
        return f"Result(epochs={len(self.history)}, best_epoch={self.best_epoch}, best_score={self.best_score:.4g})"

    def _repr_html_(self) -> str:
        """History and what changed in every layer, for a notebook."""
        return block(repr(self), (), self.history) + block("Layers", (), self.layers)


def changes(before: Mapping[str, Mapping[str, float]], after: Mapping[str, Mapping[str, float]]) -> pd.DataFrame:
    """One row a layer: theta's ratio, v_init and spikes a neuron before and after, NaN where nothing was known."""
    rows = []
    for name, new in after.items():
        old = before.get(name, {})
        rows.append(
            {
                "layer": name,
                "theta_ratio": math.exp(new["log_theta"] - old.get("log_theta", math.nan)),
                "v_init_before": old.get("v_init", math.nan),
                "v_init_after": new["v_init"],
                "spikes_per_neuron_before": old.get("spikes_per_neuron", math.nan),
                "spikes_per_neuron_after": new["spikes_per_neuron"],
            }
        )
    return pd.DataFrame(rows)


def record(snn: SpikingNetwork, config: Config, state: RunState) -> None:
    """Add the run to the network's provenance, so that it is saved with it."""
    timing = ("eval_seconds", "train_seconds")
    rows = [{key: value for key, value in row.items() if key not in timing} for row in state.history]
    entry = {"config": config.to_json(), "timesteps": snn.timesteps, "history": rows, "torch": torch.__version__}
    snn.provenance = {**snn.provenance, "finetuned": [*snn.provenance.get("finetuned", []), entry]}


def result_of(state: RunState, config: Config, layers: pd.DataFrame, seconds: float) -> Result:
    """The run's result."""
    return Result(pd.DataFrame(state.history), state.best_epoch, state.best_score, seconds, config, layers)
