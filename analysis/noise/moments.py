"""Statistics of the noise: histograms, moments, distance to a uniform distribution, correlations, times of spikes.

These are the definitions in plain torch and numpy; the compiled kernels compute the same. Moments come from sums of
powers, correlations from sums of products, so that images can be added in any order.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from speedysnn.neurons.layer import IFNeuron

Floats = NDArray[np.float64]
BINS, PER_STEP = 64, 32  # of a histogram over [-1, 1) steps; one bin more below, one above, one for what is left out
EDGES: Floats = np.arange(BINS + 1) / PER_STEP - 1  # in steps theta/T
MOST_CHANNELS = 512


@dataclass(frozen=True, eq=False)
class Moments:
    """Mean, variance, skew and kurtosis (3 for a normal distribution, 1.8 for a uniform one); NaN where undefined."""

    mean: Floats
    variance: Floats
    skew: Floats
    kurtosis: Floats


def histogram(x: Tensor, kept: Tensor) -> Tensor:
    """Count values in steps, in BINS half-open bins over [-1, 1).

    Args:
        x: values in quantizer steps.
        kept: which of them are counted, bool of the same shape.

    Returns:
        (BINS + 3,) int64: below -1, the bins, from 1 on, and the values left out.
    """
    place = (x * PER_STEP + (PER_STEP + 1)).clamp(0, BINS + 1).to(torch.int64)  # which cuts off
    return torch.bincount(torch.where(kept, place, BINS + 2).reshape(-1), minlength=BINS + 3)


def from_powers(n: float, powers: Floats) -> Moments:
    """Compute moments of n values from the sums of their first four powers.

    A variance below 1e-12 of the mean square is what rounding of the sums leaves, and counts as none.

    Args:
        n: number of values.
        powers: the four sums, (4, ...).

    Returns:
        The moments, each of shape (...).
    """
    m, second, third, fourth = np.asarray(powers, np.float64) / (n if n > 0 else math.nan)
    variance = second - m * m
    none = variance <= 1e-12 * second
    spread = np.where(none, math.nan, variance)
    skew = (third - 3 * m * second + 2 * m**3) / spread**1.5
    kurtosis = (fourth - 4 * m * third + 6 * m * m * second - 3 * m**4) / spread**2
    return Moments(m, np.where(none, 0.0, variance), skew, kurtosis)


def law(x: Floats, starts: Floats, weights: Floats) -> Floats:
    """P(error <= x) of a quantizer whose values are spread evenly in each step: uniform on [v - 1, v].

    Args:
        x: errors in steps, (K,).
        starts: v_init of every channel, (C,).
        weights: share of every channel, (C,); they add up to 1.

    Returns:
        Probabilities, (K,).
    """
    return np.clip(x[:, None] - (starts[None, :] - 1), 0, 1) @ weights


def kolmogorov_smirnov(counts: Floats, starts: Floats, weights: Floats) -> float:
    """Find the largest distance between a histogram's cumulative shares and a uniform distribution's, at its edges.

    A lower bound of the distance between the values themselves, and at most one bin's share below it.

    Args:
        counts: of the histogram, (BINS + 2,).
        starts: v_init of every channel, (C,).
        weights: values of every channel, (C,).

    Returns:
        The distance, 0..1; NaN without values.
    """
    total = float(counts.sum())
    if total == 0 or float(weights.sum()) == 0:
        return math.nan
    reached = np.cumsum(counts[:-1]) / total
    return float(np.abs(reached - law(EDGES, starts, weights / weights.sum())).max())


def correlation(n: float, x: float, y: float, xx: float, yy: float, xy: float) -> float:
    """Pearson's correlation of two quantities from their sums.

    Args:
        n: number of values.
        x, y: sums of either.
        xx, yy, xy: sums of their squares and of their product.

    Returns:
        -1 to 1; NaN where one is constant.
    """
    if not n > 0:
        return math.nan
    across, down = n * xx - x * x, n * yy - y * y
    if across <= 1e-12 * n * xx or down <= 1e-12 * n * yy:
        return math.nan
    return max(-1.0, min(1.0, (n * xy - x * y) / math.sqrt(across * down)))


def slope(n: float, x: Floats, xx: Floats, d: Floats, xd: Floats) -> float:
    """Regression slope of y = x + d on x within channels, pooled over them: 1 + sum_c cov_c(x, d) / sum_c var_c(x).

    Args:
        n: values a channel.
        x, xx: sums of x and of its square by channel, (C,).
        d, xd: sums of d and of x d by channel, (C,).

    Returns:
        The slope; NaN where x is the same throughout every channel.
    """
    variance = float((xx - x * x / n).sum()) if n > 0 else 0.0
    if variance <= 1e-12 * float(xx.sum()):
        return math.nan
    return 1 + float((xd - x * d / n).sum()) / variance


def affine_fractions(n: float, z: Floats, zz: Floats, d: Floats, dd: Floats, zd: Floats) -> Floats:
    """Fraction of an error d that the best affine map a y + b of y = z + d would remove, channel by channel.

    y is mapped to z by least squares, and what is left of sum d^2 is n [var(d) - cov(d, y)^2 / var(y)]; a = 1 and b = 0
    are a map too, so that nothing is ever added.

    Args:
        n: values a channel.
        z, zz: sums of z and of its square by channel, (C,).
        d, dd: sums of the error and of its square alike.
        zd: sums of their product alike.

    Returns:
        0 to 1, (C,); 0 where there is no error.
    """
    y, yy = z + d, zz + 2 * zd + dd
    variance, across = yy - y * y / n, zd + dd - y * d / n
    linear = np.divide(across * across, variance, out=np.zeros_like(across), where=variance > 1e-12 * yy)
    return np.clip(np.divide(d * d / n + linear, dd, out=np.zeros_like(dd), where=dd > 0), 0, 1)


def compared(channels: int, most: int = MOST_CHANNELS) -> Tensor:
    """Choose the channels whose errors are compared.

    Args:
        channels: of the layer.
        most: how many are compared at most.

    Returns:
        Channels in order: all of them, or `most` drawn with a fixed seed.
    """
    if channels <= most:
        return torch.arange(channels)
    drawn = torch.randperm(channels, generator=torch.Generator().manual_seed(0))[:most]
    return drawn.sort().values


def gram(error: Tensor) -> Tensor:
    """Sum the products of the channels' errors.

    Args:
        error: (M, C).

    Returns:
        (C, C) float64.
    """
    error = error.to(torch.float64)
    return error.T @ error


def mean_abs_correlation(products: Tensor, sums: Tensor, n: float) -> float:
    """Mean |correlation| of two different channels' errors.

    Args:
        products: as `gram` gives it, (C, C).
        sums: of the errors, (C,).
        n: values a channel.

    Returns:
        0 to 1, without channels of constant error; NaN where fewer than two are left.
    """
    covariance = products / n - torch.outer(sums, sums) / n**2
    variance, square = covariance.diagonal(), products.diagonal() / n
    kept = variance > 1e-12 * square
    if int(kept.sum()) < 2:
        return math.nan
    spread = variance[kept].sqrt()
    found = (covariance[kept][:, kept] / torch.outer(spread, spread)).abs().clamp_max(1)
    pairs = len(found) * (len(found) - 1)
    return float(found.sum() - found.diagonal().sum()) / pairs


def first_steps(outs: Sequence[Tensor]) -> Tensor:
    """Find every element's first spike.

    Args:
        outs: the output of every step.

    Returns:
        The first step with a spike, 1 to T, and 0 where none came; int64, shape of one step.
    """
    when = torch.zeros_like(outs[0], dtype=torch.int64)
    for t, out in enumerate(outs, 1):
        when = torch.where((when == 0) & (out != 0), t, when)
    return when


def starts(when: Tensor) -> Tensor:
    """Count the images with a spike in the layer, and add up the steps of their first spikes.

    Args:
        when: first steps, (B, ...), as `first_steps` gives them.

    Returns:
        Both numbers, (2,).
    """
    never = torch.iinfo(when.dtype).max
    rows = torch.where(when == 0, never, when).reshape(len(when), -1)
    begun = rows.min(1).values if rows.shape[1] else rows.new_full((len(rows),), never)
    return torch.stack([(begun != never).sum(), torch.where(begun == never, 0, begun).sum()])


def lag_errors(
    drive: Tensor, covered: int, outs: Sequence[Tensor], theta: Tensor, neuron: IFNeuron,
    amplitude: Tensor | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Compare each step's spike with the mean drive: d[t] = s[t] - mean drive / theta.

    Args:
        drive: the sum over `covered` steps, (M, C).
        covered: steps in that sum.
        outs: the neuron's output of every step, (M, C) each.
        theta: () or (C,).
        neuron: the layer.
        amplitude: what a spike stands for, () or (C,); None for theta.

    Returns:
        Whether the mean drive lies inside the range of a step and is not 0, (M, C) bool; and d where it does, else 0,
        (T, M, C) float64.
    """
    mean = drive.to(torch.float64) / theta.to(torch.float64) / covered
    low = -float(neuron.levels_per_step) if neuron.signed else 0.0
    inside = (mean > low) & (mean < neuron.levels_per_step) & (mean != 0)
    unit = (theta if amplitude is None else amplitude).to(torch.float64)
    trains = torch.stack([out.to(torch.float64) / unit for out in outs])
    return inside, torch.where(inside, trains - mean, 0)


def lag_one(square: float, next_to: float, steps: int) -> float | None:
    """Autocorrelation of the train's error one step apart: [sum d[t] d[t+1] / (T - 1)] / [sum d[t]^2 / T].

    Args:
        square: sum of squares.
        next_to: sum of products of adjacent steps.
        steps: T.

    Returns:
        About -1 to 1; None for a single step, NaN where no train has an error.
    """
    if steps < 2:
        return None
    return next_to / square * steps / (steps - 1) if square > 0 else math.nan


def lateness(pulses: Sequence[int]) -> float | None:
    """Mean step of all spikes minus (T + 1)/2, the mean of evenly spread ones.

    Args:
        pulses: spikes of every step.

    Returns:
        Steps; None for a single step, NaN without spikes.
    """
    if len(pulses) < 2:
        return None
    total = sum(pulses)
    mean = sum(t * count for t, count in enumerate(pulses, 1)) / total if total else math.nan
    return mean - (len(pulses) + 1) / 2
