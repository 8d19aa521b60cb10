"""How far a network's thresholds and noise are from what its stored histograms say."""

import math
from typing import Any

import pandas as pd
import torch

from speedysnn.analysis.theory import decibels
from speedysnn.network import SpikingNetwork
from speedysnn.thresholds import squared_error, starts_of


def theta_distance(snn: SpikingNetwork) -> pd.DataFrame:
    """Present theta against the best for this T and v_init, theta*, by layer: columns layer, theta, best, ratio_db.

    theta and best are means over channels, ratio_db the root mean square of 20 log10(theta / theta*) over them, dB;
    ideal 0. theta* has the least squared error on the stored histograms.

    Raises:
        InputError: the network holds no histograms.
    """
    thetas = {name: neuron.threshold.detach().clone() for name, neuron in snn.neurons.items()}
    with torch.no_grad(), snn.preserved():
        snn.calibration.rules, kept = dict.fromkeys(snn.neurons, "mse"), snn.calibration.rules
        try:
            snn.recalibrate()
            best = {name: neuron.threshold.detach().clone() for name, neuron in snn.neurons.items()}
        finally:
            snn.calibration.rules = kept
    return pd.DataFrame([
        {"layer": name, "theta": float(theta.mean()), "best": float(best[name].mean()),
         "ratio_db": float((20 * torch.log10(theta / best[name])).square().mean().sqrt())}
        for name, theta in thetas.items()
    ])  # fmt: skip


def predicted_sqnr_db(snn: SpikingNetwork) -> float:
    """Mean over layers of the SQNR of clipping and rounding alone, from the stored histograms; NaN without them."""
    found = []
    for name, neuron in snn.neurons.items():
        hist = snn.calibration.histograms.get(name)
        if hist is None:
            return math.nan
        channels = hist.channels // 2 if neuron.signed else hist.channels
        theta = neuron.threshold.detach().cpu().reshape(-1).expand(channels)
        start = starts_of(neuron.v_init, channels)
        if neuron.signed:
            theta, start = theta.repeat(2), torch.cat([start, 1 - start])
        noise = squared_error(hist, theta[:, None], start, snn.timesteps, neuron.levels_per_step)
        found.append(decibels(_power(hist), float(noise.double().sum())))
    return sum(found) / len(found)


def _power(hist: Any) -> float:
    """Sum of squares of a histogram's values, uniform within bins."""
    edges = hist.edges().to(torch.float64)
    low, high = edges[:, :-1], edges[:, 1:]
    return float((hist.counts.to(torch.float64) * (low**2 + low * high + high**2) / 3).sum())
