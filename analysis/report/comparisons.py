"""Figures of `compare` and of `knobs`; each draws the ideal that its values stand beside.

A comparison's figures have a line or a panel for each network; `knob_curves` has a column for each knob, with answers
above and decibels below.
"""

from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter, StrMethodFormatter

from speedysnn.analysis.report.style import (
    COLOURS,
    IDEAL,
    STYLE,
    finite_or_gap,
    layered_panels,
    name_layers,
    shared_legend,
    stack,
    stacked_parts,
)

_PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#6B4C9A", "#7F7F7F")
_MARKERS = "os^Dv<>P"
_CUT_BELOW = -1.0  # of a stack: what hangs below it is cut, and the title says so
_AXES = {"timesteps": "T (steps)", "theta_scale": "factor on every θ", "v_init": "v_init (fraction of θ)",
         "delay": "look-ahead (steps)", "spikes": "spikes"}  # fmt: skip


def sqnr(layers: pd.DataFrame) -> Figure:
    """Draw the SQNR of every layer of every network, each below the dashed floor of its own step; dB."""
    order = _order(layers)
    figure, (axes,) = layered_panels(order, 1, 4.0)
    for i, (name, rows) in enumerate(layers.groupby("network", sort=False)):
        at = [order.index(layer) for layer in rows["layer"]]
        style: dict[str, Any] = {"color": _PALETTE[i % 8], "markersize": 4}
        axes.plot(at, finite_or_gap(rows["floor_db"]), linestyle=(0, (2, 2)), linewidth=1, marker="_", **style)
        axes.plot(at, finite_or_gap(rows["sqnr_db"]), marker=_marker(i), label=str(name), **style)
    axes.plot([], [], linestyle=(0, (2, 2)), linewidth=1, color="black", label="ideal: floor of its step θ/T")
    axes.set_ylabel("SQNR (dB)")
    axes.set_title("Signal to noise against the source, higher is better", loc="left")
    name_layers(axes, order)
    shared_legend(figure, [axes])
    return figure


def causes(layers: pd.DataFrame, outputs: pd.DataFrame) -> Figure:
    """Draw the shares of the squared error by cause, a panel a network; %."""
    title, ideal = "Where each layer's error comes from", "sum of all (ideal: all of it round)"
    columns = "share_", "affine_share"
    return _stacked(layers, list(outputs["network"]), columns, title, ideal, "share (%)", _CUT_BELOW)


def removed(layers: pd.DataFrame, outputs: pd.DataFrame) -> Figure:
    """Draw the fraction of the first network's noise that each other one has removed, by cause; %."""
    first, *others = list(outputs["network"])
    title = f"Noise removed, in parts of that of {first}; below 0 added"
    columns = "removed_", "removed_affine"
    return _stacked(layers, others or [first], columns, title, "ideal: all of it", "removed (%)", _CUT_BELOW)


def pareto(outputs: pd.DataFrame) -> Figure:
    """Draw accuracy (agreement without labels; %) against latency (steps) and spikes of an image, with fronts."""
    table = outputs
    scored = "accuracy" if table["accuracy"].notna().all() else "agreement"
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(10, 4.4), layout="constrained")
        panels = list(figure.subplots(1, 2, sharey=True))
    costs = (("latency", "latency (steps)"), ("spikes_per_inference", "spikes (events per image)"))
    ideal = float(table["analog_accuracy"].max()) if scored == "accuracy" else 1.0
    for axes, (cost, label) in zip(panels, costs, strict=True):
        points = [(float(x), float(y)) for x, y in zip(table[cost], table[scored], strict=True)]
        best = front(points)
        ring: dict[str, Any] = {"marker": "o", "markersize": 12, "markerfacecolor": "none", "color": "#999999"}
        axes.plot(*zip(*best, strict=True), drawstyle="steps-post", zorder=1, label="Pareto front", **ring)
        for i, (name, (x, y)) in enumerate(zip(table["network"], points, strict=True)):
            axes.plot([x], [y], linestyle="", marker=_marker(i), color=_PALETTE[i % 8], alpha=0.85, label=str(name))
        axes.axhline(ideal, **IDEAL, label=f"ideal: the source, {100 * ideal:.1f} %")
        axes.set_xlabel(label)
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
        axes.yaxis.set_major_formatter(PercentFormatter(1))
        axes.margins(0.08)
    panels[0].set_ylabel("accuracy (%)" if scored == "accuracy" else "agreement with the source (%)")
    figure.suptitle("Upper left is better", x=0.01, ha="left", fontsize=11)
    shared_legend(figure, panels)
    return figure


