"""Figures and README.md of the study, from its csv files alone; a part that was not run is left out and said so."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import resnet
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Okabe and Ito's palette.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999", "#882255")
STYLES = [(colour, marker) for marker in "o^sD" for colour in COLOURS[:7]]  # a row each
CAUSES = {"clip": "#D55E00", "round": "#E69F00", "propagated": "#56B4E9", "temporal": "#000000"}
LABELS = {
    "twin": "T=4, delay 1, mostly JPEG inputs", "T4": "T=4, delay 1", "T4-long": "T=4, delay 1, mixtures of images",
    "T4-longer": "T=4, delay 1, mixtures, another epoch", "T4-norms": "T=4, delay 1, batch-norm in place",
    "T4-norms-long": "T=4, delay 1, batch-norm in place, longer",
    "T4-norms-longer": "T=4, delay 1, the same, three more epochs",
    "T4-soft-short": "T=4, delay 1, batch-norm in place, temperature 4",
    "T4-soft": "T=4, delay 1, temperature 4, longer", "T2-long": "T=2, delay 1, mixtures",
    "T2-soft-short": "T=2, delay 1, batch-norm in place, temperature 4",
    "T8-soft-short": "T=8, delay 1, batch-norm in place, temperature 4",
    "T2-soft": "T=2, delay 1, temperature 4, longer",
    "binary-norms": "T=4, delay 0, batch-norm in place", "ternary-norms": "T=4, delay 0, ternary, batch-norm in place",
    "T2-longer": "T=2, delay 1, mixtures, two more epochs", "binary-long": "T=4, delay 0, mixtures",
    "ternary-long": "T=4, delay 0, ternary, mixtures", "T2": "T=2, delay 1", "T8": "T=8, delay 1", "binary": "T=4, delay 0",
    "ternary": "T=4, delay 0, ternary", "thresholds": "T=4, delay 1, thresholds alone",
    "thresholds-v_init": "T=4, delay 1, thresholds and v_init alone",
}  # fmt: skip


def _figure(title: str, size: tuple[float, float] = (7.2, 4.2)) -> tuple[Figure, Axes]:
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(title, loc="left", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#dddddd")
    axes.set_axisbelow(True)
    return figure, axes


def learning(history: pd.DataFrame) -> Figure:
    """Agreement with the source on held-out training images, epoch by epoch."""
    figure, axes = _figure("Agreement with the source on 466 held-out training images", (7.2, 5.6))
    for (name, rows), (colour, marker) in zip(history.groupby("row", sort=False), STYLES, strict=False):
        done = rows.stage_index.map(rows.groupby("stage_index").epoch.max().cumsum().shift(fill_value=0)) + rows.epoch
        axes.plot(done, 100 * rows.held_out_agreement, f"{marker}-", color=colour, markersize=4, label=LABELS[str(name)])
    axes.axhline(100, color="black", linestyle=(0, (5, 2)), linewidth=1.2, label="ideal: the source's own answers")
    axes.set_xlabel("epochs of the row's own stages (a later stage is judged anew where it begins)")
    axes.set_xticks(range(0, int(history.epoch.max()) + 1, 2))
    axes.set_ylabel("agreement (%)")
    figure.legend(fontsize=8, frameon=False, ncols=2, loc="outside lower center")
    return figure


def accuracy_against_spikes(rows: pd.DataFrame) -> Figure:
    """Each row before (hollow) and after (filled) tuning."""
    figure, axes = _figure("ResNet-20 on CIFAR-10, 846 test images: hollow untuned, filled tuned", (7.2, 6.0))
    for (name, pair), (colour, marker) in zip(rows.groupby("row", sort=False), STYLES, strict=False):
        before, after = (pair[pair.network == kind].iloc[0] for kind in ("untuned", "tuned"))
        axes.plot([before.spikes_per_neuron, after.spikes_per_neuron], [100 * before.accuracy, 100 * after.accuracy],
                  "-", color=colour, linewidth=1)  # fmt: skip
        axes.plot(before.spikes_per_neuron, 100 * before.accuracy, marker, color=colour, markerfacecolor="white")
        axes.plot(after.spikes_per_neuron, 100 * after.accuracy, marker, color=colour, label=LABELS[str(name)])
    ideal = 100 * rows.analog_accuracy.iloc[0]
    axes.axhline(ideal, color="black", linestyle=(0, (5, 2)), linewidth=1.2, label=f"ideal: source network, {ideal:.1f} %")
    axes.set_xlabel("spikes per neuron and image")
    axes.set_ylabel("accuracy (%)")
    figure.legend(fontsize=8, frameon=False, ncols=2, loc="outside lower center")
    return figure


def causes(rows: pd.DataFrame) -> Figure:
    """Mean share of each cause in the layers' squared error, before and after."""
    figure, axes = _figure("Share of the squared error, untuned (top) and tuned", (8.4, 5.6))
    places, names = [], []
    for i, (name, pair) in enumerate(rows.groupby("row", sort=False)):
        for j, kind in enumerate(("untuned", "tuned")):
            row, left = pair[pair.network == kind].iloc[0], 0.0
            for cause, colour in CAUSES.items():
                axes.barh(i + 0.36 * j, row[cause], 0.32, left=left, color=colour, label=cause if i + j == 0 else None)
                left += row[cause]
        places.append(i + 0.18)
        names.append(LABELS[str(name)])
    axes.set_yticks(places, names, fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("share of the squared error against the source (sums to 1)")
    figure.legend(loc="outside upper right", ncols=4, fontsize=8, frameon=False)
    return figure


def gradient_figure(frame: pd.DataFrame) -> Figure:
    """Correlation of the surrogate's gradient of theta with the learned step size's, layer by layer."""
    figure, axes = _figure("ResNet-20, T=4: gradient of theta through time against the step rule's", (7.2, 5.0))
    for (surrogate, rows), colour in zip(frame.groupby("surrogate", sort=False), COLOURS, strict=False):
        for delay, line in ((0, "-"), (1, ":")):
            some = rows[rows.delay == delay]
            axes.plot(range(1, len(some) + 1), some.correlation_step, line, color=colour, linewidth=1.4,
                      label=f"{surrogate}, delay {delay}")  # fmt: skip
    axes.axhline(1, color="black", linestyle=(0, (5, 2)), linewidth=1.2, label="1: the same optimizer")
    axes.set_xlabel("layer")
    axes.set_ylabel("correlation over channels and batches")
    axes.set_ylim(-1, 1.05)
    axes.set_xticks(range(1, 20, 2))
    figure.legend(fontsize=7, frameon=False, ncols=3, loc="outside lower center")
    return figure


def _table(rows: Sequence[Sequence[str]]) -> str:
    head, *body = rows
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *body))


