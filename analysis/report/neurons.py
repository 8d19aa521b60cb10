"""Figures of one layer's neurons, and the figures of a sensitivity report.

The neurons' figures show the density of their activations, the staircase of their answers, a raster of spikes and their
membranes. Those of a sensitivity report show what each layer costs at the output and what changing it would gain.
"""

import math
from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from speedysnn.analysis.knobs import theta_distance
from speedysnn.analysis.reference import run
from speedysnn.analysis.report import SensitivityTables
from speedysnn.analysis.report.style import (
    COLOURS,
    IDEAL,
    LONGEST,
    STYLE,
    finite_or_gap,
    layered_panels,
    name_layers,
    shared_legend,
)
from speedysnn.display import shortened_path
from speedysnn.errors import InputError
from speedysnn.execution.observers import LayerRecord
from speedysnn.network import SpikingNetwork

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
_MOST_BARS = 20


def figure_activation_density(snn: SpikingNetwork, layer: str) -> Figure:
    """Draw the density of a layer's calibration activations above 0, with N theta and the best N theta*.

    Args:
        snn: a network that was converted with calibration data.
        layer: the name of a neuron layer.

    Returns:
        The figure; the legend says what share of the activations lies beyond N theta.

    Raises:
        InputError: no such layer, or no histogram of it.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from speedysnn import analysis, convert
        >>> _ = torch.manual_seed(0)
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> images = torch.rand(64, 4)
        >>> snn = convert.to_spiking(net, images, timesteps=4)
        >>> analysis.figure_activation_density(snn, "1").axes[0].get_xlabel()
        "activation (source's unit)"
    """
    neuron = _neuron(snn, layer)
    hist = snn.calibration.histograms.get(layer)
    if hist is None:
        raise InputError(f"{layer}: no histogram is stored; convert the network with calibration data")
    merged = (hist.folded() if neuron.signed else hist).merged()
    edges, counts = merged.edges()[0].double(), merged.counts[0].double()
    widths, total = edges.diff(), float(merged.total.sum())
    density = counts / (widths.clamp_min(1e-300) * max(total, 1.0))
    row = theta_distance(snn).set_index("layer").loc[layer]
    scale = neuron.levels_per_step
    beyond = float(counts[edges[:-1] >= scale * row["theta"]].sum()) / max(total, 1.0)
    used = int((counts > 0).nonzero().max()) + 1 if bool((counts > 0).any()) else 1
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(7.5, 3.8), layout="constrained")
        axes = figure.subplots()
        axes.stairs(density[:used].numpy(), edges[: used + 1].numpy(), fill=True, color=COLOURS["round"],
                    label="calibration activations above 0")  # fmt: skip
        axes.axvspan(scale * row["theta"], float(edges[used]), color=COLOURS["clip"], alpha=0.25,
                     label=f"clipped: {100 * beyond:.1f} %")  # fmt: skip
        axes.axvline(scale * row["theta"], color=COLOURS["spiking"], label=f"N θ = {scale * row['theta']:.3g}")
        axes.axvline(scale * row["best"], **IDEAL, label=f"ideal: N θ* = {scale * row['best']:.3g}")
        axes.set_yscale("log")
        axes.set_xlabel("activation (source's unit)")
        axes.set_ylabel("density (per unit)")
        silent = 1 - float(counts.sum()) / max(total, 1.0)
        axes.set_title(f"{layer}, T = {snn.timesteps}; silent in the source: {100 * silent:.1f} %", loc="left")
        shared_legend(figure, [axes], 2)
    return figure


