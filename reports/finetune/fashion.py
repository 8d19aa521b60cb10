"""Fashion-MNIST: two source networks trained here, tuned at T = 4 and 2 under a budget of spikes, and from scratch."""

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ann
import networks
import pandas as pd
import torch
from once import once, say
from torch import Tensor
from torch.utils.data import TensorDataset

import speedysnn
from speedysnn import analysis, convert, finetune
from speedysnn.finetune import Stage
from speedysnn.network import SpikingNetwork


@dataclass(frozen=True)
class Row:
    """How a source network is tuned without labels.

    Attributes:
        start: the row it goes on from.
        timesteps: T.
        stages: what runs.
        budget: most spikes a neuron and image.
        images: training images, of 55,000.
        mixup: alpha of mixing pairs of images.
        keep: the held-out figure whose best epoch is kept.
        match: weight of layer matching.
        labels: share of the labels in the loss.
        average: decay of the running average that is kept.
    """

    start: str
    timesteps: int
    stages: tuple[str, ...]
    budget: float
    images: int = 55_000
    mixup: float = 0.2
    keep: str = "accuracy"
    match: float = 0.0
    labels: float = 0.0
    average: float = 0.998


PLAIN: Any = {"mixup": 0.0, "keep": "loss", "match": 1.0, "labels": 0.0, "average": 0.0}
TUNED = {
    "vgg": {"T4": Row("", 4, ("quantized:12",), 0.45), "T2": Row("T4", 2, ("quantized:10",), 0.45)},
    "resnet": {
        "T4": Row("", 4, ("quantized:8", "spiking:1,rate=0.3"), 0.45, 27_500, **PLAIN),
        "T2": Row("T4", 2, ("quantized:6", "spiking:1,rate=0.3"), 0.33, 27_500, **PLAIN),
        "T4+": Row("T4", 4, ("quantized:3,rate=0.5", "spiking:1,rate=0.2"), 0.45, **PLAIN),
    },
}
SCRATCH = ("quantized:18",)


def run(out: Path, runs: Path, smoke: bool, save: Any, only: list[str] | None) -> None:
    """All rows of the networks, by default of both; `save(path, rows, name)` keeps them."""
    data = ann.parts()
    if smoke:
        data = {key: x[:128] for key, x in data.items()}
    for name in only or TUNED:
        source = ann.source(name, data, runs, 1 if smoke else ann.EPOCHS[name])
        base = {"network": name, "analog_accuracy": ann.accuracy(source, data["test_x"], data["test_y"])}
        for row in TUNED[name]:
            save(out / "fashion.csv", _with(base, _tuned(name, row, source, data, runs, smoke)), f"{name} {row}")
        save(out / "fashion.csv", _with(base, [_scratch(name, data, runs, smoke)]), f"{name} scratch")


def _with(base: dict[str, Any], rows: list[dict[str, Any]]) -> pd.DataFrame:
    return pd.DataFrame([{**base, **row} for row in rows])


def _tuned(
    name: str, row: str, source: torch.nn.Module, data: dict[str, Tensor], runs: Path, smoke: bool
) -> list[dict[str, Any]]:
    how = TUNED[name][row]
    untuned = convert.to_spiking(source, data["x"][:1024], timesteps=how.timesteps, delay=1)

    def tune(state: Path, resume: bool) -> SpikingNetwork:
        snn = speedysnn.load(runs / f"{name}-{how.start}.snn") if how.start else copy.deepcopy(untuned)
        finetune.stages.carry_thresholds(snn, snn.timesteps, how.timesteps)
        snn.timesteps = how.timesteps
        config = finetune.Config(
            stages=tuple(map(Stage.parse, how.stages[:1] if smoke else how.stages)), match=how.match, augment="flip-crop",
            budget=how.budget, mixup=how.mixup, keep=how.keep, label_weight=how.labels, average=how.average,
        )  # fmt: skip
        train = TensorDataset(*(data[key][: how.images] for key in "xy"))
        finetune.fit(snn, train, _held(data), teacher=untuned, config=config, folder=state, resume=resume,
                     progress=True, on_epoch=say)  # fmt: skip
        return snn

    snn, took = once(f"{name}-{row}", runs, tune)
    about = {"row": f"{name} {row}", "budget": how.budget, "images": how.images, "stages": " ".join(how.stages), **took}
    both = (("untuned", untuned), ("tuned", snn))
    return [{"kind": kind, **about, **_judged(net, data, untuned)} for kind, net in both]


def _scratch(name: str, data: dict[str, Tensor], runs: Path, smoke: bool) -> dict[str, Any]:
    stages = ("spiking:1",) if smoke else SCRATCH

    def train(state: Path, resume: bool) -> SpikingNetwork:
        torch.manual_seed(0)
        config = finetune.TrainConfig(
            stages=tuple(map(Stage.parse, stages)), augment="flip-crop", batch_size=64, weight_decay=0.02,
            learning_rates={"weights": 3e-3, "biases": 3e-3}, keep="accuracy", average=0.998,
        )  # fmt: skip
        return finetune.train(
            getattr(networks, name)(), TensorDataset(data["x"], data["y"]), 4, validation=_held(data), config=config,
            delay=1, folder=state, resume=resume, progress=True, on_epoch=say,
        )[0]  # fmt: skip

    snn, took = once(f"{name}-scratch", runs, train)
    return {"kind": "from scratch", "row": f"{name} scratch", "budget": None, "stages": " ".join(stages), **took,
            **_judged(snn, data)}  # fmt: skip


def _held(data: dict[str, Tensor]) -> TensorDataset:
    return TensorDataset(data["held_x"], data["held_y"])


def _judged(snn: SpikingNetwork, data: dict[str, Tensor], source: SpikingNetwork | None = None) -> dict[str, Any]:
    """Accuracy on all test images, and the mean share of each cause of noise against `source` on 1,000 of them."""
    test = (data["test_x"], data["test_y"])
    out = analysis.evaluate(snn, test)
    row = {"timesteps": snn.timesteps, "latency": snn.latency, "accuracy": out.accuracy,
           "spikes_per_neuron": out.spikes_per_neuron}  # fmt: skip
    if source is None:
        return row
    layers = analysis.measure_noise(snn, TensorDataset(*(x[:1000] for x in test)), source=source).layers
    shares = {cause: float(layers[f"share_{cause}"].mean()) for cause in ("clip", "round", "propagated", "temporal")}
    return {**row, "sqnr_mean_db": float(layers.sqnr_db.mean()), **shares}