def _minutes(seconds: float, unknown: str = "") -> str:
    """Whole minutes."""
    return unknown if pd.isna(seconds) else f"{seconds / 60:.0f}"


def _percent(share: float | None) -> str:
    """One decimal, nothing where it was not measured."""
    return "" if share is None or pd.isna(share) else f"{100 * share:.1f}"


def rows_table(rows: pd.DataFrame) -> str:
    """One line a tuned network."""
    lines = [["row", "goes on from", "stages of its own", "minutes", "CPU minutes", "latency", "before %", "after %", "agreement %", "on mixtures %",
              "spikes/neuron", "mean SQNR dB before", "after", "temporal share before", "after"]]  # fmt: skip
    for name, pair in rows.groupby("row", sort=False):
        old, new = (pair[pair.network == kind].iloc[0] for kind in ("untuned", "tuned"))
        lines.append([
            LABELS[str(name)], LABELS.get(resnet.ROWS[str(name)].start, "untuned"), new.stages,
            _minutes(new.seconds), _minutes(new.cpu_seconds), f"{new.latency:.0f}", f"{100 * old.accuracy:.1f}",
            f"{100 * new.accuracy:.1f}", f"{100 * new.agreement:.1f}", _percent(new.get("held_mixed")),
            f"{new.spikes_per_neuron:.2f}",
            f"{old.sqnr_mean_db:.1f}", f"{new.sqnr_mean_db:.1f}", f"{old.temporal:.2f}", f"{new.temporal:.2f}",
        ])  # fmt: skip
    return _table(lines)


