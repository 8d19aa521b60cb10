"""The drive of a neuron whose inputs spike at random, and what a quantizer makes of a constant one.

`spike_drive` splits the input of a neuron into what lasts over all steps and what is new in every step. `Walk` holds
the distribution of such a drive's running sum on a grid and carries it from step to step. `count_probabilities` and
`error_density` are about constant drive: how often a neuron answers n spikes, and how its error e = Q(z) - max(z, 0)
is distributed. `check_neuron` refuses what no neuron can have.
"""

import math
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from speedysnn.analysis.theory.distributions import Activation, Array, Distribution, as_activation
from speedysnn.errors import InputError

_SPAN = 7.0  # standard deviations on either side that the grid holds
_CELLS = 24  # of the grid in one theta, at least
_PER_STEP = 2.0  # and in one standard deviation of a step's noise
_LARGEST = 2**23  # cells times counts


def check_whole(least: int = 1, **numbers: int) -> None:
    """Refuse what is no whole number or below `least`, by its name.

    Args:
        least: the smallest number allowed.
        numbers: what to check, by name.

    Raises:
        InputError: one of them is not.
    """
    for name, value in numbers.items():
        if not isinstance(value, int | np.integer) or value < least:
            raise InputError(f"{name}: expected a whole number of at least {least}, got {value!r}")


def check_neuron(timesteps: int, v_init: float, max_spikes: int = 1, theta: float = 1.0) -> None:
    """Refuse what no neuron can have.

    Args:
        timesteps: T.
        v_init: initial membrane as a fraction of theta.
        max_spikes: N, most spikes in one step.
        theta: threshold.

    Raises:
        InputError: T or N no whole number of at least 1, v_init outside 0..1, theta not positive and finite.

    Example:
        >>> from speedysnn.analysis import theory
        >>> theory.check_neuron(timesteps=4, v_init=2.0)
        Traceback (most recent call last):
        speedysnn.errors.InputError: v_init: expected a fraction of theta between 0 and 1, got 2.0
    """
    check_whole(timesteps=timesteps, max_spikes=max_spikes)
    if not 0 <= v_init <= 1:
        raise InputError(f"v_init: expected a fraction of theta between 0 and 1, got {v_init!r}")
    if not (theta > 0 and math.isfinite(theta)):
        raise InputError(f"theta: expected a positive finite threshold, got {theta!r}")


@dataclass(frozen=True)
class Trains:
    """The spike trains that a drive is made of; the arguments of `spike_drive`."""

    fan_in: int
    rate: float
    weight_mean: float
    weight_std: float
    bias: float
    rate_std: float
    taken_back: float


@dataclass(frozen=True)
class Drive:
    """A Gaussian drive x_t = z + xi_t over a layer's neurons and time, in the activation's unit.

    Attributes:
        mean: E[x].
        between: variance of z, what lasts through all steps.
        within: variance of xi_t, what is new in every step.
        trains: what it is the sum of, where known; a sum of few trains is then not taken for Gaussian.
    """

    mean: float
    between: float
    within: float
    trains: Trains | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        """Refuse what no drive can be."""
        values = (self.mean, self.between, self.within)
        if not all(map(math.isfinite, values)) or self.between < 0 or self.within < 0:
            raise InputError(f"drive: expected finite moments and variances of at least 0, got {self}")


