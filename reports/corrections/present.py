"""The study's figures and README.md, from corrections.csv."""

from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

KEY = ["network", "timesteps", "delay", "spikes"]
SHARES = {"held_agreement": "held_images", "accuracy": "images"}  # a share, and the images that it is a share of
COLOURS = {"moments": "#0072b2", "bias": "#d55e00", "potential": "#009e73", "moments+bias": "#56b4e9", "bias+potential": "#e69f00"}


def gains(rows: pd.DataFrame) -> pd.DataFrame:
    """One row a cell and correction: its shares above those of none, and the standard errors of the differences.

    For shares a and b of n images the error is sqrt((a (1 - a) + b (1 - b)) / n) where answers are independent; these
    are of the same images, so that the true one is smaller.
    """
    none = rows[rows.correct == "none"].set_index(KEY)[list(SHARES)].add_suffix("_none")
    out = rows[rows.correct != "none"].join(none, on=KEY)
    for name, images in SHARES.items():
        own, before = out[name], out[f"{name}_none"]
        out[f"{name}_gain"] = own - before
        out[f"{name}_error"] = ((own * (1 - own) + before * (1 - before)) / out[images]).pow(0.5)
    return out


def summary(found: pd.DataFrame) -> pd.DataFrame:
    """By network and correction: gains in points, by held-out agreement and by test accuracy, and cells that lose.

    A cell is lost where the difference is more than two standard errors.
    """
    rows = []
    for (network, kind), part in found.groupby(["network", "correct"], sort=False):
        row: dict[str, object] = {"network": network, "correct": kind, "cells": len(part)}
        for name, prefix in (("held_agreement", "held_"), ("accuracy", "")):
            gain, error = 100 * part[f"{name}_gain"], 100 * part[f"{name}_error"]
            worst = part.loc[gain.idxmin()]
            row |= {f"{prefix}mean": gain.mean(), f"{prefix}least": gain.min(), f"{prefix}largest": gain.max(),
                    f"{prefix}least_at": f"T={worst.timesteps}, {worst.delay}, {worst.spikes}",
                    f"{prefix}lost": int((gain < -2 * error).sum())}  # fmt: skip
        rows.append(row | {"taken_back": int(part.taken_back.sum()), "cpu_seconds": part.cpu_seconds.mean()})
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


def table(found: pd.DataFrame, prefix: str) -> str:
    """The summary as a table: of the held-out agreement ("held_") or of the test accuracy ("")."""
    lines = ["| network | correction | cells | mean gain | least (where) | largest | cells lost beyond chance | taken back "
             "| CPU seconds |", "|---|---|---|---|---|---|---|---|---|"]  # fmt: skip
    for row in summary(found).to_dict("records"):
        mean, least, largest = (row[prefix + name] for name in ("mean", "least", "largest"))
        lines.append(f"| {row['network']} | {row['correct']} | {row['cells']} | {mean:+.1f} | {least:+.1f} "
                     f"({row[prefix + 'least_at']}) | {largest:+.1f} | {row[prefix + 'lost']} | {row['taken_back']} "
                     f"| {row['cpu_seconds']:.1f} |")  # fmt: skip
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
    counts = [f"{name} {part.corrected_on.max()} / {part.held_images.iloc[0]} / {part.images.iloc[0]}"
              for name, part in rows.groupby("network", sort=False)]  # fmt: skip
    text = TEXT.format(held=table(found, "held_"), tested=table(found, ""), cells=cell_table(rows), machine=machine,
                       images=", ".join(counts))  # fmt: skip
    (out / "README.md").write_text(text, encoding="utf-8")


TEXT = """# Which correction serves when?

Thresholds are `mse`, one a channel; then `apply_correction` for the T, look-ahead and spike kind of the cell, on unlabelled
training images, half of which choose and half of which check. Corrections are compared by other training images, held out
of both, by how many of them the network answers as its source does. Test images are run once a cell and choose nothing.
Images that correct / are held out / are tested: {images}. A cell counts as lost beyond chance where its share falls by more
than two standard errors of the difference, taken as if the answers were independent (they are of the same images, so the
true error is smaller).

EfficientNet-Lite0 runs a smaller grid than the others (T = 4 and 8, binary spikes, look-ahead 1 and full): one cell of it
takes minutes on a CPU core. The larger networks leave out the corrections that move the potential alone or after the bias.
Networks of study.py that stand in no row below, and cells that a network lacks, were not measured yet.

![agreement over T](corrections.png)

## Gain over no correction in points, agreement with the source on held-out training images

{held}

## Gain over no correction in points, accuracy on test images

{tested}

## Every cell, accuracy on test images in %

With full look-ahead ternary spikes give the counts of binary ones, so they are not run again.

{cells}

Run on {machine}: `python reports/corrections/study.py`. The Fashion-MNIST networks and the one of 1-d convolutions are
trained here, briefly (`networks.py`), so their accuracy is below what reports/finetune reaches.
"""
