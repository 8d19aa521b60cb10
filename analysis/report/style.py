"""What all figures share: colours, line styles, readable layer names, one legend below everything, and PNG.

Figures with a layer at each place are as wide as their layers need, up to `WIDEST`, and as high as their names need.
"""

import io
import math
from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from speedysnn.display import shortened_path

# Okabe and Ito's palette, told apart by every kind of colour vision.
COLOURS = {
    "spiking": "#0072B2",
    "twin": "#E69F00",
    "ideal": "#000000",
    "clip": "#CC79A7",
    "round": "#56B4E9",
    "propagated": "#BBBBBB",
    "temporal": "#D55E00",
    "weights": "#F0E442",
    "recalibrated": "#009E73",
}
STYLE: Any = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": "#dddddd",
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "savefig.dpi": 120,
}
IDEAL: dict[str, Any] = {"color": COLOURS["ideal"], "linestyle": (0, (5, 2)), "linewidth": 1.2}
_HATCHED: dict[str, Any] = {"facecolor": "#E8E8E8", "edgecolor": "#888888", "hatch": "////", "linewidth": 0.0}
LONGEST = 40  # characters of a name below an axis: enough to tell the blocks of a deep network apart
MOST_NAMES = 75  # that stand beside one another in the widest figure without touching
WIDEST, NARROWEST = 15.0, 7.5  # inches


def stacked_parts(rows: pd.DataFrame, prefix: str, affine: str) -> list[tuple[str, list[float], dict[str, Any]]]:
    """Split a layer's error into what is stacked: the causes, the propagated one in two; weights where rounded.

    Args:
        rows: a table with a row a layer.
        prefix: of the columns of the causes.
        affine: column of the part of the propagated cause that an affine map of the drive removes.

    Returns:
        Label, values of all layers (0 where undefined) and style of every part, in the order of the stack.
    """

    def values(name: str) -> list[float]:
        return [0.0 if math.isnan(x) else x for x in finite_or_gap(rows[name])]

    parts = {name: values(prefix + name) for name in ("clip", "round", "propagated", "temporal")}
    lost = values(affine) if affine in rows else [0.0] * len(rows)  # tables written before it was measured lack it
    rest = [whole - part for whole, part in zip(parts["propagated"], lost, strict=True)]
    rounded = values(prefix + "weights") if prefix + "weights" in rows else []
    out = [
        ("clip", parts["clip"], {"color": COLOURS["clip"]}),
        ("round", parts["round"], {"color": COLOURS["round"]}),
        ("propagated: gain and offset lost", lost, _HATCHED),
        ("propagated: the rest", rest, {"color": COLOURS["propagated"]}),
        ("temporal", parts["temporal"], {"color": COLOURS["temporal"]}),
    ]
    return [*out, ("weights", rounded, {"color": COLOURS["weights"]})] if any(rounded) else out


def stack(axes: Axes, places: Sequence[int], parts: Sequence[tuple[str, list[float], dict[str, Any]]]) -> list[float]:
    """Draw parts as stacked bars; those below zero hang below it.

    Returns:
        The ends of all stacks, above and below zero.
    """
    up, down = [0.0] * len(places), [0.0] * len(places)
    for label, values, style in parts:
        base = [u if x >= 0 else d for x, u, d in zip(values, up, down, strict=True)]
        axes.bar(places, values, 0.85, base, label=label, **style)
        up = [u + max(x, 0) for x, u in zip(values, up, strict=True)]
        down = [d + min(x, 0) for x, d in zip(values, down, strict=True)]
    return [*up, *down]


def layered_width(count: int, narrowest: float = NARROWEST) -> float:
    """Compute the width of a figure with this many layers side by side, in inches.

    Example:
        >>> from speedysnn.analysis.report.style import layered_width
        >>> layered_width(3), layered_width(100)
        (7.5, 15.0)
    """
    return min(WIDEST, max(narrowest, 2.5 + 0.28 * count))


def label_height(names: Sequence[str]) -> float:
    """Compute the height that these names take below an axis when they stand upright, in inches."""
    return 0.06 * max((len(shortened_path(name, LONGEST)) for name in names), default=0)


def layered_panels(names: Sequence[str], panels: int, height: float) -> tuple[Figure, list[Axes]]:
    """Make panels above one another, as wide as the layers need, with room for their names below."""
    with mpl.rc_context(STYLE):
        size = layered_width(len(names)), height + label_height(names)
        figure = Figure(figsize=size, layout="constrained")
        made = figure.subplots(panels, 1, sharex=True, squeeze=False)
    return figure, [row[0] for row in made]


def name_layers(axes: Axes, names: Sequence[str], order: str = "execution") -> None:
    """Write names below the axis, shortened in the middle where long, and fewer of them where they would touch."""
    every = max(1, math.ceil(len(names) / MOST_NAMES))
    shown = range(0, len(names), every)
    size = 8 if len(names) <= 45 else 6.5
    axes.set_xticks(list(shown), [shortened_path(names[i], LONGEST) for i in shown], rotation=90, fontsize=size)
    axes.set_xlim(-0.7, len(names) - 0.3)
    axes.set_xlabel(f"layer, in {order} order" + (f" (one of {every} named)" if every > 1 else ""))


def shared_legend(figure: Figure, panels: Sequence[Axes], ncols: int = 3) -> None:
    """Put one legend below everything, so that it never covers data."""
    entries: dict[str, Any] = {}
    for axes in panels:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    figure.legend(
        list(entries.values()), list(entries), loc="outside lower center", ncols=ncols, fontsize=8, frameon=False
    )


def finite_or_gap(values: "pd.Series[Any]") -> list[float]:
    """Replace what is infinite, undefined or not measured by NaN, which a line leaves out.

    Example:
        >>> import pandas as pd
        >>> from speedysnn.analysis.report.style import finite_or_gap
        >>> finite_or_gap(pd.Series([1.0, float("inf")]))
        [1.0, nan]
    """
    numbers = [math.nan if value is None else float(value) for value in values]
    return [value if math.isfinite(value) else math.nan for value in numbers]


def png(figure: Figure, dpi: int = STYLE["savefig.dpi"]) -> bytes:
    """Draw a figure as PNG; the same figure gives the same bytes."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, metadata={"Software": None})
    return buffer.getvalue()
