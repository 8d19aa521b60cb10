"""Temporal error: what random arrival of spikes adds to quantization, for a neuron whose inputs are spike trains.

A neuron sums M inputs with weights w_i; input i spikes in a step with probability r_i, alone and at random. For a
large fan-in the drive of step t is Gaussian, x_t = z + xi_t: z differs from neuron to neuron and lasts all T steps,
xi_t, of variance s^2, is new in every step. Its sums S[k] are a random walk, and the quantizer sees the last one alone,
Q = clip(floor(S[T] / theta + v), 0, T N). Theta is 1 below.

Why the count n leaves Q: a neuron without a limit of N spikes a step has fired max over t of floor(S[t] + v) times. It
answers the highest point of the walk and cannot take spikes back when later input falls. Given its end l = S[T] + v
the walk is a Brownian bridge of variance T s^2 from v to l, and a bridge passes a level b above both its ends with
probability exp(-2 (b - v)(b - l) / (T s^2)). At least j spikes too many are b = Q + j, hence

    P(n - Q >= j | l) = exp(-2 (Q + j - v)(Q + j - l) / (T s^2)),   E[n - Q | l] = the sum of it over j >= 1.

The walk is seen at whole steps only, which lifts b by 0.5826 s (Siegmund's correction). As T grows the exponent tends
to -2 z (Q + j - l) / s^2 for z > 0 and to -2 (j - v) |z| / s^2 for z < 0: the error in spikes saturates, so that in the
activation's unit it falls as 1 / T, no faster than the step theta / T. Near z = 0 it does not saturate: at z = 0 it
grows as sqrt(T), and over neurons whose z has a density at zero E|n - Q| grows as log T and E(n - Q)^2 as sqrt(T).
In the long run more steps do not lower temporal error against the quantizer's, theta^2 / (12 T^2).

`early_spikes` is this closed form; it knows nothing of spikes that come late for want of steps. `temporal_error` has
both, and look-ahead: it carries the law of (S[k], n) forward in time, exactly but for the Gaussian drive and a grid.
"""

import math
from dataclasses import dataclass

import numpy as np

from speedysnn.analysis.distributions import Array, check_whole
from speedysnn.errors import InputError

_SPAN = 7.0  # standard deviations on either side that the grid holds
_CELLS = 24  # of the grid in one theta, at least
_PER_STEP = 2.0  # and in one standard deviation of a step's noise
_LARGEST = 2**23  # cells times counts
_FINE = 64  # points in one theta for the closed form
_SIEGMUND = 0.5826  # -zeta(1/2) / sqrt(2 pi)


@dataclass(frozen=True)
class Drive:
    """A Gaussian drive x_t = z + xi_t over a layer's neurons and time, in the activation's unit.

    Attributes:
        mean: E[x].
        between: variance of z, what lasts through all steps.
        within: variance of xi_t, what is new in every step.
    """

    mean: float
    between: float
    within: float

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
) -> Drive:
    """The drive of M inputs that spike at random: weights and rates independent, another draw for every neuron.

    mean = M E[w] E[r] + bias, between = M (E[w^2] E[r^2] - E[w]^2 E[r]^2), within = M E[w^2] (E[r] - E[r^2]).

    Args:
        fan_in: M.
        rate: E[r], probability of a spike in a step.
        weight_mean: E[w], a weight times the amplitude of the spike it sees.
        weight_std: standard deviation of w.
        bias: constant current.
        rate_std: standard deviation of r over the inputs.

    Raises:
        InputError: a fan-in below 1, a rate outside 0..1, a negative deviation, or more spread than the rate allows.
    """
    check_whole(fan_in=fan_in)
    if not 0 <= rate <= 1:
        raise InputError(f"rate: expected the probability of a spike in a step, 0..1, got {rate}")
    if weight_std < 0 or not 0 <= rate_std**2 <= rate * (1 - rate) or rate_std < 0:
        raise InputError(
            f"spikes: expected weight_std >= 0 and 0 <= rate_std <= sqrt(rate (1 - rate)) = "
            f"{math.sqrt(rate * (1 - rate)):.4g}, got {weight_std} and {rate_std}"
        )
    weight, square = weight_mean**2 + weight_std**2, rate**2 + rate_std**2
    between = fan_in * (weight * square - (weight_mean * rate) ** 2)
    return Drive(fan_in * weight_mean * rate + bias, max(between, 0.0), fan_in * weight * max(rate - square, 0.0))


@dataclass(frozen=True)
class TemporalError:
    """The law of n - Q, spikes beyond the quantizer's count.

    Attributes:
        sizes: (2 K + 1,) whole numbers from -K to K, K = T N.
        probabilities: (2 K + 1,) of each.
    """

    sizes: Array
    probabilities: Array

    @property
    def extra(self) -> float:
        """P(n > Q): a spike fired early that later input took the ground from."""
        return float(self.probabilities[self.sizes > 0].sum())

    @property
    def missing(self) -> float:
        """P(n < Q): input that came too late to be fired off, N spikes a step."""
        return float(self.probabilities[self.sizes < 0].sum())

    @property
    def probability(self) -> float:
        """P(n != Q)."""
        return self.extra + self.missing

    @property
    def bias(self) -> float:
        """E[n - Q], in spikes; times theta / T in the activation's unit."""
        return float(self.probabilities @ self.sizes)

    @property
    def mean_size(self) -> float:
        """E|n - Q| over all neurons, in spikes."""
        return float(self.probabilities @ np.abs(self.sizes))

    @property
    def size_if_wrong(self) -> float:
        """E[|n - Q| given n != Q], in spikes; NaN without error."""
        return self.mean_size / self.probability if self.probability > 0 else math.nan

    @property
    def power(self) -> float:
        """E[(n - Q)^2], in spikes squared; times (theta / T)^2 it stands beside the quantizer's noise power."""
        return float(self.probabilities @ self.sizes**2)


