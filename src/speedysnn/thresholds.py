"""Choose theta from a histogram of activations: least squared error for this T and v_init, maximum, or percentile."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from speedysnn.errors import ConversionError, InputError
from speedysnn.histogram import ActivationHistogram

_COARSE = 96
_FINE = 33
_LOWEST = -10.0  # octaves below the maximum where the search begins


def squared_error(
    hist: ActivationHistogram, theta: Tensor, v_init: Tensor, timesteps: int, highest: int = 1
) -> Tensor:
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


def parse_rule(rule: str) -> tuple[str, float]:
    """("mse" | "max" | "percentile", q).

    Raises:
        InputError: another word, or a percentile outside (0, 100].
    """
    name, _, value = rule.partition(":")
    if name in ("mse", "max") and not value:
        return name, 100.0
    if name == "percentile":
        try:
            q = float(value)
        except ValueError:
            q = math.nan
        if 0 < q <= 100:
            return name, q
    raise InputError(f'threshold rule: expected "mse", "max" or "percentile:Q" with 0 < Q <= 100, got {rule!r}')


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

    A `signed` layer's histogram holds 2 C rows; maximum and percentile are then those of the magnitudes.

    Raises:
        ConversionError: no activation of the layer was ever positive.
        InputError: an unknown rule.
    """
    name, q = parse_rule(rule)
    sizes = hist.folded() if signed else hist
    starts = v_init.detach().to("cpu", torch.float32).clamp(0, 1).expand(sizes.channels)
    rules: dict[str, Callable[[], Tensor]] = {
        "mse": lambda: least_squares(hist, starts, timesteps, highest, signed=signed),
        "max": lambda: sizes.maximum / highest,
        "percentile": lambda: sizes.percentile(q) / highest,
    }
    theta = rules[name]()
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
    th, v0 = theta.detach().cpu().to(torch.float64), v_init.detach().cpu().to(torch.float64)
    channels = hist.channels // 2 if signed else hist.channels
    th, v0 = th.reshape(-1).expand(channels), v0.reshape(-1).expand(channels)
    if signed:
        th, v0 = th.repeat(2), torch.cat([v0, 1 - v0])
    scaled = centres * timesteps / th[:, None] + v0[:, None]
    spikes = torch.floor(scaled).clamp(0, timesteps * highest) * hist.counts
    return float(spikes.sum() / hist.total.sum().clamp_min(1) / timesteps) * (2 if signed else 1)
