"""README.md and the figures of the study, from its csv files alone."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from speedysnn import __version__

NAMES = {"digits-avg": "digits, average pooling", "digits-max": "digits, max-pooling", "resnet20": "ResNet-20, CIFAR-10",
         "fashion-vgg": "VGG, Fashion-MNIST", "fashion-resnet": "ResNet, Fashion-MNIST", "lite0": "EfficientNet-Lite0"}  # fmt: skip
KEYS = ["network", "timesteps", "weight_bits", "state_bits", "granularity", "rounding"]
ROUNDINGS = {"nearest": "#0072B2", "reconstruct": "#D55E00"}
LINES = {4: ("-", "o"), 8: ("--", "D")}
SHADES = {2: "#440154", 3: "#414487", 4: "#2a788e", 5: "#22a884", 6: "#7ad151", 8: "#fd9a2b"}


def prepared(ax: Axes, rows: pd.DataFrame, label: str) -> None:
    """The title, the source's accuracy and what the axes are called."""
    ax.set_title(NAMES[rows.network.iloc[0]], loc="left", fontsize=9)
    ax.axhline(100 * rows.source_accuracy.iloc[0], color="black", linewidth=1, linestyle=(0, (5, 2)), label="source")
    ax.set_xlabel(label, fontsize=8)
    ax.set_ylabel("accuracy (%)", fontsize=8)
    ax.grid(color="#e5e5e5")
    ax.spines[["top", "right"]].set_visible(False)
    ax.tick_params(labelsize=8)


def legend(made: Figure, axes: Sequence[Axes]) -> None:
    """One legend below, each name once."""
    found = {name: handle for ax in axes for handle, name in zip(*ax.get_legend_handles_labels(), strict=True)}
    made.legend(found.values(), found.keys(), loc="outside lower center", ncols=3, fontsize=8, frameon=False)


def bits_figure(rows: pd.DataFrame) -> Figure:
    """Accuracy against weight bits and against state bits, a line a T and a way to round, a row of panels a network."""
    networks = list(dict.fromkeys(rows.network))
    made = Figure(figsize=(8.4, 2.5 * len(networks) + 0.8), layout="constrained")
    axes = made.subplots(len(networks), 2, squeeze=False)
    for line, network in zip(axes, networks, strict=True):
        of = rows[(rows.network == network) & (rows.granularity == "channel")]
        for ax, label in zip(line, ("weight bits (states of 32 bits)", "state bits (8-bit weights)"), strict=True):
            prepared(ax, of, label)
        for steps, (style, mark) in LINES.items():
            for rounding, colour in ROUNDINGS.items():
                part = of[(of.timesteps == steps) & (of.rounding == rounding) & (of.state_bits == 32)].sort_values("weight_bits")
                line[0].plot(part.weight_bits, 100 * part.accuracy, style, color=colour, marker=mark, markersize=4, linewidth=1.2,
                             label=f"{rounding}, T = {steps}")  # fmt: skip
            part = eights(of[of.timesteps == steps]).sort_values("state_bits")
            line[1].plot(part.state_bits, 100 * part.accuracy, style, color=ROUNDINGS["nearest"], marker=mark, markersize=4,
                         linewidth=1.2)  # fmt: skip
            for ax in line if len(part) else ():
                ax.axhline(100 * part.float_accuracy.iloc[0], color="#888888", linestyle=style, linewidth=0.9,
                           label=f"spiking, floating point, T = {steps}")  # fmt: skip
        line[0].set_xticks(range(2, 9))
        line[1].set_xticks((8, 12, 16, 20, 32))
    legend(made, axes.ravel())
    return made


def best(rows: pd.DataFrame, cost: str) -> pd.DataFrame:
    """Rows that no other row beats in both accuracy and cost, by cost."""
    kept, reached = [], -1.0
    for index, row in rows.sort_values([cost, "accuracy"], ascending=[True, False]).iterrows():
        if row.accuracy > reached:
            kept.append(index)
            reached = row.accuracy
    return rows.loc[kept]


