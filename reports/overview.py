"""The figure of the first page: python -m reports.overview writes docs/figures/overview.png from cifar10_resnet20's csv files."""

from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

HERE = Path(__file__).resolve().parent
OUT = HERE.parent / "docs" / "figures" / "overview.png"

# Okabe and Ito's palette, which colour-blind readers can tell apart; hatches serve readers without colour.
CAUSES = {
    "propagated": ("brought in by earlier layers", "#BBBBBB", ""),
    "clip + round": ("clipping and rounding here", "#0072B2", "//"),
    "temporal": ("spike timing here", "#D55E00", ".."),
}
LINES = {"0": ("untuned", "#D55E00", "o-"), "1": ("untuned, look-ahead 1", "#0072B2", "s-")}


def noise_by_cause(layers: pd.DataFrame) -> pd.DataFrame:
    """Error power over signal power of each layer, in its parts, in the order of the network.

    r = 10^(-SQNR/10), r_cause = share_cause · r; clipping and rounding are added up, since the share of rounding
    alone may be negative.
    """
    relative = 10 ** (-layers.sqnr_db / 10)
    shares = {"propagated": layers.share_propagated, "clip + round": layers.share_clip + layers.share_round,
              "temporal": layers.share_temporal}  # fmt: skip
    return pd.DataFrame({cause: share * relative for cause, share in shares.items()}).set_axis(layers.layer)


def _noise(axes: Axes, layers: pd.DataFrame, title: str) -> None:
    bottom = pd.Series(0.0, index=layers.layer)
    for cause, values in noise_by_cause(layers).items():
        label, colour, hatch = CAUSES[str(cause)]
        axes.bar(range(1, len(values) + 1), values, bottom=bottom, color=colour, hatch=hatch, edgecolor="white",
                 linewidth=0.4, label=label)  # fmt: skip
        bottom = bottom + values
    axes.set_title(title, loc="left", fontsize=10)
    axes.set_xlabel("neuron layer, first to last")
    axes.set_xticks([1, 5, 10, 15, 19])


def _accuracy(axes: Axes, sweep: pd.DataFrame, tuned: pd.DataFrame) -> None:
    for delay, (label, colour, style) in LINES.items():
        rows = sweep[(sweep.spikes == "binary") & (sweep.delay == delay)].sort_values("timesteps")
        axes.plot(rows.timesteps, 100 * rows.accuracy, style, color=colour, markersize=4, markerfacecolor="white", label=label)
    best = {"0": "quantized + spiking", "1": "quantized"}
    for delay, stages in best.items():
        row = tuned[(tuned.spikes == "binary") & (tuned.delay == delay) & (tuned.tuned == stages)].iloc[0]
        _, colour, style = LINES[delay]
        axes.plot(row.timesteps, 100 * row.accuracy, style[0], color=colour, markersize=10, markeredgecolor="black",
                  label=f"tuned: {100 * row.accuracy:.1f} %, latency {row.latency} steps")  # fmt: skip
    ideal = 100 * sweep.analog_accuracy.iloc[0]
    axes.axhline(ideal, color="black", linestyle="--", linewidth=1, label=f"source network: {ideal:.1f} %")
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
    axes.set_title("c  accuracy, before and after tuning without labels", loc="left", fontsize=10)
    axes.set_xlabel("time steps T")
    axes.set_ylabel("accuracy (%), 846 test images")
    axes.set_ylim(0, 100)
    axes.legend(fontsize=8, frameon=False, loc="lower right")


def figure(folder: Path) -> Figure:
    """Noise by layer and cause at T = 4, with and without the cure, and accuracy against T."""
    drawn = Figure(figsize=(12, 3.8), layout="constrained")
    before, after, accuracy = drawn.subplots(1, 3, width_ratios=(1, 1, 1.25))
    _noise(before, pd.read_csv(folder / "layers_untuned_delay0.csv"), "a  T = 4, untuned")
    _noise(after, pd.read_csv(folder / "layers_twin_delay1.csv"), "b  T = 4, tuned, look-ahead 1")
    before.set_ylabel("error power / signal power")
    after.set_ylim(before.get_ylim())
    after.legend(fontsize=8, frameon=False, loc="upper left")
    tables = [pd.read_csv(folder / name, dtype={"delay": str}) for name in ("sweep.csv", "tuned.csv")]
    _accuracy(accuracy, *tables)
    for axes in (before, after, accuracy):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="#dddddd")
        axes.set_axisbelow(True)
    return drawn


if __name__ == "__main__":
    figure(HERE / "cifar10_resnet20").savefig(OUT, dpi=110)
