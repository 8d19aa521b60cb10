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
    """How a source network is tuned: by its labels with batch-norm in place, or as it was converted, without labels.

    Attributes:
        timesteps: T.
        stages: what runs.
        budget: most spikes a neuron and image.
        labels: which of the two.
        taught: half of the loss is the distance to the source network's answers, on mixtures of images.
        rate: learning rate of weights and biases.
        start: without labels, the row it goes on from, "" for the converted network.
    """

    timesteps: int
    stages: tuple[str, ...]
    budget: float = 0.45
    labels: bool = True
    taught: bool = False
    rate: float = 1e-3
    start: str = ""


VGG = {
    "T4": Row(4, ("quantized:16",)),
    "T2": Row(2, ("quantized:20",)),
    "T4-unlabelled": Row(4, ("quantized:12",), labels=False),
    "T2-unlabelled": Row(2, ("quantized:10",), labels=False, start="T4-unlabelled"),
}
RESIDUAL = {
    "T4-taught": Row(4, ("quantized:16",), taught=True),
    "T4": Row(4, ("quantized:24",), budget=0.55, rate=3e-3),
    "T2": Row(2, ("quantized:20",), rate=3e-3),
}
TUNED = {"vgg": VGG, "resnet": RESIDUAL}
SCRATCH = {"vgg": ("quantized:20",), "resnet": ("quantized:28",)}
KEPT: Any = {"augment": "flip-crop", "monitor": "accuracy", "average": 0.998}
COMMON: Any = {**KEPT, "batch_size": 64, "weight_decay": 0.02}


@dataclass(frozen=True)
class Work:
    """What every run needs.

    Attributes:
        data: the parts of `ann.parts`.
        runs: folder of networks and states.
        smoke: a few images and epochs.
        device: where it trains.
    """

    data: dict[str, Tensor]
    runs: Path
    smoke: bool
    device: torch.device


def run(
    out: Path, runs: Path, smoke: bool, save: Any, only: list[str] | None, device: torch.device,
    chosen: list[str] | None, judge: bool,
) -> None:  # fmt: skip
    """Rows of the networks, by default all of both; `save(path, rows, name)` keeps them where they are judged."""
    data = ann.parts()
    if smoke:
        data = {key: x[:128] for key, x in data.items()}
    work = Work(data, runs, smoke, device)
    for name in only or TUNED:
        rows = [row for row in (*TUNED[name], "scratch") if chosen is None or row in chosen]
        if rows == ["scratch"] and not judge:  # it needs no source
            _scratch(name, work)
            continue
        source = ann.source(name, data, runs, 1 if smoke else ann.EPOCHS, device)
        nets = [(row, _scratch(name, work) if row == "scratch" else _tuned(name, row, source, work)) for row in rows]
        if judge:
            base = {"network": name, "analog_accuracy": ann.accuracy(source.cpu(), data["test_x"], data["test_y"])}
            for row, lines in nets:
                judged = [{**about, **_judged(net, data, untuned)} for about, net, untuned in lines]
                save(out / "fashion.csv", _with(base, judged), f"{name} {row}")


def _with(base: dict[str, Any], rows: list[dict[str, Any]]) -> pd.DataFrame:
    return pd.DataFrame([{**base, **row} for row in rows])


Line = tuple[dict[str, Any], SpikingNetwork, SpikingNetwork | None]


def _tuned(name: str, row: str, source: torch.nn.Module, work: Work) -> list[Line]:
    """(what is known of it, network, what it is measured against) before and after."""
    how, data = TUNED[name][row], work.data
    untuned = convert.to_spiking(source, data["x"][:1024], timesteps=how.timesteps, delay=1, correct="none")

    def tune(state: Path, resume: bool) -> SpikingNetwork:
        about: Any = {"stages": _stages(how.stages, work.smoke), "budget": how.budget}
        if how.labels:
            more: Any = {"objective": "kl", "label_weight": 0.5, "mixup": 0.2} if how.taught else {}
            config = finetune.TrainConfig(**about, learning_rates=_rates(how.rate), **COMMON, **more)
            return _train(source, how.timesteps, data, config, state, resume, untuned if how.taught else None)
        snn = speedysnn.load(work.runs / f"{name}-{how.start}.snn").to(work.device) if how.start else copy.deepcopy(untuned)
        finetune.run.carry_thresholds(snn, snn.timesteps, how.timesteps)
        snn.timesteps = how.timesteps
        finetune.fit(snn, *_parts(data), teacher=untuned,
                     config=finetune.Config(mixup=0.2, layer_match_weight=0.0, **about, **KEPT), folder=state,
                     resume=resume, progress=True, on_epoch=say)  # fmt: skip
        return snn

    snn, took = once(f"{name}-{row}", work.runs, tune, work.device)
    about = {"row": f"{name} {row}", "budget": how.budget, "stages": " ".join(how.stages), **took}
    untuned = untuned.cpu()
    return [({"kind": kind, **about}, net, untuned) for kind, net in (("untuned", untuned), ("tuned", snn))]


def _scratch(name: str, work: Work) -> list[Line]:
    def train(state: Path, resume: bool) -> SpikingNetwork:
        torch.manual_seed(0)
        config = finetune.TrainConfig(
            stages=_stages(SCRATCH[name], work.smoke), learning_rates=_rates(3e-3), **COMMON
        )
        return _train(getattr(networks, name)().to(work.device), 4, work.data, config, state, resume)

    snn, took = once(f"{name}-scratch", work.runs, train, work.device)
    about = {"kind": "from scratch", "row": f"{name} scratch", "budget": None, "stages": " ".join(SCRATCH[name]), **took}
    return [(about, snn, None)]


def _rates(rate: float) -> dict[str, float]:
    return {"weights": rate, "biases": rate}


def _stages(words: tuple[str, ...], smoke: bool) -> tuple[Stage, ...]:
    return tuple(map(Stage.parse, ("quantized:1", "spiking:1") if smoke else words))


def _train(
    net: torch.nn.Module, timesteps: int, data: dict[str, Tensor], config: finetune.TrainConfig, state: Path,
    resume: bool, teacher: torch.nn.Module | None = None,
) -> SpikingNetwork:  # fmt: skip
    train, held = _parts(data)
    return finetune.train(net, train, timesteps, validation=held, teacher=teacher, config=config, delay=1, folder=state,
                          resume=resume, progress=True, on_epoch=say)[0]  # fmt: skip


def _parts(data: dict[str, Tensor]) -> tuple[TensorDataset, TensorDataset]:
    return TensorDataset(data["x"], data["y"]), TensorDataset(data["held_x"], data["held_y"])


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
