"""Figures and README.md of the study, from its csv files alone."""

import importlib.metadata
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator

# Okabe and Ito's palette; every line has its own mark too.
ENCODERS = {"constant": ("#0072B2", "o"), "poisson": ("#D55E00", "s"), "latency": ("#009E73", "^")}
DELAYS = {"0": ("#D55E00", "o"), "1": ("#0072B2", "s"), "full": ("#009E73", "^")}
STEPS = {4: ("#D55E00", "o"), 8: ("#0072B2", "s"), 16: ("#009E73", "^")}
NAMES = {"digits": "bundled digits network", "resnet20": "CIFAR-10 ResNet-20"}
IDEAL = {"color": "black", "linestyle": (0, (5, 2)), "linewidth": 1.2}


def _panels(count: int, title: str, share: bool = True) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(3.4 * count + 0.6, 3.9), layout="constrained")
    figure.suptitle(title, x=0.01, ha="left", fontsize=10)
    axes = list(figure.subplots(1, count, sharey=share, squeeze=False)[0])
    for panel in axes:
        panel.spines[["top", "right"]].set_visible(False)
        panel.grid(color="#dddddd")
        panel.set_axisbelow(True)
    axes[0].set_ylabel("accuracy (%)")
    return figure, axes


def _log_steps(panel: Axes, steps: Sequence[int]) -> None:
    panel.set_xscale("log", base=2)
    panel.xaxis.set_major_locator(FixedLocator(list(steps)))
    panel.xaxis.set_minor_locator(NullLocator())
    panel.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
    panel.set_xlabel("time steps T")


def _ideal(panel: Axes, rows: pd.DataFrame, name: str = "ideal: source") -> None:
    """The source's accuracy, with a standard error of it on either side."""
    value, images = rows.analog_accuracy.iloc[0], int(rows.images.iloc[0])
    error = (value * (1 - value) / images) ** 0.5
    panel.axhline(100 * value, **IDEAL, label=f"{name}, {100 * value:.1f} % ± standard error")
    panel.axhspan(100 * (value - error), 100 * min(1, value + error), color="#999999", alpha=0.25, linewidth=0)


def _below(figure: Figure, panel: Axes, columns: int) -> None:
    handles, labels = panel.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, fontsize=8, frameon=False)


def encoder_figure(rows: pd.DataFrame, title: str) -> Figure:
    """Accuracy over T, a panel a look-ahead, a line an encoder."""
    delays = list(dict.fromkeys(rows.delay))
    figure, axes = _panels(len(delays), f"{title}: how the image enters; thresholds chosen for each T")
    for panel, delay in zip(axes, delays, strict=True):
        panel.set_title(f"look-ahead {delay}", fontsize=9)
        for encoder, (colour, mark) in ENCODERS.items():
            group = rows[(rows.delay == delay) & (rows.encoder == encoder)].groupby("timesteps")
            mean = 100 * group.accuracy.mean()
            panel.plot(mean.index, mean, color=colour, marker=mark, markersize=4, linewidth=1.4, label=encoder)
            if encoder == "poisson":
                panel.fill_between(mean.index, 100 * group.accuracy.min(), 100 * group.accuracy.max(), color=colour, alpha=0.2,
                                   linewidth=0)  # fmt: skip
                source = 100 * group.analog_accuracy.mean()
                panel.plot(source.index, source, ":", color=colour, linewidth=1.4, label="source on the mean of the poisson events")
        _ideal(panel, rows[rows.encoder == "constant"], "ideal: source on the images")
        _log_steps(panel, sorted(rows.timesteps.unique()))
    _below(figure, axes[0], 3)
    return figure


def skip_figure(rows: pd.DataFrame, title: str) -> Figure:
    """Accuracy over the steps left out, a panel a look-ahead, a line a T."""
    figure, axes = _panels(2, f"{title}: delayed read-out, mean of the steps after the skipped ones")
    for panel, delay in zip(axes, ("0", "1"), strict=True):
        panel.set_title(f"look-ahead {delay}", fontsize=9)
        for steps, part in rows[rows.delay == delay].groupby("timesteps"):
            colour, mark = STEPS[int(steps)]
            panel.plot(part.skip, 100 * part.accuracy, color=colour, marker=mark, markersize=4, linewidth=1.4, label=f"T = {steps}")
        _ideal(panel, rows)
        panel.set_xlabel("output steps left out")
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
    _below(figure, axes[0], 2)
    return figure


