"""Activations as distributions: the few integrals that noise theory asks of scipy.stats or of a histogram.

Every distribution is read through a ReLU: what lies at or below zero is silent and exact, and only z > 0 is
integrated. `Continuous` integrates a frozen distribution of scipy.stats by parts, so that its density is not needed;
`Binned` takes a histogram's values as spread evenly inside each bin.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from speedysnn.calibration.histogram import ActivationHistogram
from speedysnn.errors import InputError

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
    """What is asked of a continuous distribution of scipy.stats with its parameters frozen."""

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
    """A frozen continuous distribution of scipy.stats as an `Activation`.

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


class Activation(Protocol):
    """The distribution of one activation z."""

    def squared(self, edges: Array, targets: Array) -> float:
        """Sum over cells of the integral of (z - targets[i])^2 dP from edges[i] to edges[i + 1], the last may be inf.

        Shapes: edges (n + 1,) rising from 0 or above, targets (n,).
        """

    def above(self, z: Array) -> Array:
        """P(Z > z), same shape."""

    def density(self, z: Array) -> Array:
        """The density at z > 0, same shape."""

    def span(self) -> tuple[float, float]:
        """Full scales between which the best one is searched."""


Distribution = Frozen | ActivationHistogram | Activation


@dataclass(frozen=True)
class Binned:
    """A histogram of one row, its values spread evenly inside a bin.

    Attributes:
        edges: (n + 1,), from 0 up.
        shares: (n,), the fraction of all values, those at or below zero included, in each bin.
    """

    edges: Array
    shares: Array

    def squared(self, edges: Array, targets: Array) -> float:
        """See `Activation`; ((b - c)^3 - (a - c)^3) / 3 in every piece between edges of either kind."""
        ends = np.clip(edges, 0.0, self.edges[-1])
        points = np.unique(np.concatenate([ends, np.clip(self.edges, ends[0], ends[-1])]))
        low, high = points[:-1], points[1:]
        middle = (low + high) / 2
        target = targets[np.clip(np.searchsorted(ends, middle, side="right") - 1, 0, len(targets) - 1)]
        return float((((high - target) ** 3 - (low - target) ** 3) / 3 * self.density(middle)).sum())

    def above(self, z: Array) -> Array:
        """See `Activation`."""
        upper = np.concatenate([np.cumsum(self.shares[::-1])[::-1], [0.0]])
        return np.asarray(np.interp(z, self.edges, upper, left=1.0))

    def density(self, z: Array) -> Array:
        """See `Activation`."""
        width = np.diff(self.edges)
        heights = np.where(width > 0, self.shares / np.where(width > 0, width, 1.0), 0.0)
        index = np.searchsorted(self.edges, z, side="right") - 1
        inside = (index >= 0) & (z < self.edges[-1])
        return np.asarray(np.where(inside, heights[np.clip(index, 0, len(heights) - 1)], 0.0))

    def span(self) -> tuple[float, float]:
        """See `Activation`: from the median of z > 0 over 16 to 1.5 times the largest value."""
        seen = np.cumsum(self.shares)
        middle = int(np.searchsorted(seen, seen[-1] / 2))
        return float(self.edges[middle + 1]) / BELOW, float(self.edges[-1]) * BEYOND


def as_activation(distribution: Distribution) -> Activation:
    """Make the integrals of a distribution: of scipy.stats, a histogram of one row, or an `Activation` as it is.

    Args:
        distribution: what gives the activations.

    Returns:
        Its integrals.

    Raises:
        InputError: something else, a distribution that is never positive or whose mean square is infinite, a histogram
            of several rows.

    Example:
        >>> import numpy as np
        >>> from scipy.stats import expon
        >>> from speedysnn.analysis import theory
        >>> theory.as_activation(expon()).above(np.array([0.0, 1.0])).round(4).tolist()
        [1.0, 0.3679]
    """
    if isinstance(distribution, ActivationHistogram):
        return _binned(distribution)
    if _has(distribution, "squared", "above", "density", "span"):
        return distribution  # type: ignore[return-value]
    if not _has(distribution, "sf", "isf", "pdf", "support", "var") or _has(distribution, "freeze"):
        raise InputError(
            "distribution: expected a frozen continuous law such as scipy.stats.halfnorm(scale=2), or an "
            f"ActivationHistogram, got {type(distribution).__name__}"
        )
    law: Frozen = distribution  # type: ignore[assignment]
    if not float(law.sf(0.0)) > 0:
        raise InputError("distribution: expected one that is positive at times, got P(Z > 0) = 0; check its parameters")
    if not math.isfinite(float(law.var())):
        raise InputError(f"distribution: expected a finite variance, got {law.var()}; noise power needs one")
    return Continuous(law)


def _has(item: object, *names: str) -> bool:
    methods: list[Callable[..., object] | None] = [getattr(item, name, None) for name in names]
    return all(callable(method) for method in methods) and not isinstance(item, type)


def _binned(hist: ActivationHistogram) -> Binned:
    if hist.channels != 1:
        raise InputError(
            f"distribution: expected a histogram of one row, got {hist.channels} channels; "
            "call merged() for the layer, or take one channel's row"
        )
    counts = hist.counts[0].to(dtype=hist.edges().dtype).numpy()
    if not counts.sum() > 0:
        raise InputError("distribution: expected a histogram with values above zero, got none; update it with data")
    edges = hist.edges()[0].numpy()
    used = int(np.flatnonzero(counts)[-1]) + 1
    return Binned(edges[: used + 1], counts[:used] / float(hist.total[0]))
