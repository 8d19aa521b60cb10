"""Spike derivatives by name: what stands in for the derivative of the Heaviside step when training through time.

Each is a function of m = (v - theta) / theta, the distance to the threshold in units of the threshold, and of a
width in the same units. Each integrates to one over m, so that the width changes the shape and not the gain.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from speedysnn.errors import InputError

SlopeFunction = Callable[[Tensor, float], Tensor]


def rectangle(m: Tensor, width: float) -> Tensor:
    """1/w where abs(m) < w/2, else 0; at w = 1 the slope closest to the quantizer's own gradient."""
    return (m.abs() < width / 2).to(m.dtype) / width


def triangle(m: Tensor, width: float) -> Tensor:
    """max(0, 1 - abs(m)/w) / w."""
    return (1 - m.abs() / width).clamp_min(0) / width


def sigmoid(m: Tensor, width: float) -> Tensor:
    """s(m/w) (1 - s(m/w)) / w with s the logistic function; w = 1 is the slope alpha = 1 of castagnetti2023's code."""
    s = torch.sigmoid(m / width)
    return s * (1 - s) / width


def atan(m: Tensor, width: float) -> Tensor:
    """1 / (w (1 + (pi m / w)^2))."""
    return 1 / (width * (1 + (math.pi * m / width) ** 2))


SURROGATES: dict[str, SlopeFunction] = {
    "rectangle": rectangle,
    "triangle": triangle,
    "sigmoid": sigmoid,
    "atan": atan,
}


def slope(name: str, m: Tensor, width: float) -> Tensor:
    """The surrogate derivative ds/dm of the named function at m.

    Raises:
        InputError: no surrogate has that name.
    """
    if name not in SURROGATES:
        raise InputError(f"unknown surrogate {name!r}: expected one of {', '.join(sorted(SURROGATES))}")
    return SURROGATES[name](m, width)
