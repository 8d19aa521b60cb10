"""Noise reports of four networks, and whether the best change found by each gains what was predicted.

    python reports/noise/study.py digits                       # the bundled network, about 2 minutes on 2 cores
    python reports/noise/study.py resnet20 --data DIR          # a published CIFAR-10 checkpoint, about 15 minutes
    python reports/noise/study.py densenet121 --data DIR       # torchvision, 120 neuron layers, about 20 minutes
    python reports/noise/study.py deep100                      # 103 neuron layers trained on Fashion-MNIST, about 20 minutes
    python reports/noise/study.py digits --smoke               # a few images, into --out or a temporary folder

DIR holds cifar10-subset.npz and resnet20-12fca82f.th. The DenseNet has random weights and batch-norm statistics (seed
0), since nothing is downloaded: it shows the report of a deep network, not an accuracy. Each network's report goes to
the folder of its name, prediction.csv beside it, and README.md is made anew from all of them. Calibration, sensitivity
and the choice of the change use training images; the change is then carried out and measured on test images.

deep100 is trained by the study on 50,000 images and ranked on others of the training split that it was not fitted to.
Of deep100 and the DenseNet the eight best changes are measured again on 1,024 further images, which alone predict. For
deep100 T = 16 and a look-ahead of one are the least of T = 4, 8, 16 and look-ahead 0, 1 that kept 80 % on 256 of the
ranking's images. --weights DIR keeps its trained weights there and reads them again.
"""

import argparse
import copy
import json
import platform
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import deep
import pandas as pd
import torch
from torch import Tensor, nn
from torch.utils.data import Subset

import speedysnn
from speedysnn import analysis, convert, data
from speedysnn.assets.digits import load_digits_net
from speedysnn.sources import load_model

HERE = Path(__file__).resolve().parent
T, LARGEST = 4, 2**20


@dataclass(frozen=True)
class Case:
    """A network, its images, and how many of them each step takes."""

    build: Callable[[Path | None, bool], nn.Module]
    images: Callable[[Path | None, str, int], Any]
    calibration: int
    sensitivity: int
    measured: int
    sweep: tuple[int, ...] = (1, 2, 4, 8, 16)
    delays: tuple[int, ...] = (0, 1)
    gains: tuple[str, ...] | bool = True
    modes: tuple[str, ...] = ("isolated", "prefix", "leave_one_out")
    timesteps: int = T
    confirm: int = 0
    calibrate: str = "train"


def cifar(folder: Path | None, split: str, limit: int) -> Any:
    """CIFAR-10 as the checkpoint saw it."""
    assert folder is not None
    return data.load(f"npz:{folder / 'cifar10-subset.npz'}", split, normalize="imagenet", limit=limit, seed=0)


def resnet20(folder: Path | None, _: bool) -> nn.Module:
    """The published checkpoint."""
    assert folder is not None
    spec = f"{HERE.parent / 'cifar10_resnet20' / 'resnet20.py'}:make"
    return load_model(spec, checkpoint=folder / "resnet20-12fca82f.th").model


def densenet121(_: Path | None, __: bool) -> nn.Module:
    """Random weights, and batch-norm statistics that do something."""
    torch.manual_seed(0)
    model = load_model("torchvision:densenet121", num_classes=10).model
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            mean, var = module.running_mean, module.running_var
            assert isinstance(mean, Tensor)
            assert isinstance(var, Tensor)
            mean.normal_(0, 0.1)
            var.uniform_(0.5, 1.5)
    return model


CASES = {
    "digits": Case(lambda *_: load_digits_net("avg"), lambda _, split, limit: data.load("digits", split, limit=limit, seed=0), 1200, 1200, 597),
    "resnet20": Case(resnet20, cifar, 1024, 256, 846),
    "densenet121": Case(densenet121, cifar, 256, 320, 846, (4, 16), (0,), ("bit", "look-ahead"), ("isolated",), confirm=1024),
    "deep100": Case(deep.source, deep.images, 1024, 128, 1024, (4, 8, 16, 32), (1,), ("bit", "bias", "look-ahead"), ("isolated",), 16, 1024, "fit"),
}


