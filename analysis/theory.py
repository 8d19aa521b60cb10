"""Closed forms of a quantizer's noise, the ideals that measured figures stand beside."""

import math


def rmse_steps(v_init: float) -> float:
    """Root mean squared error of a quantizer in units of its step, for values spread evenly inside its range.

    sqrt((v^3 + (1 - v)^3) / 3): 1/sqrt(12) = 0.289 for v_init = 1/2 (rounds), 1/sqrt(3) = 0.577 for 0 (floors).
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
    """
    return decibels(power, in_range * (theta / timesteps * rmse_steps(v_init)) ** 2)


def decibels(signal: float, noise: float) -> float:
    """10 log10(signal / noise) of two powers; +inf without noise, NaN without signal."""
    if not signal > 0:
        return math.nan
    if not noise > 0:
        return math.inf if noise == 0 else math.nan
    return 10 * (math.log10(signal) - math.log10(noise))
