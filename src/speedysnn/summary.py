"""The table of a network's neuron layers, one row each."""

from collections.abc import Mapping

import pandas as pd

from speedysnn.calibration import Calibration
from speedysnn.graph import Graph
from speedysnn.neurons import IFNeuron


def summarized(graph: Graph, neurons: Mapping[str, IFNeuron], calibration: Calibration) -> pd.DataFrame:
    """The columns that `SpikingNetwork.summary` describes."""
    rows = []
    for node in graph.neurons:
        neuron = neurons[node.name]
        theta = neuron.threshold.detach()
        rows.append(
            {
                "layer": node.name,
                "neurons": node.attrs.get("features"),
                "thresholds": theta.numel(),
                "theta_min": theta.min().item(),
                "theta_mean": theta.mean().item(),
                "theta_max": theta.max().item(),
                "v_init": neuron.v_init.detach().mean().item(),
                "spikes": neuron.spikes,
                "delay": neuron.delay,
                "predicted_rate": calibration.predicted_rate(node.name, neuron),
                "source": node.source,
            }
        )
    return pd.DataFrame(rows)