def measure(case: Case, snn: speedysnn.SpikingNetwork, folder: Path | None, out: Path, smoke: bool) -> pd.DataFrame:
    """The report at the first look-ahead, and at each the best change's predicted and realised gain."""
    few = (24, 24) if smoke else (case.sensitivity, case.measured)
    more = min(case.confirm, 24) if smoke else case.confirm
    train, test = case.images(folder, "train", few[0] + more), case.images(folder, "test", few[1])
    confirm = Subset(train, range(few[0], few[0] + more)) if more else None
    train = Subset(train, range(few[0])) if more else train
    rows = []
    for delay in case.delays:
        snn.set_delay(delay)
        found = analysis.measure_sensitivity(snn, train, modes=case.modes, gains=case.gains, confirm=confirm, progress=True)
        if delay == case.delays[0]:
            noise = analysis.measure_noise(snn, test, detail="full", progress=True)
            curve = analysis.sweep(snn, test, (2, 4) if smoke else case.sweep, progress=True)
            cost = analysis.measure_cost(snn, test, progress=True)
            noise.save(out, sweep=curve, sensitivity=found, cost=cost)
            keep(out, noise)
        before = analysis.evaluate(snn, test)
        for rank in range(min(3, len(found.gains))):
            best = found.gains.iloc[rank]
            changed = found.apply(copy.deepcopy(snn), best["layer"], best["change"])
            after = analysis.evaluate(changed, test)
            gain = after.sqnr_db - before.sqnr_db
            rows.append({
                "delay": delay, "rank": rank + 1, "layer": best["layer"], "change": best["change"],
                "predicted_db": best["gain_db"], "expected_db": best["expected_db"], "screened_db": best["screened_db"], "standard_error_db": best["gain_se_db"], "realised_db": gain,
                "realised_over_predicted": gain / best["gain_db"], "sqnr_db_before": before.sqnr_db,
                "agreement_before": before.agreement, "agreement_after": after.agreement,
                "accuracy_before": before.accuracy, "accuracy_after": after.accuracy,
                "images_predicted": best["images"], "images_realised": before.images,
            })  # fmt: skip
    return pd.DataFrame(rows)


def keep(out: Path, noise: analysis.NoiseReport) -> None:
    """What README.md says of the run; noise.json of a deep network is too large to be kept here."""
    facts = {
        "torch": torch.__version__, "machine": f"{torch.get_num_threads()} threads, {platform.machine()}", "seed": 0,
        "verdict": list(noise.verdict), "outputs": {name: noise.outputs[name] for name in
                                                    ("timesteps", "delay", "images")},
    }  # fmt: skip
    (out / "run.json").write_text(json.dumps(facts) + "\n")
    if (out / "noise.json").stat().st_size > LARGEST:
        (out / "noise.json").unlink()


UNCORRECTED = 'Networks are converted with `correct="none"`; `reports/corrections` measures what a correction adds.'


