"""The published CIFAR-10 ResNet-20 made spiking, measured and tuned without labels; every step is a public command.

    python reports/cifar10_resnet20/study.py --data DIR            # all steps, about 45 minutes on 2 cores
    python reports/cifar10_resnet20/study.py --data DIR --smoke    # a few images, into --out or a temporary folder

DIR holds cifar10-subset.npz (4,660 training and 846 test images, lossless) and resnet20-12fca82f.th. The networks go
to runs/ (not kept in the repository); sweep.csv, tuned.csv, history.csv, layers_*.csv, the figures and README.md beside
this file are made anew. Test images are used for the reported figures only: nothing is chosen by them.
"""

import argparse
import json
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from speedysnn.cli.main import main as command_line

HERE = Path(__file__).resolve().parent
STEPS = (1, 2, 4, 8, 16, 32, 64)
DELAYS = ("0", "1", "2", "full")
TUNE = ("--augment", "flip-crop", "--match", "5", "--seed", "0")


class Study:
    """The commands, their inputs and what they wrote."""

    def __init__(self, data: Path, out: Path, smoke: bool) -> None:
        self.data, self.out, self.smoke = data, out, smoke
        self.runs = out / "runs"
        self.commands: list[str] = []
        self.spec = f"npz:{data / 'cifar10-subset.npz'}"
        self.limit = ("--limit", "32") if smoke else ()

    def command(self, *arguments: str) -> None:
        """Run one public command, and keep it as it would be typed."""
        shown = " ".join(["speedysnn", *arguments]).replace(str(self.data), "DIR").replace(f"{self.out}/", "")
        self.commands.append(shown.replace(f"{HERE}/", ""))
        print("$", self.commands[-1], flush=True)
        if not self.smoke:
            subprocess.run([sys.executable, "-m", "speedysnn", *arguments], check=True)
        elif code := command_line(list(arguments)):  # in this process: most of a command on few images is its start
            sys.exit(f"study: the command above ended with {code}")

    def run(self, name: str) -> str:
        """Path of one of the study's networks or JSON files."""
        return str(self.runs / name)

    def convert(self) -> None:
        """Inspect and convert the checkpoint at T = 4, one threshold a channel."""
        source = (f"{HERE / 'resnet20.py'}:make", "--checkpoint", str(self.data / "resnet20-12fca82f.th"))
        self.command("inspect", *source, "--input-shape", "3,32,32", "--json", self.run("inspect.json"),
                     "--overwrite")  # fmt: skip
        images = "32" if self.smoke else "1024"
        self.command("convert", *source, "--data", self.spec, "--normalize", "imagenet", "--limit", images, "-T", "4", "--correct", "none",
                     "--seed", "0", "-o", self.run("untuned.snn"), "--overwrite")  # fmt: skip

    def sweep(self) -> pd.DataFrame:
        """Accuracy over T, look-ahead and spike kind, thresholds recalibrated for each T, nothing tuned."""
        steps = "1,4" if self.smoke else ",".join(map(str, STEPS))
        kinds = ("binary", "ternary")
        frames = [self.evaluate("untuned", steps, DELAYS, kind, "--recalibrate", label="sweep") for kind in kinds]
        return pd.concat(frames).assign(tuned="no")

    def evaluate(
        self, name: str, steps: str, delays: tuple[str, ...], spikes: str, *more: str, label: str = "tuned"
    ) -> pd.DataFrame:
        """The rows of one `evaluate` command on the test images."""
        out = self.run(f"evaluate-{name}-{spikes}-{label}.json")
        self.command("evaluate", self.run(f"{name}.snn"), "--data", self.spec, "-T", steps, "--delay",
                     ",".join(delays), "--spikes", spikes, *more, *self.limit, "--json", out, "--overwrite")  # fmt: skip
        rows = json.loads(Path(out).read_text(encoding="utf-8"))["rows"]
        return pd.DataFrame(rows).assign(network=name)

    def tune(self) -> tuple[pd.DataFrame, pd.DataFrame]:
        """The quantized stage, then the spiking stage at look-ahead 0 for each spike kind; no labels."""
        epochs = ("1", "1") if self.smoke else ("24", "4")
        common = ("--data", self.spec, *TUNE, *self.limit)
        self.finetune("untuned", "twin", *common, "--epochs-quantized", epochs[0], "--epochs-spiking", "0")
        source = ("--source", self.run("untuned.snn"))
        rows = [self.evaluate("twin", "4", DELAYS, "binary", *source).assign(tuned="quantized")]
        rows.append(self.evaluate("twin", "4", DELAYS, "ternary", *source).assign(tuned="quantized"))
        for kind in ("binary", "ternary"):
            self.finetune("twin", kind, *common, *source, "--epochs-quantized", "0", "--epochs-spiking", epochs[1],
                          "--spikes", kind, "--delay", "0")  # fmt: skip
            rows.append(self.evaluate(kind, "4", ("0",), kind, *source).assign(tuned="quantized + spiking"))
        history = []
        for name in ("twin", "binary", "ternary"):
            entries = json.loads(Path(self.run(f"finetune-{name}.json")).read_text(encoding="utf-8"))["history"]
            history.append(pd.DataFrame(entries).assign(network=name))
        return pd.concat(rows), pd.concat(history)

    def finetune(self, before: str, after: str, *options: str) -> None:
        """One `finetune` command."""
        self.command("finetune", self.run(f"{before}.snn"), "-o", self.run(f"{after}.snn"), "--overwrite", *options,
                     "--json", self.run(f"finetune-{after}.json"))  # fmt: skip

    def analyze(self) -> None:
        """Noise reports at T = 4, before and after; each layer's row is kept as csv."""
        cases = {
            "untuned_delay0": ("untuned", "0"),
            "untuned_delay1": ("untuned", "1"),
            "twin_delay1": ("twin", "1"),
            "binary_delay0": ("binary", "0"),
            "ternary_delay0": ("ternary", "0"),
        }
        for label, (name, delay) in cases.items():
            folder = self.run(f"noise_{label}")
            source = () if name == "untuned" else ("--source", self.run("untuned.snn"))
            self.command("analyze", self.run(f"{name}.snn"), "--data", self.spec, "--delay", delay, *source, "-o",
                         folder, "--overwrite", *self.limit)  # fmt: skip
            shutil.copy(Path(folder) / "layers.csv", self.out / f"layers_{label}.csv")


