"""The studies: what each asks, how it is run, and its headline, read from its own csv files."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from speedysnn.errors import DataError, InputError

HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Study:
    """A folder with a study.py.

    Attributes:
        name: of the folder.
        question: one sentence.
        headline: the figures, from a folder laid out as the study leaves it.
        runs: the arguments of each call of study.py that makes the whole study.
        smoke: the same for its quick version.
        data: "optional" or "needed" where it takes --data with the CIFAR-10 subset and the checkpoint, else "none".
        minutes: of a whole run, about.
    """

    name: str
    question: str
    headline: Callable[[Path], str]
    runs: tuple[tuple[str, ...], ...] = ((),)
    smoke: tuple[tuple[str, ...], ...] = ((),)
    data: str = "none"
    minutes: int = 15


def table(folder: Path, file: str) -> pd.DataFrame:
    """A csv file of a study.

    Raises:
        DataError: it is not there.
    """
    path = folder / file
    if not path.is_file():
        raise DataError(f"reports: {folder.name} has no {file}; make it with `python -m reports run {folder.name}`")
    return pd.read_csv(path, dtype={"delay": str})


def percent(fraction: float) -> str:
    """0.917 -> "91.7 %"."""
    return f"{100 * fraction:.1f} %"


def one(rows: pd.DataFrame, **wanted: object) -> pd.Series:
    """The only row with these values.

    Raises:
        DataError: none, or several.
    """
    for column, value in wanted.items():
        rows = rows[rows[column] == value]
    if len(rows) != 1:
        raise DataError(f"reports: expected one row with {wanted}, found {len(rows)}; run the study again")
    return rows.iloc[0]


def coverage(folder: Path) -> str:
    """How many networks convert, and the largest errors."""
    rows = table(folder, "coverage.csv")
    kinds = rows.treatment.value_counts()
    return (
        f"{len(rows)} networks: {kinds.get('spiking', 0)} spiking, {kinds.get('hybrid', 0)} hybrid, "
        f"{kinds.get('unsupported', 0)} unsupported; largest relative error of the analog reading "
        f"{rows.analog_error.max():.0e}, of full look-ahead against the quantized reading {rows.full_error.max():.0e}"
    )


def noise(folder: Path) -> str:
    """What the best change was predicted to gain, and what it gained."""
    parts = []
    for name in ("digits", "resnet20", "densenet121"):
        best = one(table(folder / name, "prediction.csv").query("delay == '0'"), rank=1)
        parts.append(f"{name} {best.predicted_db:.1f} dB predicted, {best.realised_db:.1f} dB realised")
    deep = one(table(folder / "deep100", "prediction.csv"), rank=1)
    return (
        f"gain of the best change at T = 4, delay 0: {'; '.join(parts)}; at T = 16, delay 1: deep100 "
        f"{deep.predicted_db:.2f} dB predicted, {deep.realised_db:.2f} dB realised"
    )


def readout(folder: Path) -> str:
    """Early exit at delay 1 and graded spikes."""
    parts = []
    exits, graded = table(folder, "exits.csv"), table(folder, "graded.csv")
    for name in dict.fromkeys(exits.network):
        last = one(exits, network=name, delay="1", chosen=True)
        rows = graded[(graded.network == name) & (graded.delay == "0") & (graded.levels == 17)]
        binary, burst = one(rows, grade=1), one(rows, grade=16)
        parts.append(
            f"{name}: early exit at delay 1 {percent(last.accuracy)} after {last.mean_steps:.1f} of {last.timesteps} "
            f"steps (all: {percent(last.whole_accuracy)}); 17 levels at delay 0 {percent(binary.accuracy)} in 16 binary "
            f"steps, {percent(burst.accuracy)} in one graded step"
        )
    return "; ".join(parts)


def speed(folder: Path) -> str:
    """Ours against T times the source and against SpikingJelly."""
    rows, parts = table(folder, "speed.csv"), []
    for run, what in (("resnet20", "ResNet-20"), ("resnet18-64", "ResNet-18 at 64 pixels"), ("digits", "digits")):
        here = rows[rows.run == run]
        ours = one(here, contestant="speedysnn")
        peer = here[here.contestant.str.startswith("spikingjelly")].median_ms.min()
        parts.append(f"{what} {ours.ratio:.2f} x as fast as 8 passes of the source, {peer / ours.median_ms:.1f} x SpikingJelly")
    return "T = 8: " + "; ".join(parts)


def thresholds(folder: Path) -> str:
    """The default rule against the maximum on test images at T = 4."""
    rows, parts = table(folder, "thresholds.csv"), []
    fixed = rows[(rows.part == "test") & (rows.granularity == "channel") & (rows.correct == "none") & (rows.keep == "-")]
    for network in ("digits-avg", "resnet20"):
        for delay in ("0", "1"):
            here = fixed[(fixed.network == network) & (fixed.timesteps == 4) & (fixed.delay == delay)]
            mse, largest = one(here, rule="mse"), one(here, rule="max")
            parts.append(f"{network}, delay {delay}: mse {percent(mse.accuracy)}, max {percent(largest.accuracy)}")
    return "T = 4, test images: " + "; ".join(parts)


def cifar10_resnet20(folder: Path) -> str:
    """Before and after tuning at T = 4."""
    sweep, tuned = table(folder, "sweep.csv"), table(folder, "tuned.csv")
    parts = []
    for spikes, delay, stage in (("binary", "1", "quantized"), ("binary", "0", "quantized + spiking"),
                                 ("ternary", "0", "quantized + spiking")):  # fmt: skip
        before = one(sweep, timesteps=4, spikes=spikes, delay=delay)
        after = one(tuned, spikes=spikes, delay=delay, tuned=stage)
        parts.append(
            f"{spikes}, delay {delay} (latency {after.latency}) {percent(before.accuracy)} → {percent(after.accuracy)}, "
            f"{after.spikes_per_neuron:.2f} spikes per neuron"
        )
    return f"source {percent(sweep.analog_accuracy.iloc[0])}; T = 4, untuned → tuned without labels: " + "; ".join(parts)


def imagenet(folder: Path) -> str:
    """The quantized reading by method, for every T."""
    every, parts = table(folder, "cells.csv"), []
    rows = every[every.network == "lite0"]
    for steps, group in rows[(rows.delay == "full") & (rows.spikes == "binary")].groupby("timesteps"):
        found = ", ".join(f"{row.method} {percent(row.accuracy)}" for row in group.itertuples())
        parts.append(f"T = {steps}: {found}")
    return f"EfficientNet-Lite0, source {percent(rows.analog_accuracy.iloc[0])}; full look-ahead, {'; '.join(parts)}"


def peers(folder: Path) -> str:
    """Ours beside the best setting of each peer at one T a network."""
    rows, parts = table(folder, "peers.csv"), []
    names = {"spikingjelly": "SpikingJelly", "sinabs": "sinabs"}
    wanted = (("digits-avg", 2), ("digits-max", 4), ("fashion-mnist", 4), ("resnet20", 8))
    for network, steps in (pair for pair in wanted if pair[0] in set(rows.network)):
        here = rows[(rows.network == network) & (rows.timesteps == steps) & (rows.spikes == "binary")]
        ours, corrected = ([one(here, contestant=f"speedysnn binary, delay {delay}{more}") for delay in (0, 1)]
                           for more in ("", ", bias corrected"))  # fmt: skip
        best = [f"best of {names[package]} {percent(here[here.package == package].accuracy.max())}"
                for package in names if package in set(here.package)]  # fmt: skip
        shown = ", ".join(f"delay {delay} {percent(plain.accuracy)} (corrected {percent(better.accuracy)})"
                          for delay, (plain, better) in enumerate(zip(ours, corrected, strict=True)))  # fmt: skip
        parts.append(f"{network}, T = {steps}: source {percent(ours[0].ann_accuracy)}, ours {shown}, {', '.join(best)}")
    return "untuned, binary spikes; " + "; ".join(parts)


def finetune(folder: Path) -> str:
    """Accuracies of the tuned ResNet-20, and how alike the two gradients of theta are."""
    rows = table(folder, "resnet20.csv")
    parts = []
    for name, words in (("T4-long", "all trained, delay 1"), ("thresholds", "thresholds alone, delay 1"),
                        ("binary-long", "all trained, delay 0")):  # fmt: skip
        pair = rows[rows["row"] == name]
        before, after = (one(pair, network=kind) for kind in ("untuned", "tuned"))
        parts.append(f"{words} {percent(before['accuracy'])} → {percent(after['accuracy'])}")
    likeness = table(folder, "gradients.csv")
    usual = likeness[likeness["surrogate"] == "rectangle 1"].groupby("delay")["correlation_step"].mean()
    source = percent(rows["analog_accuracy"].iloc[0])
    return (
        f"ResNet-20, source {source}, T = 4, no labels: {'; '.join(parts)}; gradients of theta through time and of the "
        f"step rule correlate {usual['0']:.2f} at delay 0, {usual['1']:.2f} at delay 1"
    )


def corrections(folder: Path) -> str:
    """Mean gain of each network by the correction that gains most on held-out images, and the cells it loses."""
    rows = table(folder, "gains.csv")
    totals = rows.groupby("correct")["held_mean"].mean()
    best = str(totals[rows.groupby("correct")["network"].nunique() == rows.network.nunique()].idxmax())
    here = rows[rows.correct == best]
    parts = [f"{row.network} {row['mean']:+.1f} points (least {row['least']:+.1f})" for _, row in here.iterrows()]
    return (
        f"`{best}`, chosen on held-out training images; mean over T, look-aheads and spikes of the test accuracy: "
        f"{', '.join(parts)}; {here.lost.sum()} of {here.cells.sum()} cells lose beyond chance"
    )


def chip(folder: Path) -> str:
    """Accuracy of source, floating point and few bits, a part a network and T."""
    rows, parts = table(folder, "cells.csv"), []
    wide = rows[(rows.granularity == "channel") & (rows.state_bits == 32)]
    for (network, steps), group in wide.groupby(["network", "timesteps"], sort=False):
        shown = [f"{words} {percent(one(cells, weight_bits=bits).accuracy)}"
                 for bits, rounding, words in ((8, "nearest", "8 bits"), (4, "nearest", "4 bits"), (4, "reconstruct", "4 bits reconstructed"))
                 if len(cells := group[(group.rounding == rounding) & (group.weight_bits == bits)])]  # fmt: skip
        first = group.iloc[0]
        parts.append(f"{network}, T = {steps}: source {percent(first.source_accuracy)}, spiking {percent(first.float_accuracy)}, "
                     f"{', '.join(shown)}")  # fmt: skip
    return "look-ahead 1, the C program's accuracy; " + "; ".join(parts)


def trust(folder: Path) -> str:
    """Cases, kills, and what failed."""
    parts = []
    for file, words in (("fuzz", "mutated"), ("guided", "grown by coverage")):
        rows = table(folder, f"{file}.csv")
        parts.append(f"{rows.cases.min():.0f} inputs {words} for each of {len(rows)} targets: {rows.failed.sum():.0f} failures")
    rows = table(folder, "kills.csv")
    parts.append(f"{len(rows)} commands at {rows.rounds.min():.0f} random moments each, {rows.killed.sum():.0f} killed in time "
                 f"and {rows.at_writes.sum():.0f} more at their writes: {rows.faults.sum():.0f} losses")  # fmt: skip
    return "; ".join(parts)


STUDIES: dict[str, Study] = {
    study.name: study
    for study in (
        Study("coverage", "Which classification networks of torchvision convert, and how exactly?", coverage, minutes=60),
        Study("noise", "What does a noise report say, and does the change it proposes gain what it predicts?", noise,
              (("digits",), ("resnet20",), ("densenet121",), ("deep100",)), (("digits",),), "needed", 60),
        Study("thresholds", "Which threshold rule, correction and layers kept analog serve when?", thresholds,
              data="optional", minutes=20),
        Study("corrections", "Which correction after the thresholds serves when?", corrections, data="optional", minutes=30),
        Study("readout", "How should the input enter, and when can the answer be read?", readout, data="optional",
              minutes=40),
        Study("cifar10_resnet20", "What does a published CIFAR-10 network reach in four steps, untuned and tuned?",
              cifar10_resnet20, data="needed", minutes=45),
        Study("imagenet", "What does an ImageNet network reach in few steps, in closed form and reconstructed?", imagenet,
              smoke=(("--epochs", "1", "--output-epochs", "1"),), data="optional", minutes=180),
        Study("finetune", "Which gradient of theta, which stages, and how far does tuning come without labels?", finetune,
              data="needed", minutes=240),
        Study("speed", "What does simulation cost beside the source network and beside SpikingJelly?", speed),
        Study("chip", "What do few bits cost, what do states need, and does the C program's time follow the spikes?", chip,
              data="optional", minutes=90),
        Study("trust", "What do damaged and hostile files do, and what does a kill at any moment leave?", trust, minutes=120),
        Study("peers", "What do other converters make of the same networks, images and steps?", peers, data="optional"),
    )
}  # fmt: skip


def find(name: str) -> Study:
    """A study by its name.

    Raises:
        InputError: there is none of that name.
    """
    if name not in STUDIES:
        raise InputError(f"reports: no study {name!r}; expected one of {', '.join(STUDIES)}")
    return STUDIES[name]


def page(folder: Path = HERE, studies: Sequence[Study] = tuple(STUDIES.values())) -> str:
    """README.md of the folder: one row a study, its figures taken from its files."""
    rows = [f"| [{s.name}]({s.name}/README.md) | {s.question} | {s.headline(folder / s.name)} |" for s in studies]
    return TEXT.format(rows="\n".join(rows))


TEXT = """# Studies

Every figure this project publishes comes from one of these folders: `study.py` makes its csv files, figures and
README.md again, and says what was run, on what, with which seed. This page is made from those csv files by
`python -m reports write`; a test holds it to them.

| study | question | headline |
|---|---|---|
{rows}

From the project's root, with the package installed (`pip install -e ".[test,bench]"`):

```
python -m reports list                     # names, questions, minutes
python -m reports run peers                # makes a study again, in its folder
python -m reports run peers --smoke        # the same path on a few images, in a temporary folder, one to four minutes of a free core
python -m reports run noise --data DIR     # DIR holds cifar10-subset.npz and resnet20-12fca82f.th
```

Exit codes: 0 done, 1 a study failed or lacks its data, 2 a wrong argument. Accuracies on few test images (digits 597,
CIFAR-10 846 or fewer) have a standard error of about half a point to two points; each study says which.
"""