def page(out: Path) -> None:
    """README.md out of the reports that are there."""
    lines = ["# Noise, network by network", "", str(__doc__).split("\n\n")[0].strip(), "", UNCORRECTED, "", "```"]
    lines += [line.strip() for line in str(__doc__).split("\n\n")[1].splitlines()]
    lines += ["```", ""]
    for name in CASES:
        if not (out / name / "run.json").is_file():
            continue
        settings, layers = json.loads((out / name / "run.json").read_text()), pd.read_csv(out / name / "layers.csv")
        outputs = settings["outputs"]
        total = layers[[f"share_{part}" for part in ("clip", "round", "propagated", "temporal")]].sum(axis=1)
        lines += [
            f"## {name}", "",
            f"[report]({name}/report.html) · [Markdown]({name}/report.md) · {len(layers)} neuron layers, "
            f"T = {outputs['timesteps']}, look-ahead {outputs['delay']}, {outputs['images']} test images, seed 0, "
            f"{settings['machine']}, torch {settings['torch']}. Shares of every layer sum to 1 within "
            f"{(total - 1).abs().max():.1e}.", "",
            "\n>\n".join(f"> {sentence}" for sentence in settings["verdict"][:3]), "",
            f"![SQNR a layer]({name}/sqnr.png)", "",
            "Best changes, predicted on training images, carried out and measured on test images:", "",
            table(pd.read_csv(out / name / "prediction.csv")), "",
        ]  # fmt: skip
    if (out / "memory.csv").is_file():
        lines += ["## A limit of memory", "", MEMORY, "", memory(pd.read_csv(out / "memory.csv")), ""]
    (out / "README.md").write_text("\n".join(lines))


MEMORY = """ResNet-50, random weights, 224 pixels, T = 4, made by `python reports/noise/memory.py`, which says how it counts. The limit
is for tensors, as predicted; what the C library and the convolutions keep for themselves comes on top. "command": with
the allocator set as `speedysnn analyze --memory` sets it, which a library may not do."""


def memory(rows: pd.DataFrame) -> str:
    """Markdown of the limits and how far processes grew."""
    head = "| measured | allocator | threads | images | limit (MiB) | predicted (MiB) | grown by (MiB) |"
    body = [f"| {row.measured} | {row.allocator} | {row.threads} | {row.images} | {row.limit_mib} | {row.predicted_mib} | "
            f"{row.grown_mib} |" for row in rows.itertuples()]  # fmt: skip
    return "\n".join([head, "|---|---|---:|---:|---:|---:|---:|", *body])


def table(rows: pd.DataFrame) -> str:
    """Markdown of the predictions."""
    head = "| look-ahead | rank | layer | change | predicted (dB) | ± (dB) | realised (dB) | realised / predicted | agreement |"
    body = [
        f"| {row.delay} | {row.rank} | {row.layer} | {row.change} | {row.predicted_db:.2f} | {row.standard_error_db:.2f} | "
        f"{row.realised_db:.2f} | {row.realised_over_predicted:.2f} | {100 * row.agreement_before:.1f} → "
        f"{100 * row.agreement_after:.1f} % |"
        for row in rows.itertuples()
    ]
    return "\n".join([head, "|---:|---:|---|---|---:|---:|---:|---:|---|", *body])


def main() -> None:
    """Run one network's study."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network", choices=[*CASES, "write"])
    parser.add_argument("--data", type=Path, help="folder with the CIFAR-10 subset and the checkpoint")
    parser.add_argument("--weights", type=Path, help="deep100: folder that keeps its trained weights")
    parser.add_argument("--out", type=Path, help="where to write; this folder, or a temporary one with --smoke")
    parser.add_argument("--smoke", action="store_true")
    args = parser.parse_args()
    folder: Path = args.out or (Path(tempfile.mkdtemp()) if args.smoke else HERE)
    if args.network == "write":
        page(folder)
        return
    if args.data is None and args.network in ("resnet20", "densenet121"):
        sys.exit("error: --data DIR: the folder with cifar10-subset.npz and resnet20-12fca82f.th")
    torch.manual_seed(0)
    case, out = CASES[args.network], folder / args.network
    calibration = case.images(args.data, case.calibrate, 64 if args.smoke else case.calibration)
    source = case.build(args.weights if args.network == "deep100" else args.data, args.smoke)
    snn = convert.to_spiking(source, calibration, timesteps=case.timesteps, correct="none")
    rows = measure(case, snn, args.data, out, args.smoke)
    rows.to_csv(out / "prediction.csv", index=False, float_format="%.4f")
    page(folder)


if __name__ == "__main__":
    main()