def exit_figure(rows: pd.DataFrame, title: str) -> Figure:
    """Accuracy over the mean number of steps, and how many images stop when at the chosen confidence."""
    steps = int(rows.timesteps.iloc[0])
    figure, (left, right) = _panels(2, f"{title}: early exit at T = {steps}", share=False)
    for position, (delay, part) in enumerate(rows.groupby("delay", sort=False)):
        colour, mark = DELAYS[str(delay)]
        grid, own = part[~part.chosen].sort_values("confidence"), part[part.chosen].iloc[0]
        left.plot(grid.mean_steps, 100 * grid.accuracy, color=colour, marker=mark, markersize=4, linewidth=1.4, label=f"look-ahead {delay}")
        left.plot(steps, 100 * own.whole_accuracy, mark, color="white", markeredgecolor=colour, markersize=8)
        left.plot(own.mean_steps, 100 * own.accuracy, "*", color=colour, markeredgecolor="black", markersize=14)
        shares = [100 * own[f"exit_{step}"] for step in range(1, steps + 1)]
        count = rows.delay.nunique()
        centre = [step + (position - (count - 1) / 2) * 0.8 / count for step in range(1, steps + 1)]
        right.bar(centre, shares, 0.8 / count, color=colour, label=f"look-ahead {delay}")
    left.plot([], [], "*", color="white", markeredgecolor="black", markersize=12, label="confidence chosen on training images")
    left.plot([], [], "o", color="white", markeredgecolor="black", markersize=8, label="all T steps")
    _ideal(left, rows)
    left.set_xlabel("mean steps until the answer")
    right.set_xlabel("step at which an image stops")
    right.set_title("at the chosen confidence", fontsize=9)
    right.set_ylabel("test images (%)")
    right.xaxis.set_major_locator(MaxNLocator(integer=True))
    _below(figure, left, 3)
    return figure


def graded_figure(rows: pd.DataFrame, title: str) -> Figure:
    """Accuracy and logit error over T at a fixed number of levels, look-ahead 0."""
    figure, (left, right) = _panels(2, f"{title}: T N + 1 levels out of T steps of up to N spikes, look-ahead 0", share=False)
    rows = rows[rows.delay == "0"]
    for total, (colour, mark) in STEPS.items():
        part = rows[rows.levels == total + 1].sort_values("timesteps")
        style = {"color": colour, "linewidth": 1.4}
        if part.empty:
            continue
        left.plot(part.timesteps, 100 * part.accuracy, marker=mark, markersize=4, label=f"{total + 1} levels", **style)
        left.plot(part.timesteps, 100 * part.twin_accuracy, ":", **style)
        right.plot(part.timesteps, part.logit_error, marker=mark, markersize=4, **style)
        right.plot(part.timesteps, part.twin_logit_error, ":", **style)
    left.plot([], [], ":", color="black", label="ideal: quantized reading")
    _ideal(left, rows, "source")
    right.set_ylabel("logit error |out - source| / |source|")
    right.set_ylim(0, None)
    for panel in (left, right):
        _log_steps(panel, sorted(rows.timesteps.unique()))
    _below(figure, left, 3)
    return figure


def _percent(value: float) -> str:
    return f"{100 * value:.1f}"


def _table(rows: Sequence[Sequence[str]]) -> str:
    head, *body = rows
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *body))


def encoder_table(rows: pd.DataFrame) -> str:
    """Accuracy by encoder, look-ahead and T; the random one as mean and range over its seeds."""
    steps = sorted(rows.timesteps.unique())
    out = [["encoder", "look-ahead", *(f"T = {t}" for t in steps)]]
    for encoder in ENCODERS:
        own = rows[rows.encoder == encoder]
        for delay in dict.fromkeys(own.delay):
            groups = own[own.delay == delay].groupby("timesteps").accuracy
            out.append([encoder, delay, *(_spread(groups.get_group(t)) for t in steps)])
        groups = own[own.delay == own.delay.iloc[0]].groupby("timesteps").analog_accuracy
        out.append([f"{encoder}: source on the mean of its events", "-", *(_spread(groups.get_group(t)) for t in steps)])
    return _table(out)


def _spread(values: pd.Series) -> str:
    text = _percent(values.mean())
    return text if len(values) == 1 else f"{text} ({_percent(values.min())} to {_percent(values.max())})"


