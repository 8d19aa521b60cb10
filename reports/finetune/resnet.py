"""The published CIFAR-10 ResNet-20: one tuned network a row, judged once on the test images at the end."""

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from images import Cifar
from once import once, say
from torch import nn

import speedysnn
from speedysnn import analysis, convert, finetune
from speedysnn.finetune import Stage
from speedysnn.network import SpikingNetwork
from speedysnn.sources import load_model

HERE = Path(__file__).resolve().parent
SOURCE = HERE.parent / "cifar10_resnet20" / "resnet20.py"


@dataclass(frozen=True)
class Row:
    """How one network is tuned: from which, at what setting, by which stages, on how many images.

    Attributes:
        start: name of the row it goes on from, "" for the untuned network at T = 4.
        copies: of the 4,194 lossless training images.
        more: further inputs, JPEG.
        train: what trains.
        mixup: alpha of mixing pairs of images.
        keep: the held-out figure whose best epoch is kept.
        match: weight of layer matching.
        average: decay of the running average that is kept.
        temperature: of both softmaxes.
        norms: whether the source itself goes on learning, its batch-norm in place.
    """

    start: str
    stages: tuple[str, ...]
    timesteps: int = 4
    delay: int = 1
    spikes: str = "binary"
    copies: int = 1
    more: int = 0
    train: tuple[str, ...] = finetune.config.GROUPS
    mixup: float = 0.0
    keep: str = "loss"
    match: float = 5.0
    average: float = 0.0
    temperature: float = 1.0
    norms: bool = False


MIXED: Any = {"copies": 6, "more": 25000, "mixup": 0.2}
NORMS: Any = {**MIXED, "keep": "agreement", "match": 0.0, "average": 0.998, "norms": True}
MANY: Any = {"copies": 4, "more": 49534}
SHORT: Any = {**NORMS, "keep": "loss", "temperature": 4.0}
SOFT: Any = {**NORMS, **MANY, "keep": "loss", "temperature": 4.0}
ROWS = {
    "twin": Row("", ("quantized:4",), copies=2, more=49534),
    "T4": Row("twin", ("quantized:20,rate=0.5",)),
    "T2": Row("T4", ("quantized:10",), timesteps=2),
    "T4-long": Row("", ("quantized:5",), **MIXED),
    "T2-long": Row("T4-long", ("quantized:3",), timesteps=2, **MIXED),
    "T4-longer": Row("T4-long", ("quantized:1,rate=0.3",), keep="agreement", **MIXED),
    "T4-norms": Row("", ("quantized:4",), **NORMS),
    "T4-norms-long": Row("", ("quantized:14",), **{**NORMS, **MANY}),
    "T4-norms-longer": Row("T4-norms-long", ("quantized:3,rate=0.3",), **{**NORMS, **MANY, "norms": False}),
    "T4-soft-short": Row("", ("quantized:4",), **SHORT),
    "T4-soft": Row("", ("quantized:18",), **SOFT),
    "T8-soft-short": Row("", ("quantized:4",), timesteps=8, **SHORT),
    "T2-soft-short": Row("", ("quantized:4",), timesteps=2, **SHORT),
    "T2-soft": Row("", ("quantized:14",), timesteps=2, **SOFT),
    "binary-norms": Row("", ("quantized:4", "spiking:3"), delay=0, **NORMS),
    "ternary-norms": Row("", ("quantized:4", "spiking:3"), delay=0, spikes="ternary", **NORMS),
    "T2-longer": Row("T2-long", ("quantized:2,rate=0.5",), 2, keep="agreement", **MIXED),
    "binary-long": Row("T4-long", ("spiking:4",), delay=0, copies=2, mixup=0.2, keep="agreement"),
    "ternary-long": Row(
        "T4-long", ("spiking:4",), delay=0, spikes="ternary", copies=2, mixup=0.2, keep="agreement", average=0.998
    ),
    "T8": Row("T4", ("quantized:4,rate=0.5",), timesteps=8),
    "binary": Row("T4", ("spiking:8",), delay=0),
    "ternary": Row("T4", ("spiking:8",), delay=0, spikes="ternary"),
    "thresholds": Row("", ("quantized:6",), train=("thresholds",)),
    "thresholds-v_init": Row("", ("quantized:6",), train=("thresholds", "v_init")),
}