def choices_table(frame: pd.DataFrame) -> str:
    """Every variant's mean over seeds, the best first."""
    lines = [["variant", "held-out KL (mean)", "spread over seeds", "agreement %", "spikes/neuron", "seconds"]]
    groups = frame.groupby("variant")
    for name in groups.held_out_kl.mean().sort_values().index:
        rows = groups.get_group(name)
        lines.append([
            str(name), f"{rows.held_out_kl.mean():.4f}", f"{rows.held_out_kl.min():.4f} to {rows.held_out_kl.max():.4f}",
            f"{100 * rows.held_out_agreement.mean():.1f}", f"{rows.spikes_per_neuron.mean():.2f}",
            f"{rows.seconds.mean():.0f}",
        ])  # fmt: skip
    return _table(lines)


def choices_words(frame: pd.DataFrame) -> dict[str, object]:
    """Which variants lie wholly on one side of the default."""
    least, most = (frame.groupby("variant").held_out_kl.agg(kind) for kind in ("min", "max"))
    worse, better = least.index[least > most["default"]], most.index[most < least["default"]]
    return {"seeds": frame.seed.nunique(), "worse": ", ".join(worse) or "none", "better": ", ".join(better) or "none"}


def gradient_table(frame: pd.DataFrame) -> str:
    """Means over layers."""
    lines = [["surrogate, width", "delay", "correlation with step", "same sign", "correlation with twin", "same sign"]]
    for (surrogate, delay), rows in frame.groupby(["surrogate", "delay"], sort=False):
        mean = rows.mean(numeric_only=True)
        lines.append([str(surrogate), str(delay), f"{mean.correlation_step:.2f}", f"{100 * mean.same_sign_step:.0f} %",
                      f"{mean.correlation_twin:.2f}", f"{100 * mean.same_sign_twin:.0f} %"])  # fmt: skip
    return _table(lines)


def fashion_words(frame: pd.DataFrame) -> dict[str, object]:
    """What the text under the table says of it."""
    rows = frame[frame.kind != "untuned"].set_index("row")
    lost = 100 * (rows.analog_accuracy - rows.accuracy)
    return {"lost": ", ".join(f"{row} {x:.2f}" for row, x in lost.items()), "temporal": rows.temporal.max()}


def fashion_table(frame: pd.DataFrame) -> str:
    """One line a network and way of tuning."""
    lines = [["row", "stages", "T", "latency", "source %", "untuned %", "spiking %", "spikes/neuron", "budget",
              "mean SQNR dB before", "after", "temporal share before", "after", "minutes", "trained on"]]  # fmt: skip
    for name, rows in frame.groupby("row", sort=False):
        new, old = rows[rows.kind != "untuned"].iloc[0], rows[rows.kind == "untuned"]
        share = ["-"] * 4 if old.empty else [f"{x:.{n}f}" for n, key in ((1, "sqnr_mean_db"), (2, "temporal"))
                                             for x in (old[key].iloc[0], new[key])]  # fmt: skip
        lines.append([
            str(name), new.stages, f"{new.timesteps:.0f}", f"{new.latency:.0f}", f"{100 * new.analog_accuracy:.2f}",
            "-" if old.empty else f"{100 * old.accuracy.iloc[0]:.2f}", f"{100 * new.accuracy:.2f}",
            f"{new.spikes_per_neuron:.2f}", "-" if pd.isna(new.budget) else f"{new.budget:.2f}", *share,
            _minutes(new.seconds, "-"), "CPU" if pd.isna(new.get("machine")) else str(new.machine),
        ])  # fmt: skip
    return _table(lines)


