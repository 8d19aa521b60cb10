"""What is known of one layer after all images: its sums and neurons by name, and the columns computed from them.

`LayerTotals` is what the functions of `schema.COLUMNS` read; it also holds the quantities that several columns share.
`summary` counts and names the neurons that never fire and those that fire all they can.
"""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from speedysnn.analysis.noise.moments import (
    Moments,
    affine_fractions,
    correlation,
    from_powers,
    kolmogorov_smirnov,
    lag_one,
    mean_abs_correlation,
    slope,
)
from speedysnn.analysis.theory.quantization import decibels, rmse_steps
from speedysnn.neurons.layer import IFNeuron

Floats = NDArray[np.float64]
Array = NDArray[Any]
MOST_NAMES = 100


@dataclass(frozen=True)
class Unit:
    """One neuron.

    Attributes:
        layer: the neuron layer's name.
        index: its place in one image, (channel, row, column) or whatever dimensions the layer has.
        value: a dead neuron's largest |source activation| on any image, a saturated one's share of saturated images.
    """

    layer: str
    index: tuple[int, ...]
    value: float

    def __str__(self) -> str:
        """Layer path and index, as one would write it."""
        return f"{self.layer}[{', '.join(map(str, self.index))}]"


@dataclass(frozen=True)
class Units:
    """What a layer's neurons did over all images.

    Attributes:
        count: neurons of one image.
        read: of these, how many the other figures are about; fewer where they are a sample.
        dead: that never fired.
        lost: of these, those whose source was active.
        saturated: that fired all they can on at least half of the images.
        first_dead: the dead ones, those with the largest source activation first; MOST_NAMES at most.
        worst_saturated: those saturated on any image, the most often first; MOST_NAMES at most.
    """

    count: int
    read: int
    dead: int
    lost: int
    saturated: int
    first_dead: tuple[Unit, ...]
    worst_saturated: tuple[Unit, ...]


def summary(
    layer: str, shape: tuple[int, ...], images: int, fires: Tensor, full: Tensor, peak: Tensor,
    places: Tensor | None = None,
) -> Units:
    """Count and name a layer's dead and saturated neurons; ties stand in the order of the index.

    Args:
        layer: the layer's name.
        shape: of the layer for one image.
        images: images measured.
        fires: images in which each neuron fired, (units,).
        full: images in which each neuron fired all it can, (units,).
        peak: largest |source activation| of each neuron, (units,).
        places: the neurons' places among all of them where they are a sample, (units,).

    Returns:
        The counts and the names.
    """
    spiking, crowding, peaks = (x.cpu().numpy() for x in (fires, full, peak))
    dead, crowded = np.flatnonzero(spiking == 0), np.flatnonzero(crowding)
    where = None if places is None else places.cpu().numpy()
    return Units(
        math.prod(shape),
        len(spiking),
        len(dead),
        int((peaks[dead] > 0).sum()),
        int((2 * crowding >= images).sum()),
        _named(layer, shape, where, dead, peaks[dead]),
        _named(layer, shape, where, crowded, crowding[crowded] / max(1, images)),
    )


def _named(layer: str, shape: tuple[int, ...], where: Array | None, units: Array, values: Array) -> tuple[Unit, ...]:
    """The neurons with the largest values first, MOST_NAMES at most; `where` are the places of a sample's neurons."""
    if len(values) > MOST_NAMES:
        least = np.partition(values, -MOST_NAMES)[-MOST_NAMES]
        above, level = np.flatnonzero(values > least), np.flatnonzero(values == least)
        kept = np.sort(np.concatenate([above, level[: MOST_NAMES - len(above)]]))
        units, values = units[kept], values[kept]
    order = np.argsort(-values, kind="stable")
    units = units[order] if where is None else where[units[order]]
    rows = zip(*(axis.tolist() for axis in np.unravel_index(units, shape)), strict=True) if shape else [()] * len(units)
    return tuple(Unit(layer, row, value) for row, value in zip(rows, values[order].tolist(), strict=True))


