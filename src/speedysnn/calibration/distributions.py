"""Least-squares thresholds: the full scale with the least quantization error, for a histogram or a fitted law.

`least_squares` searches the threshold for a histogram as it is. `optimal_scale` minimises the error of a gaussian,
Laplace or half-normal law in closed form, in units of the law's own scale, and `fitted_threshold` multiplies it by the
scale that fits a histogram. All three laws describe the values above zero: values at zero are quantized without error,
and only tell the gaussian law where its mean is.
"""

import math
from collections.abc import Callable
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from speedysnn.calibration.histogram import ActivationHistogram
from speedysnn.errors import InputError

LAWS = ("gaussian", "laplace", "half-normal")
_GRID = 64  # full scales tried before the search around the best one
_RANGE = (0.05, 60.0)  # in units of the law's scale
_STEP = 0.1  # means of the gaussian law are rounded to this, in units of sigma, so that few integrals are needed
_FURTHEST = 2.5  # and stay within this of zero
_COARSE = 96  # thetas of the first grid
_FINE = 33  # thetas of the grid around the best of them
_LOWEST = -10.0  # octaves below the maximum where the search begins


def law_error(law: str, scale: float, levels: int, v_init: float, mean: float = 0.0) -> float:
    """Compute the expected squared error E[(Q(z) - z)^2 | z > 0] of K + 1 levels over the full scale F, in closed form.

    Q(z) = F/K clip(floor(K z / F + v_init), 0, K). Cell by cell the integral of (n F/K - z)^2 p(z) is a sum of the
    law's partial moments, granular and overload together. "laplace": p = exp(-z), the positive part of any Laplace law
    centred at or below zero; "gaussian": p of N(mean, 1) given z > 0; "half-normal": the same with mean 0.

    Args:
        law: one of `LAWS`.
        scale: F = N theta, in units of the law's scale.
        levels: K = T N.
        v_init: initial membrane as a fraction of theta.
        mean: of the gaussian law before rectification, in units of sigma.

    Returns:
        The error, in units of the law's scale squared.

    Raises:
        InputError: another law.

    Reference: li2021

    Example:
        >>> from speedysnn.calibration.distributions import law_error
        >>> round(law_error("half-normal", scale=2.0, levels=4, v_init=0.5), 3)
        0.031
    """
    if law not in LAWS:
        raise InputError(f"law: expected one of {', '.join(LAWS)}, got {law!r}")
    step, counts = scale / levels, np.arange(levels + 1, dtype=np.float64)
    edges = np.concatenate([[0.0], np.maximum((counts[1:] - v_init) * step, 0.0), [np.inf]])
    if law == "laplace":
        return float(_exponential(edges, counts * step).sum())
    centre = mean if law == "gaussian" else 0.0
    return float(_normal(edges - centre, counts * step - centre).sum() / _mass(centre))


def _exponential(edges: NDArray[np.float64], targets: NDArray[np.float64]) -> NDArray[np.float64]:
    """Integrate (c - z)^2 exp(-z) between neighbouring edges: G(a) - G(b), G(z) = ((z-c)^2 + 2(z-c) + 2) e^-z."""

    def primitive(z: NDArray[np.float64]) -> NDArray[np.float64]:
        finite = np.where(np.isfinite(z), z, 0.0)
        off = finite - targets
        return np.where(np.isfinite(z), (off * off + 2 * off + 2) * np.exp(-finite), 0.0)

    return primitive(edges[:-1]) - primitive(edges[1:])


def _normal(edges: NDArray[np.float64], targets: NDArray[np.float64]) -> NDArray[np.float64]:
    """Integrate (c - x)^2 phi(x) between neighbouring edges, from the partial moments of order 0, 1 and 2."""
    from scipy.special import ndtr

    finite = np.where(np.isfinite(edges), edges, 0.0)
    density = np.where(np.isfinite(edges), np.exp(-finite * finite / 2) / math.sqrt(2 * math.pi), 0.0)
    zeroth = np.diff(ndtr(edges))
    first = -np.diff(density)
    second = zeroth - np.diff(finite * density)
    return np.asarray(targets * targets * zeroth - 2 * targets * first + second)


def _mass(mean: float) -> float:
    """Return the probability that N(mean, 1) is above zero."""
    return 0.5 * math.erfc(-mean / math.sqrt(2))


