"""Temporal error: what random arrival of spikes adds to quantization, for a neuron whose inputs are spike trains.

A neuron sums M inputs with weights w_i; input i spikes in a step with probability r_i, independently of all others.
Where many spikes arrive in a step, M Var(s) >= 16, its drive is Gaussian, x_t = z + xi_t: z differs from neuron to
neuron and lasts all T steps, xi_t, of variance s^2, is new in every step. The sums S[k] are a random walk, and the
quantizer sees the last one alone, Q = clip(floor(S[T] / theta + v), 0, T N). Theta is 1 below. Where few arrive the
walk goes in steps of the weights themselves: `lattice` draws neurons and carries the exact distribution of each.

The count n differs from Q in two ways: spikes fired early, whose cause later input cancelled, and spikes that come late
because too few steps are left. `temporal_error` has both, look-ahead, and spikes taken back: it carries the joint
distribution of (S[k], n) forward in time, exactly but for the grid and for a Gaussian drive or a sample of neurons.
`early_spikes` has the first of the two in closed form.

A ternary neuron takes one spike back in a step while n > 0 and its membrane is below zero, so that with the level
l = S[t] + v it follows n <- n + clip(max(floor(l), 0) - n, -1, 1): delta modulation. The lag e = n - max(floor(l), 0)
is thus e <- e' - clip(e', -1, 1) with e' = e - (what max(floor(l), 0) gained): a queue fed by what one step moves the
level beyond one spike. For v < 1 and |x_t| <= theta in every step e stays 0; for |z| < theta it settles as T grows,
at z = 0 too, where the error of a binary neuron grows as sqrt(T).

The closed form is about a walk that passes a level which its end does not reach. A neuron without a limit of N spikes a
step that takes none back has fired max over t of floor(S[t] + v) times: it answers the highest point of the walk,
whatever later input does. Given its end l = S[T] + v the walk is a Brownian bridge of variance T s^2 from v to l, and
a bridge passes a level b above both its ends with probability exp(-2 (b - v)(b - l) / (T s^2)). At least j spikes too
many are b = Q + j, hence

    P(n - Q >= j | l) = exp(-2 (Q + j - v)(Q + j - l) / (T s^2)),   E[n - Q | l] = the sum of it over j >= 1.

The walk is seen at whole steps only, which lifts b by 0.5826 s (Siegmund's correction). As T grows the exponent tends
to -2 z (Q + j - l) / s^2 for z > 0 and to -2 (j - v) |z| / s^2 for z < 0: the error in spikes saturates, so that in the
activation's unit it falls as 1 / T, no faster than the step theta / T. Near z = 0 it does not saturate: at z = 0 it
grows as sqrt(T), and over neurons whose z has a density at zero E|n - Q| grows as log T and E(n - Q)^2 as sqrt(T).
In the long run more steps do not lower temporal error against the quantizer's, theta^2 / (12 T^2).
"""

import math
from dataclasses import dataclass

import numpy as np

from speedysnn.analysis.theory.distributions import Array
from speedysnn.analysis.theory.drive import Drive, Walk, check_neuron, check_whole
from speedysnn.analysis.theory.lattice import few, joint_law
from speedysnn.errors import InputError

_SPAN = 7.0  # standard deviations of the end, on either side
_FINE = 64  # points in one theta
_SIEGMUND = 0.5826  # -zeta(1/2) / sqrt(2 pi)


