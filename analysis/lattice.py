"""The running sum of few spike trains on a lattice: its exact law given the weights, carried from step to step.

The drive of a step is x_t = b + sum_i w_i s_it, with s_it = 1 with probability p_i, -1 with m, else 0. Given a neuron's
weights the steps are independent and alike, of the characteristic function

    phi(f) = exp(i f b) prod_i (1 - p_i - m + p_i exp(i f w_i) + m exp(-i f w_i)),

so that S[k] has the law phi^k, and nothing is taken for Gaussian. Where the weights are whole multiples of a width, phi
at the frequencies of a discrete Fourier transform is all there is: a step is one product in frequency.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from speedysnn.analysis.continuous import Array

_TIE = 1e-9  # of a theta, by which rounding may miss a level that a sum meets

Single = NDArray[np.float32]
Whole = NDArray[np.int64]


@dataclass(frozen=True)
class Lattice:
    """Running sums of neurons beside one another; theta is 1.

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

    def joint(self, timesteps: int, delay: int, highest: int, lowest: int) -> Array:
        """P(n, Q), (T N + 1, T N + 1), summed over the draws."""
        seen = min(1 + delay, timesteps)
        levels = timesteps * highest
        mass = np.zeros((levels + 1, len(self.steps), self.cells), np.float32)
        mass[0, :, -self.low] = 1
        mass[:1] = self._spread(mass[:1], seen)
        for t in range(1, timesteps + 1):
            k, rows = min(t + delay, timesteps), (t - 1) * highest + 1
            if k > seen:
                mass[:rows] = self._spread(mass[:rows], k - seen)
                seen = k
            fire(mass[: rows + highest], self.firsts(k, t, rows + highest), highest, lowest)
        ends = [0, *self.firsts(timesteps, timesteps, levels)[1:], self.cells]
        below = np.cumsum(mass.sum(1, dtype=np.float64), axis=1)
        return np.diff(np.pad(below, ((0, 0), (1, 0)))[:, ends], axis=1)

    def firsts(self, k: int, t: int, levels: int) -> list[int]:
        """The first point with (t/k) S[k] + v_init >= q, for q = 0..levels."""
        q = np.arange(levels + 1)
        points = ((q - self.v_init - _TIE) * (k / t) - k * self.bias) / self.width
        return [int(x) for x in np.clip(np.ceil(points).astype(np.int64) - self.low, 0, self.cells)]

    def _spread(self, mass: Single, k: int) -> Single:
        """Rows (n, draws, cells) moved on by k steps."""
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


def fire(mass: Single, first: list[int], highest: int, lowest: int) -> None:
    """Rows n of mass (rows, draws, cells) after one step, in place.

    From the first point of a level on the count is below it, up to N spikes go out; with lowest = -1, n - 1 where the
    level does not reach n > 0.
    """
    senders = len(mass) - highest
    back = [mass[n, :, : first[n]].copy() for n in range(1, senders)] if lowest < 0 else []
    for n in range(senders - 1, -1, -1):
        for j in range(1, highest + 1):
            start, end = first[n + j], first[n + j + 1] if j < highest else None
            mass[n + j, :, start:end] += mass[n, :, start:end]
        mass[n, :, first[n + 1] :] = 0
    for n, moved in enumerate(back, 1):
        mass[n, :, : first[n]] -= moved
        mass[n - 1, :, : first[n]] += moved
