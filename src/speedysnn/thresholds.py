"""Choose theta from a histogram of activations, by one of `RULES`.

"mse" is the least squared error for this T and v_init; "gaussian", "laplace" and "half-normal" the same for a fitted
law (see `speedysnn.laws`); "max" and "percentile:Q" know nothing of T. "clip" keeps the source's own clip.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from speedysnn.errors import ConversionError, InputError
from speedysnn.histogram import ActivationHistogram
from speedysnn.laws import LAWS, fitted_threshold

CLIP = "clip"  # theta is the source activation's own clip over N; no histogram is asked

_COARSE = 96
_FINE = 33
_LOWEST = -10.0  # octaves below the maximum where the search begins


def squared_error(hist: ActivationHistogram, theta: Tensor, v_init: Tensor, timesteps: int, highest: int = 1) -> Tensor:
    """Summed squared error of the quantizer, sum over values of (Q(z) - z)^2, uniform density inside a bin.

    With w = z/D + v_init, D = theta/T, n = min(floor(w), T N) and f = w - n, the integral of the error up to z is
    D^3 (n K + (v^3 - (v - f)^3)/3 - v^3/3), K = (v^3 + (1-v)^3)/3: exact for every T, granular and overload together.

    Shapes: theta (C, J) candidates, v_init (C,) in [0, 1]; result (C, J), the activation's unit squared.
    """
    start = v_init.to(torch.float64)[:, None, None]
    step = (theta.to(torch.float64) / timesteps)[:, :, None]
    edges = hist.edges()
    cells = (start**3 + (1 - start) ** 3) / 3
    w = edges[:, None, :] / step + start
    n = torch.floor(w).clamp_max(timesteps * highest)
    integral = step**3 * (n * cells + (start**3 - (start - (w - n)) ** 3) / 3)
    width = edges.diff(dim=1)
    density = torch.where(width > 0, hist.counts / width.clamp_min(1e-300), torch.zeros_like(width))
    return (integral.diff(dim=2) * density[:, None, :]).sum(2)


def least_squares(
    hist: ActivationHistogram, v_init: Tensor, timesteps: int, highest: int = 1, *, signed: bool = False
) -> Tensor:
    """Theta that minimises the quantized reading's squared error: a geometric grid, then a finer one around its best.

    floor(-x + v) = -floor(x + 1 - v) but for ties, so a signed layer's negated rows are quantized with 1 - v_init.

    Shapes: v_init (C,); result (C,), in the activation's unit; dead channels get 0. `signed` takes 2 C rows.
    """
    from speedysnn.kernels import rounding_error  # numba takes half a second to import, which --help need not spend

    sides = 2 if signed else 1
    edges, starts = hist.edges(), torch.cat([v_init, 1 - v_init]) if signed else v_init
    width = edges.diff(dim=1)
    density = torch.where(width > 0, hist.counts / width.clamp_min(1e-300), torch.zeros_like(width))
    top = hist.maximum.view(sides, -1).amax(0).to(torch.float64) * 1.05

    def best(exponents: Tensor) -> Tensor:
        """Candidates are full scales N theta = top 2^e, so that graded spikes search the same range."""
        theta = (top[:, None] * 2**exponents / highest).clamp_min(1e-30).repeat(sides, 1)
        errors = rounding_error.squared_error(edges, density, theta, starts.to(torch.float64), timesteps, highest)
        return exponents.gather(1, errors.view(sides, len(top), -1).sum(0).argmin(1, keepdim=True)).squeeze(1)

    ratio = -_LOWEST / (_COARSE - 1)
    coarse = best(torch.linspace(_LOWEST, 0, _COARSE, dtype=torch.float64).expand(len(top), -1))
    fine = best(coarse[:, None] + torch.linspace(-ratio, ratio, _FINE, dtype=torch.float64))
    return (top * 2**fine / highest).to(torch.float32)


@dataclass(frozen=True)
class Request:
    """What a rule chooses from.

    Attributes:
        hist: the histogram, 2 C rows if `signed`.
        sizes: that of the magnitudes, C rows.
        v_init: (C,) in 0..1.
        timesteps: T.
        highest: N, most spikes a step.
        signed: the values may be negative.
        q: the percentile.
    """

    hist: ActivationHistogram
    sizes: ActivationHistogram
    v_init: Tensor
    timesteps: int
    highest: int
    signed: bool
    q: float


def _by_law(law: str, r: Request) -> Tensor:
    return fitted_threshold(law, r.sizes, r.v_init, r.timesteps, r.highest, signed=r.signed)


RULES: dict[str, Callable[[Request], Tensor]] = {
    "mse": lambda r: least_squares(r.hist, r.v_init, r.timesteps, r.highest, signed=r.signed),
    "max": lambda r: r.sizes.maximum / r.highest,
    "percentile": lambda r: r.sizes.percentile(r.q) / r.highest,
    **{law: partial(_by_law, law) for law in LAWS},
}


def parse_rule(rule: str) -> tuple[str, float]:
    """(a key of `RULES` or "clip", q).

    Raises:
        InputError: another word, or a percentile outside (0, 100].
    """
    name, _, value = rule.partition(":")
    if (name in RULES or name == CLIP) and name != "percentile" and not value:
        return name, 100.0
    if name == "percentile":
        try:
            q = float(value)
        except ValueError:
            q = math.nan
        if 0 < q <= 100:
            return name, q
    words = ", ".join(f'"{word}"' for word in (*RULES, CLIP) if word != "percentile")
    raise InputError(f'threshold rule: expected one of {words} or "percentile:Q" with 0 < Q <= 100, got {rule!r}')


def starts_of(v_init: Tensor, channels: int) -> Tensor:
    """v_init as (C,) in 0..1; a layer-wide threshold over channels that start apart takes their mean."""
    start = v_init.detach().to("cpu", torch.float32).clamp(0, 1)
    return (start if start.numel() in (1, channels) else start.mean()).reshape(-1).expand(channels)


def choose(
    hist: ActivationHistogram,
    rule: str,
    v_init: Tensor,
    timesteps: int,
    highest: int = 1,
    *,
    signed: bool = False,
    layer: str = "",
) -> Tensor:
    """Theta (C,) by the named rule; a dead channel takes the layer's largest theta, so that it stays silent.

    A `signed` layer's histogram holds 2 C rows; all rules but "mse" use the magnitudes. "clip" is no question to a
    histogram: a layer without a clip of its own takes "mse".

    Raises:
        ConversionError: no activation of the layer was ever positive.
        InputError: an unknown rule.
    """
    name, q = parse_rule(rule)
    sizes = hist.folded() if signed else hist
    request = Request(hist, sizes, starts_of(v_init, sizes.channels), timesteps, highest, signed, q)
    theta = RULES["mse" if name == CLIP else name](request)
    # a percentile below the zeros would silence a neuron
    theta = torch.where(theta > 0, theta, sizes.maximum / highest)
    if not bool((theta > 0).any()):
        raise ConversionError(
            f"layer {layer!r}: no activation was {'other than zero' if signed else 'positive'} on the calibration "
            "data, so no threshold can be chosen; "
            "check the checkpoint and the input's normalisation, or give the threshold yourself"
        )
    return torch.where(theta > 0, theta, theta.max())


def predicted_rate(
    hist: ActivationHistogram,
    theta: Tensor,
    v_init: Tensor,
    timesteps: int,
    highest: int = 1,
    *,
    signed: bool = False,
) -> float:
    """Mean spikes per neuron and step that the quantizer would emit on the calibration data (bin centres)."""
    edges = hist.edges()
    centres = (edges[:, 1:] + edges[:, :-1]) / 2
    channels = hist.channels // 2 if signed else hist.channels
    th = theta.detach().cpu().to(torch.float64).reshape(-1).expand(channels)
    v0 = starts_of(v_init, channels).to(torch.float64)
    if signed:
        th, v0 = th.repeat(2), torch.cat([v0, 1 - v0])
    scaled = centres * timesteps / th[:, None] + v0[:, None]
    spikes = torch.floor(scaled).clamp(0, timesteps * highest) * hist.counts
    return float(spikes.sum() / hist.total.sum().clamp_min(1) / timesteps) * (2 if signed else 1)
