"""Threshold rules, corrections and layers kept analog: which serves when, measured on four networks.

    python reports/thresholds/study.py                 # everything; rows already in thresholds.csv are kept
    python reports/thresholds/study.py --only write    # tables, figures and README.md again from the csv file
    python reports/thresholds/study.py --smoke         # a few images, into --out or a temporary folder

The ResNet-20 needs --data DIR with cifar10-subset.npz and resnet20-12fca82f.th (see reports/cifar10_resnet20); without
them it is left out. All splits are by seed 0: a validation part is held out of the training images, thresholds and
corrections see other training images only, and whatever is chosen is chosen by the validation part. Test images are
run for the settings so chosen and for fixed reference settings, and reported.
"""

import argparse
import os
import platform
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from qcfs import trained_with_qcfs
from torch import nn

from speedysnn import analysis, convert, data
from speedysnn.assets.digits import load_digits_net
from speedysnn.network import SpikingNetwork
from speedysnn.sources import load_model

HERE = Path(__file__).resolve().parent
RESNET = HERE.parent / "cifar10_resnet20" / "resnet20.py"
RULES = ("mse", "gaussian", "laplace", "half-normal", "percentile:99", "percentile:99.9", "max")
CORRECTIONS = ("bias", "potential", "bias+potential")
FIELDS = ("images", "accuracy", "analog_accuracy", "twin_accuracy", "agreement", "logit_error", "twin_logit_error",
          "spikes_per_neuron", "spikes_per_inference", "neurons", "latency")  # fmt: skip
KEY = ["network", "part", "rule", "granularity", "correct", "keep", "timesteps", "delay"]
CALIBRATION = 512
PARTS = ("validation", "test")


@dataclass(frozen=True)
class Setting:
    """How a network is converted and run; `keep` names the layers kept analog, "+" between, "-" for none."""

    timesteps: int
    delay: int
    rule: str = "mse"
    granularity: str = "channel"
    correct: str = "none"
    keep: str = "-"


@dataclass(frozen=True)
class Plan:
    """Which settings a network is measured at on the validation part, each at delays 0 and 1."""

    rules: dict[str, tuple[tuple[str, ...], tuple[int, ...]]]  # granularity -> (rules, T)
    steps: tuple[int, ...]  # for the first rule of each granularity and "max", beyond those of `rules`
    corrected: tuple[int, ...]
    keep: tuple[str, ...]
    kept: tuple[int, ...]
    correction_images: int
    validation: int
    correct_rules: tuple[str, ...] = ("mse",)
    longest_test: int = 32  # T; longer ones are run on the validation part only

    def settings(self) -> dict[str, list[Setting]]:
        """The settings by the question they answer: "rules", "corrections", "keep"."""
        both, first = (0, 1), next(iter(self.rules))
        rules = [Setting(t, d, rule, part) for part, (names, steps) in self.rules.items()
                 for t in steps for d in both for rule in names]  # fmt: skip
        rules += [Setting(t, d, rule, first) for t in self.steps for d in both for rule in ("mse", "max")]
        corrections = [Setting(t, d, rule, first, kind) for t in self.corrected for d in both
                       for rule in self.correct_rules for kind in CORRECTIONS]  # fmt: skip
        keep = [Setting(t, d, keep=name) for name in self.keep for t in self.kept for d in both]
        return {"rules": rules, "corrections": corrections, "keep": keep}


ALL, FEW = (1, 2, 4, 8, 16, 32), (1, 2, 4, 8)
KEEP_DIGITS = ("relu1", "relu1+conv2", "relu5+fc2")
KEEP_RESNET = ("relu", "relu+layer1.0.conv1", "relu+layer1", "layer3.2+linear")
PLANS = {
    "digits-avg": Plan({"channel": (RULES, ALL), "layer": (RULES, ALL)}, (), ALL, KEEP_DIGITS, (1, 2, 4), 256, 256,
                       ("mse", "max")),
    "digits-max": Plan({"channel": (RULES, FEW), "layer": (RULES, FEW)}, (), FEW, KEEP_DIGITS, (1, 2, 4), 256, 256,
                       ("mse", "max")),
    "digits-qcfs": Plan({"layer": (("clip", "mse", "half-normal", "percentile:99.9", "max"), ALL)}, (), ALL, (), (), 256,
                        256, ("clip",)),
    "resnet20": Plan({"channel": (RULES, (4, 2, 8, 16)), "layer": (("mse", "percentile:99.9", "max"), (2, 4))}, (32,),
                     (2, 4, 8), KEEP_RESNET, (2, 4), 64, 192, longest_test=8),
}  # fmt: skip