def pareto_figure(rows: pd.DataFrame) -> Figure:
    """Accuracy against energy and against spikes; colour says weight bits, the mark T; a line joins what nothing beats."""
    networks = list(dict.fromkeys(rows.network))
    made = Figure(figsize=(7.6, 2.7 * len(networks) + 0.8), layout="constrained")
    axes = made.subplots(len(networks), 2, squeeze=False)
    for line, network in zip(axes, networks, strict=True):
        of = rows[rows.network == network]
        for ax, (column, label, factor) in zip(line, (("energy_nj", "energy an image (µJ)", 1e-3),
                                                      ("spikes", "spikes an image (thousands)", 1e-3)), strict=True):  # fmt: skip
            for row in of.itertuples():
                ax.scatter(factor * getattr(row, column), 100 * row.accuracy, s=26, color=SHADES[row.weight_bits],
                           marker="o" if row.timesteps == 4 else "D", linewidths=0)  # fmt: skip
            front = best(of, column)
            ax.plot(factor * front[column], 100 * front.accuracy, color="black", linewidth=0.8)
            prepared(ax, of, label)
            lowest = max(of.accuracy.min() - 0.005, of.source_accuracy.iloc[0] - 0.12)
            ax.set_ylim(100 * lowest, 100.5 if of.accuracy.max() > 0.97 else None)
    for bits, colour in SHADES.items():
        axes[0, 0].scatter([], [], color=colour, s=26, label=f"{bits}-bit weights")
    for steps, mark in ((4, "o"), (8, "D")):
        axes[0, 0].scatter([], [], color="#555555", s=26, marker=mark, label=f"T = {steps}")
    legend(made, axes.ravel())
    return made


def density_figure(rows: pd.DataFrame) -> Figure:
    """C milliseconds an image against the share of neurons that fire in a step."""
    networks = list(dict.fromkeys(rows.network))
    made = Figure(figsize=(3.9 * len(networks), 3.0), layout="constrained")
    for ax, network in zip(np.atleast_1d(made.subplots(1, len(networks))), networks, strict=True):
        of = rows[rows.network == network].sort_values("density")
        ax.plot(100 * of.density, of.c_ms, "-o", color="#0072B2", markersize=4)
        ax.set_xlim(left=0)
        ax.set_ylim(bottom=0)
        ax.set_title(f"{NAMES[network]}, T = 4", loc="left", fontsize=9)
        ax.set_xlabel("spikes per neuron and step (%)", fontsize=8)
        ax.set_ylabel("C, ms an image", fontsize=8)
        ax.grid(color="#e5e5e5")
        ax.spines[["top", "right"]].set_visible(False)
    return made


def table(rows: pd.DataFrame) -> str:
    """All cells of one network."""
    out = ["| T | weight bits | state bits | one scale a | rounding | accuracy % | loss against float, points | agreement % | state bits proven |"
           " measured | saturated % | flash, bytes | RAM, bytes | synops | spikes | energy, µJ | C, ms |",
           "|" + "---|" * 17]  # fmt: skip
    for row in rows.sort_values(KEYS).itertuples():
        lost = 100 * (row.float_accuracy - row.accuracy)
        out.append(
            f"| {row.timesteps} | {row.weight_bits} | {row.state_bits} | {row.granularity} | {row.rounding} | {100 * row.accuracy:.1f} | "
            f"{lost:+.1f} | {100 * row.agreement:.1f} | {row.bits_proven} | {row.bits_measured} | {100 * row.saturated_share:.2g} | "
            f"{row.flash:,} | {row.ram:,} | {row.synops:,.0f} | {row.spikes:,.0f} | {row.energy_nj / 1000:.3g} | {row.c_ms:.3g} |"
        )
    return "\n".join(out)


def chosen(rows: pd.DataFrame, bits: int, states: int = 32, scale: str = "channel", rounding: str = "nearest") -> pd.DataFrame:
    """The cells with these settings, at most one a network and T."""
    return rows[(rows.weight_bits == bits) & (rows.state_bits == states) & (rows.granularity == scale) & (rows.rounding == rounding)]


SHOWN: tuple[tuple[str, tuple[object, ...]], ...] = (
    ("8 bits", (8,)), ("8 bits, 16-bit states", (8, 16)), ("8 bits, one scale a layer", (8, 32, "layer")), ("6 bits", (6,)),
    ("4 bits", (4,)), ("4 bits, reconstruction", (4, 32, "channel", "reconstruct")),
    ("4 bits, one scale a layer, reconstruction", (4, 32, "layer", "reconstruct")),
)  # fmt: skip


