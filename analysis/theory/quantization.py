"""Noise of an integrate-and-fire neuron as a quantizer, in closed form or by exact integrals over activations.

Under constant drive z the neuron counts n = clip(floor(T z / theta + v_init), 0, T N) spikes and stands for
Q(z) = n theta / T: a quantizer of step D = theta / T and full scale F = N theta, with the error e = Q(z) - max(z, 0).
Activations are given as a frozen distribution of scipy.stats or as an `ActivationHistogram`, and are read through a
ReLU: values at or below zero are silent (at v_init = 1, where a neuron answers zero itself with a spike, too). What
random arrival of spikes adds to this noise is in `arrival`; the probabilities of counts and errors are in `drive`.
"""

import math

import numpy as np

from speedysnn.analysis.theory.distributions import Activation, Distribution, as_activation
from speedysnn.analysis.theory.drive import check_neuron, quantizer_edges

_GRID = 160  # full scales tried before the search around the best of them
_VALLEYS = 3  # of the grid that are searched, lowest first; smooth laws have one
_PER_BIT = 20 * math.log10(2)


def rmse_steps(v_init: float) -> float:
    """Root mean squared error of a quantizer in units of its step, for values spread evenly inside its range.

    sqrt((v^3 + (1 - v)^3) / 3): 1/sqrt(12) = 0.289 for v_init = 1/2 (rounds), 1/sqrt(3) = 0.577 for 0 (floors).

    Args:
        v_init: initial membrane as a fraction of theta, 0..1.

    Returns:
        The error in steps theta / T.

    Example:
        >>> from speedysnn.analysis import theory
        >>> round(theory.rmse_steps(0.5), 3), round(theory.rmse_steps(0.0), 3)
        (0.289, 0.577)
    """
    return math.sqrt((v_init**3 + (1 - v_init) ** 3) / 3)


def floor_db(power: float, in_range: float, theta: float, timesteps: int, v_init: float = 0.5) -> float:
    """SQNR that the step alone allows, 10 log10(E[a^2] T^2 / (p theta^2 k)), k = (v^3 + (1 - v)^3) / 3.

    Values at or below zero are exact and what exceeds the range is left out, so that clipping lies below this floor.

    Args:
        power: E[a^2], the activation's mean square, in its unit squared.
        in_range: p, the fraction of values with 0 < z < N theta.
        theta: in the activation's unit.
        timesteps: T.
        v_init: initial membrane as a fraction of theta.

    Returns:
        Decibels; +inf if nothing lies in the range, NaN if the activation is zero throughout.

    Example:
        >>> from speedysnn.analysis import theory
        >>> round(theory.floor_db(power=1 / 3, in_range=1.0, theta=1.0, timesteps=4), 2)
        18.06
    """
    return decibels(power, in_range * (theta / timesteps * rmse_steps(v_init)) ** 2)


def decibels(signal: float, noise: float) -> float:
    """10 log10(signal / noise) of two powers.

    Args:
        signal: mean or sum of squares.
        noise: the same of the error, in the same unit.

    Returns:
        Decibels; +inf without noise, NaN without signal.

    Example:
        >>> from speedysnn.analysis import theory
        >>> theory.decibels(100.0, 1.0), theory.decibels(1.0, 0.0)
        (20.0, inf)
    """
    if not signal > 0:
        return math.nan
    if not noise > 0:
        return math.inf if noise == 0 else math.nan
    return 10 * (math.log10(signal) - math.log10(noise))


