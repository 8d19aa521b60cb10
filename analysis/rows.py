"""A layer's row of the table, from its sums."""

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from speedysnn.analysis.latency import lag_one, lateness
from speedysnn.analysis.moments import correlation, from_powers, kolmogorov_smirnov, mean_abs_correlation
from speedysnn.analysis.sums import CHANNELS, COUNTS, TOTALS
from speedysnn.analysis.theory import decibels, rmse_steps
from speedysnn.analysis.units import Units, summary
from speedysnn.neurons import IFNeuron

PARTS = ("clip", "round", "propagated", "temporal")
Sums = dict[str, Tensor]


class Found:
    """A layer's sums by name, and what several of its figures need.

    Attributes:
        channel: sums by channel, (C,) each; `whole` the same over all channels and the other totals.
        counts: of elements; n of them, `images` rows of `shape`.
        step: theta / T, () or (C,); `start` v_init alike.
        pulses: spikes of every step, None where no trains were unrolled.
        units: dead and saturated neurons.
    """

    def __init__(
        self, name: str, neuron: IFNeuron, theta: Tensor, start: Tensor, sums: Sums, shape: tuple[int, ...],
        places: Tensor | None = None,
    ) -> None:
        self.name = name
        self.neuron, self.sums, self.start = neuron, sums, start.cpu()
        self.theta = theta.to("cpu", torch.float64)
        self.step = self.theta / neuron.timesteps
        self.channel = dict(zip(CHANNELS, sums["channels"], strict=True))
        self.whole = {name: float(value.sum()) for name, value in self.channel.items()}
        self.whole.update(zip(TOTALS, sums["totals"].tolist(), strict=True))
        self.counts = dict(zip(COUNTS, sums["counts"].tolist(), strict=True))
        self.events, self.n, self.images = (int(x) for x in sums["events"])
        self.pulses: list[int] | None = sums["pulses"].tolist() if "pulses" in sums else None
        self.units = summary(name, shape, self.images, sums["fires"], sums["full"], sums["peak"], places)

    def in_steps(self, power: int) -> float:
        """Sum over all elements of (e / step)^power."""
        return float((self.channel["e" * power] / self.step**power).sum())

    def starts(self) -> "np.ndarray[Any, np.dtype[np.float64]]":
        """v_init of every channel, (C,)."""
        return self.start.to(torch.float64).expand(len(self.channel["e"])).numpy()


def row_of(found: Found) -> dict[str, Any]:
    """Every figure of a layer by the names of `COLUMNS`; NaN where undefined, None where not measured."""
    return {
        **_settings(found.name, found.neuron, found.theta),
        **_levels(found),
        **_shares(found),
        **_distribution(found),
        **_dependence(found),
        **_units(found.units),
        **_timing(found),
    }


def ratio(part: float, whole: float) -> float:
    """A share; NaN of nothing."""
    return part / whole if whole > 0 else math.nan


def _settings(name: str, neuron: IFNeuron, theta: Tensor) -> dict[str, Any]:
    return {
        "layer": name,
        "kind": neuron.spikes,
        "theta_mean": float(theta.mean()),
        "theta_min": float(theta.min()),
        "theta_max": float(theta.max()),
        "timesteps": neuron.timesteps,
        "v_init": float(neuron.v_init.detach().mean()),
        "delay": neuron.delay,
    }


def _levels(found: Found) -> dict[str, float]:
    """How far r is from a, and how the neurons use their range."""
    total, n, steps = found.whole, found.n, found.neuron.timesteps
    values = [rmse_steps(v) for v in found.start.reshape(-1).tolist()]
    ideal = torch.tensor(values, dtype=torch.float64).reshape(found.start.shape)
    sqnr = decibels(total["aa"], total["ee"])
    floor = decibels(total["aa"], float((found.channel["in_range"] * (found.step * ideal) ** 2).sum()))
    return {
        "n": n,
        "sqnr_db": sqnr,
        "floor_db": floor,
        "gap_db": floor - sqnr,
        "twin_sqnr_db": decibels(total["aa"], total["twin"]),
        "gain": ratio(total["ar"], total["aa"]),
        "cosine": ratio(total["ar"], math.sqrt(total["aa"] * total["rr"])),
        "rmse_steps": math.sqrt(found.in_steps(2) / n),
        "rmse_ideal": math.sqrt(float((ideal**2).mean())),
        **{name: found.counts[name] / n for name in ("saturated", "silent", "source_silent")},
        "rate": found.events / n / steps,
        "rate_ideal": float((found.channel["a"] / found.step).sum()) / n / steps,
        "spikes_per_neuron": found.events / n,
    }