def summary(rows: pd.DataFrame) -> str:
    """Accuracy of source, spiking and integer networks, a line a network and T."""
    out = ["| network | T | test images | source | spiking, floating point | " + " | ".join(name for name, _ in SHOWN) + " |",
           "|" + "---|" * (5 + len(SHOWN))]  # fmt: skip
    for (network, steps), group in rows.groupby(["network", "timesteps"], sort=False):
        first = group.iloc[0]
        found = [chosen(group, *settings) for _, settings in SHOWN]  # type: ignore[arg-type]
        said = [f"{100 * cell.accuracy.iloc[0]:.1f}" if len(cell) else "-" for cell in found]
        out.append(f"| {NAMES[network]} | {steps} | {first.images} | {100 * first.source_accuracy:.1f} | "
                   f"{100 * first.float_accuracy:.1f} | {' | '.join(said)} |")  # fmt: skip
    return "\n".join(out)


def error(cell: pd.Series) -> float:
    """The most that the standard error of a loss can be, in points: both networks read the same images.

    sqrt(d / n), d the share of images on which the two differ, n the images.
    """
    return float(100 * np.sqrt((1 - cell.agreement) / cell.images))


def losses(rows: pd.DataFrame, limit: float | None = None) -> str:
    """What each of these cells loses against the floating-point network, and whether that is within a limit or the noise."""
    parts = []
    for _, cell in rows.iterrows():
        lost = 100 * (cell.float_accuracy - cell.accuracy)
        most = 2 * error(cell) if limit is None else limit
        parts.append(f"{NAMES[cell.network]}, T = {cell.timesteps}: {lost:+.1f} ± {error(cell):.1f}"
                     f"{'' if lost <= most + 1e-9 else ', **more**'}")  # fmt: skip
    return "; ".join(parts) or "not measured"


def eights(rows: pd.DataFrame) -> pd.DataFrame:
    """8-bit weights to the nearest, one scale a channel, with every width of states."""
    return rows[(rows.weight_bits == 8) & (rows.rounding == "nearest") & (rows.granularity == "channel")]


def needed(group: pd.DataFrame) -> tuple[str, str]:
    """The fewest bits of states measured from which on nothing is lost beyond two standard errors, and what fewer give."""
    fewest, below = "none", "not measured"
    for _, cell in group.sort_values("state_bits", ascending=False).iterrows():
        said = f"{cell.state_bits}: {100 * cell.accuracy:.1f} %"
        if 100 * (cell.float_accuracy - cell.accuracy) > 2 * error(cell) + 1e-9:
            below = said
            break
        fewest = said
    return fewest, below


def states(rows: pd.DataFrame) -> str:
    """What states need, a line a network and T."""
    out = ["| network | T | layers | of them past 16 bits where states have 32 | widest layer | its bits measured | its bits proven |"
           " its bits where states have 16 | saturated there, % | fewest bits that lose nothing beyond two standard errors |"
           " the next fewer |", "|" + "---|" * 11]  # fmt: skip
    for (network, steps), group in eights(rows).groupby(["network", "timesteps"], sort=False):
        wide, narrow = chosen(group, 8), chosen(group, 8, 16)
        if len(wide):
            most = wide.iloc[0]
            found = [(least.bits_measured, f"{100 * least.saturated_share:.2g}") for _, least in narrow.iterrows()]
            cells = (NAMES[network], steps, most.layers, most.layers_over_16, f"`{most.widest}`", most.bits_measured, most.bits_proven,
                     *(found or [("-", "-")])[0], *needed(group))  # fmt: skip
            out.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(out)


def equals(rows: pd.DataFrame) -> str:
    """On how many of how many test images the C program was found to equal the integer reading."""
    both = eights(rows)[eights(rows).state_bits.isin((16, 32))]
    return "; ".join(f"{NAMES[network]}, {group.equal_images.sum()} of {group.images.sum()} in {len(group)} cells"
                     for network, group in both.groupby("network", sort=False))  # fmt: skip