def stall(rows: pd.DataFrame, history: pd.DataFrame) -> str:
    """Where T = 4, delay 1 stops short of the source, from its own figures: without and with mixtures, batch-norm kept."""
    parts = []
    for name in ("T4", "T4-long", "T4-norms-long", "T4-soft-short"):
        found = rows[(rows.row == name) & (rows.network == "tuned")]
        if found.empty:
            continue
        row, seen = found.iloc[0], history[(history.row == name) & history.best.astype(bool)].held_out_agreement.iloc[-1]
        parts.append(
            f"{LABELS[name]}: of the layers' squared error clipping is {row['clip']:.2f}, rounding {row['round']:.2f}, timing\n"
            f"{row.temporal:.2f}, the rest ({row.propagated:.2f}) comes in from earlier layers; agreement with the source is "
            f"{100 * seen:.1f} % on held-out\ntraining images and {100 * row.agreement:.1f} % on test images."
        )
    return "Where it stalls. " + " ".join(parts) + "\n" if parts else ""


def _ordered(rows: pd.DataFrame) -> pd.DataFrame:
    return rows.sort_values("row", key=lambda names: names.map(list(LABELS).index), kind="stable")


def write(out: Path, machine: str) -> None:
    """README.md and the figures, of the parts whose csv files are there."""
    text = [HEAD.format(machine=machine)]
    if (out / "resnet20.csv").is_file():
        rows, history = (_ordered(pd.read_csv(out / name)) for name in ("resnet20.csv", "history.csv"))
        learning(history).savefig(out / "learning.png", dpi=110)
        accuracy_against_spikes(rows).savefig(out / "accuracy_spikes.png", dpi=110)
        causes(rows).savefig(out / "causes.png", dpi=110)
        missing = [LABELS[name] for name in LABELS if name not in set(rows.row)]
        left = f"Not run yet: {', '.join(missing)}.\n" if missing else ""
        ann = f"{100 * rows.analog_accuracy.iloc[0]:.1f}"
        text.append(RESNET.format(table=rows_table(rows), left=left + stall(rows, history), ann=ann))
    if (out / "gradients.csv").is_file():
        frame = pd.read_csv(out / "gradients.csv")
        gradient_figure(frame).savefig(out / "gradients.png", dpi=110)
        text.append(GRADIENTS.format(table=gradient_table(frame)))
    if (out / "choices.csv").is_file():
        frame = pd.read_csv(out / "choices.csv")
        text.append(CHOICES.format(table=choices_table(frame), **choices_words(frame)))
    if (out / "fashion.csv").is_file():
        frame = pd.read_csv(out / "fashion.csv")
        text.append(FASHION.format(table=fashion_table(frame), **fashion_words(frame)))
    (out / "README.md").write_text("\n".join(text), encoding="utf-8")