def uniform_sqnr_db(timesteps: int, v_init: float = 0.5, max_spikes: int = 1) -> float:
    """SQNR of U(0, A) at its best threshold, 20 log10(1 + T N / s), s = sqrt(v^3 + (1 - v)^3).

    With A = 1 and K = T N levels of step D, E[e^2] = K D^3 s^2 / 3 + (1 - K D)^3 / 3, least where D = 1 / (K + s).
    v_init = 0: 20 log10(K + 1), hence 6.02 dB for each of log2(K + 1) bits; v_init = 1/2: 20 log10(2 K + 1).

    Args:
        timesteps: T.
        v_init: initial membrane as a fraction of theta, 0..1.
        max_spikes: N, most spikes in one step.

    Returns:
        Decibels.

    Raises:
        InputError: an argument out of range.

    Example:
        >>> from speedysnn.analysis import theory
        >>> [round(theory.uniform_sqnr_db(steps), 2) for steps in (1, 2, 4, 8)]
        [9.54, 13.98, 19.08, 24.61]
    """
    check_neuron(timesteps, v_init, max_spikes)
    return 20 * math.log10(1 + timesteps * max_spikes / (math.sqrt(3) * rmse_steps(v_init)))


def signal_power(distribution: Distribution) -> float:
    """Mean square of the activation, E[max(z, 0)^2].

    Args:
        distribution: a frozen scipy.stats distribution or a histogram of one row.

    Returns:
        The power, in the activation's unit squared.

    Raises:
        InputError: the distribution is not one; see `as_activation`.

    Example:
        >>> from scipy.stats import norm
        >>> from speedysnn.analysis import theory
        >>> round(theory.signal_power(norm()), 6)
        0.5
    """
    return as_activation(distribution).squared(np.array([0.0, np.inf]), np.zeros(1))


def granular_noise(
    distribution: Distribution, timesteps: int, theta: float, v_init: float = 0.5, max_spikes: int = 1
) -> float:
    """E[e^2; 0 < z < N theta], what the step costs inside the range; about P(0 < z < N theta) D^2 rmse_steps(v)^2.

    Args:
        distribution: a frozen scipy.stats distribution or a histogram of one row.
        timesteps: T.
        theta: in the activation's unit.
        v_init: initial membrane as a fraction of theta, 0..1; 0 floors, 1/2 rounds.
        max_spikes: N, most spikes in one step.

    Returns:
        Noise power, in the activation's unit squared.

    Raises:
        InputError: an argument out of range, or a distribution that is none.

    Example:
        >>> from scipy.stats import uniform
        >>> from speedysnn.analysis import theory
        >>> round(theory.granular_noise(uniform(), timesteps=4, theta=1.0) * 12 * 4**2, 6)
        1.0
    """
    check_neuron(timesteps, v_init, max_spikes, theta)
    return _granular(as_activation(distribution), timesteps, theta, v_init, max_spikes)


def overload_noise(distribution: Distribution, theta: float, max_spikes: int = 1) -> float:
    """E[(z - N theta)^2; z > N theta], what the clip costs; the same for every T and v_init.

    Args:
        distribution: a frozen scipy.stats distribution or a histogram of one row.
        theta: in the activation's unit.
        max_spikes: N, most spikes in one step.

    Returns:
        Noise power, in the activation's unit squared.

    Raises:
        InputError: an argument out of range, or a distribution that is none.

    Example:
        >>> from scipy.stats import uniform
        >>> from speedysnn.analysis import theory
        >>> round(theory.overload_noise(uniform(), theta=0.7), 6), theory.overload_noise(uniform(), theta=1.0)
        (0.009, 0.0)
    """
    check_neuron(1, 0.5, max_spikes, theta)
    return _overload(as_activation(distribution), max_spikes * theta)


def sqnr_db(
    distribution: Distribution, timesteps: int, theta: float | None = None, v_init: float = 0.5, max_spikes: int = 1
) -> float:
    """10 log10(E[max(z, 0)^2] / E[e^2]) of the quantized reading, granular and overload noise together.

    Args:
        distribution: a frozen scipy.stats distribution or a histogram of one row.
        timesteps: T.
        theta: in the activation's unit; None takes `optimal_threshold`.
        v_init: initial membrane as a fraction of theta, 0..1; 0 floors, 1/2 rounds.
        max_spikes: N, most spikes in one step.

    Returns:
        Decibels.

    Raises:
        InputError: an argument out of range, or a distribution that is none.

    Example:
        >>> from scipy.stats import halfnorm
        >>> from speedysnn.analysis import theory
        >>> [round(theory.sqnr_db(halfnorm(), steps), 1) for steps in (4, 8, 16)]
        [15.1, 19.8, 24.8]
    """
    law = as_activation(distribution)
    chosen = optimal_threshold(law, timesteps, v_init, max_spikes) if theta is None else theta
    check_neuron(timesteps, v_init, max_spikes, chosen)
    return decibels(signal_power(law), _noise(law, timesteps, chosen, v_init, max_spikes))


