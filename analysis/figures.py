"""The report's figures; each draws the ideal that its values stand beside. No pyplot, so no global state."""

import math
from typing import Any

import matplotlib as mpl
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, PercentFormatter

from speedysnn.analysis.style import (
    COLOURS,
    IDEAL,
    STYLE,
    finite_or_gap,
    layered_panels,
    name_layers,
    shared_legend,
)


def sqnr(layers: pd.DataFrame) -> Figure:
    """SQNR of every layer in spikes and in the quantized reading, below the floor that its step allows; dB."""
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
    """Shares of the squared error by cause, stacked; a negative share hangs below zero; %."""
    figure, (axes,) = layered_panels(list(layers["layer"]), 1, 3.6)
    up, down = [0.0] * len(layers), [0.0] * len(layers)
    for part in ("clip", "round", "propagated", "temporal"):
        shares = [0.0 if math.isnan(x) else float(x) for x in layers[f"share_{part}"]]
        base = [up[i] if x >= 0 else down[i] for i, x in enumerate(shares)]
        axes.bar(range(len(layers)), shares, 0.85, base, label=part, color=COLOURS[part])
        up = [u + max(x, 0) for u, x in zip(up, shares, strict=True)]
        down = [d + min(x, 0) for d, x in zip(down, shares, strict=True)]
    axes.axhline(1, **IDEAL, label="sum of the four (ideal: all of it round)")
    axes.axhline(0, color="black", linewidth=0.8)
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    axes.set_ylabel("share of squared error (%)")
    axes.set_title("Where each layer's error comes from", loc="left")
    name_layers(axes, list(layers["layer"]))
    shared_legend(figure, [axes])
    return figure


def rmse(layers: pd.DataFrame) -> Figure:
    """Root mean squared error in quantizer steps θ/T, with that of rounding alone."""
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
    """Saturated and silent fractions (%) and firing rate (events per neuron and step), a panel each."""
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
        axes.legend(loc="lower left", bbox_to_anchor=(0.4, 0.97), ncols=2, borderaxespad=0, fontsize=8)
    name_layers(panels[-1], list(layers["layer"]))
    return figure


def sweep(table: pd.DataFrame) -> Figure:
    """Accuracy (agreement where there are no labels; %) and output SQNR (dB) against T, source and twin beside."""
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
                      label=f"quantized, θ {kind}" + " (ideal: no timing error)" * (axes is right))  # fmt: skip
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
    """Every figure by its file's name; the sweep's where its table is given."""
    out = {"sqnr": sqnr(layers), "causes": causes(layers), "rmse": rmse(layers), "activity": activity(layers)}
    if table is not None and len(table):
        out["sweep"] = sweep(table)
    return out


def _line_by_layer(axes: Axes, values: "pd.Series[Any]", label: str, **style: Any) -> None:
    if len(values) == 1 and "marker" not in style:
        style["marker"] = "_"
    axes.plot(range(len(values)), finite_or_gap(values), label=label, markersize=4, **style)
