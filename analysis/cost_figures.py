"""Figures of what an inference costs: operations by layer, and energy under each named table."""

import matplotlib as mpl
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from speedysnn.analysis.energy import CostReport
from speedysnn.analysis.style import COLOURS, STYLE, label_height, layered_width, name_layers

_KINDS = (("spiking_nj", "spiking", "spiking"), ("rival_nj", "quantized rival", "twin"),
          ("analog_nj", "source network", "propagated"))  # fmt: skip


def cost(report: CostReport) -> Figure:
    """Operations a layer and image, spiking beside the source's dense ones (log scale), and energy (nJ an image)."""
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
