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
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from plans import CALIBRATION, KEY, PLANS, Setting, Table, tested
from present import write
from qcfs import trained_with_qcfs
from torch import nn

from speedysnn import analysis, convert, data
from speedysnn.assets.digits import load_digits_net
from speedysnn.network import SpikingNetwork
from speedysnn.sources import load_model

HERE = Path(__file__).resolve().parent
RESNET = HERE.parent / "cifar10_resnet20" / "resnet20.py"
FIELDS = ("images", "accuracy", "analog_accuracy", "twin_accuracy", "agreement", "logit_error", "twin_logit_error",
          "spikes_per_neuron", "spikes_per_inference", "neurons", "latency")  # fmt: skip
PARTS = ("validation", "test")


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
                                  allow_hybrid=bool(kept), correct="none")  # fmt: skip

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
        write(out, machine())


if __name__ == "__main__":
    main()