def temporal_error(
    drive: Drive, timesteps: int, theta: float = 1.0, v_init: float = 0.5, *, delay: int = 0, highest: int = 1
) -> TemporalError:
    """The law of n - Q under random arrival, by carrying the joint law of (S[k], n) through the T steps.

    The posterior of z given the steps so far hangs on S[k] alone, so S is a Markov chain, and with
    a = between / within the chain y_k = (S[k] - k mean) / (1 + k a) has independent Gaussian increments, of variance
    within / ((1 + k a)(1 + (k + 1) a)): a step is one convolution for every count, then the cells of the grid above the
    count's level, (t/k) S[k] / theta + v_init >= n + 1, move on by a spike.

    Args:
        drive: see `spike_drive`.
        timesteps: T.
        theta: in the drive's unit.
        v_init: initial membrane as a fraction of theta, 0..1.
        delay: steps of look-ahead; T or more leaves no error.
        highest: N, most spikes in one step.

    Raises:
        InputError: an argument out of range, or a drive so even that no grid of reasonable size resolves its noise.
    """
    _check(timesteps, theta, v_init, delay, highest)
    levels = timesteps * highest
    sizes = np.arange(-levels, levels + 1, dtype=np.float64)
    if drive.within == 0:
        return TemporalError(sizes, (sizes == 0).astype(np.float64))
    scaled = Drive(drive.mean / theta, drive.between / theta**2, drive.within / theta**2)
    grid = _Grid.of(scaled, timesteps, v_init, levels)
    mass = _carried(grid, timesteps, delay, highest)
    joint = mass @ -np.diff(grid.reached(timesteps, timesteps, levels + 1), axis=0, prepend=1.0, append=0.0).T
    law = np.array([np.trace(joint, -int(size)) for size in sizes])
    return TemporalError(sizes, np.clip(law, 0.0, None) / law.sum())


def _carried(grid: "_Grid", timesteps: int, delay: int, highest: int) -> Array:
    """The joint law of n and y after T steps, (T N + 1, cells)."""
    seen = min(1 + delay, timesteps)
    mass = np.zeros((timesteps * highest + 1, grid.cells))
    mass[0] = grid.start(seen)
    for t in range(1, timesteps + 1):
        k = min(t + delay, timesteps)
        rows = (t - 1) * highest + 1
        if k > seen:
            mass[:rows] = grid.spread(mass[:rows], grid.variance(k) - grid.variance(seen))
            seen = k
        mass[: rows + highest] = _fired(mass[: rows + highest], grid.reached(k, t, rows + highest), highest)
    return mass


@dataclass(frozen=True)
class _Grid:
    """Cells of y, their borders on the quantizer's at the last step; theta is 1.

    Attributes:
        drive: of theta = 1.
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
    def of(drive: Drive, timesteps: int, v_init: float, levels: int) -> "_Grid":
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
        return _Grid(drive, v_init, low, width, int(next_fast_len(math.ceil(cells), real=True)))

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


def _fired(mass: Array, reached: Array, highest: int) -> Array:
    """Rows n of mass (rows, cells) after one step: n + j where the level reaches n + j but not n + j + 1, j <= N."""
    rows = len(mass)
    above = np.concatenate([reached, np.zeros((highest + 1, mass.shape[1]))])  # above[q - 1]: the level reaches q
    out: Array = mass * (1 - above[:rows])
    for j in range(1, highest + 1):
        share = above[j - 1 : j - 1 + rows] - (above[j : j + rows] if j < highest else 0.0)
        out[j:] += (mass * share)[: rows - j]
    return out


def early_spikes(drive: Drive, timesteps: int, theta: float = 1.0, v_init: float = 0.5) -> tuple[float, float]:
    """P(n > Q) and E[n - Q; n > Q] of the Brownian bridge, averaged over the Gaussian law of S[T]; delay 0.

    See the module for the formula; 0 at T = 1, where the walk has no point but its end.

    Raises:
        InputError: an argument out of range.
    """
    _check(timesteps, theta, v_init, 0, 1)
    variance = timesteps * drive.within / theta**2
    if variance == 0 or timesteps == 1:
        return 0.0, 0.0
    spread = math.sqrt(variance + drive.between * (timesteps / theta) ** 2)
    middle = timesteps * drive.mean / theta + v_init
    first, last = math.floor(middle - _SPAN * spread), math.ceil(middle + _SPAN * spread)
    fine = math.ceil(max(_FINE, 4 / spread))
    end = first + (np.arange((last - first) * fine) + 0.5) / fine  # whole numbers, where Q jumps, are borders
    weight = np.exp(-(((end - middle) / spread) ** 2) / 2)
    most = min(timesteps, 2 + math.ceil(math.sqrt(20 * variance)))  # beyond, no bridge passes
    level = np.clip(np.floor(end), 0, timesteps)[:, None] + np.arange(1, most + 1)
    lift = _SIEGMUND * math.sqrt(drive.within) / theta
    distance = np.maximum(level - end[:, None], 0.0) + lift
    passed = np.where(level <= timesteps, np.exp(-2 * (level - v_init + lift) * distance / variance), 0.0)
    weight /= weight.sum()
    return float(weight @ passed[:, 0]), float(weight @ passed.sum(1))


def _check(timesteps: int, theta: float, v_init: float, delay: int, highest: int) -> None:
    check_whole(timesteps=timesteps, highest=highest)
    check_whole(0, delay=delay)
    if not (theta > 0 and math.isfinite(theta)) or not 0 <= v_init <= 1:
        raise InputError(f"expected a positive finite theta and v_init in 0..1, got {theta!r} and {v_init!r}")
