"""Figures of a noise report and of the cost of an inference; each draws the ideal that its values stand beside.

All figures are made without pyplot, so that no global state changes. `all_figures` gives those of a report by the names
of their files; `figure_noise_distribution` draws one layer's error against the law that theory gives it; `cost` draws
operations by layer and energy under each named table.
"""

import math
from typing import Any

import matplotlib as mpl
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, PercentFormatter

from speedysnn.analysis.cost import CostReport
from speedysnn.analysis.noise.moments import Floats
from speedysnn.analysis.report import LayerDetail, NoiseTables
from speedysnn.analysis.report.style import (
    COLOURS,
    IDEAL,
    STYLE,
    finite_or_gap,
    label_height,
    layered_panels,
    layered_width,
    name_layers,
    shared_legend,
    stack,
    stacked_parts,
)
from speedysnn.analysis.theory.gain import gain_with_depth
from speedysnn.errors import InputError

_KINDS = (("spiking_nj", "spiking", "spiking"), ("rival_nj", "quantized rival", "twin"),
          ("analog_nj", "source network", "propagated"))  # fmt: skip


def sqnr(layers: pd.DataFrame) -> Figure:
    """Draw the SQNR of every layer in spikes and in the quantized reading, below the floor of its step; dB."""
    figure, (axes,) = layered_panels(list(layers["layer"]), 1, 3.6)
    _line_by_layer(axes, layers["floor_db"], "ideal: floor of the step θ/T", **IDEAL)
    _line_by_layer(
        axes, layers["twin_sqnr_db"], "quantized reading (no timing error)", color=COLOURS["twin"], marker="s"
    )
    _line_by_layer(axes, layers["sqnr_db"], "spiking", color=COLOURS["spiking"], marker="o")
    axes.set_ylabel("SQNR (dB)")
    axes.set_title("Signal to noise against the source, higher is better", loc="left")
    name_layers(axes, list(layers["layer"]))
    shared_legend(figure, [axes])
    return figure


def causes(layers: pd.DataFrame) -> Figure:
    """Draw the shares of the squared error by cause, stacked; a negative share hangs below zero; %.

    Of the propagated share, the part that an affine map of each channel's drive would remove is hatched.
    """
    figure, (axes,) = layered_panels(list(layers["layer"]), 1, 3.6)
    stack(axes, range(len(layers)), stacked_parts(layers, "share_", "affine_share"))
    axes.axhline(1, **IDEAL, label="sum of all (ideal: all of it round)")
    axes.axhline(0, color="black", linewidth=0.8)
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    axes.set_ylabel("share of squared error (%)")
    axes.set_title("Where each layer's error comes from", loc="left")
    name_layers(axes, list(layers["layer"]))
    shared_legend(figure, [axes])
    return figure


def gain(layers: pd.DataFrame) -> Figure:
    """Draw how much of the source's drive reaches every layer, beside what its quantizers alone would leave of it.

    Expected is the product of the slopes `own_gain` over the layers before, as `theory.gain_with_depth` takes it.
    """
    names = [str(name) for name in layers["layer"]]
    figure, (axes,) = layered_panels(names, 1, 3.4)
    own = [1.0 if math.isnan(slope) else slope for slope in finite_or_gap(layers["own_gain"])]
    reads = [[names.index(feed) for feed in feeds.split(", ") if feed] for feeds in layers["reads"]]
    leaving = gain_with_depth(own, reads)
    arriving = [sum(leaving[j] for j in places) / len(places) if places else 1.0 for places in reads]
    alone = {"color": COLOURS["round"], "linestyle": "", "marker": "^"}
    _line_by_layer(axes, pd.Series(own), "this layer's quantizer alone", **alone)
    _line_by_layer(axes, layers["drive_gain"], "drive, measured", color=COLOURS["spiking"], marker="o")
    _line_by_layer(axes, pd.Series(arriving), "drive, expected: product of the quantizers before it",
                   color=COLOURS["twin"], linestyle=":", marker="s")  # fmt: skip
    axes.axhline(1, **IDEAL, label="ideal: 1")
    axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
    axes.set_ylabel("slope against the source (ratio)")
    axes.set_title("Gain lost with depth", loc="left")
    name_layers(axes, names)
    shared_legend(figure, [axes])
    return figure