def figure_staircase(snn: SpikingNetwork, layer: str, x: Tensor, *, neurons: int = 2000, seed: int = 0) -> Figure:
    """Draw the mean output of sampled neurons against the source's activation, spiking and quantized, in N theta.

    Args:
        snn: the network.
        layer: the name of a neuron layer.
        x: images, (B, ...).
        neurons: how many neurons of all images are drawn.
        seed: of the sample.

    Returns:
        The figure, with the quantizer of T steps as a staircase.

    Raises:
        InputError: no such layer.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from speedysnn import analysis, convert
        >>> _ = torch.manual_seed(0)
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> images = torch.rand(64, 4)
        >>> snn = convert.to_spiking(net, images, timesteps=4)
        >>> analysis.figure_staircase(snn, "1", images[:8]).axes[0].get_title("left")
        '1: 64 of 64 neurons, T = 4'
    """
    neuron = _neuron(snn, layer)
    with torch.no_grad():
        source, twin, tap = (_tap(snn, layer, reading, x) for reading in ("analog", "quantized", "spiking"))
        full = neuron.per_channel(neuron.threshold, source.output.ndim) * neuron.levels_per_step
        a, q = (source.output / full).flatten(), (twin.output / full).flatten()
        r = (tap.steps().mean(0) / full).flatten()
    chosen = torch.randperm(len(a), generator=torch.Generator().manual_seed(seed))[:neurons]
    levels = snn.timesteps * neuron.levels_per_step
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(6, 5.4), layout="constrained")
        axes = figure.subplots()
        top = max(1.0, float(a[chosen].max()) if len(chosen) else 1.0) * 1.05
        start = float(neuron.v_init.detach().mean())
        steps = [(n - start) / levels for n in range(1, levels + 1)]
        axes.stairs([n / levels for n in range(levels + 1)], [0.0, *(max(0.0, s) for s in steps), max(top, steps[-1])],
                    baseline=None, label="ideal: quantizer of T steps", **IDEAL)  # fmt: skip
        axes.plot([0, 1, top], [0, 1, 1], color=COLOURS["propagated"], label="source, clipped at N θ")
        axes.plot(a[chosen].numpy(), q[chosen].numpy(), "s", markersize=3, color=COLOURS["twin"], alpha=0.5,
                  label="quantized reading")  # fmt: skip
        axes.plot(a[chosen].numpy(), r[chosen].numpy(), "o", markersize=2.5, color=COLOURS["spiking"], alpha=0.5,
                  label="spiking")  # fmt: skip
        axes.set_xlabel("source activation (N θ)")
        axes.set_ylabel("mean output over T steps (N θ)")
        axes.set_title(f"{layer}: {len(chosen)} of {len(a):,} neurons, T = {snn.timesteps}", loc="left")
        shared_legend(figure, [axes], 2)
    return figure


def figure_raster(snn: SpikingNetwork, layer: str, x: Tensor, *, neurons: int = 40) -> Figure:
    """Draw the spikes of the most active neurons over the T steps of one image, with their rates beside.

    The colour of a mark is a spike's sign, its height is its grade.

    Args:
        snn: the network.
        layer: the name of a neuron layer.
        x: one image, (1, ...).
        neurons: how many neurons are drawn.

    Returns:
        The figure.

    Raises:
        InputError: no such layer.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from speedysnn import analysis, convert
        >>> _ = torch.manual_seed(0)
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> images = torch.rand(64, 4)
        >>> snn = convert.to_spiking(net, images, timesteps=4)
        >>> [axes.get_xlabel() for axes in analysis.figure_raster(snn, "1", images[:1]).axes]
        ['step', 'events a step']
    """
    neuron = _neuron(snn, layer)
    with torch.no_grad():
        tap, source = _tap(snn, layer, "spiking", x[:1]), _tap(snn, layer, "analog", x[:1])
        unit = neuron.per_channel(neuron.amplitude, source.output.ndim)
        counts = (tap.steps() / unit).flatten(1)
        wanted = (source.output / unit).flatten()
    chosen = counts.abs().sum(0).topk(min(neurons, counts.shape[1])).indices
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(8, max(2.8, 0.13 * len(chosen) + 1.6)), layout="constrained")
        axes, beside = figure.subplots(1, 2, width_ratios=(3, 1), sharey=True)
        for sign, colour, name in ((1, "spiking", "spike"), (-1, "temporal", "negative spike")):
            place = (counts[:, chosen] * sign).round().clamp_min(0).nonzero()
            if len(place):
                sizes = counts[:, chosen].abs()[place[:, 0], place[:, 1]]
                axes.scatter(place[:, 0] + 1, place[:, 1], s=22 * sizes.numpy(), marker="|", color=COLOURS[colour],
                             label=name)  # fmt: skip
        rates = counts[:, chosen].mean(0)
        beside.plot(rates.numpy(), range(len(chosen)), "o", markersize=3, color=COLOURS["spiking"], label="rate")
        beside.plot(wanted[chosen].numpy(), range(len(chosen)), "_", color=COLOURS["ideal"], label="ideal: a / θ")
        axes.set_xlim(0.5, snn.timesteps + 0.5)
        axes.set_xlabel("step")
        axes.set_ylabel("neuron, most active first")
        beside.set_xlabel("events a step")
        beside.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), fontsize=8)
        axes.set_title(f"{layer}, T = {snn.timesteps}, look-ahead {neuron.delay}", loc="left")
        axes.invert_yaxis()
        shared_legend(figure, [axes], 2)
    return figure


