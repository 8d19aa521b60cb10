"""Figures in a verdict's sentences."""

import math


def db(value: float) -> str:
    """Decibels, undefined and infinite ones in words."""
    if math.isnan(value):
        return "an undefined number of dB"
    return f"{value:.1f} dB" if math.isfinite(value) else "infinitely many dB (no error)"


def percent(value: float) -> str:
    """Of a fraction; 100 % only where it is 1."""
    return f"{100 * value:.1f} %" if value < 0.9995 or value >= 1 else f"{100 * value:.2f} %"


def steps(number: int) -> str:
    """Time steps."""
    return f"{number} step" if number == 1 else f"{number} steps"