def front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Find the points (cost, score) that no other point beats.

    Returns:
        The points by rising cost; equal ones once.

    Example:
        >>> from speedysnn.analysis.report.comparisons import front
        >>> front([(1.0, 0.5), (2.0, 0.4), (3.0, 0.9)])
        [(1.0, 0.5), (3.0, 0.9)]
    """
    best: list[tuple[float, float]] = []
    for cost, score in sorted(set(points), key=lambda point: (point[0], -point[1])):
        if not best or score > best[-1][1]:
            best.append((cost, score))
    return best


def all_figures(layers: pd.DataFrame, outputs: pd.DataFrame) -> dict[str, Figure]:
    """Draw every figure of a comparison; `removed` from two networks on, `pareto` where answers are classes.

    Returns:
        File name without its ending -> figure.
    """
    out = {"sqnr": sqnr(layers), "causes": causes(layers, outputs)}
    if len(outputs) > 1:
        out["removed"] = removed(layers, outputs)
    if outputs["agreement"].notna().all():
        out["pareto"] = pareto(outputs)
    return out


def _stacked(
    layers: pd.DataFrame,
    networks: Sequence[str],
    columns: tuple[str, str],
    title: str,
    ideal: str,
    unit: str,
    cut_below: float,
) -> Figure:
    """Stack the parts of the error, a panel a network; `columns` are `stacked_parts`' prefix and affine column."""
    order = _order(layers)
    figure, panels = layered_panels(order, len(networks), 1.6 + 1.7 * len(networks))
    least, most = 0.0, 1.0
    for axes, network in zip(panels, networks, strict=True):
        rows = layers[layers["network"] == network]
        at = [order.index(layer) for layer in rows["layer"]]
        ends = stack(axes, at, stacked_parts(rows, *columns))
        axes.axhline(1, **IDEAL, label=ideal)
        axes.axhline(0, color="black", linewidth=0.8)
        least, most = min(least, *ends), max(most, *ends)
        axes.yaxis.set_major_formatter(PercentFormatter(1))
        axes.set_ylabel(unit)
        axes.set_title(str(network), loc="left", fontsize=9)
    if least < cut_below:
        title += f"; below {100 * cut_below:.0f} % cut"
    for axes in panels:
        axes.set_ylim(max(cut_below, least - 0.05), most + 0.1)
    figure.suptitle(title, x=0.01, ha="left", fontsize=11)
    name_layers(panels[-1], order)
    shared_legend(figure, panels)
    return figure


def _order(layers: pd.DataFrame) -> list[str]:
    """List every layer's name once, in the order of the first network that has it."""
    return list(dict.fromkeys(layers["layer"]))


def _marker(index: int) -> str:
    """Choose a marker; from the ninth network on they are shifted, so that no two have the same colour and marker."""
    return _MARKERS[(index + index // 8) % 8]


def knob_curves(table: pd.DataFrame) -> Figure:
    """Draw agreement with the source (%), output SQNR and the layers' mean SQNR (dB), measured and predicted, by knob.

    Args:
        table: of `speedysnn.analysis.knobs`.

    Returns:
        The figure: a column a knob.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from speedysnn import analysis, convert
        >>> _ = torch.manual_seed(0)
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> images = torch.rand(64, 4)
        >>> snn = convert.to_spiking(net, images, timesteps=4)
        >>> table = analysis.knobs(snn, images, timesteps=[2, 4])
        >>> [axes.get_xlabel() for axes in analysis.knob_curves(table).axes]
        ['', 'T (steps)']
    """
    names = list(dict.fromkeys(table["knob"]))
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(max(6.0, 3.4 * len(names)), 6.4), layout="constrained")
        panels = figure.subplots(2, len(names), squeeze=False, sharey="row")
        for place, name in enumerate(names):
            rows = table[table["knob"] == name].reset_index(drop=True)
            _column(panels[0][place], panels[1][place], rows, _AXES.get(name, name))
        panels[0][0].set_ylabel("agreement with the source (%)")
        panels[1][0].set_ylabel("SQNR (dB), higher is better")
        shared_legend(figure, (panels[0][0], panels[1][0]))
    return figure


def _column(above: Axes, below: Axes, rows: pd.DataFrame, label: str) -> None:
    places = range(len(rows))
    _line_by_value(above, rows["agreement"], "spiking: agreement, output SQNR", COLOURS["spiking"], "o")
    _line_by_value(above, rows["twin_agreement"], "quantized: agreement, output SQNR", COLOURS["twin"], "s")
    above.axhline(1, **IDEAL, label="ideal: the source's answers")
    above.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    _line_by_value(below, rows["sqnr_db"], "spiking: agreement, output SQNR", COLOURS["spiking"], "o")
    _line_by_value(below, rows["twin_sqnr_db"], "quantized: agreement, output SQNR", COLOURS["twin"], "s")
    _line_by_value(below, rows["layer_sqnr_db"], "layers alone, mean, measured", COLOURS["recalibrated"], "^")
    below.plot(places, finite_or_gap(rows["predicted_sqnr_db"]), label="layers alone, mean, predicted", **IDEAL)
    for axes in (above, below):
        axes.set_xticks(list(places), [str(value) for value in rows["value"]])
        axes.margins(x=0.12)
    below.set_xlabel(label)


def _line_by_value(axes: Axes, values: "pd.Series[Any]", label: str, colour: str, marker: str) -> None:
    axes.plot(range(len(values)), finite_or_gap(values), marker=marker, markersize=4, color=colour, label=label)
