"""Figures of `knobs`: a column a knob, answers above and decibels below."""

from typing import Any

import matplotlib as mpl
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from speedysnn.analysis.style import COLOURS, IDEAL, STYLE, finite_or_gap, shared_legend

_AXES = {"timesteps": "T (steps)", "theta_scale": "factor on every θ", "v_init": "v_init (fraction of θ)",
         "delay": "look-ahead (steps)", "spikes": "spikes"}  # fmt: skip


def knob_curves(table: pd.DataFrame) -> Figure:
    """Agreement with the source (%), output SQNR and the layers' mean SQNR, measured and predicted (dB), by knob."""
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
