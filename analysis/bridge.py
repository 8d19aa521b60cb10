"""Early spikes in closed form: a walk that passes a level which its end does not reach (see `arrival` for the walk).

A neuron without a limit of N spikes a step that takes none back has fired max over t of floor(S[t] + v) times: it
answers the highest point of the walk, whatever later input does. Given its end l = S[T] + v the walk is a Brownian
bridge of variance T s^2 from v to l, and a bridge passes a level b above both its ends with probability
exp(-2 (b - v)(b - l) / (T s^2)). At least j spikes too many are b = Q + j, hence

    P(n - Q >= j | l) = exp(-2 (Q + j - v)(Q + j - l) / (T s^2)),   E[n - Q | l] = the sum of it over j >= 1.

The walk is seen at whole steps only, which lifts b by 0.5826 s (Siegmund's correction). As T grows the exponent tends
to -2 z (Q + j - l) / s^2 for z > 0 and to -2 (j - v) |z| / s^2 for z < 0: the error in spikes saturates, so that in the
activation's unit it falls as 1 / T, no faster than the step theta / T. Near z = 0 it does not saturate: at z = 0 it
grows as sqrt(T), and over neurons whose z has a density at zero E|n - Q| grows as log T and E(n - Q)^2 as sqrt(T).
In the long run more steps do not lower temporal error against the quantizer's, theta^2 / (12 T^2).
"""

import math

import numpy as np

from speedysnn.analysis.checks import check_neuron
from speedysnn.analysis.drive import Drive

_SPAN = 7.0  # standard deviations of the end, on either side
_FINE = 64  # points in one theta
_SIEGMUND = 0.5826  # -zeta(1/2) / sqrt(2 pi)


def early_spikes(drive: Drive, timesteps: int, theta: float = 1.0, v_init: float = 0.5) -> tuple[float, float]:
    """P(n > Q) and E[n - Q; n > Q] of the Brownian bridge, averaged over the Gaussian law of S[T].

    Of binary spikes at delay 0. See the module for the formula; 0 at T = 1, where the walk has no point but its end.

    Raises:
        InputError: an argument out of range.
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