@dataclass(frozen=True)
class TemporalError:
    """The distribution of n - Q, spikes beyond the quantizer's count.

    Attributes:
        sizes: (2 K + 1,) whole numbers from -K to K, K = T N.
        probabilities: (2 K + 1,) of each.
        law: "gaussian", or "lattice" where the drive is a sum of few trains.
    """

    sizes: Array
    probabilities: Array
    law: str = "gaussian"

    @property
    def extra(self) -> float:
        """P(n > Q), probability of too many spikes: later input cancelled the cause of an early spike."""
        return float(self.probabilities[self.sizes > 0].sum())

    @property
    def missing(self) -> float:
        """P(n < Q), the probability of too few spikes: input came too late to be fired off."""
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
    drive: Drive,
    timesteps: int,
    theta: float = 1.0,
    v_init: float = 0.5,
    *,
    delay: int = 0,
    max_spikes: int = 1,
    min_spikes: int = 0,
) -> TemporalError:
    """Find how far spikes at random times put a neuron's count n off the quantizer's count Q, over all T steps.

    The joint distribution of (S[k], n) is carried through the steps. Of a drive of `spike_drive` with M Var(s) < 16
    spikes a step (M <= 512, T N <= 64) the step is a product with phi(f)^k, exact for given weights, in the mean over a
    sample of neurons: see `lattice`. Else the drive is Gaussian: what is known of z from the steps so far depends on
    S[k] alone, so S is a Markov chain, and with a = between / within the chain y_k = (S[k] - k mean) / (1 + k a) has
    independent Gaussian increments, of variance within / ((1 + k a)(1 + (k + 1) a)). A step is one convolution for
    every count, then the cells of the grid above the count's level, (t/k) S[k] / theta + v_init >= n + 1, move on by a
    spike, and those below n, if min_spikes = -1 and n > 0, back by one.

    Args:
        drive: see `spike_drive`.
        timesteps: T.
        theta: in the drive's unit.
        v_init: initial membrane as a fraction of theta, 0..1.
        delay: steps of look-ahead; T or more leaves no error.
        max_spikes: N, most spikes in one step.
        min_spikes: 0, or -1 for a neuron that takes spikes back ("ternary").

    Returns:
        The distribution of n - Q.

    Raises:
        InputError: an argument out of range, or a drive so even that no grid of reasonable size resolves its noise.

    Example:
        >>> from speedysnn.analysis import theory
        >>> drive = theory.spike_drive(fan_in=200, rate=0.2, weight_std=0.07)
        >>> [round(theory.temporal_error(drive, 8, delay=delay).probability, 2) for delay in (0, 1, 8)]
        [0.16, 0.08, 0.0]
    """
    check_neuron(timesteps, v_init, max_spikes, theta)
    check_whole(0, delay=delay)
    if min_spikes not in (0, -1):
        raise InputError(
            f"min_spikes: expected 0, or -1 for spikes that can be taken back one by one, got {min_spikes!r}; measure "
            "signed powers of two instead (analysis.measure_noise)"
        )
    levels = timesteps * max_spikes
    sizes = np.arange(-levels, levels + 1, dtype=np.float64)
    if drive.within == 0:
        return TemporalError(sizes, (sizes == 0).astype(np.float64))
    if drive.trains is not None and few(drive.trains, levels):
        joint = joint_law(drive.trains, timesteps, theta, v_init, delay, max_spikes, min_spikes)
        return _of_joint(sizes, joint, "lattice")
    scaled = Drive(drive.mean / theta, drive.between / theta**2, drive.within / theta**2)
    grid = Walk.of(scaled, timesteps, v_init, levels)
    mass = _carried(grid, timesteps, delay, max_spikes, min_spikes)
    joint = mass @ -np.diff(grid.reached(timesteps, timesteps, levels + 1), axis=0, prepend=1.0, append=0.0).T
    return _of_joint(sizes, joint, "gaussian")


def _of_joint(sizes: Array, joint: Array, law: str) -> TemporalError:
    """The law of n - Q of P(n, Q)."""
    found = np.clip([np.trace(joint, -int(size)) for size in sizes], 0.0, None)
    return TemporalError(sizes, found / found.sum(), law)


def _carried(grid: Walk, timesteps: int, delay: int, max_spikes: int, min_spikes: int) -> Array:
    """The joint law of n and y after T steps, (T N + 1, cells)."""
    seen = min(1 + delay, timesteps)
    mass = np.zeros((timesteps * max_spikes + 1, grid.cells))
    mass[0] = grid.start(seen)
    for t in range(1, timesteps + 1):
        k = min(t + delay, timesteps)
        rows = (t - 1) * max_spikes + 1
        if k > seen:
            mass[:rows] = grid.spread(mass[:rows], grid.variance(k) - grid.variance(seen))
            seen = k
        more = rows + max_spikes
        mass[:more] = _fired(mass[:more], grid.reached(k, t, more), max_spikes, min_spikes)
    return mass


def _fired(mass: Array, reached: Array, max_spikes: int, min_spikes: int) -> Array:
    """Rows n of mass (rows, cells) after one step: n + j where the level reaches n + j but not n + j + 1, j <= N.

    With min_spikes = -1, n - 1 where the level does not reach n > 0.
    """
    rows = len(mass)
    above = np.concatenate([reached, np.zeros((max_spikes + 1, mass.shape[1]))])  # above[q - 1]: the level reaches q
    out: Array = mass * (1 - above[:rows])
    for j in range(1, max_spikes + 1):
        share = above[j - 1 : j - 1 + rows] - (above[j : j + rows] if j < max_spikes else 0.0)
        out[j:] += (mass * share)[: rows - j]
    if min_spikes < 0:
        back = mass[1:] * (1 - above[: rows - 1])
        out[1:] -= back
        out[:-1] += back
    return out


def early_spikes(drive: Drive, timesteps: int, theta: float = 1.0, v_init: float = 0.5) -> tuple[float, float]:
    """Find in closed form how often a binary neuron fires too many spikes, and how many, at delay 0.

    The mean is over the Gaussian S[T]; the module has the formula. Both are 0 at T = 1, where the walk has no point
    but its end.

    Args:
        drive: see `spike_drive`.
        timesteps: T.
        theta: in the drive's unit.
        v_init: initial membrane as a fraction of theta, 0..1.

    Returns:
        P(n > Q) and E[n - Q; n > Q], the latter in spikes.

    Raises:
        InputError: an argument out of range.

    Example:
        >>> from speedysnn.analysis import theory
        >>> drive = theory.spike_drive(fan_in=200, rate=0.2, weight_std=0.07)
        >>> [round(x, 2) for x in theory.early_spikes(drive, timesteps=8)]
        [0.17, 0.17]
    """
    check_neuron(timesteps, v_init, theta=theta)
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
