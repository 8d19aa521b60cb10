"""The running sum of few spike trains on a lattice: its exact distribution given the weights, step by step.

The drive of a step is x_t = b + sum_i w_i s_it, with s_it = 1 with probability p_i, -1 with m, else 0. Given a neuron's
weights the steps are independent and alike, of the characteristic function

    phi(f) = exp(i f b) prod_i (1 - p_i - m + p_i exp(i f w_i) + m exp(-i f w_i)),

so that S[k] has the characteristic function phi^k, and nothing is taken for Gaussian. Where the weights are whole
multiples of a width, phi at the frequencies of a discrete Fourier transform is all there is: a step is one product in
frequency. `few` says for which drives this is done.

The mean over neurons is one over a sample: candidates are drawn by a fixed seed (weights Gaussian, rates beta), put in
order of E[x_t] given the weights and, among neighbours, of the sum of squared weights, since these two decide most, and
every n-th is taken. Its error is about 0.002 (standard deviation over seeds).

Where all weights are equal the lattice's width is the weight and ties are kept as they are. Else weights are rounded to
theta / m, m odd, and v_init to the middle between two points, above and below in turn: no sum of rounded
weights meets a level by chance.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from speedysnn.analysis.theory.distributions import Array
from speedysnn.analysis.theory.drive import Trains
from speedysnn.errors import InputError

GAUSSIAN_FROM = 16.0  # M Var(s): as many spikes in a step, and more, add up to a Gaussian drive
MOST_INPUTS = 512
MOST_LEVELS = 64  # T N
_WORK = 4096  # neurons whose law is carried, times levels
_DRAWS = 256  # of them at most
_CANDIDATES = 64  # drawn for each of them
_NEIGHBOURS = 8  # in E[x_t], put in order of their squared weights
_TOGETHER = 16  # carried at once
_SPAN = 6.0  # standard deviations on either side that the lattice holds
_CELLS = 25  # of the lattice in one theta, at least; odd
_PER_WEIGHT = 5.0  # and in one root mean square of a weight
_MOST_CELLS = 2**21  # times counts
_TIE = 1e-9  # of a theta, by which rounding may miss a level that a sum meets

Single = NDArray[np.float32]
Whole = NDArray[np.int64]


@dataclass(frozen=True)
class Lattice:
    """Running sums of several neurons on one lattice; theta is 1.

    Attributes:
        steps: (draws, M) whole multiples of `width`, each neuron's weights.
        sent: (draws, M) p, probability of a spike in a step.
        taken: m, probability of a spike of -1.
        bias: b, constant current a step.
        v_init: initial membrane.
        low: the first point, a whole multiple of `width`; S[k] - k b lies on the points.
        width: between points.
        cells: how many points.
    """

    steps: Whole
    sent: Array
    taken: float
    bias: float
    v_init: float
    low: int
    width: float
    cells: int

    def joint(self, timesteps: int, delay: int, max_spikes: int, min_spikes: int) -> Array:
        """Carry the joint distribution of (S[k], n) through all steps.

        Args:
            timesteps, delay, max_spikes, min_spikes: as in `temporal_error`.

        Returns:
            P(n, Q), (T N + 1, T N + 1), summed over the draws.
        """
        seen = min(1 + delay, timesteps)
        levels = timesteps * max_spikes
        mass = np.zeros((levels + 1, len(self.steps), self.cells), np.float32)
        mass[0, :, -self.low] = 1
        mass[:1] = self._spread(mass[:1], seen)
        for t in range(1, timesteps + 1):
            k, rows = min(t + delay, timesteps), (t - 1) * max_spikes + 1
            if k > seen:
                mass[:rows] = self._spread(mass[:rows], k - seen)
                seen = k
            fire(mass[: rows + max_spikes], self.firsts(k, t, rows + max_spikes), max_spikes, min_spikes)
        ends = [0, *self.firsts(timesteps, timesteps, levels)[1:], self.cells]
        below = np.cumsum(mass.sum(1, dtype=np.float64), axis=1)
        return np.diff(np.pad(below, ((0, 0), (1, 0)))[:, ends], axis=1)

    def firsts(self, k: int, t: int, levels: int) -> list[int]:
        """Find the first point with (t/k) S[k] + v_init >= q, for q = 0..levels.

        Args:
            k: steps that the sum covers.
            t: steps that the neuron has done.
            levels: the largest q.

        Returns:
            Places on the lattice.
        """
        q = np.arange(levels + 1)
        points = ((q - self.v_init - _TIE) * (k / t) - k * self.bias) / self.width
        return [int(x) for x in np.clip(np.ceil(points).astype(np.int64) - self.low, 0, self.cells)]

    def _spread(self, mass: Single, k: int) -> Single:
        """Convolve rows (n, draws, cells) with the drive of k steps."""
        from scipy.fft import irfft, rfft

        out: Single = irfft(rfft(mass, axis=-1) * self._phi**k, n=self.cells, axis=-1)
        return out

    @cached_property
    def _phi(self) -> Any:
        """Phi without its bias at the transform's frequencies, (draws, cells // 2 + 1) complex64."""
        wave = np.exp(-2j * np.pi * np.arange(self.cells) / self.cells).astype(np.complex64)
        turn = np.arange(self.cells // 2 + 1)
        out = np.ones((len(self.steps), len(turn)), np.complex64)
        for step, sent in zip(self.steps.T, self.sent.T.astype(np.float32), strict=True):
            ahead = wave[step[:, None] * turn % self.cells]
            out *= 1 + sent[:, None] * (ahead - 1) + np.float32(self.taken) * (ahead.conj() - 1)
        return out


def fire(mass: Single, first: list[int], max_spikes: int, min_spikes: int) -> None:
    """Let neurons fire in one step: rows n of mass (rows, draws, cells), in place.

    From the first point of a level on the count is below it, and up to N spikes go out; with min_spikes = -1 one is
    taken back where the level does not reach n > 0.

    Args:
        mass: probability by count, draw and point.
        first: the first point of each level, see `Lattice.firsts`.
        max_spikes: N, most spikes in one step.
        min_spikes: 0, or -1.
    """
    senders = len(mass) - max_spikes
    back = [mass[n, :, : first[n]].copy() for n in range(1, senders)] if min_spikes < 0 else []
    for n in range(senders - 1, -1, -1):
        for j in range(1, max_spikes + 1):
            start, end = first[n + j], first[n + j + 1] if j < max_spikes else None
            mass[n + j, :, start:end] += mass[n, :, start:end]
        mass[n, :, first[n + 1] :] = 0
    for n, moved in enumerate(back, 1):
        mass[n, :, : first[n]] -= moved
        mass[n - 1, :, : first[n]] += moved


def few(trains: Trains | None, levels: int) -> bool:
    """Tell whether a drive is carried on a lattice: M Var(s) < 16, with M <= 512 and T N <= 64; else it is Gaussian.

    Args:
        trains: what the drive is the sum of, if known.
        levels: T N.

    Returns:
        Whether it is; Var(s) = r + 2 m - r^2 is that of one input in one step.
    """
    if trains is None or trains.fan_in > MOST_INPUTS or levels > MOST_LEVELS:
        return False
    return trains.fan_in * (trains.rate + 2 * trains.taken_back - trains.rate**2) < GAUSSIAN_FROM


def joint_law(
    trains: Trains, timesteps: int, theta: float, v_init: float, delay: int, max_spikes: int, min_spikes: int
) -> Array:
    """Find the joint distribution of n and Q in the mean over the sample of neurons.

    Args:
        trains: what the drive is the sum of.
        timesteps, theta, v_init, delay, max_spikes, min_spikes: as in `temporal_error`.

    Returns:
        P(n, Q), (T N + 1, T N + 1).
    """
    levels = timesteps * max_spikes
    total, count = np.zeros((levels + 1, levels + 1)), 0
    for lattice in lattices(trains, timesteps, levels, theta, v_init):
        total += lattice.joint(timesteps, delay, max_spikes, min_spikes)
        count += len(lattice.steps)
    return total / count


def lattices(trains: Trains, timesteps: int, levels: int, theta: float, v_init: float) -> Iterator[Lattice]:
    """Give the sample of neurons, some at once.

    Args:
        trains: what the drive is the sum of.
        timesteps: T.
        levels: T N.
        theta: in the drive's unit.
        v_init: initial membrane as a fraction of theta.

    Yields:
        Lattices of `_TOGETHER` neurons at most.

    Raises:
        InputError: weights so large or small that the lattice would be too long.
    """
    weights, rates = neurons(trains, max(_TOGETHER, min(_DRAWS, _WORK // levels)))
    size = math.hypot(trains.weight_mean, trains.weight_std) / theta
    equal = trains.weight_std == 0 and size > 0
    width = size if equal else 1 / (2 * math.ceil(max(_CELLS - 1, _PER_WEIGHT / max(size, 1e-6)) / 2) + 1)
    steps = np.rint(weights / (theta * width)).astype(np.int64)
    sent = np.minimum(rates + trains.taken_back, 1 - trains.taken_back)
    for turn, start in enumerate(range(0, len(steps), _TOGETHER)):
        part = slice(start, start + _TOGETHER)
        v = v_init if equal else _between_points(v_init, width, turn)
        low, cells = _extent(steps[part], sent[part], trains.taken_back, timesteps)
        if cells * (levels + 1) > _MOST_CELLS:
            raise InputError(
                f"drive: weights of {size:.3g} theta at fan-in {trains.fan_in} and T = {timesteps} need a lattice of "
                f"{cells * (levels + 1):.1e} points, more than {_MOST_CELLS:.1e}; take fewer steps, a larger theta, or "
                "the Gaussian form: theory.Drive(drive.mean, drive.between, drive.within)"
            )
        yield Lattice(steps[part], sent[part], trains.taken_back, trains.bias / theta, v, low, width, cells)


def _between_points(v_init: float, width: float, turn: int) -> float:
    """The middle between two points of the lattice nearest to v_init; of two as near, each in turn."""
    place = (1 - v_init) / width - 0.5
    near = math.floor(place + 0.5 - 1e-6) if turn % 2 else math.ceil(place - 0.5 + 1e-6)
    return 1 - (near + 0.5) * width


def _extent(steps: Whole, sent: Array, taken: float, timesteps: int) -> tuple[int, int]:
    """First point and number of points that hold all sums up to S[T] but for the furthest tails."""
    from scipy.fft import next_fast_len

    mean = timesteps * (steps * (sent - taken)).sum(1)
    spread = np.sqrt(timesteps * (steps**2 * (sent + taken - (sent - taken) ** 2)).sum(1))
    reach = _SPAN * spread + np.abs(steps).max()
    first = math.floor(np.minimum(mean, 0).min() - reach.max())
    last = math.ceil(np.maximum(mean, 0).max() + reach.max())
    return first, int(next_fast_len(last - first + 2, real=True))


def neurons(trains: Trains, draws: int) -> tuple[Array, Array]:
    """Draw weights and rates of the sample.

    Args:
        trains: what the drive is the sum of.
        draws: neurons in the sample.

    Returns:
        Both (draws, M); one neuron where all are alike.
    """
    if trains.weight_std == 0 and trains.rate_std == 0:
        one = np.ones((1, trains.fan_in))
        return one * trains.weight_mean, one * trains.rate
    drawn = np.random.default_rng(0)
    many = (draws * _CANDIDATES, trains.fan_in)
    weights = trains.weight_mean + trains.weight_std * drawn.standard_normal(many)
    rates = _beta(drawn, trains.rate, trains.rate_std, many) if trains.rate_std else np.full((1, 1), trains.rate)
    order = np.argsort((weights * rates).sum(1)).reshape(-1, _CANDIDATES * _NEIGHBOURS)
    inner = np.argsort((weights**2).sum(1)[order], axis=1)
    taken = np.take_along_axis(order, inner, axis=1).ravel()[_CANDIDATES // 2 :: _CANDIDATES]
    return weights[taken], np.broadcast_to(rates, many)[taken]


def _beta(drawn: np.random.Generator, mean: float, std: float, shape: tuple[int, int]) -> Array:
    """Rates of this mean and deviation; 0 or 1 each where the deviation is the largest there is."""
    share = mean * (1 - mean) / std**2 - 1
    if share < 1e-9:
        return (drawn.random(shape) < mean).astype(np.float64)
    return np.asarray(drawn.beta(mean * share, (1 - mean) * share, shape))
