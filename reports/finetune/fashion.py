"""Fashion-MNIST: two source networks trained here, tuned at T = 4 and 2 under a budget of spikes, and from scratch."""

import sys
import time
from pathlib import Path
from typing import Any

import ann
import networks
import pandas as pd
import torch
from torch import Tensor
from torch.utils.data import TensorDataset

import speedysnn
from speedysnn import analysis, convert, finetune
from speedysnn.finetune import Stage
from speedysnn.network import SpikingNetwork

# row -> (T, look-ahead, stages, most spikes a neuron and image)
TUNED = {
    "T4": (4, 1, ("quantized:4", "spiking:1,rate=0.3"), 0.35),
    "T2": (2, 1, ("quantized:5", "spiking:1,rate=0.3"), 0.25),
}
SCRATCH_EPOCHS = 8


def run(out: Path, runs: Path, smoke: bool, save: Any) -> None:
    """All rows of both networks; `save(path, rows, name)` keeps them."""
    data = ann.parts()
    if smoke:
        data = {key: x[:128] for key, x in data.items()}
    for name in ("vgg", "resnet"):
        source = ann.source(name, data, runs, 1 if smoke else ann.EPOCHS)
        base = {"network": name, "analog_accuracy": ann.accuracy(source, data["test_x"], data["test_y"])}
        for row in TUNED:
            save(out / "fashion.csv", pd.DataFrame([{**base, **_tuned(name, row, source, data, runs, smoke)}]),
                 f"{name} {row}")  # fmt: skip
        save(out / "fashion.csv", pd.DataFrame([{**base, **_scratch(name, data, runs, smoke)}]), f"{name} scratch")


def _tuned(
    name: str, row: str, source: torch.nn.Module, data: dict[str, Tensor], runs: Path, smoke: bool
) -> dict[str, Any]:
    steps, delay, stages, budget = TUNED[row]
    path, state = runs / f"{name}-{row}.snn", runs / f"state-{name}-{row}"
    if not (path / "network.json").is_file():
        snn = convert.to_spiking(source, data["x"][:1024], timesteps=steps, delay=delay)
        config = finetune.Config(
            stages=tuple(map(Stage.parse, stages[:1] if smoke else stages)), match=1.0, augment="flip-crop",
            budget=budget,
        )  # fmt: skip
        begin = time.monotonic()
        finetune.fit(snn, TensorDataset(data["x"], data["y"]), _held(data), config=config, folder=state, progress=True,
                     resume=(state / "run.safetensors").is_file(), on_epoch=_say)  # fmt: skip
        snn.provenance["seconds"] = time.monotonic() - begin
        speedysnn.save(snn, path, overwrite=True)
    snn = speedysnn.load(path)
    return {"row": f"{name} {row}", "budget": budget, "stages": " ".join(stages), **_judged(snn, data)}


def _scratch(name: str, data: dict[str, Tensor], runs: Path, smoke: bool) -> dict[str, Any]:
    path, state = runs / f"{name}-scratch.snn", runs / f"state-{name}-scratch"
    epochs = 1 if smoke else SCRATCH_EPOCHS
    if not (path / "network.json").is_file():
        torch.manual_seed(0)
        config = finetune.TrainConfig(
            epochs_spiking=epochs, augment="flip-crop", batch_size=64, weight_decay=0.02,
            learning_rates={"weights": 3e-3, "biases": 3e-3},
        )  # fmt: skip
        begin = time.monotonic()
        snn, _ = finetune.train(
            getattr(networks, name)(), TensorDataset(data["x"], data["y"]), 4, validation=_held(data), config=config,
            delay=1, folder=state, resume=(state / "run.safetensors").is_file(), progress=True, on_epoch=_say,
        )  # fmt: skip
        snn.provenance["seconds"] = time.monotonic() - begin
        speedysnn.save(snn, path, overwrite=True)
    snn = speedysnn.load(path)
    return {"row": f"{name} scratch", "budget": None, "stages": f"train, {epochs} epochs", **_judged(snn, data)}


def _held(data: dict[str, Tensor]) -> TensorDataset:
    return TensorDataset(data["held_x"], data["held_y"])


def _judged(snn: SpikingNetwork, data: dict[str, Tensor]) -> dict[str, Any]:
    out = analysis.evaluate(snn, (data["test_x"], data["test_y"]))
    return {"timesteps": snn.timesteps, "latency": snn.latency, "accuracy": out.accuracy,
            "spikes_per_neuron": out.spikes_per_neuron, "seconds": snn.provenance["seconds"]}  # fmt: skip


def _say(row: dict[str, Any]) -> None:
    words = f"{row['stage']} {row['epoch']}: held-out loss {row['held_out_loss']:.4f}"
    print(words, f"accuracy {row['held_out_accuracy']:.4f}", file=sys.stderr, flush=True)
