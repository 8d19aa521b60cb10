"""What a layer's row has no room for: histograms, neurons by name, steps and channels."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
import torch

from speedysnn.analysis.layer_totals import LayerTotals
from speedysnn.analysis.moments import EDGES, Floats, from_powers, law
from speedysnn.analysis.strict import plain
from speedysnn.analysis.theory import decibels
from speedysnn.analysis.units import Unit, Units


@dataclass(frozen=True, eq=False)
class LayerDetail:
    """More of one layer.

    Attributes:
        layer: its name.
        edges: bin edges of both histograms in steps theta/T, (65,).
        rounding: counts of Q(z) - z over elements inside the range, exact zeros of z left out: (66,), the first below
            and the last from the edges on.
        noise: counts of r - a over elements whose error is not exactly 0, (66,) alike.
        expected: shares of the 66 bins that the uniform law [v_init - 1, v_init] gives `rounding`.
        units: dead and saturated neurons, counted and by name.
        spikes_per_step: events of every step, all images; None where no trains were unrolled.
        by_channel: the columns of `channels`: theta, v_init, sqnr_db, in_range, and the error's bias and variance
            (activation), skew and kurtosis.
    """

    layer: str
    edges: Floats
    rounding: Floats
    noise: Floats
    expected: Floats
    units: Units
    spikes_per_step: tuple[int, ...] | None
    by_channel: Mapping[str, Any] = field(repr=False)

    @property
    def channels(self) -> pd.DataFrame:
        """One row a channel."""
        return pd.DataFrame(self.by_channel)

    def to_json(self) -> dict[str, Any]:
        """Give the details as strict JSON data.

        Returns:
            Data by name; None for what is undefined or was not measured.
        """
        units = self.units
        return {
            "rounding": [int(x) for x in self.rounding],
            "noise": [int(x) for x in self.noise],
            "expected": [_short(x) for x in self.expected],
            "dead": [_unit(unit, "source_peak") for unit in units.first_dead],
            "saturated": [_unit(unit, "share") for unit in units.worst_saturated],
            "spikes_per_step": None if self.spikes_per_step is None else list(self.spikes_per_step),
            "channels": {str(name): [_short(plain(x)) for x in column] for name, column in self.channels.items()},
        }


def detail_of(layer: LayerTotals) -> LayerDetail:
    """Compute the details of a layer.

    Returns:
        Histograms, neurons by name, steps and channels.
    """
    weights = layer.channel["granular"].numpy()
    reached = law(EDGES, layer.starts(), weights / max(1.0, float(weights.sum())))
    expected = torch.tensor([reached[0], *(reached[1:] - reached[:-1]), weights.any() - reached[-1]])
    rounding, noise = layer.histogram("rounding"), layer.histogram("noise")
    steps = None if layer.pulses is None else tuple(layer.pulses)
    return LayerDetail(layer.name, EDGES, rounding, noise, expected.numpy(), layer.units, steps, _by_channel(layer))


def _by_channel(layer: LayerTotals) -> dict[str, Any]:
    """What is known of every channel, column by column."""
    channel, count = layer.channel, len(layer.channel["e"])
    n = layer.n / count
    moments = from_powers(n, torch.stack([channel["e" * k] for k in (1, 2, 3, 4)]).numpy())
    pairs = zip(channel["aa"].tolist(), channel["ee"].tolist(), strict=True)
    return {
        "channel": range(count),
        "theta": layer.theta.expand(count).numpy(),
        "v_init": layer.starts(),
        "sqnr_db": [decibels(signal, noise) for signal, noise in pairs],
        "in_range": (channel["in_range"] / n).numpy(),
        "bias": moments.mean,
        "variance": moments.variance,
        "skew": moments.skew,
        "kurtosis": moments.kurtosis,
    }


def _short(value: Any) -> Any:
    """Six digits of a number, which a histogram or a channel's mean does not have more of."""
    return float(f"{value:.6g}") if isinstance(value, float) else value


def _unit(unit: Unit, value: str) -> dict[str, Any]:
    return {"name": str(unit), "index": list(unit.index), value: _short(unit.value)}
