"""The drive of a neuron whose inputs spike at random: what of it lasts, and what is new in every step."""

import math
from dataclasses import dataclass, field

from speedysnn.analysis.checks import check_whole
from speedysnn.errors import InputError


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
        trains: what it is the sum of, where known; the law of few is then not taken for Gaussian.
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

    Raises:
        InputError: a fan-in below 1, a rate outside 0..1, a negative deviation, more spread than the rate allows, or
            more taken back than leaves room for the rate.
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