def ratio(part: float, total: float) -> float:
    """Divide a part by its total.

    Returns:
        The quotient; NaN where the total is not above 0.
    """
    return part / total if total > 0 else math.nan


@dataclass(frozen=True, eq=False)
class LayerTotals:
    """What a column's function may use: everything that was summed in one layer, and the layer itself.

    Attributes:
        name: the layer's name.
        neuron: the layer.
        reads: names of the neuron layers whose spikes reach it directly.
        theta: thresholds, () or (C,) float64.
        amplitude: what a spike stands for, () or (C,) float64; theta unless one was set.
        start: v_init as a fraction of theta, () or (C,).
        channel: sums by channel, (C,) each, by the names of `schema.SUMS`.
        total: sums over all elements: those by channel added up, and the sums of kind "total".
        counts: the sums of kind "count".
        sums: all sums as they were stored, histograms and products of channels among them.
        events: spikes, signed ones included, a graded one counted once.
        n: elements, which is neurons times images.
        images: images measured.
        pulses: spikes of every step; None where the layer was read without its steps.
        units: dead and saturated neurons.
    """

    name: str
    neuron: IFNeuron
    reads: tuple[str, ...]
    theta: Tensor
    amplitude: Tensor
    start: Tensor
    channel: dict[str, Tensor]
    total: dict[str, float]
    counts: dict[str, int]
    sums: dict[str, Tensor]
    events: int
    n: int
    images: int
    pulses: list[int] | None
    units: Units

    @property
    def step(self) -> Tensor:
        """Quantizer step of the output, A / T with the amplitude A, which is theta unless one was set; () or (C,)."""
        return self.amplitude / self.neuron.timesteps

    def in_steps(self, power: int) -> float:
        """Sum over all elements of (e / step)^power.

        Returns:
            The sum; the power is 1 to 4.
        """
        return float((self.channel["e" * power] / self.step**power).sum())

    def starts(self) -> Floats:
        """Give every channel its v_init.

        Returns:
            Fractions of theta, (C,).
        """
        return self.start.to(torch.float64).expand(len(self.channel["e"])).numpy()

    def share(self, name: str) -> float:
        """Divide a total by the sum of squared errors.

        Args:
            name: of the total.

        Returns:
            The share, below 0 where this part of the error cancels another; NaN where the layer has no error.
        """
        return ratio(self.total[name], self.total["ee"])

    @property
    def propagated_share(self) -> float:
        """Part of the error that earlier layers bring in, without what this layer's rounded weights add to it."""
        return ratio(self.total["propagated"] - self.total["weights"], self.total["ee"])

    @cached_property
    def rounding_rmse(self) -> Tensor:
        """Error of rounding alone in steps, () or (C,), from every channel's v_init."""
        values = [rmse_steps(v) for v in self.start.reshape(-1).tolist()]
        return torch.tensor(values, dtype=torch.float64).reshape(self.start.shape)

    @cached_property
    def sqnr_db(self) -> float:
        """Signal to noise of the spiking layer, in dB."""
        return decibels(self.total["aa"], self.total["ee"])

    @cached_property
    def floor_db(self) -> float:
        """What the step theta / T alone allows, in dB."""
        noise = (self.channel["in_range"] * (self.step * self.rounding_rmse) ** 2).sum()
        return decibels(self.total["aa"], float(noise))

    @cached_property
    def bias_share(self) -> float:
        """Part of the error that one constant a channel would remove; NaN where the layer has no error."""
        mean_error = self.channel["e"]
        removable = float((mean_error**2).sum()) / (self.n / len(mean_error))
        return ratio(removable, self.total["ee"])

    @cached_property
    def remaining_share(self) -> float:
        """Part of the error that no constant a channel removes; NaN where the layer has no error."""
        share = self.bias_share
        return share if math.isnan(share) else max(0.0, 1 - share)

    def _by_channel(self, *names: str) -> list[Floats]:
        """Sums by channel as arrays, (C,) each."""
        return [self.channel[name].numpy() for name in names]

    @cached_property
    def drive_gain(self) -> float:
        """Slope of the regression of z' on z within channels; NaN where z is the same throughout every channel."""
        return slope(self.n / len(self.channel["z"]), *self._by_channel("z", "zz", "d", "zd"))

    @cached_property
    def own_gain(self) -> float:
        """Slope of the regression of Q(z) on a within channels; NaN where a is the same throughout every channel."""
        return slope(self.n / len(self.channel["s"]), *self._by_channel("s", "aa", "o", "ao"))

    @cached_property
    def affine_share(self) -> float:
        """Part of the error that comes in and that an affine map of the drive removes; NaN without an error.

        sum_c P_c f_c / sum e^2, between 0 and the propagated share: P_c is channel c's sum of propagated part times
        error, and f_c the fraction of its drive's error sum (z' - z)^2 that the least-squares map a_c z' + b_c removes.
        """
        removed = affine_fractions(self.n / len(self.channel["z"]), *self._by_channel("z", "zz", "d", "dd", "zd"))
        propagated, weights = self._by_channel("propagated", "weights")
        share = ratio(float((propagated - weights) @ removed), self.total["ee"])
        return share if math.isnan(share) else max(0.0, min(share, self.propagated_share))

    @cached_property
    def noise(self) -> Moments:
        """Moments of e over all elements, in steps."""
        return from_powers(self.n, np.array([self.in_steps(power) for power in (1, 2, 3, 4)]))

    @cached_property
    def rounding(self) -> Moments:
        """Moments of Q(z) - z inside the range, in steps."""
        return from_powers(self.total["granular"], np.array([self.total["g" * power] for power in (1, 2, 3, 4)]))

    def histogram(self, name: str) -> Floats:
        """Counts of a histogram without its last entry, the elements that it leaves out.

        Args:
            name: "rounding" or "noise".

        Returns:
            Counts (66,): below -1, 64 bins over [-1, 1), from 1 on, in steps.
        """
        return self.sums[name][:-1].to(torch.float64).numpy()

    def rounding_distance(self) -> float:
        """Compare the rounding error's histogram with the uniform law.

        Returns:
            The Kolmogorov-Smirnov distance at the histogram's edges; NaN where no value lies inside the range.
        """
        return kolmogorov_smirnov(self.histogram("rounding"), self.starts(), self.channel["granular"].numpy())

    def signal_correlation(self) -> float:
        """Correlate the error with the source's activation.

        Returns:
            Pearson's correlation; NaN where one of them is the same throughout.
        """
        total = self.total
        product = total["ar"] - total["aa"]
        return correlation(self.n, total["s"], total["e"], total["aa"], total["ee"], product)

    def channel_correlation(self) -> float | None:
        """Correlate the errors of every two compared channels.

        Returns:
            The mean of their absolute correlations; None without detail="full".
        """
        if "gram" not in self.sums:
            return None
        places = self.n / len(self.channel["e"])
        return mean_abs_correlation(self.sums["gram"], self.sums["gram_sums"], places)

    def if_unrolled(self, value: Any) -> Any:
        """Give a figure of the spikes' steps only where these were read.

        Args:
            value: the figure.

        Returns:
            The value; None where the layer was read without its steps.
        """
        return None if self.pulses is None else value

    def step_correlation(self) -> float | None:
        """Correlate a train's error with that of the next step.

        Returns:
            The correlation; None without detail="full" or for a single step, NaN where no train has an error.
        """
        if "gram" not in self.sums:
            return None
        steps = self.neuron.timesteps if self.pulses is not None else 1
        return lag_one(self.total["lag0"], self.total["lag1"], steps)

    def membrane_outside(self) -> float | None:
        """Give the share of elements with a temporal error.

        Returns:
            A fraction; None but for binary spikes without look-ahead that were read step by step.
        """
        neuron = self.neuron
        if self.pulses is None or neuron.spikes != "binary" or neuron.lookahead != 0 or neuron.signed:
            return None
        return self.counts["outside"] / self.n