def machine() -> str:
    """The kind of machine, without its name."""
    return f"{torch.get_num_threads()} threads of one CPU ({platform.machine()}), torch {torch.__version__}, no GPU"


def main() -> None:
    """Run all steps and write the tables, figures and README.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=HERE.parents[2] / "shared" / "data")
    parser.add_argument("--out", type=Path, help="where to write; this folder, or a temporary one with --smoke")
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--only", choices=("convert", "sweep", "tune", "analyze", "write"), action="append")
    options = parser.parse_args()
    if not (options.data / "cifar10-subset.npz").is_file():
        sys.exit(f"study: {options.data} holds no cifar10-subset.npz; give the folder with --data")
    out: Path = options.out or (Path(tempfile.mkdtemp()) if options.smoke else HERE)
    study = Study(options.data, out, options.smoke)
    study.runs.mkdir(parents=True, exist_ok=True)
    steps = options.only or ("convert", "sweep", "tune", "analyze", "write")
    if "convert" in steps:
        study.convert()
    if "sweep" in steps:
        study.sweep().to_csv(study.out / "sweep.csv", index=False)
    if "tune" in steps:
        tuned, history = study.tune()
        tuned.to_csv(study.out / "tuned.csv", index=False)
        history.to_csv(study.out / "history.csv", index=False)
    if "analyze" in steps:
        study.analyze()
    log = study.runs / "commands.json"
    before: list[Any] = json.loads(log.read_text(encoding="utf-8")) if log.is_file() and options.only else []
    log.write_text(json.dumps([*before, *study.commands]), encoding="utf-8")
    if "write" in steps:
        sys.path.insert(0, str(HERE))
        from present import write

        write(study.out, json.loads(log.read_text(encoding="utf-8")), machine())


if __name__ == "__main__":
    main()
