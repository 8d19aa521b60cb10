"""A layer's error drawn against the law that theory gives it."""

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from speedysnn.analysis.details import LayerDetail
from speedysnn.analysis.moments import Floats
from speedysnn.analysis.report_data import NoiseTables
from speedysnn.analysis.style import COLOURS, IDEAL, STYLE
from speedysnn.errors import InputError


def figure_noise_distribution(report: NoiseTables, layer: str) -> Figure:
    """Rounding error of a layer against the uniform law on [v_init - 1, v_init], and its whole error; in steps theta/T.

    Densities over 64 bins; what lies outside [-1, 1) is stated in words. Left: Q(z) - z inside the range, exact zeros
    of z left out, with the Kolmogorov-Smirnov distance from the law. Right: r - a where it is not exactly 0.

    Raises:
        InputError: no such layer in the report, or a report without details.
    """
    if layer not in report.details:
        known = ", ".join(map(repr, list(report.details)[:6])) or "none: the report holds no details"
        raise InputError(f"layer: expected one of the report's neuron layers ({known}), got {layer!r}")
    detail = report.details[layer]
    row = next(row for row in report.layers.to_dict("records") if row["layer"] == layer)
    stated = f"KS {row['round_ks']:.4f}", f"{100 * row['exact']:.1f} % exact"
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(10, 4.2), layout="constrained")
        left, right = figure.subplots(1, 2)
        _panel(left, detail, detail.rounding, f"Rounding alone: {stated[0]}", "round", "Q(z) − z inside the range")
        _panel(right, detail, detail.noise, f"Whole error: {stated[1]}", "spiking", "r − a where it is not 0")
        figure.suptitle(f"Error of {layer}, T = {row['timesteps']}, {row['n']:,} elements", x=0.01, ha="left")
        for axes in (left, right):
            axes.set_xlim(detail.edges[0], detail.edges[-1])
            axes.set_xlabel("error (steps θ/T)")
            axes.set_ylabel("density (per step)")
            handles, labels = axes.get_legend_handles_labels()
            axes.legend(handles, labels, loc="upper center", bbox_to_anchor=(0.5, -0.17), ncols=2, fontsize=8)
    return figure


def _panel(axes: Axes, detail: LayerDetail, counts: Floats, title: str, colour: str, label: str) -> None:
    """One histogram as a density with the law of rounding over it; what lies outside in the title."""
    total, width = float(counts.sum()), float(detail.edges[1] - detail.edges[0])
    if total == 0:
        axes.set_title(f"{title.partition(':')[0]}: no such element", loc="left", fontsize=9)
        return
    axes.stairs(counts[1:-1] / total / width, detail.edges, fill=True, color=COLOURS[colour], label=label)
    if detail.expected.any():
        law = detail.expected[1:-1] / width
        axes.stairs(law, detail.edges, **IDEAL, label="ideal: uniform on [v_init − 1, v_init]")
    outside = 100 * float(counts[0] + counts[-1]) / total
    axes.set_title(f"{title}, {outside:.1f} % beyond ±1 step", loc="left", fontsize=9)