def trained(data: Path) -> nn.Module:
    """The published checkpoint."""
    ann: nn.Module = load_model(f"{SOURCE}:make", checkpoint=data / "resnet20-12fca82f.th").model.eval()
    return ann


def untuned(ann: nn.Module, images: Cifar) -> SpikingNetwork:
    """It on spikes, T = 4, a threshold a channel from 1,024 training images."""
    return convert.to_spiking(ann, images.tune[:1024], timesteps=4, correct="none")


def tune(
    name: str, ann: nn.Module, source: SpikingNetwork, images: Cifar, runs: Path, smoke: bool, device: torch.device
) -> tuple[SpikingNetwork, dict[str, Any]]:
    """One row's network, tuned where it is not there, with its settings and what its own stages took."""
    row, teacher, there = ROWS[name], copy.deepcopy(source).to(device), copy.deepcopy(ann).to(device)

    def own(state: Path, resume: bool) -> SpikingNetwork:
        training = images.training(row.copies, min(64 if smoke else row.more, len(images.further)))
        about: Any = {
            "stages": tuple(map(Stage.parse, ("quantized:1",) if smoke else row.stages)), "augment": "flip-crop",
            "train": row.train, "mixup": row.mixup, "monitor": row.keep, "average": row.average, "layer_match_weight": row.match,
            "temperature": row.temperature,
        }  # fmt: skip
        run: Any = {"teacher": teacher, "folder": state, "resume": resume, "log": runs / f"log-{name}", "progress": True,
                    "on_epoch": say}  # fmt: skip
        if row.norms:
            config = finetune.TrainConfig(objective="kl", batch_size=64, weight_decay=0.02, **about)
            return finetune.train(there, training, row.timesteps, validation=images.held, config=config, delay=row.delay,
                                  spikes=row.spikes, **run)[0]  # fmt: skip
        snn = speedysnn.load(runs / f"{row.start}.snn") if row.start else copy.deepcopy(source)
        set_to(snn.to(device), row)
        finetune.fit(snn, training, images.held, config=finetune.Config(**about), **run)
        return snn

    snn, took = once(name, runs, own, device)
    return snn, {"row": name, "start": row.start, "stages": " ".join(row.stages), "trained": "+".join(row.train), **took}


def set_to(snn: SpikingNetwork, row: Row) -> None:
    """The network at the row's T, look-ahead and spikes, thresholds carried along."""
    finetune.run.carry_thresholds(snn, snn.timesteps, row.timesteps)
    snn.timesteps = row.timesteps
    snn.set_delay(row.delay)
    snn.set_spikes(row.spikes)


def judge(name: str, snn: SpikingNetwork, source: SpikingNetwork, images: Cifar, limit: int | None) -> dict[str, Any]:
    """Test accuracy with T, latency, spikes, shares of each cause of noise; agreement on mixtures of held-out images."""
    report = analysis.measure_noise(snn, images.test, source=source, limit=limit)
    mixed = analysis.measure_noise(snn, mixtures(images), source=source, limit=limit).outputs["agreement"]
    out = report.outputs
    shares = {cause: float(report.layers[f"share_{cause}"].mean()) for cause in CAUSES}
    keys = ("accuracy", "analog_accuracy", "agreement", "spikes_per_neuron", "latency")
    return {"row": name, "timesteps": snn.timesteps, **{key: out[key] for key in keys}, "held_mixed": mixed,
            "sqnr_mean_db": float(report.layers.sqnr_db.mean()), "sqnr_lowest_db": float(report.layers.sqnr_db.min()),
            **shares}  # fmt: skip


def mixtures(images: Cifar) -> torch.Tensor:
    """Two held-out images in one, 65 to 35: inputs that are harder than what the source was trained on."""
    x = images.held.tensors[0]
    return 0.65 * x + 0.35 * x[torch.randperm(len(x), generator=torch.Generator().manual_seed(0))]


CAUSES = ("clip", "round", "propagated", "temporal")


def histories(runs: Path, names: list[str]) -> pd.DataFrame:
    """All rows' epochs, from what was saved with each network."""
    frames = []
    for name in names:
        entry = speedysnn.load(runs / f"{name}.snn").provenance["finetuned"][-1]
        frames.append(pd.DataFrame(entry["history"]).assign(row=name))
    return pd.concat(frames)