def skip_table(rows: pd.DataFrame) -> str:
    """Accuracy and relative logit error by steps left out."""
    skips = sorted(rows["skip"].unique())
    out = [["T", "look-ahead", "latency", *(f"skip {k}" for k in skips)]]
    for (steps, delay), part in rows.groupby(["timesteps", "delay"]):
        cells = part.set_index("skip")
        shown = [f"{_percent(cells.accuracy[k])} ({cells.logit_error[k]:.2f})" if k in cells.index else "-" for k in skips]
        out.append([str(steps), str(delay), str(part.latency.iloc[0]), *shown])
    return _table(out)


def exit_table(rows: pd.DataFrame, chosen: pd.DataFrame) -> str:
    """The chosen confidence: what was promised on training images, what came of it on test images."""
    out = [["T", "look-ahead", "confidence", "training images", "loss there (points)", "test accuracy %", "all T steps %",
            "loss (points)", "mean steps", "mean latency", "of", "spikes per neuron"]]  # fmt: skip
    for row in rows[rows.chosen].itertuples():
        own = chosen[chosen.delay == row.delay].iloc[0]
        out.append([str(row.timesteps), row.delay, _sure(row.confidence), str(own.images),
                    f"{100 * own.loss:.2f} ± {100 * own.loss_error:.2f}", _percent(row.accuracy), _percent(row.whole_accuracy),
                    f"{100 * (row.whole_accuracy - row.accuracy):.2f}", f"{row.mean_steps:.2f}", f"{row.mean_latency:.2f}",
                    str(row.latency), f"{row.spikes_per_neuron:.2f}"])  # fmt: skip
    return _table(out)


def _sure(confidence: float) -> str:
    return f"{confidence:.4f}" if confidence < 0.9999 else f"1 - {1 - confidence:.0e}"


def graded_table(rows: pd.DataFrame) -> str:
    """Each way to the same number of levels."""
    out = [["levels", "T", "spikes", "look-ahead", "latency", "accuracy %", "quantized %", "logit error", "spikes per neuron"]]
    for row in rows.sort_values(["levels", "delay", "timesteps"], ascending=[True, True, False]).itertuples():
        out.append([str(row.levels), str(row.timesteps), row.spikes, row.delay, str(row.latency), _percent(row.accuracy),
                    _percent(row.twin_accuracy), f"{row.logit_error:.3f}", f"{row.spikes_per_neuron:.2f}"])  # fmt: skip
    return _table(out)