def spike_drive(
    fan_in: int,
    rate: float,
    weight_mean: float = 0.0,
    weight_std: float = 1.0,
    bias: float = 0.0,
    rate_std: float = 0.0,
    taken_back: float = 0.0,
) -> Drive:
    """The drive of M inputs that spike at random: weights and rates independent, another draw for every neuron.

    With r what an input sends in a step in the mean, which is p - m if it spikes with probability p and takes a spike
    back with probability m: mean = M E[w] E[r] + bias, between = M (E[w^2] E[r^2] - E[w]^2 E[r]^2),
    within = M E[w^2] (E[r] + 2 m - E[r^2]). Steps are independent; a neuron that takes back only what it has fired
    sends trains more even than that.

    Args:
        fan_in: M.
        rate: E[r], spikes in a step less those taken back; the probability of a spike if none is.
        weight_mean: E[w], a weight times the amplitude of the spike it sees.
        weight_std: standard deviation of w.
        bias: constant current.
        rate_std: standard deviation of r over the inputs.
        taken_back: m, probability of a spike of -1 in a step, the same for every input; at most (1 - E[r]) / 2.

    Returns:
        The drive's mean and variances.

    Raises:
        InputError: a fan-in below 1, a rate outside 0..1, a negative deviation, more spread than the rate allows, or
            more taken back than leaves room for the rate.

    Example:
        >>> from speedysnn.analysis import theory
        >>> drive = theory.spike_drive(fan_in=100, rate=0.2, weight_std=0.1)
        >>> round(drive.between, 3), round(drive.within, 3)
        (0.04, 0.16)
    """
    check_whole(fan_in=fan_in)
    if not 0 <= rate <= 1:
        raise InputError(f"rate: expected the probability of a spike in a step, 0..1, got {rate}")
    if weight_std < 0 or not 0 <= rate_std**2 <= rate * (1 - rate) or rate_std < 0:
        raise InputError(
            f"spikes: expected weight_std >= 0 and 0 <= rate_std <= sqrt(rate (1 - rate)) = "
            f"{math.sqrt(rate * (1 - rate)):.4g}, got {weight_std} and {rate_std}"
        )
    if not 0 <= taken_back <= (1 - rate) / 2:
        raise InputError(
            f"taken_back: expected a probability of at most (1 - rate) / 2 = {(1 - rate) / 2:.4g}, got {taken_back}"
        )
    weight, square = weight_mean**2 + weight_std**2, rate**2 + rate_std**2
    between = fan_in * (weight * square - (weight_mean * rate) ** 2)
    within = fan_in * weight * max(rate + 2 * taken_back - square, 0.0)
    trains = Trains(fan_in, rate, weight_mean, weight_std, bias, rate_std, taken_back)
    return Drive(fan_in * weight_mean * rate + bias, max(between, 0.0), within, trains)