def _shares(found: Found) -> dict[str, float]:
    """The error by cause, and what a constant a channel would remove of it."""
    total, constant = found.whole, found.channel["e"]
    removable = ratio(float((constant**2).sum()) / (found.n / len(constant)), total["ee"])
    remaining = max(0.0, 1 - removable) if removable == removable else math.nan
    return {
        **{f"share_{part}": ratio(total[part], total["ee"]) for part in PARTS},
        "bias": total["e"] / found.n,
        "bias_share": removable,
        "remaining_share": remaining,
        "bias_gain_db": decibels(1, remaining),
        "residual": math.sqrt(total["miss"] / total["ee"]) if total["ee"] else math.sqrt(total["miss"]),
    }


def _distribution(found: Found) -> dict[str, float]:
    """Moments of the error and of rounding alone, in steps, and the distance from the uniform law."""
    total = found.whole
    every = from_powers(found.n, np.array([found.in_steps(power) for power in (1, 2, 3, 4)]))
    rounding = from_powers(total["granular"], np.array([total["g" * power] for power in (1, 2, 3, 4)]))
    counts = found.sums["bins"][0, :-1].to(torch.float64).numpy()
    out: dict[str, float] = {}
    for name, moments in (("noise", every), ("round", rounding)):
        out.update({f"{name}_{kind}": float(value) for kind, value in vars(moments).items()})
    out["round_ks"] = kolmogorov_smirnov(counts, found.starts(), found.channel["granular"].numpy())
    return {**out, "exact": int(found.sums["bins"][1, -1]) / found.n}


def _dependence(found: Found) -> dict[str, float | None]:
    """What the error hangs together with: the signal, other channels, its neighbour in time."""
    total, sums = found.whole, found.sums
    product = total["ar"] - total["aa"]
    signal = correlation(found.n, total["s"], total["e"], total["aa"], total["ee"], product)
    if "gram" not in sums:
        others = dict.fromkeys(("channel_correlation", "channels_compared", "step_correlation"))
        return {"signal_correlation": signal, **others}
    steps = found.neuron.timesteps if found.pulses is not None else 1
    places = found.n / len(found.channel["e"])
    return {
        "signal_correlation": signal,
        "channel_correlation": mean_abs_correlation(sums["gram"], sums["gram_sums"], places),
        "channels_compared": len(sums["gram"]),
        "step_correlation": lag_one(total["lag0"], total["lag1"], steps),
    }


def _units(units: Units) -> dict[str, int]:
    """Dead and saturated neurons, counted."""
    return {
        "units": units.count,
        "units_read": units.read,
        "dead_units": units.dead,
        "lost_units": units.lost,
        "saturated_units": units.saturated,
    }


def _timing(found: Found) -> dict[str, float | None]:
    """When spikes come, and whether the last membrane tells of a timing error; None without unrolled trains."""
    counts, neuron = found.counts, found.neuron
    if found.pulses is None:
        names = ("first_spike", "never_fired", "start_up", "lateness", "membrane_outside")
        return dict.fromkeys(names)
    plain = neuron.spikes == "binary" and neuron.lookahead == 0 and not neuron.signed
    return {
        "first_spike": ratio(counts["first"], counts["fired"]),
        "never_fired": 1 - counts["fired"] / found.n,
        "start_up": ratio(counts["start"], counts["started"]),
        "lateness": lateness(found.pulses),
        "membrane_outside": counts["outside"] / found.n if plain else None,
    }
