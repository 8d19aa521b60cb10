"""What a layer's row has no room for: histograms, neurons by name, steps and channels."""

from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from speedysnn.analysis.moments import EDGES, Floats, from_powers, law
from speedysnn.analysis.rows import Found, Sums
from speedysnn.analysis.strict import plain
from speedysnn.analysis.theory import decibels
from speedysnn.analysis.units import Unit, Units, summary
from speedysnn.neurons import IFNeuron


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
        channels: one row a channel: theta, v_init, sqnr_db, in_range, and the error's bias and variance (activation),
            skew and kurtosis.
    """

    layer: str
    edges: Floats
    rounding: Floats
    noise: Floats
    expected: Floats
    units: Units
    spikes_per_step: tuple[int, ...] | None
    channels: pd.DataFrame

    def to_json(self) -> dict[str, Any]:
        """Strict JSON data; null for what is undefined or was not measured."""
        units = self.units
        return {
            "rounding": [int(x) for x in self.rounding],
            "noise": [int(x) for x in self.noise],
            "expected": [float(x) for x in self.expected],
            "dead": [_unit(unit, "source_peak") for unit in units.first_dead],
            "saturated": [_unit(unit, "share") for unit in units.worst_saturated],
            "spikes_per_step": None if self.spikes_per_step is None else list(self.spikes_per_step),
            "channels": {str(name): [plain(x) for x in column] for name, column in self.channels.items()},
        }


def detail_of(
    name: str, neuron: IFNeuron, theta: Tensor, start: Tensor, sums: Sums, shape: tuple[int, ...]
) -> LayerDetail:
    """The details of a layer from its sums."""
    found = Found(neuron, theta, start, sums)
    weights = found.channel["granular"].numpy()
    reached = law(EDGES, found.starts(), weights / max(1.0, float(weights.sum())))
    expected = torch.tensor([reached[0], *(reached[1:] - reached[:-1]), weights.any() - reached[-1]])
    rounding, noise = sums["bins"].to(torch.float64).numpy()
    return LayerDetail(
        name, EDGES, rounding, noise, expected.numpy(),
        summary(name, shape, found.images, sums["fires"], sums["full"], sums["peak"]),
        None if found.pulses is None else tuple(found.pulses),
        _channels(found),
    )  # fmt: skip


def _channels(found: Found) -> pd.DataFrame:
    channel, count = found.channel, len(found.channel["e"])
    n = found.n / count
    theta, starts = found.theta.expand(count).tolist(), found.starts().tolist()
    rows = []
    powers = torch.stack([channel["e" * k] for k in (1, 2, 3, 4)]).T.tolist()
    for c, (aa, inside) in enumerate(zip(channel["aa"].tolist(), channel["in_range"].tolist(), strict=True)):
        moments = from_powers(n, *powers[c])
        rows.append((
            c, theta[c], starts[c], decibels(aa, powers[c][1]), inside / n, moments.mean, moments.variance,
            moments.skew, moments.kurtosis,
        ))  # fmt: skip
    names = ["channel", "theta", "v_init", "sqnr_db", "in_range", "bias", "variance", "skew", "kurtosis"]
    return pd.DataFrame(rows, columns=names)


def _unit(unit: Unit, value: str) -> dict[str, Any]:
    return {"name": str(unit), "index": list(unit.index), value: unit.value}