@lru_cache(maxsize=16384)
def optimal_scale(law: str, levels: int, v_init: float, mean: float = 0.0, signed: bool = False) -> float:
    """Find the full scale that minimises `law_error`; each is searched once and then remembered.

    A signed layer quantizes its negative side with 1 - v_init; the scale then minimises both sides' mean error.

    Args:
        law: one of `LAWS`.
        levels: K = T N.
        v_init: initial membrane as a fraction of theta.
        mean: of the gaussian law before rectification, in units of sigma.
        signed: whether the values may be negative.

    Returns:
        The full scale, in units of the law's scale.

    Raises:
        InputError: another law.
    """
    from scipy.optimize import minimize_scalar

    def error(exponent: float) -> float:
        scale = math.exp(exponent)
        sides = (v_init, 1 - v_init) if signed else (v_init,)
        return sum(law_error(law, scale, levels, side, mean) for side in sides)

    grid = np.linspace(math.log(_RANGE[0]), math.log(_RANGE[1]), _GRID)
    best = int(np.argmin([error(x) for x in grid]))
    low, high = grid[max(best - 1, 0)], grid[min(best + 1, _GRID - 1)]
    found = minimize_scalar(error, bounds=(float(low), float(high)), method="bounded", options={"xatol": 1e-6})
    return math.exp(float(found.x))


def moments(hist: ActivationHistogram) -> tuple[Tensor, Tensor, Tensor]:
    """Compute a histogram's moments, with a uniform density inside each bin.

    Returns:
        The share of values above zero, E[z | z > 0] and E[z^2 | z > 0], (C,) float64 each.
    """
    edges, counts = hist.edges(), hist.counts.to(torch.float64)
    low, high = edges[:, :-1], edges[:, 1:]
    above = counts.sum(1)
    share = above / hist.total.clamp_min(1)
    mean = (counts * (low + high) / 2).sum(1) / above.clamp_min(1)
    square = (counts * (low * low + low * high + high * high) / 3).sum(1) / above.clamp_min(1)
    return share, mean, square


def _gaussian(hist: ActivationHistogram, signed: bool) -> list[tuple[float, float]]:
    """Fit (sigma, m) by row: m = Phi^-1(share above zero), sigma^2 = E[z^2 | z > 0] / (1 + m^2 + m phi(m) / Phi(m)).

    The mean m is 0 if signed.
    """
    from scipy.special import ndtri

    share, _, square = moments(hist)
    out = []
    for part, power in zip(share.tolist(), square.tolist(), strict=True):
        m = 0.0 if signed else float(np.clip(ndtri(part), -_FURTHEST, _FURTHEST))
        m = round(m / _STEP) * _STEP
        ratio = math.exp(-m * m / 2) / math.sqrt(2 * math.pi) / _mass(m)
        out.append((math.sqrt(power / (1 + m * m + m * ratio)), m))
    return out


def _laplace(hist: ActivationHistogram, signed: bool) -> list[tuple[float, float]]:
    """Fit (b, 0) by row: b = E[z | z > 0], the maximum-likelihood scale of an exponential."""
    return [(mean, 0.0) for mean in moments(hist)[1].tolist()]


def _half_normal(hist: ActivationHistogram, signed: bool) -> list[tuple[float, float]]:
    """Fit (sigma, 0) by row: sigma^2 = E[z^2 | z > 0], the maximum-likelihood scale of a half-normal."""
    return [(math.sqrt(power), 0.0) for power in moments(hist)[2].tolist()]


FITS: dict[str, Callable[[ActivationHistogram, bool], list[tuple[float, float]]]] = {
    "gaussian": _gaussian,
    "laplace": _laplace,
    "half-normal": _half_normal,
}


def fitted_threshold(
    law: str, hist: ActivationHistogram, v_init: Tensor, timesteps: int, max_spikes: int = 1, *, signed: bool = False
) -> Tensor:
    """Choose theta = scale c(T N, v_init) / N, with the scale from the histogram's moments; at most the maximum / N.

    "gaussian" fits N(m sigma, sigma^2) before a ReLU, m from the share of values above zero and sigma from their mean
    square; "half-normal" has sigma^2 = E[z^2 | z > 0], "laplace" b = E[z | z > 0].

    Args:
        law: one of `LAWS`.
        hist: of C rows; of the magnitudes if `signed`.
        v_init: (C,), as a fraction of theta.
        timesteps: T.
        max_spikes: N.
        signed: whether the values may be negative.

    Returns:
        Theta (C,), in the activation's unit; 0 where nothing was positive.
    """
    theta = [
        scale * optimal_scale(law, timesteps * max_spikes, round(float(start), 6), mean, signed) if scale > 0 else 0.0
        for (scale, mean), start in zip(FITS[law](hist, signed), v_init.tolist(), strict=True)
    ]
    return torch.minimum(torch.tensor(theta), hist.maximum) / max_spikes


