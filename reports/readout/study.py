"""How the input enters and when the answer is read: encoders, delayed read-out, early exit and graded spikes.

    python reports/readout/study.py                 # the bundled digits network, a few minutes on 2 cores
    python reports/readout/study.py --data DIR      # and the CIFAR-10 ResNet-20, about half an hour on 2 cores
    python reports/readout/study.py --smoke         # the same path on a few images, for a quick check

DIR holds cifar10-subset.npz and resnet20-12fca82f.th (see reports/cifar10_resnet20). Every step is a public command;
networks and JSON go to runs/ (not kept in the repository), encoders.csv, readout.csv, exits.csv, chosen.csv,
graded.csv, the figures and README.md beside this file are made anew. Nothing is chosen by test images: thresholds come
from training images, the exit's confidence from the train split.
"""

import argparse
import json
import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pandas as pd
import torch

HERE = Path(__file__).resolve().parent
RESNET = HERE.parent / "cifar10_resnet20" / "resnet20.py"
CONFIDENCES = "0.3,0.5,0.7,0.8,0.9,0.95,0.98,0.99,0.995,0.999,0.9999"
ALLOWED = "0.005"


class Study:
    """One network's commands, its data and what they wrote."""

    def __init__(self, network: str, spec: str, hidden: Path | None, out: Path, limit: int | None, smoke: bool) -> None:
        self.network, self.spec, self.hidden, self.out, self.smoke = network, spec, hidden, out, smoke
        self.runs = out / "runs"
        self.limit = ("--limit", str(limit)) if limit else ()
        self.commands: list[str] = []

    def command(self, *arguments: str) -> None:
        """Run one public command, and keep it as it would be typed."""
        shown = " ".join(["speedysnn", *arguments]).replace(f"{self.out}/", "").replace(f"{HERE.parent}/", "../")
        self.commands.append(shown if self.hidden is None else shown.replace(str(self.hidden), "DIR"))
        print("$", self.commands[-1], flush=True)
        subprocess.run([sys.executable, "-m", "speedysnn", *arguments], check=True, stdout=subprocess.DEVNULL)

    def convert(self, model: str, *options: str) -> None:
        """Convert at T = 4, one threshold a channel."""
        self.command("convert", model, "--data", self.spec, *options, "-T", "4", "--correct", "none", "--seed", "0", "-o",
                     str(self.runs / f"{self.network}.snn"), "--overwrite")  # fmt: skip

    def evaluate(self, label: str, *options: str, seed: int = 0) -> list[dict[str, Any]]:
        """The rows of one `evaluate` command on the test images, thresholds chosen again for each T."""
        out = self.runs / f"{self.network}-{label}-{seed}.json"
        self.command("evaluate", str(self.runs / f"{self.network}.snn"), "--data", self.spec, *options, "--recalibrate",
                     *self.limit, "--seed", str(seed), "--json", str(out), "--overwrite")  # fmt: skip
        rows: list[dict[str, Any]] = json.loads(out.read_text(encoding="utf-8"))["rows"]
        return [{"network": self.network, "seed": seed, **row} for row in rows]

    def encoders(self, steps: str, delays: str, seeds: int) -> pd.DataFrame:
        """Accuracy of every encoder over T and look-ahead; several seeds of the random one."""
        rows = []
        for encoder in ("constant", "poisson", "latency"):
            for seed in range(seeds if encoder == "poisson" else 1):
                rows += self.evaluate(f"encoder-{encoder}", "-T", steps, "--delay", delays, "--encoder", encoder,
                                      seed=seed)  # fmt: skip
        return pd.DataFrame(rows)

    def readout(self, steps: tuple[int, ...], delays: str) -> pd.DataFrame:
        """Accuracy when the first k steps are left out."""
        rows = []
        for timesteps in steps:
            skip = ",".join(map(str, sorted({0, 1, 2, 3, timesteps // 4, timesteps // 2} & set(range(timesteps)))))
            rows += self.evaluate(f"skip-{timesteps}", "-T", str(timesteps), "--delay", delays, "--readout-skip", skip)
        return self.inner(rows, "readout")

    def exits(self, steps: str, delays: str) -> tuple[pd.DataFrame, pd.DataFrame]:
        """Early exit over confidences, the last one chosen on the train split; and that choice."""
        rows = self.evaluate("exit", "-T", steps, "--delay", delays, "--early-exit", CONFIDENCES, "--exit-loss", ALLOWED)
        chosen = [{"network": self.network, "delay": str(row["delay"]), **row["chosen_exit"]} for row in rows]
        for row in rows:
            for position, inner in enumerate(row["early_exit"]):
                inner["chosen"] = position == len(row["early_exit"]) - 1
        return self.inner(rows, "early_exit"), pd.DataFrame(chosen)

    def graded(self, totals: tuple[int, ...], delays: str) -> pd.DataFrame:
        """The same number of levels T N + 1 out of fewer steps of more spikes."""
        rows = []
        for grade in (1, 2, 4, 8, 16):
            steps = [total // grade for total in totals if total >= grade]
            if steps:
                kind = "binary" if grade == 1 else f"graded:{grade}"
                found = self.evaluate(f"graded-{grade}", "-T", ",".join(map(str, steps)), "--delay", delays, "--spikes", kind)
                rows += [{**row, "grade": grade, "levels": row["timesteps"] * grade + 1} for row in found]
        return pd.DataFrame(rows)

    def inner(self, rows: list[dict[str, Any]], key: str) -> pd.DataFrame:
        """The rows below a key, each with the network's name and what all steps and the source give."""
        return pd.DataFrame([
            {"network": self.network, **inner, "whole_accuracy": row["accuracy"], "analog_accuracy": row["analog_accuracy"],
             "twin_accuracy": row["twin_accuracy"]}
            for row in rows for inner in row[key]
        ])  # fmt: skip


def measure(study: Study, small: bool) -> dict[str, pd.DataFrame]:
    """All tables of one network."""
    few = small or study.smoke
    exits, chosen = study.exits("4" if study.smoke else "8", "0,1" if few else "0,1,full")
    return {
        "encoders": study.encoders("1,4" if study.smoke else "4,8,16" if small else "1,2,4,8,16,32",
                                   "0,1" if few else "0,1,full", 1 if few else 5),
        "readout": study.readout((4,) if study.smoke else (4, 8, 16), "0,1"),
        "exits": exits,
        "chosen": chosen,
        "graded": study.graded((4,) if study.smoke else (4, 8, 16), "0,1"),
    }  # fmt: skip


def main() -> None:
    """Run all steps and write the tables, figures and README.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with the CIFAR-10 subset and the checkpoint")
    parser.add_argument("--out", type=Path, help="where to write; this folder, or a temporary one with --smoke")
    parser.add_argument("--limit", type=int, default=400, help="test images of the ResNet-20")
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--only", choices=("digits", "resnet20", "write"), action="append")
    options = parser.parse_args()
    if options.data is not None and not (options.data / "cifar10-subset.npz").is_file():
        sys.exit(f"study: {options.data} holds no cifar10-subset.npz; give its folder with --data, or leave it out")
    out: Path = options.out or (Path(tempfile.mkdtemp()) if options.smoke else HERE)
    runs = out / "runs"
    runs.mkdir(parents=True, exist_ok=True)
    wanted = options.only or ("digits", "resnet20", "write")
    limit = 48 if options.smoke else options.limit
    if "digits" in wanted:
        study = Study("digits", "digits", None, out, 48 if options.smoke else None, options.smoke)
        study.convert("speedysnn.assets.digits:load_digits_net")
        keep(study, measure(study, small=False))
    if "resnet20" in wanted and options.data is not None:
        study = Study("resnet20", f"npz:{options.data / 'cifar10-subset.npz'}", options.data, out, limit, options.smoke)
        study.convert(f"{RESNET}:make", "--checkpoint", str(options.data / "resnet20-12fca82f.th"), "--normalize",
                      "imagenet", "--limit", "48" if options.smoke else "1024")  # fmt: skip
        keep(study, measure(study, small=True))
    if "write" in wanted:
        write_all(out)


def keep(study: Study, tables: dict[str, pd.DataFrame]) -> None:
    """A network's tables and commands, in runs/."""
    for name, table in tables.items():
        table.to_csv(study.runs / f"{study.network}-{name}.csv", index=False)
    (study.runs / f"{study.network}-commands.json").write_text(json.dumps(study.commands), encoding="utf-8")


def write_all(out: Path) -> None:
    """The csv files of all networks together, then figures and README.md."""
    for name in ("encoders", "readout", "exits", "chosen", "graded"):
        parts = [pd.read_csv(path, dtype={"delay": str}) for path in sorted((out / "runs").glob(f"*-{name}.csv"))]
        drop = ["reading", "reference", "readout", "early_exit", "chosen_exit"]
        pd.concat(parts).drop(columns=drop, errors="ignore").round(6).to_csv(out / f"{name}.csv", index=False)
    logs = [path.read_text(encoding="utf-8") for path in sorted((out / "runs").glob("*-commands.json"))]
    threads = f"{torch.get_num_threads()} thread(s) on a machine of 2 CPU cores ({platform.machine()})"
    sys.path.insert(0, str(HERE))
    from present import write

    write(out, [command for log in logs for command in json.loads(log)], f"{threads}, torch {torch.__version__}, no GPU")


if __name__ == "__main__":
    main()