def rmse(layers: pd.DataFrame) -> Figure:
    """Draw the root mean squared error in quantizer steps θ/T, with that of rounding alone."""
    figure, (axes,) = layered_panels(list(layers["layer"]), 1, 3.2)
    axes.bar(range(len(layers)), layers["rmse_steps"], 0.85, color=COLOURS["spiking"], label="spiking")
    ideal = layers["rmse_ideal"]
    name = f"ideal: rounding alone, {ideal.iloc[0]:.3f}" if ideal.nunique() == 1 else "ideal: rounding alone"
    _line_by_layer(axes, ideal, name, **IDEAL)
    axes.set_ylabel("RMS error (steps θ/T)")
    axes.set_title("Error in quantizer steps, lower is better", loc="left")
    name_layers(axes, list(layers["layer"]))
    shared_legend(figure, [axes])
    return figure


def activity(layers: pd.DataFrame) -> Figure:
    """Draw saturated and silent fractions (%) and the firing rate (events per neuron and step), a panel each."""
    figure, panels = layered_panels(list(layers["layer"]), 3, 6.4)
    drawn = (("saturated", "saturated\n(%)"), ("silent", "silent\n(%)"), ("rate", "rate (events per\nneuron and step)"))
    for axes, (name, label) in zip(panels, drawn, strict=True):
        axes.bar(range(len(layers)), layers[name], 0.85, color=COLOURS["spiking"], label="spiking")
        axes.set_ylabel(label)
        if name != "rate":
            axes.yaxis.set_major_formatter(PercentFormatter(1))
    panels[0].axhline(0, **IDEAL, clip_on=False, label="ideal: 0")
    _line_by_layer(panels[1], layers["source_silent"], "ideal: silent in the source", **IDEAL)
    _line_by_layer(panels[2], layers["rate_ideal"], "ideal: mean of a/θ, what carries the source", **IDEAL)
    panels[0].set_title("How the neurons use their range", loc="left")
    for axes in panels:
        axes.margins(y=0.15)
        axes.set_ylim(bottom=0)
        axes.legend(loc="lower left", bbox_to_anchor=(0.4, 0.97), ncols=2, borderaxespad=0, fontsize=8, frameon=False)
    name_layers(panels[-1], list(layers["layer"]))
    return figure


def sweep(table: pd.DataFrame) -> Figure:
    """Draw accuracy (agreement without labels; %) and output SQNR (dB) against T, with source and quantized reading."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(10, 4.2), layout="constrained")
        left, right = figure.subplots(1, 2)
    scored = "accuracy" if table["accuracy"].notna().any() else "agreement"
    for axes, name in ((left, scored), (right, "sqnr_db")):
        for kind, rows in table.groupby("theta", sort=False):
            colour = COLOURS["spiking" if kind == "fixed" else "recalibrated"]
            steps = rows["timesteps"].tolist()
            axes.plot(steps, finite_or_gap(rows[name]), marker="o", color=colour, label=f"spiking, θ {kind}")
            axes.plot(steps, finite_or_gap(rows[f"twin_{name}"]), marker="s", markersize=4, linestyle=":", color=colour,
                      label=f"quantized, θ {kind} (ideal: no timing error)")  # fmt: skip
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_locator(FixedLocator(sorted(set(table["timesteps"]))))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.set_xlabel("T (steps)")
    ideal = table["analog_accuracy"].iloc[0] if scored == "accuracy" else 1.0
    left.axhline(ideal, **IDEAL, label=f"ideal: the source, {100 * ideal:.1f} %")
    left.yaxis.set_major_formatter(PercentFormatter(1))
    left.set_ylabel(f"{scored} (%)" if scored == "accuracy" else "agreement with the source (%)")
    right.set_ylabel("output SQNR (dB)")
    delay = table["delay"].iloc[0]
    left.set_title(f"{scored.capitalize()} against T, look-ahead {delay}", loc="left")
    right.set_title("Output SQNR against T", loc="left")
    shared_legend(figure, [left, right])
    return figure


def all_figures(layers: pd.DataFrame, table: pd.DataFrame | None = None) -> dict[str, Figure]:
    """Draw every figure of a report.

    Args:
        layers: `NoiseReport.layers`.
        table: of `speedysnn.analysis.sweep`; without it there is no figure of the sweep.

    Returns:
        File name without its ending -> figure.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from speedysnn import analysis, convert
        >>> from speedysnn.analysis.report.figures import all_figures
        >>> _ = torch.manual_seed(0)
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> images = torch.rand(64, 4)
        >>> noise = analysis.measure_noise(convert.to_spiking(net, images, timesteps=4), images)
        >>> list(all_figures(noise.layers))
        ['sqnr', 'causes', 'gain', 'rmse', 'activity']
    """
    out = {"sqnr": sqnr(layers), "causes": causes(layers), "gain": gain(layers), "rmse": rmse(layers)}
    out["activity"] = activity(layers)
    if table is not None and len(table):
        out["sweep"] = sweep(table)
    return out


def _line_by_layer(axes: Axes, values: "pd.Series[Any]", label: str, **style: Any) -> None:
    if len(values) == 1 and "marker" not in style:
        style["marker"] = "_"
    axes.plot(range(len(values)), finite_or_gap(values), label=label, markersize=4, **style)


def figure_noise_distribution(report: NoiseTables, layer: str) -> Figure:
    """Draw a layer's rounding error against the uniform law on [v_init - 1, v_init], and its whole error.

    Densities over 64 bins of the error in steps theta/T; the share outside [-1, 1) stands in the title. Left: Q(z) - z
    inside the range, exact zeros of z left out, with the Kolmogorov-Smirnov distance from the law. Right: r - a where
    it is not exactly 0.

    Args:
        report: a noise report with details.
        layer: the name of a neuron layer.

    Returns:
        The figure.

    Raises:
        InputError: no such layer in the report, or a report without details.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from speedysnn import analysis, convert
        >>> _ = torch.manual_seed(0)
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> images = torch.rand(64, 4)
        >>> snn = convert.to_spiking(net, images, timesteps=4)
        >>> figure = analysis.figure_noise_distribution(analysis.measure_noise(snn, images), "1")
        >>> [axes.get_xlabel() for axes in figure.axes]
        ['error (steps θ/T)', 'error (steps θ/T)']
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
    """Draw one histogram as a density with the law of rounding over it; the title says how much lies outside."""
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