def figure_membrane(snn: SpikingNetwork, layer: str, x: Tensor, *, neurons: Sequence[int] | None = None) -> Figure:
    """Draw the membrane u[t] = S[t] + v_init theta - theta n[t] of some neurons after each step, in theta.

    Args:
        snn: the network, without look-ahead in this layer.
        layer: the name of a neuron layer.
        x: one image, (1, ...).
        neurons: places in the flattened layer; by default the four most active.

    Returns:
        The figure, a panel a neuron; a membrane should end in [0, theta).

    Raises:
        InputError: no such layer or neuron, or a look-ahead, with which no membrane is kept.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from speedysnn import analysis, convert
        >>> _ = torch.manual_seed(0)
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> images = torch.rand(64, 4)
        >>> snn = convert.to_spiking(net, images, timesteps=4)
        >>> len(analysis.figure_membrane(snn, "1", images[:1], neurons=[0, 3]).axes)
        2
    """
    neuron = _neuron(snn, layer)
    if neuron.lookahead:
        raise InputError(f"{layer}: a neuron with look-ahead keeps a sum and a count, no membrane; set_delay(0) first")
    with torch.no_grad():
        tap = _tap(snn, layer, "spiking", x[:1])
        theta = neuron.per_channel(neuron.threshold, x[:1].ndim if tap.drive.ndim == x.ndim else tap.drive.ndim)
        start = neuron.per_channel(neuron.v_init, tap.drive.ndim)
        sums = tap.drive_steps().cumsum(0) / theta + start
        fired = (tap.steps() / neuron.per_channel(neuron.amplitude, tap.drive.ndim)).cumsum(0)
        u, spikes = (sums - fired).flatten(1), fired.diff(dim=0, prepend=torch.zeros_like(fired[:1])).flatten(1)
    wanted = spikes.abs().sum(0).topk(min(4, u.shape[1])).indices.tolist() if neurons is None else list(neurons)
    if not wanted or min(wanted) < 0 or max(wanted) >= u.shape[1]:
        raise InputError(f"neurons: expected places in 0..{u.shape[1] - 1}, got {wanted}")
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(7.5, 1.5 + 1.3 * len(wanted)), layout="constrained")
        panels = figure.subplots(len(wanted), 1, sharex=True, squeeze=False)[:, 0]
        for axes, place in zip(panels, wanted, strict=True):
            steps = range(1, snn.timesteps + 1)
            axes.axhspan(0, 1, color=COLOURS["round"], alpha=0.25, label="ideal end: in [0, θ)")
            axes.plot(steps, u[:, place].numpy(), "o-", markersize=3, color=COLOURS["spiking"], label="membrane")
            when = spikes[:, place].nonzero().flatten()
            axes.plot(when + 1, torch.full((len(when),), 1.0), "v", color=COLOURS["temporal"], label="spike")
            axes.set_ylabel(f"neuron {place}\nu (θ)")
        panels[-1].set_xlabel("step")
        panels[0].set_title(f"{layer}, T = {snn.timesteps}", loc="left")
        shared_legend(figure, [panels[0]], 2)
    return figure


