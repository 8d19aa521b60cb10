"""What is timed beside inference: a neuron layer, a training step, calibration and analysis."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speedysnn import analysis
from speedysnn.bench.case import Call, Case, rows_of
from speedysnn.bench.inference import ann, best_pass
from speedysnn.bench.peak import add_peaks
from speedysnn.bench.peers import available, installed
from speedysnn.convert.calibrate import collect
from speedysnn.finetune.config import Config
from speedysnn.finetune.objectives import Target
from speedysnn.finetune.step import Step
from speedysnn.kernels import Rule, multistep
from speedysnn.network import SpikingNetwork
from speedysnn.neurons import Reading

COPY, OURS = "copy into a reused buffer", "speedysnn, output over its input"
PEER = "spikingjelly IFNode multi-step"


def neuron(neurons: int, steps: int, rounds: int, device: torch.device | str = "cpu") -> Case:
    """The multi-step neuron over one layer, against copying its input and against peers' neurons."""
    generator = torch.Generator().manual_seed(0)
    drive = torch.randn(steps, neurons, generator=generator).to(device)
    out, one, none = torch.empty_like(drive), torch.tensor(1.0, device=device), torch.tensor(0.0, device=device)
    rule, work = Rule(steps), drive.clone()
    calls: dict[str, Call] = {
        COPY: lambda: out.copy_(drive),
        OURS: lambda: multistep(work, one, none, rule, inplace=True),
        "speedysnn, new output": lambda: multistep(drive, one, none, rule),
        "reference in plain torch": lambda: multistep(drive, one, none, rule, backend="reference"),
    }
    notes: list[str] = []
    if installed("spikingjelly"):
        from spikingjelly.activation_based import neuron as peer

        cell = peer.IFNode(v_threshold=1.0, v_reset=None, step_mode="m")
        calls[PEER] = partial(_fresh, cell, drive)
        with torch.no_grad():
            different = int((_fresh(cell, drive) != multistep(drive, one, none, rule)).sum())
        notes.append(f"spikingjelly: {different} of {drive.numel():,} spikes differ")
    with torch.no_grad():
        rows = rows_of(calls, rounds, drive.device)
    notes += _beside({row["name"]: row["median_s"] for row in rows})
    return Case(f"neuron, {neurons:,} neurons, T={steps}", next(iter(calls)), rows, notes)


def _beside(median: Mapping[str, float]) -> list[str]:
    """What the layer is judged by, in words."""
    pairs = [(OURS, COPY)] + [(PEER, OURS)] * (PEER in median)
    return [f"{name}: {median[name] / median[other]:.1f} times as long as {other}" for name, other in pairs]


def _fresh(cell: Any, drive: Tensor) -> Tensor:
    cell.reset()
    out: Tensor = cell(drive)
    return out


def training(snn: SpikingNetwork, x: Tensor, rounds: int, *, memory: bool = True) -> Case:
    """One step through time, forward and backward, gradients of all parameters; beside T of the source network's."""
    with torch.no_grad(), snn.reading("analog"):
        target = snn(x)
    step = Step(snn, Config(objective="mse"), "spiking", [p for p in snn.parameters() if p.requires_grad])
    size = best_pass(lambda size: _source_steps(snn, x, target, size, 1), x)
    calls: dict[str, Call] = {
        "speedysnn": lambda: step.run((x,), Target(target), {}),
        f"{snn.timesteps} x ANN, {size} at a time": partial(_source_steps, snn, x, target, size, snn.timesteps),
    }
    found, notes = available(snn, x[: min(32, len(x))], learning=True)
    for name, peer in found.items():
        calls[name] = partial(_backward, peer, x, target)
    rows = rows_of(calls, rounds, x.device)
    if memory:
        add_peaks(rows, calls, x.device)
    return Case(f"training step, T={snn.timesteps}, batch {len(x)}", "speedysnn", rows, notes)


def _source_steps(snn: SpikingNetwork, x: Tensor, target: Tensor, size: int, times: int) -> None:
    """The analog reading's own step, some images at a time, so often."""
    for parameter in snn.parameters():
        parameter.grad = None
    with snn.reading("analog"):
        for _ in range(times):
            for piece, wanted in zip(x.split(size), target.split(size), strict=True):  # type: ignore[no-untyped-call]
                F.mse_loss(snn(piece), wanted).backward()  # type: ignore[no-untyped-call]


def _backward(peer: nn.Module, x: Tensor, target: Tensor) -> None:
    for parameter in peer.parameters():
        parameter.grad = None
    F.mse_loss(peer(x), target).backward()  # type: ignore[no-untyped-call]


def measuring(snn: SpikingNetwork, x: Tensor, rounds: int) -> Case:
    """Calibration and noise analysis, against plain execution of the readings that they need."""
    copied = SpikingNetwork(
        snn.graph, {node.name: snn.tensors(node.name) for node in snn.graph.nodes if snn.tensors(node.name)},
        snn.neurons, snn.timesteps, snn.input_shapes,
    )  # fmt: skip
    calls: dict[str, Call] = {
        "three readings": partial(_readings, snn, x),
        "analog reading": partial(_readings, snn, x, ("analog",)),
        "analog reading, 64 at a time": partial(ann, snn, x, 64, 1),
        "calibration": lambda: collect(copied, iter([x]), "channel"),
        "evaluate": lambda: analysis.evaluate(snn, x),
        "measure_noise": lambda: analysis.measure_noise(snn, x),
    }
    with torch.no_grad():
        return Case(f"measuring, T={snn.timesteps}, batch {len(x)}", "three readings", rows_of(calls, rounds, x.device))


def _readings(snn: SpikingNetwork, x: Tensor, readings: Sequence[Reading] = ("analog", "quantized", "spiking")) -> None:
    for reading in readings:
        with snn.reading(reading):
            snn(x)