def optimal_threshold(distribution: Distribution, timesteps: int, v_init: float = 0.5, max_spikes: int = 1) -> float:
    """Theta that minimises E[e^2]: a geometric grid of full scales, then a search in its lowest valleys.

    Args:
        distribution: a frozen scipy.stats distribution or a histogram of one row.
        timesteps: T.
        v_init: initial membrane as a fraction of theta, 0..1.
        max_spikes: N, most spikes in one step.

    Returns:
        Theta, in the activation's unit.

    Raises:
        InputError: an argument out of range, or a distribution that is none.

    Example:
        >>> from scipy.stats import uniform
        >>> from speedysnn.analysis import theory
        >>> round(theory.optimal_threshold(uniform(), timesteps=4), 4)  # 2 T / (2 T + 1)
        0.8889
    """
    from scipy.optimize import minimize_scalar

    check_neuron(timesteps, v_init, max_spikes)
    law = as_activation(distribution)

    def noise(exponent: float) -> float:
        return _noise(law, timesteps, math.exp(exponent) / max_spikes, v_init, max_spikes)

    low, high = law.span()
    grid = np.linspace(math.log(low), math.log(high), _GRID)
    found = [noise(float(x)) for x in grid]
    walled = np.array([math.inf, *found, math.inf])
    valleys = np.flatnonzero((walled[1:-1] <= walled[:-2]) & (walled[1:-1] <= walled[2:])).tolist()
    best: list[tuple[float, float]] = []
    for _, i in sorted((found[i], int(i)) for i in valleys)[:_VALLEYS]:
        around = float(grid[max(i - 1, 0)]), float(grid[min(i + 1, _GRID - 1)])
        result = minimize_scalar(noise, bounds=around, method="bounded", options={"xatol": 1e-9})
        best.append((float(result.fun), float(result.x)))
    return math.exp(min(best)[1]) / max_spikes


def effective_bits(
    distribution: Distribution, timesteps: int, theta: float | None = None, v_init: float = 0.5, max_spikes: int = 1
) -> float:
    """SQNR / 6.02 dB: the bits of a flooring quantizer that has this SQNR at its best on a uniform distribution.

    That quantizer has K levels above zero, and its bits are log2(K + 1).

    Args:
        distribution: a frozen scipy.stats distribution or a histogram of one row.
        timesteps: T.
        theta: in the activation's unit; None takes `optimal_threshold`.
        v_init: initial membrane as a fraction of theta, 0..1.
        max_spikes: N, most spikes in one step.

    Returns:
        Bits.

    Raises:
        InputError: an argument out of range, or a distribution that is none.

    Example:
        >>> from scipy.stats import uniform
        >>> from speedysnn.analysis import theory
        >>> round(theory.effective_bits(uniform(), timesteps=7, v_init=0.0), 4)
        3.0
    """
    return sqnr_db(distribution, timesteps, theta, v_init, max_spikes) / _PER_BIT


def _noise(law: Activation, timesteps: int, theta: float, v_init: float, max_spikes: int) -> float:
    """E[e^2], granular and overload in one integral."""
    edges = quantizer_edges(timesteps, theta, v_init, max_spikes)
    return law.squared(edges, np.arange(len(edges) - 1, dtype=np.float64) * (theta / timesteps))


def _granular(law: Activation, timesteps: int, theta: float, v_init: float, max_spikes: int) -> float:
    edges = np.minimum(quantizer_edges(timesteps, theta, v_init, max_spikes), max_spikes * theta)
    return law.squared(edges, np.arange(len(edges) - 1, dtype=np.float64) * (theta / timesteps))


def _overload(law: Activation, scale: float) -> float:
    return law.squared(np.array([scale, np.inf]), np.array([scale]))