def findings(tables: dict[str, pd.DataFrame], network: str) -> str:
    """One network's figures in words; its numbers are looked up."""

    def at(table: str, column: str = "accuracy", **keys: object) -> str:
        rows = tables[table]
        for key, value in {"network": network, **keys}.items():
            rows = rows[rows[key] == value]
        return _percent(rows[column].mean())

    last = int(tables["readout"].timesteps.max())
    rows = tables["exits"]
    exits = rows[(rows.network == network) & rows.chosen].set_index("delay")
    return WORDS.format(
        name=NAMES[network], last=last, half=last // 2,
        constant=at("encoders", encoder="constant", timesteps=last, delay="1"),
        poisson=at("encoders", encoder="poisson", timesteps=last, delay="1"),
        mean=at("encoders", "analog_accuracy", encoder="poisson", timesteps=last, delay="1"),
        latency0=at("encoders", encoder="latency", timesteps=last, delay="0"),
        latency1=at("encoders", encoder="latency", timesteps=last, delay="1"),
        whole=at("readout", timesteps=last, delay="0", skip=0), skipped=at("readout", timesteps=last, delay="0", skip=last // 2),
        whole1=at("readout", timesteps=last, delay="1", skip=0), skipped1=at("readout", timesteps=last, delay="1", skip=last // 2),
        steps=int(exits.timesteps.iloc[0]), exit0=_exit(exits.loc["0"]), exit1=_exit(exits.loc["1"]),
        binary=at("graded", levels=last + 1, delay="0", grade=1), one=at("graded", levels=last + 1, delay="0", timesteps=1))  # fmt: skip


def _exit(row: pd.Series) -> str:
    return (f"{_percent(row.accuracy)} % after {row.mean_steps:.1f} steps and {row.spikes_per_neuron:.2f} spikes per neuron "
            f"(all steps: {_percent(row.whole_accuracy)} %)")  # fmt: skip


def write(out: Path, commands: Sequence[str], machine: str) -> None:
    """Write the figures and README.md."""
    names = ("encoders", "readout", "exits", "chosen", "graded")
    tables = {name: pd.read_csv(out / f"{name}.csv", dtype={"delay": str}) for name in names}
    parts = []
    for network in dict.fromkeys(tables["encoders"].network):
        own = {name: table[table.network == network] for name, table in tables.items()}
        title = NAMES[network]
        encoder_figure(own["encoders"], title).savefig(out / f"encoders_{network}.png", dpi=120)
        skip_figure(own["readout"], title).savefig(out / f"readout_{network}.png", dpi=120)
        exit_figure(own["exits"], title).savefig(out / f"exits_{network}.png", dpi=120)
        graded_figure(own["graded"], title).savefig(out / f"graded_{network}.png", dpi=120)
        images = int(own["encoders"].images.iloc[0])
        error = 100 * (own["encoders"].analog_accuracy.iloc[0] * (1 - own["encoders"].analog_accuracy.iloc[0]) / images) ** 0.5
        parts.append(PART.format(
            title=title[0].upper() + title[1:], network=network, images=images, error=f"{error:.1f}",
            source=_percent(own["encoders"].analog_accuracy.iloc[0]), seeds=own["encoders"].seed.nunique(),
            encoders=encoder_table(own["encoders"]), readout=skip_table(own["readout"]),
            exits=exit_table(own["exits"], own["chosen"]), graded=graded_table(own["graded"])))  # fmt: skip
    version = importlib.metadata.version("speedysnn")
    words = "\n".join(findings(tables, name) for name in dict.fromkeys(tables["encoders"].network))
    text = TEXT.format(version=version, machine=machine, findings=words, parts="\n".join(parts), commands="\n".join(dict.fromkeys(commands)))
    (out / "README.md").write_text(text, encoding="utf-8")


TEXT = """# How the input enters, and when the answer is read

Encoders, delayed read-out, early exit and graded spikes, measured. Made by `python reports/readout/study.py --data DIR`
(speedysnn {version}, {machine}); thresholds per
channel, least squared error for each T, from training images (digits 1,200; ResNet-20 1,024); nothing tuned; seed 0
where no other is named. Test images choose nothing: the early exit's confidence comes from the
train split, which the source network has fitted. Networks: the digits network of the package, and the published
ResNet-20 of [cifar10_resnet20](../cifar10_resnet20/README.md).

Networks are converted with `correct="none"`; `reports/corrections` measures what a correction adds.

- Encoders: `constant` is the image as a current in every step; `poisson` sends spikes of one size, the image's largest
  magnitude A, with probability abs(x)/A a step and the pixel's sign (mean over T: x; variance abs(x)(A − abs(x))/T);
  `latency` sends one spike a pixel, the earlier the brighter, weighed by its step (mean over T: the image rounded to T
  levels of A a sign). "Source on the mean of its events" is what the encoder alone costs.
- Delayed read-out: the mean output of the steps after the first k; in brackets |out − source| / |source| of the logits.
- Early exit: an image stops at the first step whose running mean has a softmax probability above the confidence. It is
  chosen on training images so that at most 0.5 points are lost there; "loss" is what it cost on test images.
- Graded: T steps of up to N spikes, T N + 1 levels.

## In short

{findings}

{parts}
## Commands

```sh
{commands}
```
"""

WORDS = """- **{name}.** Encoders at T = {last}, look-ahead 1: constant {constant} %; poisson {poisson} % (the source itself on the mean of
  those events: {mean} %); latency {latency1} %, and {latency0} % at look-ahead 0, as everything bright arrives first.
  Leaving out the first {half} of {last} steps takes look-ahead 0 from {whole} to {skipped} %, look-ahead 1 from {whole1} to {skipped1} %.
  Early exit at T = {steps}: look-ahead 0 {exit0};
  look-ahead 1 {exit1}.
  The same {last} + 1 levels at look-ahead 0: {binary} % in {last} binary steps, {one} % in one step of graded spikes, which has no
  time to go wrong in."""

PART = """## {title}: {images} test images, source {source} % (standard error {error} points)

Accuracy % by encoder; `poisson` as mean (range) over {seeds} seed(s); latency and spikes per neuron in `encoders.csv`.

{encoders}

![encoders](encoders_{network}.png)

Delayed read-out: accuracy % (logit error).

{readout}

![delayed read-out](readout_{network}.png)

Early exit.

{exits}

![early exit](exits_{network}.png)

Graded spikes.

{graded}

![graded spikes](graded_{network}.png)
"""