def _neuron(snn: SpikingNetwork, layer: str) -> Any:
    if layer not in snn.neurons:
        known = ", ".join(map(repr, list(snn.neurons)[:6]))
        raise InputError(f"layer: expected one of the network's neuron layers ({known}, ...), got {layer!r}")
    return snn.neurons[layer]


def _tap(snn: SpikingNetwork, layer: str, reading: Any, x: Tensor) -> LayerRecord:
    found: list[LayerRecord] = []

    def keep(tap: LayerRecord) -> None:
        if tap.name == layer:
            found.append(LayerRecord(tap.name, tap.neuron, tap.drive.clone(), tap.output.clone(), tap.static_drive,
                             tap.static_output))  # fmt: skip

    run(snn, reading, [x], keep)
    return found[0]


def curves(found: SensitivityTables) -> Figure:
    """Draw the output SQNR (dB) of the isolated, prefix and leave-one-out readings by layer."""
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
    """Draw the SQNR (dB) at the layer itself, on the source's input (local) and in the spiking network (cumulative)."""
    figure, axes = _by_layer(found.table, _AT_LAYER)
    axes.set_ylabel("SQNR at the layer (dB)")
    axes.set_title("Each layer against the source's activation, higher is better", loc="left")
    _legend_of_modes(figure, axes)
    return figure


def ranking(found: SensitivityTables) -> Figure:
    """Draw the best changes by what the spiking output gains (dB), with the quantized output's gain as a mark."""
    rows = found.gains[found.gains["gain_db"].map(math.isfinite)].head(_MOST_BARS)
    pairs = zip(rows["layer"], rows["change"], strict=True)
    names = [f"{shortened_path(str(name), LONGEST)}, {kind}" for name, kind in pairs]
    with mpl.rc_context({**STYLE, "axes.grid.axis": "x"}):
        size = 7.0 + 0.06 * max(map(len, names), default=0), 1.7 + 0.24 * max(3, len(rows))
        figure = Figure(figsize=size, layout="constrained")
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
    """Draw every figure that something was measured for.

    Returns:
        File name without its ending -> figure.
    """
    modes, out = set(found.table["mode"]), dict[str, Figure]()
    if modes & set(_AT_OUTPUT):
        out["sensitivity"] = curves(found)
    if modes & set(_AT_LAYER):
        out["sensitivity_layers"] = layers(found)
    if len(found.gains):
        out["gains"] = ranking(found)
    return out


def _by_layer(table: pd.DataFrame, drawn: dict[str, tuple[str, str, str]]) -> tuple[Figure, Axes]:
    """Draw a line a mode over the layers in execution order."""
    names = list(dict.fromkeys(map(str, table["layer"])))
    figure, (axes,) = layered_panels(names, 1, 3.6)
    for mode, (label, marker, colour) in drawn.items():
        values = table.loc[table["mode"] == mode, "sqnr_db"]
        if len(values):
            axes.plot(range(len(values)), finite_or_gap(values), marker=marker, markersize=4, color=colour, label=label)
    name_layers(axes, names)
    return figure, axes


def _legend_of_modes(figure: Figure, axes: Axes) -> None:
    """Put the legend in two columns where there are few entries, for they are long."""
    shared_legend(figure, [axes], 3 if len(axes.get_legend_handles_labels()[1]) > 4 else 2)
