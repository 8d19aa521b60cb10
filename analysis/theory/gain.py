"""Gain of a layer as a quantizer: least-squares quantizers shrink, and what they shrink by multiplies with depth.

`quantizer_gain` integrates over a layer's activations, `noisy_gain` over a drive that has shrunk and is noisy already,
`gain_with_depth` multiplies along the layers of a network.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from speedysnn.analysis.theory.distributions import Distribution, as_activation
from speedysnn.analysis.theory.drive import check_neuron, quantizer_edges
from speedysnn.analysis.theory.quantization import optimal_threshold, signal_power
from speedysnn.errors import InputError

_REACH, _POINTS = 8.0, 16_001  # standard deviations on either side that are integrated over, and points of the sum


@dataclass(frozen=True)
class Gain:
    """How much of an activation a = max(z, 0) a quantizer's output Q(z) still holds.

    Attributes:
        slope: cov(Q, a) / var(a), the slope of the regression of the output on the activation.
        spread: std(Q) / std(a); its inverse is the factor that restores the activation's spread.
        ratio: E[Q a] / E[a^2], the same as the slope without means taken off: the column "gain" of a noise report.
    """

    slope: float
    spread: float
    ratio: float


def quantizer_gain(
    distribution: Distribution, timesteps: int, theta: float | None = None, v_init: float = 0.5, max_spikes: int = 1
) -> Gain:
    """Gain of one layer's quantizer on its own activations, as exact integrals over their distribution.

    With D = E[(Q - a)^2] every product follows from E[Q a] = (E[a^2] + E[Q^2] - D) / 2. Where every value goes to its
    nearest level (v_init = 1/2) and theta has the least D, scaling all levels cannot lower it: E[(Q - a) Q] = 0, hence
    E[Q a] = E[Q^2] and ratio = 1 - D / E[a^2] = 1 - 10^(-SQNR / 10). A least-squares quantizer shrinks by as much as it
    errs. Centroids (Lloyd and Max) have E[Q] = E[a] too, so that slope = spread^2 for them.

    Args:
        distribution: a frozen scipy.stats distribution or a histogram of one row, of all values: silent ones count.
        timesteps: T.
        theta: in the activation's unit; None takes `optimal_threshold`.
        v_init: initial membrane as a fraction of theta, 0..1.
        max_spikes: N, most spikes in one step.

    Returns:
        The gain.

    Raises:
        InputError: an argument out of range, or a distribution that is none.

    Example:
        >>> from scipy.stats import uniform
        >>> from speedysnn.analysis import theory
        >>> round(theory.quantizer_gain(uniform(), timesteps=4).ratio, 4)  # 1 - 1 / (2 T + 1)^2
        0.9877
    """
    law = as_activation(distribution)
    chosen = optimal_threshold(law, timesteps, v_init, max_spikes) if theta is None else theta
    check_neuron(timesteps, v_init, max_spikes, chosen)
    edges = quantizer_edges(timesteps, chosen, v_init, max_spikes)
    levels = np.arange(len(edges) - 1, dtype=np.float64) * (chosen / timesteps)
    above = np.append(law.above(edges[:-1]), 0.0)
    share = above[:-1] - above[1:]
    power, noise = signal_power(law), law.squared(edges, levels)
    mean, square = float(levels @ share), float(levels**2 @ share)
    around = law.squared(edges[[0, -1]], np.array([chosen]))  # E[(a - theta)^2; a > 0]
    activation = (power + chosen**2 * float(above[0]) - around) / (2 * chosen)
    product, variance = (power + square - noise) / 2, power - activation**2
    return Gain(
        (product - mean * activation) / variance if variance > 0 else math.nan,
        math.sqrt(max(0.0, square - mean**2) / variance) if variance > 0 else math.nan,
        product / power,
    )


def noisy_gain(
    timesteps: int, theta: float, slope: float, noise: float, mean: float = 0.0, v_init: float = 0.5,
    max_spikes: int = 1,
) -> Gain:  # fmt: skip
    """Gain of a layer whose normal drive has shrunk and is noisy already: of Q(z') on a = max(z, 0).

    z = m + x and z' = m + g x + s y with x, y independent and standard normal. With the borders b_n of the quantizer's
    cells and its step D, E[Q(z') | x] = D sum_n Phi((m + g x - b_n) / s), the rest is an integral over x. Noise lowers
    the slope beyond g: a ReLU answers to it where z is near zero. Layer after layer, g is the slope of the layer before
    and s^2 = spread^2 - slope^2, where weights are random and without a mean, and drives are normal.

    Args:
        timesteps: T.
        theta: in standard deviations of z, as all that follows but the slope.
        slope: g, of z' on z.
        noise: s, the part of z' that has nothing to do with z.
        mean: m.
        v_init: initial membrane as a fraction of theta, 0..1.
        max_spikes: N, most spikes in one step.

    Returns:
        The gain.

    Raises:
        InputError: an argument out of range.

    Example:
        >>> from speedysnn.analysis import theory
        >>> [round(theory.noisy_gain(8, 2.5, slope=0.9, noise=noise).slope, 3) for noise in (0.0, 0.3)]
        [0.896, 0.874]
    """
    check_neuron(timesteps, v_init, max_spikes, theta)
    if not (math.isfinite(slope) and math.isfinite(mean) and 0 <= noise < math.inf):
        raise InputError(
            f"noisy_gain: expected a finite slope and mean and noise of at least 0, got {slope!r}, {mean!r}, {noise!r}"
        )
    from scipy.stats import norm

    x = np.linspace(-_REACH, _REACH, _POINTS)
    weight = norm.pdf(x) / norm.pdf(x).sum()
    borders, step = quantizer_edges(timesteps, theta, v_init, max_spikes)[1:-1], theta / timesteps
    over = mean + slope * x - borders[:, None]
    reached = norm.cdf(over / noise) if noise > 0 else (over >= 0).astype(np.float64)
    answer, source = step * reached.sum(0), np.maximum(mean + x, 0)
    # E[Q^2 | x]: a count of n adds 2 n - 1 to its square beyond that of n - 1
    square = step**2 * ((2 * np.arange(1, len(borders) + 1) - 1) @ reached)
    first, power = float(weight @ source), float(weight @ source**2)
    variance, expected = power - first**2, float(weight @ answer)
    product = float(weight @ (answer * source))
    return Gain(
        (product - expected * first) / variance,
        math.sqrt(max(0.0, float(weight @ square) - expected**2) / variance),
        product / power,
    )


def gain_with_depth(slopes: Sequence[float], reads: Sequence[Sequence[int]] | None = None) -> list[float]:
    """Gain expected at the output of every layer, slope_1 slope_2 ... slope_l in a chain.

    A linear layer between two quantizers keeps the slope: where r_i = s a_i + c_i + noise, and the noise has nothing to
    do with any activation, z' = W r + b has the slope s on z = W a + b. Where several layers are read, their mean is
    taken. What the noise does to the next layer is left out (see `noisy_gain`), and that a drive that has shrunk is
    clipped less.

    Args:
        slopes: `Gain.slope` of every layer, in the order of execution.
        reads: for every layer the earlier ones that it reads, by their places; None for a chain.

    Returns:
        Expected gains, one a layer.

    Raises:
        InputError: a layer reads itself or a later one, or there are not as many rows as slopes.

    Example:
        >>> from scipy.stats import halfnorm
        >>> from speedysnn.analysis import theory
        >>> slope = theory.quantizer_gain(halfnorm(), timesteps=4).slope
        >>> [round(gain, 2) for gain in theory.gain_with_depth([slope] * 16)[::5]]
        [0.96, 0.78, 0.64, 0.52]
    """
    before = [[i - 1] if i else [] for i in range(len(slopes))] if reads is None else [list(places) for places in reads]
    if len(before) != len(slopes) or any(not 0 <= j < i for i, places in enumerate(before) for j in places):
        raise InputError(
            f"reads: expected for each of the {len(slopes)} layers the places of earlier ones, got {before!r:.80}"
        )
    found: list[float] = []
    for slope, places in zip(slopes, before, strict=True):
        arriving = sum(found[j] for j in places) / len(places) if places else 1.0
        found.append(slope * arriving)
    return found
