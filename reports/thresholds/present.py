"""Figures and README.md of the study, from thresholds.csv alone."""

import importlib.metadata
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from plans import ALL, CALIBRATION, PLANS, best, tested
from plans import Table as Rows
from text import TEXT, in_short

# Okabe and Ito's palette, and grey.
RULE_COLOURS = {
    "mse": "#D55E00", "gaussian": "#0072B2", "laplace": "#009E73", "half-normal": "#CC79A7",
    "percentile:99": "#E69F00", "percentile:99.9": "#56B4E9", "max": "#777777",
}  # fmt: skip
KIND_COLOURS = {"none": "#777777", "bias": "#D55E00", "potential": "#0072B2", "bias+potential": "#009E73"}
TEST_COLOURS = {"plain": "#777777", "rule chosen": "#E69F00", "correction chosen": "#D55E00",
                "layers kept analog, chosen": "#0072B2"}  # fmt: skip
MARKS = "osD^vP*"
SHOWN = ("resnet20", "digits-avg")
SETTING = ["timesteps", "delay", "rule", "granularity", "correct", "keep"]


def panels(title: str, names: Sequence[str]) -> tuple[Figure, list[tuple[str, int, Axes]]]:
    """A grid, a network a row and a delay a column."""
    figure = Figure(figsize=(9.6, 3.2 * len(names) + 0.6), layout="constrained")
    figure.suptitle(title, fontsize=10, x=0.01, ha="left")
    grid = figure.subplots(len(names), 2, squeeze=False, sharey="row")
    out = []
    for row, name in zip(grid, names, strict=True):
        for delay, axes in enumerate(row):
            axes.spines[["top", "right"]].set_visible(False)
            axes.grid(color="#dddddd")
            axes.set_axisbelow(True)
            axes.set_xscale("log", base=2)
            axes.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
            axes.set_xlabel("time steps T")
            if not delay:
                axes.set_ylabel("accuracy (%)")
            out.append((name, delay, axes))
    return figure, out


def line(axes: Axes, rows: pd.DataFrame, label: str, colour: str, mark: str) -> None:
    """Accuracy over T."""
    rows = rows.sort_values("timesteps")
    axes.plot(rows.timesteps, 100 * rows.accuracy, "-", color=colour, marker=mark, markersize=4.5, linewidth=1.3,
              markerfacecolor="white", label=label)  # fmt: skip


def finish(figure: Figure, grid: list[tuple[str, int, Axes]], rows: pd.DataFrame, path: Path) -> None:
    """The ideal, one legend for all panels, and the file."""
    for name, delay, axes in grid:
        ideal = 100 * rows[rows.network == name].analog_accuracy.iloc[0]
        axes.set_title(f"{name}, delay {delay}; source {ideal:.1f} %", fontsize=9, loc="left")
        axes.axhline(ideal, color="black", linestyle=(0, (5, 2)), linewidth=1.2, label="ideal: source network")
        beside = [other for network, _, other in grid if network == name]
        low = min(min(drawn.get_ydata(), default=ideal) for other in beside for drawn in other.lines)
        axes.set_ylim(low - 0.06 * (ideal - low) - 0.3, ideal + 0.08 * (ideal - low) + 0.3)
    handles, labels = grid[0][2].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", fontsize=8, frameon=False)
    part = path.with_suffix(".part.png")
    figure.savefig(part, dpi=120)
    part.replace(path)