def findings(rows: pd.DataFrame) -> str:
    """The claims of the study, each with its figures."""
    resnet, digits = rows[rows.network == "resnet20"], rows[rows.network.str.startswith("digits")]
    out = [
        f"8-bit weights lose at most 0.3 points on ResNet-20: {losses(chosen(resnet, 8), 0.3)}.",
        f"8-bit weights lose nothing beyond two standard errors on digits: {losses(chosen(digits, 8))}.",
        "4-bit weights by reconstruction lose at most 1.5 points on ResNet-20: "
        f"{losses(chosen(resnet, 4, rounding='reconstruct'), 1.5)}; to the nearest: {losses(chosen(resnet, 4), 1.5)}.",
        f"16-bit states lose nothing beyond two standard errors: {losses(chosen(rows, 8, 16))}.",
        f"Every logit of the C program equals the integer reading's, 8-bit weights, states of 32 and 16 bits: {equals(rows)}; "
        "in the other cells on eight images.",
    ]
    return "\n".join(f"- {line}" for line in out)


def write(out: Path) -> None:
    """README.md and the figures."""
    rows = pd.read_csv(out / "cells.csv")
    bits_figure(rows).savefig(out / "bits.png", dpi=140)
    pareto_figure(rows).savefig(out / "pareto.png", dpi=140)
    pictures = ["![accuracy against weight bits and state bits](bits.png)",
                "Colours are weight bits; a line joins the cells that no other beats in both; what loses more than 12 points "
                "against the source is not drawn.", "![accuracy against energy and spikes](pareto.png)"]  # fmt: skip
    if (out / "density.csv").is_file():
        density_figure(pd.read_csv(out / "density.csv")).savefig(out / "density.png", dpi=140)
        pictures.append("![seconds of the C program against density](density.png)")
    left = ""
    if (out / "left_out.csv").is_file():
        names = pd.read_csv(out / "left_out.csv")
        left = "\n".join(f"- {NAMES[row.network]} is left out: {row.why}" for row in names.itertuples()
                         if row.network not in set(rows.network))  # fmt: skip
    else:
        absent = [words for name, words in NAMES.items() if name not in set(rows.network)]
        left = f"- Not measured yet: {'; '.join(absent)}." if absent else ""
    tables = "\n\n".join(f"### {NAMES[name]}\n\n{table(rows[rows.network == name])}" for name in dict.fromkeys(rows.network))
    text = TEXT.format(summary=summary(rows), findings=findings(rows), states=states(rows), left=left, pictures="\n\n".join(pictures), tables=tables, version=__version__,
                       torch=torch.__version__)  # fmt: skip
    (out / "README.md").write_text(text, encoding="utf-8")


TEXT = """# Whole numbers

What few bits cost, what states need, and how the C program's time follows the spikes. Made by
`python reports/chip/study.py --data ../shared/data` in parts (`--only`, `--part`), seed 0, speedysnn {version}, torch
{torch}, one core of a shared machine, no GPU. Look-ahead 1 and the default correction from 512 training images;
rounding by reconstruction sees 256 of them, all without labels. The test images choose nothing. Cells that are not in the
tables were not measured. Those in them come from several runs, joined; that of ResNet-20 at T = 8 with 4 bits from a call of
the study's `measure` with the same options.

Accuracy in %, states of 32 bits and one scale a channel where nothing else is said, - where it was not measured:

{summary}

{findings}
{left}

A loss is the accuracy of the spiking network in floating point less that of the integers, in points; where it is negative
the integers answer more images rightly. `±` is the most that one standard error of it can be. **more** marks what loses
more than the line says.

What states need, 8-bit weights, rounded to the nearest, one scale a channel. Scales are chosen so that states fit, so fewer
bits mean coarser weights, most of all where 8-bit pixels enter:

{states}

{pictures}

- Accuracies are the C program's. Synaptic operations, spikes and the density are counts over eight training images;
  `measured` is the widest state of a layer on the calibration images, `proven` what any image could need.
- Energy is an estimate: an addition costs 0.1 pJ at 32 bits, a weight and a state (read and written) what `analysis.cost`
  says of memories as large as the tables (`flash`, as if weights were packed) and the buffers (`RAM`), by their bits.
- C milliseconds are processor time with `gcc -O3 -march=native`, on a machine with other work.
- The C program keeps weights of 8 bits or fewer in one byte each, so `flash` does not fall below 8 bits.

{tables}
"""