def squared_error(
    hist: ActivationHistogram, theta: Tensor, v_init: Tensor, timesteps: int, max_spikes: int = 1
) -> Tensor:
    """Sum the quantizer's squared error (Q(z) - z)^2 over a histogram's values, with a uniform density inside a bin.

    With w = z/D + v_init, D = theta/T, n = min(floor(w), T N) and f = w - n, the integral of the error up to z is
    D^3 (n K + (v^3 - (v - f)^3)/3 - v^3/3), K = (v^3 + (1-v)^3)/3: exact for every T, granular and overload together.

    Args:
        hist: of C rows.
        theta: J candidates a row, (C, J).
        v_init: (C,) in [0, 1].
        timesteps: T.
        max_spikes: N.

    Returns:
        The errors (C, J), in the activation's unit squared.
    """
    start = v_init.to(torch.float64)[:, None, None]
    step = (theta.to(torch.float64) / timesteps)[:, :, None]
    edges = hist.edges()
    cells = (start**3 + (1 - start) ** 3) / 3
    w = edges[:, None, :] / step + start
    n = torch.floor(w).clamp_max(timesteps * max_spikes)
    integral = step**3 * (n * cells + (start**3 - (start - (w - n)) ** 3) / 3)
    width = edges.diff(dim=1)
    density = torch.where(width > 0, hist.counts / width.clamp_min(1e-300), torch.zeros_like(width))
    return (integral.diff(dim=2) * density[:, None, :]).sum(2)


def least_squares(
    hist: ActivationHistogram, v_init: Tensor, timesteps: int, max_spikes: int = 1, *, signed: bool = False
) -> Tensor:
    """Find the theta with the least squared error of the quantized reading: on a grid, then on a finer one.

    floor(-x + v) = -floor(x + 1 - v) but for ties, so a signed layer's negated rows are quantized with 1 - v_init.

    Args:
        hist: of C rows, or 2 C rows if `signed`.
        v_init: (C,), as a fraction of theta.
        timesteps: T.
        max_spikes: N.
        signed: whether the values may be negative.

    Returns:
        Theta (C,), in the activation's unit; 0 for dead channels.

    Example:
        >>> import torch
        >>> from speedysnn.calibration import ActivationHistogram, least_squares
        >>> hist = ActivationHistogram()
        >>> hist.update(torch.linspace(0, 1, 1001)[None])
        >>> [round(least_squares(hist, torch.tensor([0.5]), T).item(), 2) for T in (1, 4, 64)]
        [0.67, 0.89, 0.99]
    """
    from speedysnn.kernels import histogram  # numba takes half a second to import, which --help need not spend

    sides = 2 if signed else 1
    edges, starts = hist.edges(), torch.cat([v_init, 1 - v_init]) if signed else v_init
    width = edges.diff(dim=1)
    density = torch.where(width > 0, hist.counts / width.clamp_min(1e-300), torch.zeros_like(width))
    top = hist.maximum.view(sides, -1).amax(0).to(torch.float64) * 1.05

    def best(exponents: Tensor) -> Tensor:
        """Return the best exponent e of every channel; the full scale is N theta = top 2^e for every kind of spikes."""
        theta = (top[:, None] * 2**exponents / max_spikes).clamp_min(1e-30).repeat(sides, 1)
        errors = histogram.squared_error(edges, density, theta, starts.to(torch.float64), timesteps, max_spikes)
        return exponents.gather(1, errors.view(sides, len(top), -1).sum(0).argmin(1, keepdim=True)).squeeze(1)

    ratio = -_LOWEST / (_COARSE - 1)
    coarse = best(torch.linspace(_LOWEST, 0, _COARSE, dtype=torch.float64).expand(len(top), -1))
    fine = best(coarse[:, None] + torch.linspace(-ratio, ratio, _FINE, dtype=torch.float64))
    return (top * 2**fine / max_spikes).to(torch.float32)
