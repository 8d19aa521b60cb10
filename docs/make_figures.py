"""Figures of the concepts page: python docs/make_figures.py writes docs/figures, from theory and simulation."""

from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy import stats

from speedysnn import IFNeuron
from speedysnn.analysis import theory

OUT = Path(__file__).resolve().parent / "figures"
BLUE, RED, GREEN, BLACK = "#0072B2", "#D55E00", "#009E73", "#000000"


def _axes(title: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(title, loc="left", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#dddddd")
    axes.set_axisbelow(True)
    return figure, axes


def staircase() -> Figure:
    """What four steps make of a constant drive, with v_init 1/2 and 0."""
    figure, axes = _axes("T = 4 steps: five levels, step theta/T, full scale theta")
    z = torch.linspace(-0.2, 1.4, 801)
    axes.plot(z, z.clamp_min(0), color=BLACK, linestyle=(0, (5, 2)), linewidth=1.2, label="ideal: the activation")
    for start, colour in ((0.5, BLUE), (0.0, RED)):
        with torch.no_grad():
            out = IFNeuron(1.0, start, timesteps=4).quantized(z)
        axes.plot(z, out, color=colour, linewidth=1.6, label=f"v_init = {start:g} theta")
    axes.set_xlabel("drive z (theta)")
    axes.set_ylabel("mean output (theta)")
    axes.legend(fontsize=8, frameon=False)
    return figure


def noise() -> Figure:
    """SQNR of a half-normal activation against theta, at several T."""
    figure, axes = _axes("Half-normal activations |N(0, 1)|, v_init = theta/2")
    thetas = np.geomspace(0.4, 8, 60)
    for steps, colour in ((2, RED), (4, GREEN), (16, BLUE)):
        values = [theory.sqnr_db(stats.halfnorm(), steps, theta=float(theta)) for theta in thetas]
        axes.plot(thetas, values, color=colour, label=f"T = {steps}")
        best = theory.optimal_threshold(stats.halfnorm(), steps)
        axes.plot(best, theory.sqnr_db(stats.halfnorm(), steps), "o", color=colour)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
    axes.xaxis.set_minor_formatter(lambda *_: "")
    axes.set_xticks([0.5, 1, 2, 4, 8])
    axes.set_xlabel("theta (standard deviations); circle: optimal theta; left of it clipping, right of it rounding")
    axes.set_ylabel("SQNR (dB), higher is better")
    axes.legend(fontsize=8, frameon=False)
    return figure


def temporal() -> Figure:
    """Wrong counts under random spike order, against look-ahead; 64 inputs of one spike train each."""
    figure, axes = _axes("64 inputs in random spike order: counts that differ from those of an even drive")
    generator = torch.Generator().manual_seed(0)
    for steps, colour in ((4, RED), (8, GREEN), (16, BLUE)):
        trains = (torch.rand(steps, 4000, 64, generator=generator) < 0.3).float()
        drive = trains @ (torch.randn(64, generator=generator) / 4)
        wrong = []
        for delay in range(5):
            neuron = IFNeuron(1.0, timesteps=steps, delay=delay)
            with torch.no_grad():
                count = neuron.spiking(drive.flatten(0, 1)[:, None]).view(steps, -1).sum(0)
                even = neuron.counts(drive.mean(0)[:, None]).view(-1)
            wrong.append(100 * float((count.round() != even).float().mean()))
        axes.plot(range(5), wrong, "o-", color=colour, label=f"T = {steps}")
    axes.axhline(0, color=BLACK, linestyle=(0, (5, 2)), linewidth=1.2, label="ideal: none")
    axes.set_xlabel("look-ahead d (steps)")
    axes.set_ylabel("neurons with a wrong count (%)")
    axes.set_xticks(range(5))
    axes.legend(fontsize=8, frameon=False)
    return figure


if __name__ == "__main__":
    OUT.mkdir(exist_ok=True)
    for make in (staircase, noise, temporal):
        make().savefig(OUT / f"{make.__name__}.png", dpi=110)
