"""A row's run, done once: its network, what it took and where, and the state it resumes from lie in the folder of the runs."""

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import speedysnn
from speedysnn.network import SpikingNetwork

Tune = Callable[[Path, bool], SpikingNetwork]


def once(name: str, runs: Path, tune: Tune, device: torch.device) -> tuple[SpikingNetwork, dict[str, Any]]:
    """(network, seconds and machine) of a row, read where it is there; a run broken off and resumed has NaN seconds.

    Args:
        name: of the row.
        runs: the folder.
        tune: makes the network, given the folder of its state and whether to resume from that.
        device: where it does so; the network comes back on the CPU.
    """
    path, state, took = runs / f"{name}.snn", runs / f"state-{name}", {"seconds": "seconds", "cpu_seconds": "cpu"}
    if not (path / "network.json").is_file():
        resume = (state / "run.safetensors").is_file()
        begin = time.monotonic(), time.process_time()
        snn = tune(state, resume)
        spent = (time.monotonic() - begin[0], time.process_time() - begin[1])
        for ending, seconds in zip(took.values(), spent, strict=True):
            (runs / f"{name}.{ending}").write_text("nan" if resume else f"{seconds:.0f}")
        (runs / f"{name}.machine").write_text(kind_of(device))
        speedysnn.save(snn, path, overwrite=True)
    where = runs / f"{name}.machine"
    files = {key: runs / f"{name}.{ending}" for key, ending in took.items()}
    about: dict[str, Any] = {k: float(file.read_text()) if file.is_file() else float("nan") for k, file in files.items()}
    return speedysnn.load(path), {**about, "machine": where.read_text() if where.is_file() else ""}


def kind_of(device: torch.device) -> str:
    """A GPU's name, or "" for the CPU."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else ""


def say(row: dict[str, Any]) -> None:
    """An epoch's held-out figures as a line."""
    words = [f"{row['stage']} {row['epoch']}: held-out loss {row['held_out_loss']:.4f}"]
    words += [f"{key} {row[f'held_out_{key}']:.4f}" for key in ("agreement", "accuracy") if row[f"held_out_{key}"] is not None]
    print(*words, file=sys.stderr, flush=True)