def cost(report: CostReport) -> Figure:
    """Draw operations by layer, spiking beside the source's dense ones, and energy (nJ an image); log scales."""
    rows = report.layers[report.layers["op"] != "neuron"].reset_index(drop=True)
    with mpl.rc_context(STYLE):
        figure = Figure(
            figsize=(layered_width(len(rows), 9.0), 6.2 + label_height(list(rows["layer"]))), layout="constrained"
        )
        above, below = figure.subplots(2, 1)
        _operations(above, rows, report.bits)
        _energy(below, report)
    return figure


def _operations(axes: Axes, rows: pd.DataFrame, bits: int) -> None:
    places = range(len(rows))
    axes.plot(places, rows["analog_macs"], "_", markersize=9, color=COLOURS["ideal"],
              label="source network, dense (MAC)")  # fmt: skip
    axes.plot(places, rows["rival_macs"], "s", markersize=4, color=COLOURS["twin"],
              label=f"rival: {bits}-bit network that skips its zeros (MAC)")  # fmt: skip
    axes.plot(places, rows["synops"] + rows["macs"], "o", markersize=4, color=COLOURS["spiking"],
              label="spiking (accumulations; MAC where the input is constant)")  # fmt: skip
    axes.set_yscale("log")
    axes.set_ylabel("operations an image")
    axes.set_title("Operations a layer, all T steps; lower is better, ideal: below the rival", loc="left")
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.1), ncols=3, fontsize=8)
    name_layers(axes, list(rows["layer"]))


def _energy(axes: Axes, report: CostReport) -> None:
    tables = report.energy["table"].tolist()
    for place, (column, label, colour) in enumerate(_KINDS):
        positions = [i + 0.27 * (place - 1) for i in range(len(tables))]
        bars = axes.bar(positions, report.energy[column], 0.25, label=label, color=COLOURS[colour])
        written = [f"{value:,.0f}" if value >= 1000 else f"{value:.3g}" for value in report.energy[column]]
        axes.bar_label(bars, written, fontsize=7, padding=1)
    axes.set_yscale("log")
    axes.margins(y=0.15)
    axes.set_xticks(range(len(tables)), [name.replace(", with", ",\nwith") for name in tables])
    axes.set_ylabel("energy (nJ an image)")
    axes.set_title("Energy under named tables; compare within a group only", loc="left")
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=3, fontsize=8)