class Table:
    """The csv file, one row a measurement; what it holds is not measured again."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[dict[str, Any]] = pd.read_csv(path).to_dict("records") if path.is_file() else []
        self.done = {tuple(row[name] for name in KEY) for row in self.rows}

    def add(self, row: dict[str, Any]) -> None:
        """Keep a row; the file is replaced as a whole."""
        self.rows.append(row)
        self.done.add(tuple(row[name] for name in KEY))
        part = self.path.with_suffix(".part")
        pd.DataFrame(self.rows).round(6).to_csv(part, index=False)
        part.replace(self.path)


class Subject:
    """A network with its calibration, validation and test images."""

    def __init__(self, name: str, folder: Path | None, smoke: bool) -> None:
        self.name, self.plan = name, PLANS[name]
        spec, extra = "digits", dict[str, Any]()
        if name == "resnet20":
            spec, extra = f"npz:{folder}/cifar10-subset.npz", {"normalize": "imagenet"}
        train = data.load(spec, "train", **extra)
        rest, held = data.split_holdout(train, self.plan.validation / len(train), seed=0)
        assert isinstance(rest, data.ImageData)
        assert isinstance(held, data.ImageData)
        self.rest, self.calibration = rest, rest.subset(range(32 if smoke else CALIBRATION))
        self.few = rest.subset(range(16 if smoke else self.plan.correction_images))
        self.images = {"validation": held.subset(range(16)) if smoke else held,
                       "test": data.load(spec, "test", limit=16 if smoke else None, **extra)}  # fmt: skip
        self.model = self._model(folder, smoke)
        self.network = lru_cache(maxsize=4)(self._network)

    def _model(self, folder: Path | None, smoke: bool) -> nn.Module:
        if self.name == "resnet20":
            assert folder is not None
            return load_model(f"{RESNET}:make", checkpoint=folder / "resnet20-12fca82f.th").model
        if self.name == "digits-qcfs":
            return trained_with_qcfs(load_digits_net(), self.rest, 1 if smoke else 15)
        return load_digits_net(self.name.removeprefix("digits-"))

    def _network(self, granularity: str, keep: str) -> SpikingNetwork:
        kept = () if keep == "-" else tuple(keep.split("+"))
        return convert.to_spiking(self.model, self.calibration, granularity=granularity, keep_analog=kept,
                                  allow_hybrid=bool(kept))  # fmt: skip

    def measure(self, setting: Setting, part: str, table: Table) -> None:
        """One row, unless the table has it."""
        row = {"network": self.name, "part": part, **asdict(setting)}
        if tuple(row[name] for name in KEY) in table.done:
            return
        began = time.process_time()
        snn = self.network(setting.granularity, setting.keep)
        snn.calibration.rules = dict.fromkeys(snn.neurons, setting.rule)
        snn.timesteps = setting.timesteps
        snn.set_delay(setting.delay)
        snn.recalibrate()
        if setting.correct != "none":
            convert.apply_correction(snn, self.few, setting.correct)
        found = analysis.evaluate(snn, self.images[part])
        row |= {field: getattr(found, field) for field in FIELDS}
        row["cpu_seconds"] = round(time.process_time() - began, 2)
        table.add({name: row[name] for name in (*KEY, *FIELDS, "cpu_seconds")})


def best(table: Table, name: str, settings: Sequence[Setting]) -> Setting:
    """The setting with the highest agreement with the source on the validation part, at a tie the smallest error."""
    rows = {tuple(row[key] for key in KEY[2:]): row for row in table.rows
            if row["network"] == name and row["part"] == "validation"}  # fmt: skip

    def order(setting: Setting) -> tuple[float, float]:
        row = rows[tuple(asdict(setting)[key] for key in KEY[2:])]
        return -row["agreement"], row["logit_error"]

    return min(settings, key=order)


def tested(table: Table, name: str) -> list[Setting]:
    """Settings to report on test images: the first rule at each T and delay, "max" at T = 4, and those chosen."""
    plan = PLANS[name].settings()
    out: list[Setting] = []
    first, granularity = plan["rules"][0].rule, plan["rules"][0].granularity
    pairs = sorted({(s.timesteps, s.delay) for s in plan["rules"] if s.timesteps <= PLANS[name].longest_test})
    for t, d in pairs:
        here = {kind: [s for s in some if (s.timesteps, s.delay) == (t, d)] for kind, some in plan.items()}
        plain = Setting(t, d, first, granularity)
        out += [plain, best(table, name, here["rules"])]
        out += [best(table, name, here["corrections"])] if here["corrections"] else []
        out += [best(table, name, here["keep"])] if here["keep"] else []
        out += [Setting(t, d, "max", granularity)] if t == 4 else []
    return list(dict.fromkeys(out))


def measure(name: str, folder: Path | None, table: Table, smoke: bool) -> None:
    """The validation part, then what it chose on the test images."""
    subject = Subject(name, folder, smoke)
    for kind, settings in subject.plan.settings().items():
        for setting in settings:
            subject.measure(setting, "validation", table)
        print(f"{name} {kind}: {time.process_time():.0f} s of CPU", flush=True)
    for setting in tested(table, name):
        subject.measure(setting, "test", table)
    print(f"{name} test: {time.process_time():.0f} s of CPU", flush=True)


def machine() -> str:
    """The kind of machine, without its name."""
    cores = os.cpu_count()
    return f"{torch.get_num_threads()} thread(s) on a machine of {cores} CPU cores ({platform.machine()}), torch {torch.__version__}, no GPU"


def main() -> None:
    """Measure what is missing, then write the figures and README.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with the CIFAR-10 subset and the checkpoint")
    parser.add_argument("--out", type=Path, help="where to write; this folder, or a temporary one with --smoke")
    parser.add_argument("--only", choices=(*PLANS, "write"), action="append")
    parser.add_argument("--smoke", action="store_true")
    options = parser.parse_args()
    folder: Path | None = options.data or HERE.parents[2] / "shared" / "data"
    if folder is not None and not (folder / "cifar10-subset.npz").is_file():
        if options.data is not None:
            sys.exit(f"study: {folder} holds no cifar10-subset.npz; give its folder with --data, or leave it out")
        print("study: no CIFAR-10 data, so the ResNet-20 is left out; give its folder with --data", flush=True)
        folder = None
    out: Path = options.out or (Path(tempfile.mkdtemp()) if options.smoke else HERE)
    out.mkdir(parents=True, exist_ok=True)
    wanted = options.only or (*PLANS, "write")
    table = Table(out / "thresholds.csv")
    for name in PLANS:
        if name in wanted and (folder is not None or name != "resnet20"):
            measure(name, folder, table, options.smoke)
    if "write" in wanted:
        from present import write

        write(out, machine())


if __name__ == "__main__":
    main()
