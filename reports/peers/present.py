"""Figures and README.md of the study, from peers.csv, time.csv and checks.csv alone."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from text import NETWORKS, TEXT

# Okabe and Ito's palette; ours are full lines, SpikingJelly's dashed, sinabs' dotted.
STYLES = {
    "speedysnn binary, delay 0": ("#D55E00", "-", "o"),
    "speedysnn binary, delay 1": ("#0072B2", "-", "s"),
    "speedysnn binary, delay 0, bias corrected": ("#8C2D04", "-", "p"),
    "speedysnn binary, delay 1, bias corrected": ("#08306B", "-", "d"),
    "speedysnn ternary, delay 0": ("#E69F00", "-", "^"),
    "SJ Max": ("#bbbbbb", "--", "v"),
    "SJ 99.9 %": ("#777777", "--", "D"),
    "SJ channel 99.9 %, half threshold": ("#009E73", "--", "P"),
    "SJ LTB": ("#CC79A7", "--", "X"),
    "SJ LTB, small batches three times": ("#882255", "--", "h"),
    "sinabs, normalised, single spike": ("#56B4E9", ":", "*"),
}
MULTI = {
    "speedysnn graded:15, delay 0": ("#D55E00", "-", "o"),
    "sinabs": ("#0072B2", ":", "s"),
    "sinabs, normalised": ("#009E73", ":", "^"),
}
ORDER = ("speedysnn", "SJ", "sinabs")
LEAST = 2**-4  # spikes per neuron below this say nothing: they are drawn nowhere


def lines(axes: Axes, rows: pd.DataFrame, styles: dict[str, tuple[str, str, str]], across: str, column: str) -> None:
    """One line a contestant."""
    for name, (colour, dash, mark) in styles.items():
        own = rows[rows.contestant == name].sort_values("timesteps")
        scale = 100 if column == "accuracy" else 1
        axes.plot(own[across], scale * own[column], dash, color=colour, marker=mark, markersize=4.5, linewidth=1.4,
                  markerfacecolor="white", label=name)  # fmt: skip


def grid(title: str, count: int) -> tuple[Figure, Sequence[Axes]]:
    """Panels, a network each."""
    figure = Figure(figsize=(9.6, 3.1 * ((count + 1) // 2) + 0.9), layout="constrained")
    figure.suptitle(title, fontsize=10, x=0.01, ha="left")
    panels = list(figure.subplots((count + 1) // 2, min(2, count), squeeze=False).flat)
    for spare in panels[count:]:
        spare.set_axis_off()
    for axes in panels[:count]:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color="#dddddd")
        axes.set_axisbelow(True)
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter(lambda x, _: f"{x:.2g}")
    return figure, panels[:count]


def finish(figure: Figure, axes: Axes, path: Path) -> None:
    """One legend below all panels, and the file."""
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", fontsize=8, frameon=False, ncols=3)
    part = path.with_suffix(".part.png")
    figure.savefig(part, dpi=120)
    part.replace(path)


def accuracy(rows: pd.DataFrame, path: Path, styles: dict[str, tuple[str, str, str]], title: str, across: str) -> None:
    """Accuracy over T, or over spikes per neuron, a panel a network, with the source as a line."""
    names = [name for name in NETWORKS if name in set(rows.network)]
    figure, panels = grid(title, len(names))
    for axes, name in zip(panels, names, strict=True):
        here = rows[rows.network == name]
        ideal = 100 * here.ann_accuracy.iloc[0]
        lines(axes, here, styles, across, "accuracy")
        axes.axhline(ideal, color="black", linestyle=(0, (5, 2)), linewidth=1.2, label="ideal: source network")
        axes.set_title(f"{name}, {here.images.iloc[0]} test images; source {ideal:.1f} %", fontsize=9, loc="left")
        if across == "timesteps":
            axes.set_xlabel("time steps T")
        else:
            axes.set_xlim(left=LEAST)
            axes.set_xlabel("spikes per neuron and image")
        axes.set_ylabel("accuracy (%)")
    finish(figure, panels[0], path)


def errors(rows: pd.DataFrame, path: Path) -> None:
    """The relative error of the logits over T, which accuracy hides."""
    names = [name for name in NETWORKS if name in set(rows.network)]
    figure, panels = grid("Relative error of the mean logits, ideal 0: binary and ternary spikes, nothing tuned", len(names))
    for axes, name in zip(panels, names, strict=True):
        lines(axes, rows[rows.network == name], STYLES, "timesteps", "logit_error")
        axes.set_yscale("log")
        axes.set_title(name, fontsize=9, loc="left")
        axes.set_xlabel("time steps T")
        axes.set_ylabel("|out − source| / |source|")
    finish(figure, panels[0], path)


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table; the first column is text, the others numbers."""
    marks = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, marks, *rows))


