"""Figures of a sensitivity report: what each layer costs at the output, and what changing it would gain."""

import math

import matplotlib as mpl
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from speedysnn.analysis.report_data import SensitivityTables
from speedysnn.analysis.style import (
    COLOURS,
    STYLE,
    finite_or_gap,
    layered_panels,
    name_layers,
    shared_legend,
)
from speedysnn.progress import shortened

_AT_OUTPUT = {
    "isolated": ("isolated: only this layer spikes", "s", COLOURS["twin"]),
    "prefix": ("prefix: this layer and all before it spike", "o", COLOURS["spiking"]),
    "leave_one_out": ("leave one out: all spike but this layer", "^", COLOURS["recalibrated"]),
}
_AT_LAYER = {
    "local": ("local: on the source's own input", "s", COLOURS["twin"]),
    "cumulative": ("cumulative: all layers spike", "o", COLOURS["spiking"]),
}
_CHANGES = {
    "bit": COLOURS["round"],
    "threshold": COLOURS["twin"],
    "bit+threshold": COLOURS["spiking"],
    "bias": COLOURS["clip"],
    "look-ahead": COLOURS["recalibrated"],
}
_MOST_BARS, _LONGEST = 20, 26


def curves(found: SensitivityTables) -> Figure:
    """Output SQNR (dB) of the isolated, prefix and leave-one-out readings by layer, with the twin's and the spikes'."""
    outputs = found.outputs
    figure, axes = _by_layer(found.table, _AT_OUTPUT)
    for name, label, dashes in (
        ("twin_sqnr_db", "quantized reading of all layers (twin)", (0, (5, 2))),
        ("sqnr_db", "spiking network", (0, (1, 1.5))),
    ):
        value = float(outputs[name])
        if math.isfinite(value):
            axes.axhline(value, color="black", linewidth=1.2, linestyle=dashes, label=f"{label}: {value:.1f} dB")
    axes.set_ylabel("output SQNR (dB)")
    gap = found.temporal_gap_db
    shown = f"{gap:.1f} dB" if math.isfinite(gap) else "undefined"
    axes.set_title(f"What each layer costs at the output; temporal gap (twin above spikes) {shown}", loc="left")
    _legend_of_modes(figure, axes)
    return figure


def layers(found: SensitivityTables) -> Figure:
    """SQNR (dB) at the layer itself, on the source's input (local) and in the spiking network (cumulative)."""
    figure, axes = _by_layer(found.table, _AT_LAYER)
    axes.set_ylabel("SQNR at the layer (dB)")
    axes.set_title("Each layer against the source's activation, higher is better", loc="left")
    _legend_of_modes(figure, axes)
    return figure


def ranking(found: SensitivityTables) -> Figure:
    """The best changes of one layer by what the spiking output gains (dB), the quantized output's gain beside."""
    rows = found.gains[found.gains["gain_db"].map(math.isfinite)].head(_MOST_BARS)
    with mpl.rc_context({**STYLE, "axes.grid.axis": "x"}):
        figure = Figure(figsize=(8.5, 1.7 + 0.24 * max(3, len(rows))), layout="constrained")
        axes = figure.subplots()
    for kind, colour in _CHANGES.items():
        own = [i for i, change in enumerate(rows["change"]) if change == kind]
        if own:
            axes.barh(own, rows["gain_db"].iloc[own], 0.75, color=colour, label=kind)
    axes.errorbar(rows["gain_db"], range(len(rows)), xerr=rows["gain_se_db"].fillna(0), fmt="none", ecolor="#666666",
                  elinewidth=1, capsize=2, label="± standard error")  # fmt: skip
    axes.plot(rows["twin_gain_db"], range(len(rows)), "D", color="black", markersize=3.5, linestyle="none",
              label="the same in the quantized reading")  # fmt: skip
    axes.axvline(0, color="black", linewidth=0.8)
    pairs = zip(rows["layer"], rows["change"], strict=True)
    names = [f"{shortened(str(name), _LONGEST)}, {kind}" for name, kind in pairs]
    axes.set_yticks(range(len(rows)), names, fontsize=8)
    axes.set_ylim(max(3, len(rows)) - 0.4, -0.6)
    axes.set_xlabel("output SQNR gained by changing this layer alone (dB)")
    most = f"best {len(rows)} of {len(found.gains)}" if len(rows) < len(found.gains) else f"all {len(rows)}"
    again = int((rows["screened_db"] != rows["gain_db"]).sum())
    if again:
        axes.axhline(again - 0.5, color="black", linestyle=":", linewidth=1, label="above: again on other images")
    axes.set_title(f"What one change would gain ({most})", loc="left")
    _legend_of_modes(figure, axes)
    return figure


def all_figures(found: SensitivityTables) -> dict[str, Figure]:
    """Every figure that something was measured for, by its file's name."""
    modes, out = set(found.table["mode"]), dict[str, Figure]()
    if modes & set(_AT_OUTPUT):
        out["sensitivity"] = curves(found)
    if modes & set(_AT_LAYER):
        out["sensitivity_layers"] = layers(found)
    if len(found.gains):
        out["gains"] = ranking(found)
    return out


def _by_layer(table: pd.DataFrame, drawn: dict[str, tuple[str, str, str]]) -> tuple[Figure, Axes]:
    """A line a mode over the layers in execution order."""
    names = list(dict.fromkeys(map(str, table["layer"])))
    figure, (axes,) = layered_panels(names, 1, 3.6)
    for mode, (label, marker, colour) in drawn.items():
        values = table.loc[table["mode"] == mode, "sqnr_db"]
        if len(values):
            axes.plot(range(len(values)), finite_or_gap(values), marker=marker, markersize=4, color=colour, label=label)
    name_layers(axes, names)
    return figure, axes


def _legend_of_modes(figure: Figure, axes: Axes) -> None:
    """In two columns where there are few entries, for they are long."""
    shared_legend(figure, [axes], 3 if len(axes.get_legend_handles_labels()[1]) > 4 else 2)