def figures(rows: pd.DataFrame, picks: pd.DataFrame, out: Path) -> None:
    """rules.png, corrections.png and chosen.png."""
    held = rows[(rows.part == "validation") & (rows.granularity == "channel") & (rows.keep == "-")]
    names = [name for name in SHOWN if name in set(rows.network)]
    figure, grid = panels("Threshold rules, one threshold a channel, no correction: validation images", names)
    for name, delay, axes in grid:
        here = held[(held.network == name) & (held.delay == delay) & (held.correct == "none")]
        for (rule, colour), mark in zip(RULE_COLOURS.items(), MARKS, strict=True):
            line(axes, here[here.rule == rule], rule, colour, mark)
    finish(figure, grid, held, out / "rules.png")
    figure, grid = panels('Corrections, "mse" thresholds, one a channel: validation images', names)
    for name, delay, axes in grid:
        here = held[(held.network == name) & (held.delay == delay) & (held.rule == "mse")]
        longest = here[here.correct != "none"].timesteps.max()
        for (kind, colour), mark in zip(KIND_COLOURS.items(), MARKS, strict=False):
            line(axes, here[(here.correct == kind) & (here.timesteps <= longest)], kind, colour, mark)
    finish(figure, grid, held, out / "corrections.png")
    test = rows[rows.part == "test"]
    figure, grid = panels("Test images: what the validation images chose at each T and delay", names)
    for name, delay, axes in grid:
        here = picks[(picks.network == name) & (picks.delay == delay)]
        for (label, colour), mark in zip(TEST_COLOURS.items(), MARKS, strict=False):
            shown = 'plain: "mse", one a channel' if label == "plain" else label
            line(axes, here[here.choice == label], shown, colour, mark)
    finish(figure, grid, test, out / "chosen.png")