def results(rows: pd.DataFrame) -> str:
    """One network: accuracy and spikes a neuron at each T, and the logit error at two of them."""
    steps = sorted(set(rows.timesteps))
    shown = [step for step in (4, 32) if step in steps] or steps[-1:]
    head = ["contestant", "spikes", *(f"T = {step}" for step in steps), *(f"error, T = {step}" for step in shown)]
    body = []
    for name in sorted(dict.fromkeys(rows.contestant), key=lambda name: [name.startswith(s) for s in ORDER].index(True)):
        own = rows[rows.contestant == name].set_index("timesteps")
        cells = [f"{100 * own.accuracy[step]:.1f} ({own.spikes_per_neuron[step]:.2f})" for step in steps]
        if name.endswith("delayed read-out"):
            used = {step: int(own.read_from[step]) for step in steps}
            cells = [cell + (f" from {used[step] + 1}" if used[step] else "") for cell, step in zip(cells, steps, strict=True)]
        body.append([name, own.spikes.iloc[0], *cells, *(f"{own.logit_error[step]:.3f}" for step in shown)])
    return markdown(head, body)


def timing(times: pd.DataFrame) -> str:
    """Times of all networks."""
    body = [[f"{row.network}, batch {row.batch}: {row.contestant}", f"{row.ms_per_image:.2f}", f"{row.times_ann:.1f}",
             f"{row.times_ours:.2f}"] for row in times.itertuples()]  # fmt: skip
    return markdown(["T = 8", "ms an image", "x ANN", "x ours at delay 0"], body)


def ahead(rows: pd.DataFrame) -> list[str]:
    """A sentence a network: ours beside the best of each peer, binary spikes, and where a peer is ahead."""
    out = []
    for name in (name for name in NETWORKS if name in set(rows.network)):
        here = rows[(rows.network == name) & (rows.spikes == "binary")]
        error = 100 * (here.ann_accuracy.iloc[0] * (1 - here.ann_accuracy.iloc[0]) / here.images.iloc[0]) ** 0.5
        parts = []
        for step in sorted({1, 2, 4, 8, 16, 32} & set(here.timesteps)):
            now = here[here.timesteps == step]
            ours = [f"{_accuracy(now, f'speedysnn binary, delay {delay}')} "
                    f"({_accuracy(now, f'speedysnn binary, delay {delay}, bias corrected')})" for delay in (0, 1)]
            best = []
            for package, short in (("spikingjelly", "SpikingJelly"), ("sinabs", "sinabs")):
                theirs = now[now.package == package]
                if len(theirs):
                    top = theirs.loc[theirs.accuracy.idxmax()]
                    best.append(f"{short} {100 * top.accuracy:.1f}")
            parts.append(f"T = {step}: {ours[0]} and {ours[1]}, {', '.join(best)}")
        out.append(f"- **{name}** (source {100 * here.ann_accuracy.iloc[0]:.1f} %, its standard error {error:.1f} points). "
                   + "; ".join(parts) + ".")  # fmt: skip
    return out


def _accuracy(rows: pd.DataFrame, contestant: str) -> str:
    """In percent; a dash where it was not run."""
    found = rows[rows.contestant == contestant].accuracy
    return f"{100 * found.iloc[0]:.1f}" if len(found) else "-"


def verified(checks: pd.DataFrame) -> str:
    """The checks in sentences."""
    steps = checks[checks.check.str.contains("step by step")].value.max()
    single = checks[checks.check.str.contains("one by one")].value.max()
    kept = checks[checks.check.str.startswith("source weights")].value.min()
    counted = checks[checks.check.str.startswith("different numbers")].value.max()
    twin = checks[checks.check.str.startswith("modules against")].value.max()
    return (
        f"largest relative difference between SpikingJelly's two step modes {steps:.0e}, between sinabs on one image and "
        f"on a batch {single:.0e}; source weights the same bit for bit after all conversions on "
        f"{'every network' if kept == 1 else 'not every network'}; all contestants count {'the same' if counted == 1 else 'different'}"
        f" numbers of neurons where nothing is pooled by maximum"
        + (f"; ResNet-20 rewritten in modules {twin:.0e} from its source" if twin == twin else "")
    )


def write(out: Path, machine: str) -> None:
    """All figures and README.md."""
    rows, times, checks = (pd.read_csv(out / f"{name}.csv") for name in ("peers", "time", "checks"))
    what = "nothing tuned, same weights, calibration and test images"
    accuracy(rows, out / "accuracy.png", STYLES, f"Binary and ternary spikes: {what}", "timesteps")
    accuracy(rows, out / "spikes.png", STYLES, f"Binary and ternary spikes: {what}", "spikes_per_neuron")
    accuracy(rows, out / "multi.png", MULTI, f"Several spikes a step: {what}", "timesteps")
    errors(rows, out / "error.png")
    sections = []
    for name, said in NETWORKS.items():
        here = rows[rows.network == name]
        if len(here):
            sections.append(f"## {name}: {said}\n\n{here.images.iloc[0]} test images, source "
                            f"{100 * here.ann_accuracy.iloc[0]:.1f} %.\n\n{results(here)}\n")  # fmt: skip
    text = TEXT.format(machine=machine, short="\n".join(ahead(rows)), sections="\n".join(sections), times=timing(times),
                       checks=verified(checks))  # fmt: skip
    part = out / "README.part"
    part.write_text(text, encoding="utf-8")
    part.replace(out / "README.md")