@dataclass(frozen=True)
class Walk:
    """Cells of y, a rescaled running sum, whose borders fall on the quantizer's at the last step; theta is 1.

    Attributes:
        drive: in units of theta.
        v_init: initial membrane.
        low: lower border of the first cell.
        width: of a cell.
        cells: how many.
    """

    drive: Drive
    v_init: float
    low: float
    width: float
    cells: int

    @staticmethod
    def of(drive: Drive, timesteps: int, v_init: float, levels: int) -> "Walk":
        """A grid that resolves theta and the noise of every step, over `_SPAN` deviations of the last sum."""
        from scipy.fft import next_fast_len

        growth = drive.between / drive.within
        last = 1 + timesteps * growth
        noise = math.sqrt(drive.within * last / (1 + (timesteps - 1) * growth))  # of the last step, as of S[T]
        width = 1 / last / math.ceil(max(_CELLS, _PER_STEP / noise))
        reach = _SPAN * math.sqrt(timesteps * drive.within / last)
        cells = 2 * reach / width + 2
        if cells * (levels + 1) > _LARGEST:
            raise InputError(
                f"drive: between {drive.between:g} over within {drive.within:g} (in units of theta squared) at T = "
                f"{timesteps} needs a grid of {cells * (levels + 1):.1e} cells, more than {_LARGEST:.1e}; take fewer "
                "steps, or early_spikes; where within is tiny next to 1, next to no error is left"
            )
        border = -(v_init + timesteps * drive.mean) / last
        low = border - math.ceil((reach + border) / width) * width
        return Walk(drive, v_init, low, width, int(next_fast_len(math.ceil(cells), real=True)))

    def scale(self, k: int) -> float:
        """1 + k a, what one y is of S[k]."""
        return 1 + k * self.drive.between / self.drive.within

    def variance(self, k: int) -> float:
        """Var y_k = k within / (1 + k a)."""
        return k * self.drive.within / self.scale(k)

    def start(self, k: int) -> Array:
        """The law of y_k, (cells,)."""
        from scipy.special import ndtr

        borders = self.low + self.width * np.arange(self.cells + 1)
        return np.asarray(np.diff(ndtr(borders / math.sqrt(self.variance(k)))))

    def spread(self, mass: Array, variance: float) -> Array:
        """Rows (n, cells) convolved with a Gaussian."""
        from scipy.fft import irfft, rfft

        wave = 2 * np.pi * np.arange(self.cells // 2 + 1) / (self.cells * self.width)
        out: Array = irfft(rfft(mass, axis=1) * np.exp(-(wave**2) * variance / 2), n=self.cells, axis=1)
        return out

    def reached(self, k: int, t: int, rows: int) -> Array:
        """The part of each cell where (t/k) S[k] + v_init >= q, for q = 1..rows - 1; (rows - 1, cells)."""
        step = (t / k) * self.scale(k)
        low = (t / k) * k * self.drive.mean + self.v_init + step * (self.low + self.width * np.arange(self.cells))
        share = (low + step * self.width - np.arange(1, rows)[:, None]) / (step * self.width)
        return np.asarray(np.clip(share, 0.0, 1.0))


def quantizer_edges(timesteps: int, theta: float, v_init: float, max_spikes: int) -> Array:
    """Give the borders of a quantizer's cells, (n - v_init) theta / T.

    Args:
        timesteps: T.
        theta: in the activation's unit.
        v_init: initial membrane as a fraction of theta.
        max_spikes: N, most spikes in one step.

    Returns:
        (K + 2,), K = T N: the neuron answers n spikes from edges[n] to edges[n + 1]; the first is 0, the last infinite.

    Example:
        >>> from speedysnn.analysis import theory
        >>> theory.quantizer_edges(timesteps=2, theta=1.0, v_init=0.5, max_spikes=1).tolist()
        [0.0, 0.25, 0.75, inf]
    """
    rising = (np.arange(1, timesteps * max_spikes + 1) - v_init) * (theta / timesteps)
    return np.concatenate([[0.0], rising, [np.inf]])


def count_probabilities(
    distribution: Distribution, timesteps: int, theta: float, v_init: float = 0.5, max_spikes: int = 1
) -> Array:
    """P(n spikes in T steps) under constant drive, n = 0..T N; their mean is the spikes per neuron of the ideal.

    Args:
        distribution: a frozen scipy.stats distribution or a histogram of one row.
        timesteps: T.
        theta: in the activation's unit.
        v_init: initial membrane as a fraction of theta, 0..1.
        max_spikes: N, most spikes in one step.

    Returns:
        Probabilities, (T N + 1,).

    Raises:
        InputError: an argument out of range, or a distribution that is none.

    Example:
        >>> from scipy.stats import uniform
        >>> from speedysnn.analysis import theory
        >>> theory.count_probabilities(uniform(), timesteps=2, theta=1.0).tolist()
        [0.25, 0.5, 0.25]
    """
    check_neuron(timesteps, v_init, max_spikes, theta)
    edges = quantizer_edges(timesteps, theta, v_init, max_spikes)
    reached = as_activation(distribution).above(edges[1:-1])
    return -np.diff(np.concatenate([[1.0], reached, [0.0]]))


class ErrorDensity(NamedTuple):
    """The distribution of e = Q(z) - max(z, 0): a density, and an atom at zero from the values that are not positive.

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
    max_spikes: int = 1,
    errors: Array | None = None,
) -> ErrorDensity:
    """f(e) = sum over n of p(n D - e) where n D - e lies in the cell that gives n; below -(1 - v) D only n = T N does.

    Args:
        distribution: a frozen scipy.stats distribution or a histogram of one row.
        timesteps: T.
        theta: in the activation's unit.
        v_init: initial membrane as a fraction of theta, 0..1.
        max_spikes: N, most spikes in one step.
        errors: where to evaluate it, (n,), in the activation's unit; without them 1001 from the 1e-6 tail of the
            overload, or -(1 - v) D, up to v D.

    Returns:
        Errors, their density, and the probability of no error.

    Raises:
        InputError: an argument out of range, or a distribution that is none.

    Example:
        >>> import numpy as np
        >>> from scipy.stats import uniform
        >>> from speedysnn.analysis import theory
        >>> theory.error_density(uniform(), timesteps=4, theta=1.0, errors=np.array([-0.2, 0.0, 0.1])).density.tolist()
        [0.0, 4.0, 4.0]
    """
    check_neuron(timesteps, v_init, max_spikes, theta)
    law = as_activation(distribution)
    step, levels = theta / timesteps, timesteps * max_spikes
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
