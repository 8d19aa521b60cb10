"""Figures and README.md of the study, from its csv files alone."""

import importlib.metadata
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Okabe and Ito's palette; look-ahead by colour, spike kind by line.
COLOURS = {"0": "#D55E00", "1": "#0072B2", "2": "#009E73", "full": "#CC79A7"}
LINES = {"binary": "-", "ternary": ":"}
MARKS = {"binary": "o", "ternary": "^"}
X_LABELS = {
    "timesteps": "time steps T",
    "latency": "latency T + delay x depth (steps)",
    "spikes_per_neuron": "spikes per neuron and image",
}


def _figure(title: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(7.2, 4.2), layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(title, loc="left", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#dddddd")
    axes.set_axisbelow(True)
    return figure, axes


def accuracy_against(sweep: pd.DataFrame, tuned: pd.DataFrame, column: str) -> Figure:
    """Accuracy of the untuned network (lines) and of the tuned ones (filled marks) against a cost."""
    figure, axes = _figure("ResNet-20 on CIFAR-10, 846 test images: lines untuned, filled marks tuned at T = 4")
    for (spikes, delay), rows in sweep.groupby(["spikes", "delay"], sort=False):
        if spikes == "ternary" and delay in ("2", "full"):
            continue  # they lie on the binary ones
        rows = rows.sort_values("timesteps")
        axes.plot(rows[column], 100 * rows.accuracy, LINES[str(spikes)], color=COLOURS[str(delay)], linewidth=1.4,
                  marker=MARKS[str(spikes)], markersize=4, markerfacecolor="white",
                  label=f"{spikes}, delay {delay}")  # fmt: skip
    for row in tuned.itertuples():
        axes.plot(row.__getattribute__(column), 100 * row.accuracy, MARKS[row.spikes], color=COLOURS[row.delay],
                  markersize=9, markeredgecolor="black", markeredgewidth=0.6)  # fmt: skip
    ideal = 100 * sweep.analog_accuracy.iloc[0]
    axes.axhline(ideal, color="black", linestyle=(0, (5, 2)), linewidth=1.2, label=f"ideal: source network, {ideal:.1f} %")
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
    axes.set_xlabel(X_LABELS[column])
    axes.set_ylabel("accuracy (%)")
    axes.set_ylim(0, 100)
    axes.legend(fontsize=8, frameon=False, loc="lower right")
    return figure


def learning(history: pd.DataFrame) -> Figure:
    """Agreement with the source on held-out training images, epoch by epoch."""
    figure, axes = _figure("Tuning at T = 4 without labels, on held-out training images")
    names = {"twin": "quantized reading", "binary": "then binary spikes through time, delay 0",
             "ternary": "then ternary spikes through time, delay 0"}  # fmt: skip
    for name, colour in zip(names, ("#E69F00", "#D55E00", "#0072B2"), strict=True):
        rows = history[history.network == name]
        axes.plot(rows.epoch, 100 * rows.held_out_agreement, "o-", color=colour, markersize=4, label=names[name])
    axes.axhline(100, color="black", linestyle=(0, (5, 2)), linewidth=1.2, label="ideal: the source's own answers")
    axes.set_xlabel("epoch of the stage")
    axes.set_ylabel("agreement with the source (%)")
    axes.legend(fontsize=8, frameon=False, loc="lower right")
    return figure


def _percent(value: float) -> str:
    return f"{100 * value:.1f}"


def _table(rows: Sequence[Sequence[str]]) -> str:
    head, *body = rows
    return "\n".join(["| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *body)])


def sweep_table(sweep: pd.DataFrame) -> str:
    """Accuracy by T and configuration; spikes per neuron in brackets."""
    steps = sorted(sweep.timesteps.unique())
    rows = [["spikes", "delay", *(f"T = {t}" for t in steps)]]
    twin = sweep[(sweep.spikes == "binary") & (sweep.delay == "0")].set_index("timesteps").twin_accuracy
    rows.append(["quantized twin", "-", *(_percent(twin[t]) for t in steps)])
    for (spikes, delay), part in sweep.groupby(["spikes", "delay"], sort=False):
        cells = part.set_index("timesteps")
        shown = {t: f"{_percent(cells.accuracy[t])} ({cells.spikes_per_neuron[t]:.2f})" for t in cells.index}
        rows.append([str(spikes), str(delay), *(shown.get(t, "-") for t in steps)])
    return _table(rows)


def tuned_table(untuned: pd.DataFrame, tuned: pd.DataFrame) -> str:
    """Each tuned network at T = 4 beside the untuned one."""
    rows = [["tuned", "spikes", "delay", "latency", "before %", "after %", "agreement %", "logit error", "spikes/neuron"]]
    for row in tuned.itertuples():
        same = untuned[(untuned.timesteps == row.timesteps) & (untuned.spikes == row.spikes) & (untuned.delay == row.delay)]
        before = _percent(same.accuracy.iloc[0]) if len(same) else "-"
        rows.append([str(row.tuned), row.spikes, row.delay, str(row.latency), before, _percent(row.accuracy),
                     _percent(row.agreement), f"{row.logit_error:.3f}", f"{row.spikes_per_neuron:.2f}"])  # fmt: skip
    return _table(rows)


def causes_table(folder: Path) -> str:
    """Share of every cause, and the mean signal-to-noise ratio, over all layers."""
    rows = [["network at T = 4", "mean SQNR dB", "lowest SQNR dB (layer)", "clip", "round", "propagated", "temporal"]]
    for path in sorted(folder.glob("layers_*.csv")):
        layers = pd.read_csv(path)
        worst = layers.loc[layers.sqnr_db.idxmin()]
        shares = [f"{layers[f'share_{part}'].mean():.2f}" for part in ("clip", "round", "propagated", "temporal")]
        name = path.stem.removeprefix("layers_").replace("_delay", ", delay ")
        rows.append([name, f"{layers.sqnr_db.mean():.1f}", f"{worst.sqnr_db:.1f} ({worst.layer})", *shares])
    return _table(rows)


def write(out: Path, commands: Sequence[str], machine: str) -> None:
    """Write the figures and README.md."""
    keep = {"delay": str}
    sweep, tuned = pd.read_csv(out / "sweep.csv", dtype=keep), pd.read_csv(out / "tuned.csv", dtype=keep)
    history = pd.read_csv(out / "history.csv")
    for column in X_LABELS:
        accuracy_against(sweep, tuned, column).savefig(out / f"accuracy_{column}.png", dpi=120)
    learning(history).savefig(out / "learning.png", dpi=120)
    text = TEXT.format(
        version=importlib.metadata.version("speedysnn"),
        machine=machine,
        source=_percent(sweep.analog_accuracy.iloc[0]),
        images=int(sweep.images.iloc[0]),
        depth=int((sweep.latency - sweep.timesteps)[sweep.delay == "1"].max()),
        sweep=sweep_table(sweep),
        tuned=tuned_table(sweep, tuned),
        causes=causes_table(out),
        commands="\n".join(dict.fromkeys(commands)),
    )
    (out / "README.md").write_text(text, encoding="utf-8")


TEXT = """# A published CIFAR-10 ResNet-20, spiking in four steps

The checkpoint of akamaster/pytorch_resnet_cifar10 (BSD-2), {source} % on the {images} lossless CIFAR-10 test images used
here (standard error about 1 point at 90 %), is converted, swept over T, analysed and tuned without labels. Made by
`python reports/cifar10_resnet20/study.py --data DIR`, speedysnn {version}, seed 0, {machine}. One seed; thresholds per
channel from 1,024 training images; tuning on the 4,660 training images, a tenth of them held out to keep the best state.
No test image was used for a choice.

Networks are converted with `correct="none"`; `reports/corrections` measures what a correction adds.

## Nothing tuned: accuracy % (spikes per neuron and image), thresholds recalibrated for each T

{sweep}

Latency is T + delay x {depth} steps ({depth} neuron layers on the longest path), T x (1 + {depth}) for `full`; throughput stays one
image in T steps. `full` is the quantized twin by construction. At delay 0 most of the loss is timing, which more steps
cure slowly and one step of look-ahead removes.

Ternary spikes at delay 2 and full lie on the binary lines and are left out of the figures.

![accuracy against T](accuracy_timesteps.png)
![accuracy against latency](accuracy_latency.png)
![accuracy against spikes](accuracy_spikes_per_neuron.png)

## Tuned at T = 4, no labels

{tuned}

"quantized" is the quantized stage alone (24 epochs, KL to the source's logits and layer matching, flip and crop);
"quantized + spiking" adds 4 epochs through time at delay 0 with that spike kind, from there. Before: the untuned network
at the same setting.

![learning curves](learning.png)

## Where the error is: mean share of each layer's squared error against the source

{causes}

The four shares of a layer add up to 1; the csv files `layers_*.csv` hold every layer.

## Commands

```sh
{commands}
```
"""
