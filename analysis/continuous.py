"""A continuous law of scipy.stats under the integrals of noise theory, without its density."""

import math
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
_NODES = 24  # of Gauss and Legendre, in every piece
_SHARES = (0.999, 0.9, 0.5, 0.1, 1e-2, 1e-4, 1e-7, 1e-11)  # pieces end where the upper tail holds these shares
_FURTHEST = 1e-12  # the share above the largest full scale that is searched
BELOW = 16.0  # the smallest full scale that is searched is the median of z > 0 over this
BEYOND = 1.5  # and the largest this times the largest value: levels may fit lumps best where the last lies above all


@cache
def _gauss() -> tuple[Array, Array]:
    """Nodes and weights on -1..1."""
    return np.polynomial.legendre.leggauss(_NODES)


class Frozen(Protocol):
    """What is asked of a continuous law of scipy.stats with its parameters frozen."""

    def sf(self, x: Any) -> Any:
        """P(X > x)."""

    def isf(self, q: Any) -> Any:
        """The x with P(X > x) = q."""

    def pdf(self, x: Any) -> Any:
        """The density."""

    def support(self) -> Any:
        """Lower and upper end."""

    def var(self) -> Any:
        """The variance."""


@dataclass(frozen=True)
class Continuous:
    """A frozen continuous law of scipy.stats as an `Activation` (in `distributions`).

    By parts, with S(z) = P(Z > z), the integral of (z - c)^2 dP from a to b is
    (a - c)^2 S(a) - (b - c)^2 S(b) + 2 int (z - c) S(z) dz: no density is needed, so that one without bound is no harm.
    """

    law: Frozen

    def squared(self, edges: Array, targets: Array) -> float:
        """See `Activation`; Gauss-Legendre in pieces that end at the edges and at quantiles, then the tail to inf."""
        ends = np.clip(edges, *self._support)
        total = self._boundaries(ends, targets)
        points = np.unique(np.concatenate([ends, np.clip(self._quantiles, ends[0], ends[-1])]))
        finite = points[np.isfinite(points)]
        x, weight = _gauss()
        half = np.diff(finite) / 2
        middle = finite[:-1] + half
        cell = np.clip(np.searchsorted(ends, middle, side="right") - 1, 0, len(targets) - 1)
        z = middle[:, None] + half[:, None] * x
        inner = ((z - targets[cell][:, None]) * self.law.sf(z)) @ weight
        total += 2 * float((inner * half).sum())
        return total + self._tail(float(finite[-1]), float(targets[-1])) if math.isinf(ends[-1]) else total

    def above(self, z: Array) -> Array:
        """See `Activation`."""
        return np.asarray(self.law.sf(z), dtype=np.float64)

    def density(self, z: Array) -> Array:
        """See `Activation`."""
        return np.asarray(self.law.pdf(z), dtype=np.float64)

    def span(self) -> tuple[float, float]:
        """See `Activation`: from the median of z > 0 over 16 to 1.5 times where 1e-12 of it lies above."""
        middle, furthest = (float(self.law.isf(self._positive() * share)) for share in (0.5, _FURTHEST))
        return middle / BELOW, furthest * BEYOND

    def _positive(self) -> float:
        return float(self.law.sf(0.0))

    @cached_property
    def _support(self) -> tuple[float, float]:
        low, high = self.law.support()
        return max(float(low), 0.0), max(float(high), 0.0)

    @cached_property
    def _quantiles(self) -> Array:
        inner = np.asarray(self.law.isf(self._positive() * np.array(_SHARES)), dtype=np.float64)
        return np.append(inner, self.span()[1])

    @cached_property
    def _beyond(self) -> tuple[float, float]:
        """The integrals of S(z) and z S(z) above the last quantile, where almost every tail begins."""
        start = float(self._quantiles[-1])
        return self._integral(start, 0), self._integral(start, 1)

    def _boundaries(self, ends: Array, targets: Array) -> float:
        """Sum of (a - c)^2 S(a) - (b - c)^2 S(b), 0 at infinity, since the mean square is finite."""
        finite = np.where(np.isfinite(ends), ends, 0.0)
        above = np.where(np.isfinite(ends), self.law.sf(finite), 0.0)
        return float(((finite[:-1] - targets) ** 2 * above[:-1] - (finite[1:] - targets) ** 2 * above[1:]).sum())

    def _tail(self, start: float, target: float) -> float:
        """2 int (z - c) S(z) dz from `start` on."""
        last = start == float(self._quantiles[-1])
        zeroth, first = self._beyond if last else (self._integral(start, 0), self._integral(start, 1))
        return 2 * (first - target * zeroth)

    def _integral(self, start: float, order: int) -> float:
        """Int z^order S(z) dz from `start` on, in units of `start`, so that any scale is integrated alike."""
        from scipy.integrate import quad

        def integrand(x: float) -> float:
            return float((1 + x) ** order * self.law.sf(start * (1 + x)))

        return float(start ** (1 + order) * quad(integrand, 0, math.inf, limit=200)[0])
