"""The laws of what an even drive makes a neuron answer: its count, and its error e = Q(z) - max(z, 0)."""

from typing import NamedTuple

import numpy as np

from speedysnn.analysis.checks import check_neuron
from speedysnn.analysis.continuous import Array
from speedysnn.analysis.distributions import Activation, Distribution, as_activation


def quantizer_edges(timesteps: int, theta: float, v_init: float, highest: int) -> Array:
    """(K + 2,): cell n of the quantizer, K = T N, is edges[n]..edges[n + 1], the first from 0, the last to infinity."""
    rising = (np.arange(1, timesteps * highest + 1) - v_init) * (theta / timesteps)
    return np.concatenate([[0.0], rising, [np.inf]])


def count_probabilities(
    distribution: Distribution, timesteps: int, theta: float, v_init: float = 0.5, highest: int = 1
) -> Array:
    """P(n spikes in T steps), n = 0..T N, shape (T N + 1,); their mean is the spikes per neuron of the ideal.

    Raises:
        InputError: an argument out of range, or a distribution that is none.
    """
    check_neuron(timesteps, v_init, highest, theta)
    edges = quantizer_edges(timesteps, theta, v_init, highest)
    reached = as_activation(distribution).above(edges[1:-1])
    return -np.diff(np.concatenate([[1.0], reached, [0.0]]))


class ErrorDensity(NamedTuple):
    """The law of e = Q(z) - max(z, 0): a density, and an atom at zero from the values that are not positive.

    Attributes:
        errors: (n,), rising, in the activation's unit.
        density: (n,), its integral over all errors is 1 - exact.
        exact: P(z <= 0).
    """

    errors: Array
    density: Array
    exact: float


def error_density(
    distribution: Distribution,
    timesteps: int,
    theta: float,
    v_init: float = 0.5,
    highest: int = 1,
    errors: Array | None = None,
) -> ErrorDensity:
    """f(e) = sum over n of p(n D - e) where n D - e lies in the cell that gives n; below -(1 - v) D only n = T N does.

    Without `errors`, 1001 of them from the 1e-6 tail of the overload, or -(1 - v) D, up to v D.

    Raises:
        InputError: an argument out of range, or a distribution that is none.
    """
    check_neuron(timesteps, v_init, highest, theta)
    law = as_activation(distribution)
    step, levels = theta / timesteps, timesteps * highest
    if errors is None:
        errors = np.linspace(-max((1 - v_init) * step, _furthest(law) - levels * step), v_init * step, 1001)
    counts = np.arange(levels + 1, dtype=np.float64)[:, None]
    z = counts * step - errors
    inside = (z > 0) & ((counts == 0) | (errors <= v_init * step))
    inside &= (counts == levels) | (errors > -(1 - v_init) * step)
    density = np.where(inside, law.density(np.where(inside, z, step)), 0.0).sum(0)
    return ErrorDensity(errors, density, 1 - float(law.above(np.zeros(1))[0]))


def _furthest(law: Activation) -> float:
    """A z with about 1e-6 of the positive values above it."""
    z = np.geomspace(*law.span(), 4000)
    above = law.above(z)
    return float(z[min(int((above > 1e-6 * law.above(np.zeros(1))).sum()), len(z) - 1)])
