"""One layer's running sums, float64 by channel, and the table row they give."""

import math
from typing import Any

import torch
from torch import Tensor

from speedysnn.analysis.readings import events, mean_of, reached_counts
from speedysnn.analysis.sums import summed
from speedysnn.analysis.theory import decibels, rmse_steps
from speedysnn.executor import Tap
from speedysnn.kernels.quantizer import levels
from speedysnn.neurons import IFNeuron

PARTS = ("clip", "round", "propagated", "temporal")
_CHANNELS = ("a", "e", "ee", "in_range")
_TOTALS = ("aa", "ar", "rr", "twin", "miss", *PARTS)
_COUNTS = ("n", "saturated", "silent", "source_silent", "events")
_BLOCK = 2**14  # elements worked on at once, so that a processor's caches hold them
_DEVICE_BLOCK = 2**26


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
        self.name, self.neuron = name, neuron
        self.theta = neuron.threshold.detach().to(torch.float32)
        self.start = neuron.v_init.detach().to(torch.float32)
        self.step = self.theta.to(torch.float64) / neuron.timesteps
        self.most = neuron.timesteps * neuron.levels_per_step
        self.channels = torch.zeros(len(_CHANNELS), 1, dtype=torch.float64)
        self.totals = torch.zeros(len(_TOTALS), dtype=torch.float64)
        self.counts = dict.fromkeys(_COUNTS, 0)

    def update(self, z: Tensor, source: IFNeuron, twin: Tensor, tap: Tap) -> int:
        """Add one pass; returns its spike events.

        Args:
            z: the source's pre-activation, (B, ...).
            source: the source's neuron, for its activation.
            twin: what the quantized reading emitted, (B, ...).
            tap: what the spiking reading received and emitted.
        """
        fired = self._at_once(z, source.analog(z), twin, tap)
        if fired is None:
            self._by_blocks(z, source, twin, tap)
        if fired is None or tap.static_output:
            fired = events(tap)
        self.counts["events"] += fired
        return fired

    def _at_once(self, z: Tensor, a: Tensor, twin: Tensor, tap: Tap) -> int | None:
        """All sums in one read; the number of steps with a spike, or None where this cannot be done."""
        neuron, wide = self.neuron, z.ndim
        offset = None if neuron.offset is None else neuron.per_channel(neuron.offset, wide)
        theta, start = neuron.per_channel(self.theta, wide), neuron.per_channel(self.start, wide)
        least = -self.most if neuron.signed else 0
        found = summed(
            z, a, twin, tap.drive, tap.output, theta, start, offset, neuron.timesteps, self.most, least,
            neuron.channel_dim,
        )  # fmt: skip
        if found is None:
            return None
        channels, totals, counts = found
        self.channels, self.totals = self.channels + channels, self.totals + totals
        for name, count in zip(("saturated", "silent", "source_silent"), counts.tolist(), strict=False):
            self.counts[name] += count
        self.counts["n"] += z.numel()
        return int(counts[3])

    def _by_blocks(self, z: Tensor, source: IFNeuron, twin: Tensor, tap: Tap) -> None:
        """The same in plain torch, for other devices and types."""
        steps = self.neuron.timesteps
        drives = (tap.drive,) if tap.static_drive else tap.drive.chunk(steps)
        outs = (tap.output,) if tap.static_output else tap.output.chunk(steps)
        rows = [rows_of(x, self.neuron.channel_dim) for x in (z, twin, *drives, *outs)]
        size = max(1, (_BLOCK if z.device.type == "cpu" else _DEVICE_BLOCK) // max(1, rows[0].shape[1]))
        for own, quantized, *both in zip(*(torch.split(x, size) for x in rows), strict=True):
            self._add(own, source.analog(own), quantized, both[: len(drives)], both[len(drives) :])

    def merge(self, other: "LayerSums") -> None:
        """Add what another pass over other images has summed."""
        self.channels = self.channels.to(other.channels.device) + other.channels
        self.totals = self.totals.to(other.totals.device) + other.totals
        for name, count in other.counts.items():
            self.counts[name] += count

    def _add(self, z: Tensor, analog: Tensor, twin: Tensor, drives: list[Tensor], outs: list[Tensor]) -> None:
        """One block, all tensors (M, C)."""
        a, drive = analog.to(torch.float64), z.to(torch.float64)
        measured = mean_of(outs)
        fired = torch.round(measured / self.step)
        aimed = self._levels(z)
        seen = [self._corrected(x) for x in drives]
        reached = reached_counts(seen, self.theta, self.start, self.neuron).to(torch.float64)
        top = self.step * self.most
        low = -top if self.neuron.signed else torch.zeros_like(top)
        clipped = torch.maximum(torch.minimum(drive, top), low)
        target = aimed * self.step
        input_target = reached * self.step
        r = fired * self.step
        e = r - a
        parts = (clipped - a, target - clipped, input_target - target, r - input_target)
        off, miss = twin - a, parts[0] + parts[1] + parts[2] + parts[3] - (measured - a)
        inside = (drive > low) & (drive < top)
        channels = torch.stack([a.abs().sum(0), e.sum(0), (e * e).sum(0), inside.to(torch.float64).sum(0)])
        pairs = ((a, a), (a, r), (r, r), (off, off), (miss, miss), *((part, e) for part in parts))
        self.channels = self.channels.to(channels.device) + channels
        totals = torch.stack([torch.dot(x.reshape(-1), y.reshape(-1)) for x, y in pairs])
        self.totals = self.totals.to(totals.device) + totals
        self.counts["n"] += a.numel()
        for name, hit in (("saturated", fired.abs() == self.most), ("silent", fired == 0), ("source_silent", a == 0)):
            self.counts[name] += int(torch.count_nonzero(hit))

    def _corrected(self, z: Tensor) -> Tensor:
        """What the neuron integrates: a correction's offset is part of its quantizer."""
        return z if self.neuron.offset is None else z + self.neuron.offset

    def _levels(self, z: Tensor) -> Tensor:
        neuron = self.neuron
        drive = self._corrected(z)
        counts = levels(drive, self.theta, self.start, neuron.timesteps, neuron.levels_per_step, neuron.signed)
        return counts.to(torch.float64)

    def row(self) -> dict[str, Any]:
        """The layer's figures by the names of `speedysnn.analysis.columns.COLUMNS`; NaN where undefined."""
        channel = dict(zip(_CHANNELS, self.channels.cpu(), strict=True))
        total = dict(zip(_TOTALS, self.totals.tolist(), strict=True))
        total.update({name: float(value.sum()) for name, value in channel.items()})
        count, n, steps = self.counts, self.counts["n"], self.neuron.timesteps
        step, ideal = self.step.cpu(), self._ideal()
        return {
            **self._settings(),
            "n": n,
            **_signal(total, decibels(total["aa"], float((channel["in_range"] * (step * ideal) ** 2).sum()))),
            "rmse_steps": math.sqrt(float((channel["ee"] / step**2).sum()) / n),
            "rmse_ideal": math.sqrt(float((ideal**2).mean())),
            **{name: count[name] / n for name in ("saturated", "silent", "source_silent")},
            "rate": count["events"] / n / steps,
            "rate_ideal": float((channel["a"] / step).sum()) / n / steps,
            "spikes_per_neuron": count["events"] / n,
            **{f"share_{part}": _ratio(total[part], total["ee"]) for part in PARTS},
            "bias": total["e"] / n,
            "bias_share": _ratio(float((channel["e"] ** 2).sum()) / (n / len(channel["e"])), total["ee"]),
            "residual": math.sqrt(total["miss"] / total["ee"]) if total["ee"] else math.sqrt(total["miss"]),
        }

    def _settings(self) -> dict[str, Any]:
        theta = self.theta.to(torch.float64)
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
        values = [rmse_steps(v) for v in self.start.reshape(-1).tolist()]
        return torch.tensor(values, dtype=torch.float64).reshape(self.start.shape)


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
