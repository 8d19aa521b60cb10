"""Choose theta from a histogram of activations: least squared error for this T and v_init, maximum, or percentile."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from speedysnn.errors import ConversionError, InputError
from speedysnn.histogram import ActivationHistogram

_COARSE = 96
_FINE = 33
_CHUNK = 128


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


def least_squares(hist: ActivationHistogram, v_init: Tensor, timesteps: int, highest: int = 1) -> Tensor:
    """Theta that minimises the quantized reading's squared error: a geometric grid, then a finer one around its best.

    Shapes: v_init (C,); result (C,), in the activation's unit; dead channels get 0.
    """
    out = torch.zeros(hist.channels)
    for begin in range(0, hist.channels, _CHUNK):
        rows = slice(begin, begin + _CHUNK)
        part = _rows(hist, rows)
        top = part.maximum.to(torch.float64) * 1.05
        lowest, ratio = -10.0, 10.0 / (_COARSE - 1)
        exponents = torch.linspace(lowest, 0, _COARSE, dtype=torch.float64)
        best = _best(part, top, exponents.expand(part.channels, -1), v_init[rows], timesteps, highest)
        fine = best[:, None] + torch.linspace(-ratio, ratio, _FINE, dtype=torch.float64)
        best = _best(part, top, fine, v_init[rows], timesteps, highest)
        out[rows] = (top * 2**best / highest).to(torch.float32)
    return out


def _best(
    hist: ActivationHistogram, top: Tensor, exponents: Tensor, v_init: Tensor, timesteps: int, highest: int
) -> Tensor:
    """Candidates are full scales N theta = top 2^e, so that graded spikes search the same range."""
    theta = (top[:, None] * 2**exponents / highest).clamp_min(1e-30)
    error = squared_error(hist, theta, v_init, timesteps, highest)
    return exponents.gather(1, error.argmin(1, keepdim=True)).squeeze(1)


def _rows(hist: ActivationHistogram, rows: slice) -> ActivationHistogram:
    return ActivationHistogram.from_state({name: value[rows] for name, value in hist.state().items()})


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
    hist: ActivationHistogram, rule: str, v_init: Tensor, timesteps: int, highest: int = 1, *, layer: str = ""
) -> Tensor:
    """Theta (C,) by the named rule; a dead channel takes the layer's largest theta, so that it stays silent.

    Raises:
        ConversionError: no activation of the layer was ever positive.
        InputError: an unknown rule.
    """
    name, q = parse_rule(rule)
    starts = v_init.detach().to("cpu", torch.float32).clamp(0, 1).expand(hist.channels)
    rules: dict[str, Callable[[], Tensor]] = {
        "mse": lambda: least_squares(hist, starts, timesteps, highest),
        "max": lambda: hist.maximum / highest,
        "percentile": lambda: hist.percentile(q) / highest,
    }
    theta = rules[name]()
    theta = torch.where(theta > 0, theta, hist.maximum / highest)  # a percentile below the zeros would silence a neuron
    if not bool((theta > 0).any()):
        raise ConversionError(
            f"layer {layer!r}: no activation was positive on the calibration data, so no threshold can be chosen; "
            "check the checkpoint and the input's normalisation, or give the threshold yourself"
        )
    return torch.where(theta > 0, theta, theta.max())


def predicted_rate(hist: ActivationHistogram, theta: Tensor, v_init: Tensor, timesteps: int, highest: int = 1) -> float:
    """Mean spikes per neuron and step that the quantizer would emit on the calibration data (bin centres)."""
    edges = hist.edges()
    centres = (edges[:, 1:] + edges[:, :-1]) / 2
    th, v0 = theta.detach().cpu().to(torch.float64), v_init.detach().cpu().to(torch.float64)
    scaled = centres * timesteps / th.reshape(-1, 1) + v0.reshape(-1, 1)
    spikes = torch.floor(scaled).clamp(0, timesteps * highest) * hist.counts
    return float(spikes.sum() / hist.total.sum().clamp_min(1) / timesteps)