def chosen(table: Rows, rows: pd.DataFrame) -> pd.DataFrame:
    """The test rows of the choices: one for each network, T, delay and choice; `rule`, `correct`, `keep` say which."""
    test = rows[rows.part == "test"].set_index(["network", *SETTING])
    out = []
    for name in PLANS:
        if name not in set(rows[rows.part == "test"].network):
            continue
        plan, here = PLANS[name].settings(), tested(table, name)
        for t, d in sorted({(s.timesteps, s.delay) for s in here}):
            plain = next(s for s in here if (s.timesteps, s.delay) == (t, d))
            picks = {"plain": plain}
            labels = {"rules": "rule chosen", "corrections": "correction chosen", "keep": "layers kept analog, chosen"}
            for kind, label in labels.items():
                some = [s for s in plan[kind] if (s.timesteps, s.delay) == (t, d)]
                if some:
                    picks[label] = best(table, name, some)
            for label, s in picks.items():
                key = (name, *(getattr(s, field) for field in SETTING))
                out.append({"choice": label, **dict(zip(["network", *SETTING], key, strict=True)), **test.loc[key]})
    return pd.DataFrame(out)


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """A table with a head."""
    head, *body = rows
    return "\n".join(["| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *body)])


def by_step(held: pd.DataFrame, groups: list[str], heads: list[str]) -> str:
    """Validation agreement in %, delay 0 / delay 1, a column for each T."""
    steps = sorted(held.timesteps.unique())
    out = [[*heads, *(f"T = {t}" for t in steps)]]
    for names, part in held.groupby(groups, sort=False):
        cells = part.set_index(["timesteps", "delay"]).agreement
        shown = [f"{100 * cells[t, 0]:.1f} / {100 * cells[t, 1]:.1f}" if (t, 0) in cells.index else "-" for t in steps]
        out.append([*(str(name) for name in names), *shown])
    return markdown(out)


def kept_table(held: pd.DataFrame) -> str:
    """Agreement, spikes and neurons with layers kept analog."""
    steps = sorted(held.timesteps.unique())
    out = [["kept analog", "neurons", "latency at delay 1", *(f"T = {t}" for t in steps)]]
    for keep, part in held.groupby("keep", sort=False):
        at = part.set_index(["timesteps", "delay"])
        cells = [" / ".join(f"{100 * at.agreement[t, d]:.1f} ({at.spikes_per_inference[t, d] / 1000:.1f})" for d in (0, 1))
                 for t in steps]  # fmt: skip
        depth = int(at.latency[steps[0], 1] - steps[0])
        out.append([str(keep), f"{at.neurons.iloc[0]:,.0f}", f"T + {depth}", *cells])
    return markdown(out)


def test_table(picks: pd.DataFrame) -> str:
    """Test accuracy (spikes per neuron), plain and as chosen."""
    out = [["T", "delay", "latency", "twin", "plain", "rule chosen", "correction chosen", "kept analog, chosen"]]
    for (t, d), part in picks.groupby(["timesteps", "delay"], sort=False):
        at = {row.choice: row for row in part.itertuples()}
        plain, shown = at["plain"], [f"{100 * at['plain'].accuracy:.1f}"]
        shown[0] += f" ({at['plain'].spikes_per_neuron:.2f})"
        for label in list(TEST_COLOURS)[1:]:
            row = at.get(label)
            what = "" if row is None else {"rule chosen": f"{row.rule}, {row.granularity}",
                    "correction chosen": row.correct + ("" if row.rule == plain.rule else f" on {row.rule}")}.get(label, row.keep)  # fmt: skip
            shown.append("-" if row is None else f"{100 * row.accuracy:.1f} ({row.spikes_per_neuron:.2f}) {what}")
        out.append([str(t), str(d), str(plain.latency), f"{100 * plain.twin_accuracy:.1f}", *shown])
    return markdown(out)


def section(name: str, rows: pd.DataFrame, picks: pd.DataFrame) -> str:
    """One network's tables."""
    held, test = (rows[(rows.network == name) & (rows.part == part)] for part in ("validation", "test"))
    plain = held[(held.keep == "-") & (held.correct == "none")]
    corrected = set(held[held.correct != "none"].rule)
    steps = set(held[held.correct != "none"].timesteps)
    kinds = held[(held.keep == "-") & held.rule.isin(corrected) & held.timesteps.isin(steps)]
    kinds = kinds[kinds.granularity == plain.granularity.iloc[0]]
    count, source = int(test.images.iloc[0]), test.analog_accuracy.iloc[0]
    error = 100 * (source * (1 - source) / count) ** 0.5
    out = [f"## {name}: {count} test images, source {100 * source:.1f} % (standard error {error:.1f} points); "
           f"{held.images.iloc[0]} validation images, source {100 * held.analog_accuracy.iloc[0]:.1f} %",
           "Agreement with the source on validation images, %, delay 0 / delay 1, no correction:",
           by_step(plain, ["rule", "granularity"], ["rule", "granularity"]),
           "The same with corrections:", by_step(kinds, ["rule", "correct"], ["rule", "correction"])]  # fmt: skip
    if PLANS[name].keep:
        kept = held[(held.correct == "none") & (held.rule == "mse") & (held.granularity == "channel")]
        kept = kept[kept.timesteps.isin(PLANS[name].kept)]
        out += [
            "Layers kept analog, `mse`, one threshold a channel: agreement % (thousand spikes an image), delay 0 / delay 1:",
            kept_table(kept),
        ]
    out += ["Test accuracy % (spikes per neuron), settings chosen by the validation images:",
            test_table(picks[picks.network == name])]  # fmt: skip
    return "\n\n".join(out)


def write(out: Path, machine: str) -> None:
    """Write the figures and README.md."""
    table = Rows(out / "thresholds.csv")
    rows = pd.DataFrame(table.rows)
    picks = chosen(table, rows)
    figures(rows, picks, out)
    names = [name for name in ("resnet20", *PLANS) if name in set(picks.network)]
    text = TEXT.format(
        version=importlib.metadata.version("speedysnn"), machine=machine, calibration=CALIBRATION,
        minutes=f"{rows.cpu_seconds.sum() / 60:.0f}", short=in_short(rows, picks), steps=", ".join(map(str, ALL)),
        sections="\n\n".join(section(name, rows, picks) for name in dict.fromkeys(names)),
    )  # fmt: skip
    part = out / "README.md.part"
    part.write_text(text, encoding="utf-8")
    part.replace(out / "README.md")
