"""The study's figures and README.md, from corrections.csv."""

from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

KEY = ["network", "timesteps", "delay", "spikes"]
COLOURS = {"moments": "#0072b2", "bias": "#d55e00", "potential": "#009e73", "moments+bias": "#56b4e9", "bias+potential": "#e69f00"}


def gains(rows: pd.DataFrame) -> pd.DataFrame:
    """One row a cell and correction: accuracy and agreement above none, and the standard error of the difference.

    For shares a and b of n images the error is sqrt((a (1 - a) + b (1 - b)) / n) where answers are independent; these
    are of the same images, so that the true one is smaller.
    """
    none = rows[rows.correct == "none"].set_index(KEY)[["accuracy", "agreement"]].add_suffix("_none")
    out = rows[rows.correct != "none"].join(none, on=KEY)
    for name in ("accuracy", "agreement"):
        out[f"{name}_gain"] = out[name] - out[f"{name}_none"]
    spread = out.accuracy * (1 - out.accuracy) + out.accuracy_none * (1 - out.accuracy_none)
    out["standard_error"] = (spread / out.images).pow(0.5)
    return out


def summary(found: pd.DataFrame) -> pd.DataFrame:
    """By network and correction the mean, least and largest gain of accuracy in points, and cells that lose beyond chance."""
    rows = []
    for (network, kind), part in found.groupby(["network", "correct"], sort=False):
        gain = 100 * part.accuracy_gain
        worst = part.loc[part.accuracy_gain.idxmin()]
        rows.append({"network": network, "correct": kind, "cells": len(part), "mean": gain.mean(), "least": gain.min(),
                     "largest": gain.max(), "least_at": f"T={worst.timesteps}, {worst.delay}, {worst.spikes}",
                     "lost": int((part.accuracy_gain < -2 * part.standard_error).sum()),
                     "taken_back": int(part.taken_back.sum())})  # fmt: skip
    return pd.DataFrame(rows)


def figure(rows: pd.DataFrame) -> Figure:
    """Agreement with the source over T, one panel a network and look-ahead (binary spikes), one line a correction."""
    networks, delays = list(dict.fromkeys(rows.network)), ["0", "1", "full"]
    drawn, axes = plt.subplots(len(networks), 3, figsize=(9.5, 2.3 * len(networks)), squeeze=False, sharex=True)
    for line, network in zip(axes, networks, strict=True):
        for ax, delay in zip(line, delays, strict=True):
            here = rows[(rows.network == network) & (rows.delay == delay) & (rows.spikes == "binary")]
            _panel(ax, here)
            ax.set_title(f"{network}, look-ahead {delay}", fontsize=9)
        line[0].set_ylabel("agreement, %")
    for ax in axes[-1]:
        ax.set_xlabel("T")
    handles, labels = axes[0][0].get_legend_handles_labels()
    drawn.legend(handles, labels, loc="upper center", ncols=6, fontsize=8, frameon=False)
    drawn.tight_layout(rect=(0, 0, 1, 1 - 0.35 / drawn.get_figheight()))
    return drawn


def _panel(ax: Axes, rows: pd.DataFrame) -> None:
    for kind, part in rows.groupby("correct", sort=False):
        style = {"color": "black", "linestyle": "--"} if kind == "none" else {"color": COLOURS[str(kind)]}
        ordered = part.sort_values("timesteps")
        ax.plot(ordered.timesteps, 100 * ordered.agreement, marker="o", markersize=3, label=str(kind), **style)  # type: ignore[arg-type]
    ax.set_xscale("log", base=2)
    ticks = sorted(rows.timesteps.unique())
    ax.set_xticks(ticks, [str(t) for t in ticks])
    ax.grid(alpha=0.3)


def table(found: pd.DataFrame) -> str:
    """The summary as a table."""
    lines = ["| network | correction | cells | mean gain | least (where) | largest | cells lost beyond chance | taken back |",
             "|---|---|---|---|---|---|---|---|"]  # fmt: skip
    for row in summary(found).itertuples():
        lines.append(f"| {row.network} | {row.correct} | {row.cells} | {row.mean:+.1f} | {row.least:+.1f} ({row.least_at}) "
                     f"| {row.largest:+.1f} | {row.lost} | {row.taken_back} |")  # fmt: skip
    return "\n".join(lines)


def cell_table(rows: pd.DataFrame) -> str:
    """Accuracy of every cell, one column a correction."""
    kinds = list(dict.fromkeys(rows.correct))
    lines = ["| network (source) | T | look-ahead | spikes | " + " | ".join(kinds) + " |", "|---" * (4 + len(kinds)) + "|"]
    for key, part in rows.groupby(KEY, sort=False):
        network, steps, delay, spikes = key if isinstance(key, tuple) else (key, "", "", "")
        shown = dict(zip(part.correct, part.accuracy, strict=True))
        cells = " | ".join(f"{100 * shown[kind]:.1f}" if kind in shown else "" for kind in kinds)
        lines.append(f"| {network} ({100 * part.source_accuracy.iloc[0]:.1f}) | {steps} | {delay} | {spikes} | {cells} |")
    return "\n".join(lines)


def write(out: Path, machine: str) -> None:
    """Write corrections.png, gains.csv and README.md."""
    rows = pd.read_csv(out / "corrections.csv", dtype={"delay": str})
    found = gains(rows)
    summary(found).round(3).to_csv(out / "gains.csv", index=False)
    drawn = figure(rows)
    drawn.savefig(out / "corrections.png", dpi=130)
    plt.close(drawn)
    images = ", ".join(f"{name} {part.images.iloc[0]}" for name, part in rows.groupby("network", sort=False))
    text = TEXT.format(summary=table(found), cells=cell_table(rows), images=images, machine=machine)
    (out / "README.md").write_text(text, encoding="utf-8")


TEXT = """# Which correction serves when?

Thresholds are `mse`, one a channel; then `apply_correction` for the T, look-ahead and spike kind of the cell, on unlabelled
training images, half of which choose and half of which check. Test images are run once a cell and choose nothing
({images}). A cell counts as lost beyond chance where its accuracy falls by more than two standard errors of the difference,
taken as if the answers were independent (they are of the same images, so the true error is smaller).

![agreement over T](corrections.png)

## Gain of accuracy over no correction, in points

{summary}

## Every cell, accuracy in %

With full look-ahead ternary spikes give the counts of binary ones, so they are not run again.

{cells}

Run on {machine}: `python reports/corrections/study.py`. The Fashion-MNIST networks and the one of 1-d convolutions are
trained here, briefly (`networks.py`), so their accuracy is below what reports/finetune reaches.
"""
