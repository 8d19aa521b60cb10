"""One layer's running sums, float64 by channel, and the table row they give."""

import math
from typing import Any

import torch
from torch import Tensor

from speedysnn.analysis.readings import events, mean_output, reached_counts, spike_counts
from speedysnn.analysis.theory import decibels, rmse_steps
from speedysnn.executor import Tap
from speedysnn.neurons import IFNeuron

PARTS = ("clip", "round", "propagated", "temporal")
_SUMS = ("a", "aa", "ar", "rr", "e", "ee", "twin", "miss", *PARTS)
_COUNTS = ("n", "in_range", "saturated", "silent", "source_silent")


def rows_of(x: Tensor, channel_dim: int) -> Tensor:
    """(B, ...) as (M, C), channels last; one column where there are no channels."""
    if x.ndim < 2:
        return x.reshape(-1, 1)
    return x.movedim(channel_dim, -1).reshape(-1, x.shape[channel_dim])


class LayerSums:
    """What a layer's row needs, summed over all images; memory does not grow with them.

    a: source activation, z: source pre-activation, r: mean output over time, e = r - a, step = theta / T:

        e = [clamp(z, 0, N theta) - a] + [Q(z) - clamp(z, 0, N theta)] + [Q(z') - Q(z)] + [r - Q(z')]
               clip                         round                          propagated       temporal
    """

    def __init__(self, name: str, neuron: IFNeuron) -> None:
        self.name, self.neuron, self.events = name, neuron, 0
        self.sums, self.counts = torch.zeros(len(_SUMS), 1), torch.zeros(len(_COUNTS), 1, dtype=torch.int64)

    def _step(self) -> Tensor:
        """The quantizer's step theta / T, () or (C,) float64."""
        return self.neuron.threshold.detach().to(torch.float64) / self.neuron.timesteps

    def update(self, z: Tensor, source: IFNeuron, twin: Tensor, tap: Tap) -> None:
        """Add one pass.

        Args:
            z: the source's pre-activation, (B, ...).
            source: the source's neuron, for its activation.
            twin: what the quantized reading emitted, (B, ...).
            tap: what the spiking reading received and emitted.
        """
        neuron, step = self.neuron, self._step()
        most = neuron.timesteps * neuron.levels_per_step
        fired, aimed = self._rows(spike_counts(tap)), self._rows(neuron.counts(z))
        reached, drive = self._rows(reached_counts(tap)), self._rows(z)
        a = self._rows(source.analog(z))
        clipped = torch.minimum(drive.clamp_min(0), (step * most).expand_as(drive))
        r, target = fired * step, aimed * step
        e = r - a
        parts = (clipped - a, target - clipped, (reached - aimed) * step, (fired - reached) * step)
        miss = sum(parts, a) - self._rows(mean_output(tap))
        off = self._rows(twin) - a
        pairs = ((a, a), (a, r), (r, r), (e, e), (off, off), (miss, miss), *((part, e) for part in parts))
        aa, ar, rr, ee, twins, missed, *shares = ((x * y).sum(0) for x, y in pairs)
        added = torch.stack([a.sum(0), aa, ar, rr, e.sum(0), ee, twins, missed, *shares])
        inside = (drive > 0) & (drive < step * most)
        kept = torch.stack([inside.sum(0), (fired == most).sum(0), (fired == 0).sum(0), (a == 0).sum(0)])
        total = torch.full_like(kept[:1], len(a))
        self.sums = self.sums.to(added) + added
        self.counts = self.counts.to(kept) + torch.cat([total, kept])
        self.events += events(tap)

    def _rows(self, x: Tensor) -> Tensor:
        return rows_of(x.to(torch.float64), self.neuron.channel_dim)

    def row(self) -> dict[str, Any]:
        """The layer's figures by the names of `speedysnn.analysis.columns.COLUMNS`; NaN where undefined."""
        channel = dict(zip(_SUMS, self.sums.cpu(), strict=True))
        number = dict(zip(_COUNTS, self.counts.cpu(), strict=True))
        step = self._step().cpu()
        total = {name: float(value.sum()) for name, value in channel.items()}
        count = {name: int(value.sum()) for name, value in number.items()}
        n = count["n"]
        return {
            **self._settings(),
            "n": n,
            **_signal(total, self._floor(total["aa"], number["in_range"], step)),
            "rmse_steps": math.sqrt(float((channel["ee"] / step**2).sum()) / n),
            "rmse_ideal": math.sqrt(float((self._ideal() ** 2 * number["n"]).sum()) / n),
            **{name: count[name] / n for name in ("saturated", "silent", "source_silent")},
            "rate": self.events / n / self.neuron.timesteps,
            "rate_ideal": float((channel["a"] / step).sum()) / n / self.neuron.timesteps,
            "spikes_per_neuron": self.events / n,
            **{f"share_{part}": _ratio(total[part], total["ee"]) for part in PARTS},
            "bias": total["e"] / n,
            "bias_share": _ratio(float((channel["e"] ** 2 / number["n"]).sum()), total["ee"]),
            "residual": math.sqrt(total["miss"] / total["ee"]) if total["ee"] else math.sqrt(total["miss"]),
        }

    def _settings(self) -> dict[str, Any]:
        theta = self.neuron.threshold.detach().to(torch.float64)
        return {
            "layer": self.name,
            "kind": self.neuron.spikes,
            "theta_mean": float(theta.mean()),
            "theta_min": float(theta.min()),
            "theta_max": float(theta.max()),
            "timesteps": self.neuron.timesteps,
            "v_init": float(self.neuron.v_init.detach().mean()),
            "delay": self.neuron.delay,
        }

    def _ideal(self) -> Tensor:
        """Ideal error in steps, () or (C,)."""
        start = self.neuron.v_init.detach().cpu().to(torch.float64)
        return torch.tensor([rmse_steps(v) for v in start.reshape(-1).tolist()]).reshape(start.shape)

    def _floor(self, power: float, in_range: Tensor, step: Tensor) -> float:
        return decibels(power, float((in_range * (step * self._ideal()) ** 2).sum()))


def _signal(total: dict[str, float], floor: float) -> dict[str, float]:
    """The figures that compare r with a."""
    sqnr = decibels(total["aa"], total["ee"])
    return {
        "sqnr_db": sqnr,
        "floor_db": floor,
        "gap_db": floor - sqnr,
        "twin_sqnr_db": decibels(total["aa"], total["twin"]),
        "gain": _ratio(total["ar"], total["aa"]),
        "cosine": _ratio(total["ar"], math.sqrt(total["aa"] * total["rr"])),
    }


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole > 0 else math.nan
