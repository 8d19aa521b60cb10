"""Activations as laws: the few integrals that noise theory asks of a scipy distribution or a histogram.

All laws are read through a ReLU: what lies at or below zero is silent and exact, and only z > 0 is integrated.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from speedysnn.analysis.continuous import BELOW, BEYOND, Array, Continuous, Frozen
from speedysnn.errors import InputError
from speedysnn.histogram import ActivationHistogram


class Activation(Protocol):
    """A law of one activation z."""

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
    """The integrals of a frozen scipy.stats law, of a histogram of one row, or of an `Activation` as it is.

    Raises:
        InputError: something else, a law that is never positive or whose mean square is infinite, a histogram of
            several rows.
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
