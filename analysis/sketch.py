"""Small vector drawings for the report's layer pages: no script, no file, readable in print."""

from collections.abc import Sequence

from markupsafe import Markup

from speedysnn.analysis.details import LayerDetail
from speedysnn.analysis.moments import Floats
from speedysnn.analysis.style import COLOURS

_WIDTH, _HEIGHT, _BASE = 300, 96, 78
_TICKS = (-1.0, -0.5, 0.0, 0.5, 1.0)


def rounding(detail: LayerDetail) -> Markup:
    """Q(z) - z inside the range over bins of [-1, 1) steps, with the uniform law dashed; "" where there is none."""
    return _bars(detail.rounding, detail.expected, "round", "rounding error (steps θ/T), dashed: ideal")


def whole(detail: LayerDetail) -> Markup:
    """Error r - a where it is not exactly 0, with the law of rounding alone dashed; "" where there is none."""
    return _bars(detail.noise, detail.expected, "spiking", "whole error (steps θ/T), dashed: rounding alone")


def per_step(counts: Sequence[int] | None) -> Markup:
    """Events of every step over the mean of all steps, dashed at the even 1; "" where they were not unrolled."""
    if not counts or not sum(counts):
        return Markup("")
    mean = sum(counts) / len(counts)
    top = max(1.0, *(count / mean for count in counts)) * 1.05
    width = _WIDTH / len(counts)
    bars = "".join(
        _rect(i * width + 1, width - 2, count / mean / top, COLOURS["spiking"]) for i, count in enumerate(counts)
    )
    level = _BASE - _BASE / top
    ideal = f'<path d="M0 {level:.1f}H{_WIDTH}" class="ideal"/>'
    shown = range(0, len(counts), -(-len(counts) // 8))
    marks = "".join(_text((i + 0.5) * width, str(i + 1)) for i in shown)
    return _drawing(bars + ideal + marks, "events a step over their mean, dashed: even")


def _bars(counts: Floats, expected: Floats, colour: str, label: str) -> Markup:
    """Densities of the inner bins; what lies outside [-1, 1) is in the table's columns."""
    total = float(sum(counts))
    if not total:
        return Markup("")
    shares = [float(count) / total for count in counts[1:-1]]
    ideal = [float(share) for share in expected[1:-1]]
    top = max(*shares, *ideal, 1e-12) * 1.05
    width = _WIDTH / len(shares)
    bars = "".join(_rect(i * width, width, share / top, COLOURS[colour]) for i, share in enumerate(shares) if share > 0)
    path = f"M0 {_BASE - _BASE * ideal[0] / top:.1f}"
    for i, share in enumerate(ideal):
        path += f"V{_BASE - _BASE * share / top:.1f}H{(i + 1) * width:.1f}"
    marks = "".join(_text(_WIDTH * (tick + 1) / 2, f"{tick:g}".replace("-", "−")) for tick in _TICKS)
    return _drawing(f'{bars}<path d="{path}" class="ideal"/>{marks}', label)


def _rect(x: float, width: float, share: float, colour: str) -> str:
    height = _BASE * share
    return f'<rect x="{x:.1f}" y="{_BASE - height:.1f}" width="{width:.1f}" height="{height:.1f}" fill="{colour}"/>'


def _text(x: float, text: str) -> str:
    anchor = "start" if x < 6 else "end" if x > _WIDTH - 6 else "middle"
    return f'<text x="{x:.1f}" y="{_HEIGHT - 5}" text-anchor="{anchor}">{text}</text>'


def _drawing(inside: str, label: str) -> Markup:
    """Numbers and fixed words only, so nothing in it needs escaping."""
    axis = f'<path d="M0 {_BASE}H{_WIDTH}" class="axis"/>'
    return Markup(
        f'<svg class="sketch" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{label}">{inside}{axis}</svg>'
        f'<span class="sketched">{label}</span>'
    )