HEAD = """# Training thresholds in the spiking domain

Made by `python reports/finetune/study.py --data DIR`, speedysnn 0.1.0, seed 0,
{machine}; rows come from several such CPUs, torch 2.14.1 to 2.15.0,
shared with other work, so minutes are an upper bound. Choices use held-out training images only; test images were run once for each row.

Networks are converted with `correct="none"`; `reports/corrections` measures what a correction adds.
"""
RESNET = """## The published ResNet-20, no labels

Source network {ann} % on the 846 lossless test images (standard error about 1 point). The teacher is the source's analog
reading; training images are the lossless subset (4,194 of them) and, for the first row, two copies of it and 49,534 JPEG
images as further inputs; 466 lossless images are held out, with their JPEG versions. Loss: KL to the teacher and 5 x layer
matching, flip and crop; "mixtures" takes six copies of the lossless images and 25,000 JPEG ones an epoch (at delay 0: two
copies alone) and mixes pairs (alpha 0.2; in these runs each image had its own weight and partner, while `mixup` now is
torchvision's, with one weight a batch). Minutes are those of a row's own stages. "Before" is the untuned network at the
same setting. "Batch-norm in place" is `finetune.train` that starts from the source network itself, its batch-norm not yet
folded, towards the source's logits, mixtures, no layer matching, a running average of the weights (0.998); at delay 0 its
last three epochs run through time; "longer" takes four copies and all JPEG images an epoch, and "three more epochs" goes on
folded. "Temperature 4" divides both logits by 4 in the loss; it was chosen by held-out agreement in a first run of the four-epoch
row. "On mixtures": agreement with the source on mixtures of two held-out images, 65 to 35, which are harder than what it
was trained on; measured afterwards, for rows whose networks were still there. At T = 4 no figure here tells temperature 4
from 1 beyond its noise (held-out agreement about 1 point, mixtures 2, test 1); at T = 2 it is worth 2.6 points or more.
Batch-norm in place at temperature 1, "another epoch", "more epochs" and delay 0 from mixtures keep the epoch of most
agreement on held-out images, all others that of least held-out loss.

{table}

{left}
![accuracy against spikes](accuracy_spikes.png)
![causes of the noise](causes.png)
![learning curves](learning.png)
"""
GRADIENTS = """## The two gradients of theta are different optimizers

Gradient of the KL to the source by log theta, untuned ResNet-20, T=4, per channel, 4 batches of 32 training images; mean
over 19 layers. "Step": the learned step size's rule on the spike count; "twin": the quantized reading's gradient.

{table}

![correlation by layer](gradients.png)
"""
CHOICES = """## Rules, stages and terms on a digits network

T=2, delay 0, binary, digits with average pooling, {seeds} seeds; held-out KL to the source (240 training images), the same
measure for every objective. The default is `quantized:8 spiking:4`, match 1, surrogate through time. Every seed of it
beats every seed of: {worse}; every seed of these beats every seed of it: {better}. All other differences are within the spread
over seeds: on a network as easy as this one they decide nothing, and the defaults stay as they were.

{table}
"""
FASHION = """## Fashion-MNIST

A VGG-like and a residual network (`networks.py`), trained here as usual networks (16 epochs, 55,000 images, 5,000
held out), then tuned and trained from scratch at look-ahead 1; 10,000 test images (standard error 0.25 points). Tuning is
`finetune.train` that starts from the source network: labels, batch-norm in place, a budget of spikes a neuron and image
(a little below what the untuned network spends at T = 4); it adds its own epochs to the source's, so part of the gain is that
of learning longer. The VGG-like network learns at rate 1e-3, the residual one at 3e-3, as from scratch, which is
the same call on an untrained network without a budget. "Taught": half of the loss is the distance to the source's
logits, on mixtures of images, rate 1e-3. An earlier residual source learned for 10 epochs (92.90 %; at rate 1e-3 and a budget
of 0.45 T = 4 gave 92.58, T = 2 92.53; from scratch in 20 epochs 93.16); what was changed was judged on held-out images. "Unlabelled" is `finetune.fit` of the
converted network, batch-norm folded, towards the source's logits, pairs of images mixed (alpha 0.2); T2 goes on from T4
there, and their source was an earlier one, of the same recipe. On a GPU the VGG-like rows trained beside others, with torch's
usual TF32; all networks were judged on a CPU. All rows keep a running average of the weights (decay 0.998) at the
epoch of most accuracy on held-out images. Labels were chosen on held-out images, T = 4, the first 27,500 training images, 3 epochs: 93.3 %
(0.46 spikes a neuron, no budget), with the source's logits beside them at equal shares 93.1 % (0.42, a budget of 0.45, 30 %
more time), and by `finetune.fit` with both, rate 3e-3, 92.5 % (0.38). Minutes are a row's own on one thread or GPU beside
other rows.

{table}

Points lost against the source: {lost}. Where the accuracy goes: the temporal share of the noise is at most
{temporal:.2f}, so time steps are not what is missing; what is left is clipping and rounding at the levels T allows.
"""
