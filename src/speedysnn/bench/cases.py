"""What is timed: a neuron layer, inference, a training step, calibration and analysis; each against its own limit."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speedysnn import analysis
from speedysnn.bench.pairs import paired
from speedysnn.bench.peak import peak_bytes
from speedysnn.bench.peers import available, installed
from speedysnn.convert.calibrate import collect
from speedysnn.finetune.config import Config
from speedysnn.finetune.step import Step
from speedysnn.kernels import Rule, multistep
from speedysnn.network import SpikingNetwork

Call = Callable[[], object]


@dataclass
class Case:
    """One benchmark's rows.

    Attributes:
        name: what was measured.
        base: the contestant that the ratios are over.
        rows: figures of each contestant.
        notes: what was left out, and how well outputs agreed.
    """

    name: str
    base: str
    rows: list[dict[str, Any]]
    notes: list[str] = field(default_factory=list)


def neuron(neurons: int, steps: int, rounds: int) -> Case:
    """The multi-step neuron over one layer, against copying its input and against peers' neurons."""
    generator = torch.Generator().manual_seed(0)
    drive = torch.randn(steps, neurons, generator=generator)
    out, one, none = torch.empty_like(drive), torch.tensor(1.0), torch.tensor(0.0)
    rule, work = Rule(steps), drive.clone()
    calls: dict[str, Call] = {
        "copy into a reused buffer": lambda: out.copy_(drive),
        "speedysnn, output over its input": lambda: multistep(work, one, none, rule, over=True),
        "speedysnn, new output": lambda: multistep(drive, one, none, rule),
        "reference in plain torch": lambda: multistep(drive, one, none, rule, backend="reference"),
    }
    notes: list[str] = []
    if installed("spikingjelly"):
        from spikingjelly.activation_based import neuron as peer

        cell = peer.IFNode(v_threshold=1.0, v_reset=None, step_mode="m")
        calls["spikingjelly IFNode multi-step"] = partial(_fresh, cell, drive)
        with torch.no_grad():
            different = int((_fresh(cell, drive) != multistep(drive, one, none, rule)).sum())
        notes.append(f"spikingjelly: {different} of {drive.numel():,} spikes differ")
    with torch.no_grad():
        return Case(f"neuron, {neurons:,} neurons, T={steps}", next(iter(calls)), _rows(calls, rounds), notes)


def _fresh(cell: Any, drive: Tensor) -> Tensor:
    cell.reset()
    out: Tensor = cell(drive)
    return out


def inference(
    snn: SpikingNetwork, x: Tensor, rounds: int, *, half: bool = True, peers: bool = True, compiled: bool = False
) -> Case:
    """All T steps, against T passes of the source network at its own best batch size."""
    steps, label = snn.timesteps, f"{snn.timesteps} x ANN"
    size = best_pass(snn, x)
    calls: dict[str, Call] = {
        f"{label}, {size} at a time": partial(_ann, snn, x, size, steps),
        "speedysnn": lambda: snn(x),
    }
    if compiled:
        calls["speedysnn, torch.compile"] = partial(_in_pieces, torch.compile(snn), x, max(1, size // steps))
    half = half and _has_half()
    if half:
        calls["speedysnn, bfloat16"] = partial(_half, snn, x)
    with torch.no_grad():
        found, notes = available(snn, x[: min(32, len(x))]) if peers else ({}, [])
        calls.update({name: partial(peer, x) for name, peer in found.items()})
        rows = _rows(calls, rounds)
        if half:
            notes.append(half_cost(snn, x))
        else:
            notes.append("bfloat16: left out, this processor has no arithmetic for it")
    for row in rows:
        row["us_per_image_step"] = row["median_s"] / len(x) / steps * 1e6
    return Case(f"inference, T={steps}, batch {len(x)}", next(iter(calls)), rows, notes)


def _in_pieces(net: Callable[[Tensor], Tensor], x: Tensor, size: int) -> None:
    for piece in x.split(size):  # type: ignore[no-untyped-call]
        net(piece)


def _has_half() -> bool:
    probe = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return bool(probe()) if probe is not None else False


def half_cost(snn: SpikingNetwork, x: Tensor) -> str:
    """What bfloat16 changes, in words."""
    with torch.no_grad():
        exact, rough = snn(x), _half(snn, x).float()
    agree = float((exact.argmax(1) == rough.argmax(1)).float().mean())
    error = float((rough - exact).norm() / exact.norm().clamp_min(1e-30))
    return f"bfloat16: the same class on {100 * agree:.1f} % of images, logits differ by {error:.1e} of their norm"


def _half(snn: SpikingNetwork, x: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        out: Tensor = snn(x)
    return out


def _ann(snn: SpikingNetwork, x: Tensor, size: int, times: int) -> None:
    with snn.reading("analog"):
        for _ in range(times):
            for piece in x.split(size):  # type: ignore[no-untyped-call]
                snn(piece)


def best_pass(snn: SpikingNetwork, x: Tensor, sizes: Sequence[int] = (8, 16, 32, 64, 128, 256)) -> int:
    """Images a pass at which the source network itself is fastest on this machine."""
    sizes = [size for size in sizes if size <= len(x)] or [len(x)]
    with torch.no_grad():
        calls = {str(size): partial(_ann, snn, x, size, 1) for size in sizes}
        timings = paired(calls, str(sizes[0]), rounds=3)
    return min(sizes, key=lambda size: timings[str(size)].median)


def training(snn: SpikingNetwork, x: Tensor, rounds: int, *, memory: bool = True) -> Case:
    """One step through time, forward and backward, gradients of all parameters."""
    with torch.no_grad(), snn.reading("analog"):
        target = snn(x)
    step = Step(snn, Config(objective="mse"), "spiking", [p for p in snn.parameters() if p.requires_grad])
    calls: dict[str, Call] = {"speedysnn": lambda: step.run((x,), target, {})}
    found, notes = available(snn, x[: min(32, len(x))])
    for name, peer in found.items():
        calls[name] = partial(_backward, peer, x, target)
    rows = _rows(calls, rounds)
    if memory:
        for row in rows:
            row["peak_bytes"] = peak_bytes(calls[row["name"]])
    return Case(f"training step, T={snn.timesteps}, batch {len(x)}", "speedysnn", rows, notes)


def _backward(peer: nn.Module, x: Tensor, target: Tensor) -> None:
    for parameter in peer.parameters():
        parameter.grad = None
    F.mse_loss(peer(x), target).backward()  # type: ignore[no-untyped-call]


def scaling(snn: SpikingNetwork, x: Tensor, rounds: int, batches: Sequence[int] = (32, 128, 512, 2048)) -> Case:
    """Time an image against the batch and against T, and with full look-ahead."""
    before, delays = snn.timesteps, {name: neuron.delay for name, neuron in snn.neurons.items()}

    def images(count: int) -> Tensor:
        return x.repeat(-(-count // len(x)), *[1] * (x.ndim - 1))[:count]

    def at(steps: int, batch: Tensor, delay: Any) -> None:
        snn.timesteps = steps
        snn.set_delay(delay)
        snn(batch)

    calls: dict[str, Call] = {f"T={before}, batch {n}": partial(at, before, images(n), 0) for n in batches}
    few = images(64)
    calls.update({f"T={steps}, batch 64": partial(at, steps, few, 0) for steps in (1, 2, 4, 8, 16, 32)})
    calls.update({f"T={steps}, full look-ahead, batch 64": partial(at, steps, few, "full") for steps in (1, 32)})
    try:
        with torch.no_grad():
            rows = _rows(calls, rounds)
    finally:
        snn.timesteps = before
        snn.set_delay(delays)
    for row in rows:
        row["us_per_image"] = row["median_s"] / int(str(row["name"]).rsplit(" ", 1)[1]) * 1e6
    return Case("scaling", next(iter(calls)), rows)


def measuring(snn: SpikingNetwork, x: Tensor, rounds: int) -> Case:
    """Calibration and noise analysis, against plain execution of the readings that they need."""
    copied = SpikingNetwork(
        snn.graph, {node.name: snn.tensors(node.name) for node in snn.graph.nodes if snn.tensors(node.name)},
        snn.neurons, snn.timesteps, snn.input_shapes,
    )  # fmt: skip
    calls: dict[str, Call] = {
        "three readings": partial(_readings, snn, x),
        "analog reading": partial(_ann, snn, x, 64, 1),
        "calibration": lambda: collect(copied, iter([x]), "channel"),
        "evaluate": lambda: analysis.evaluate(snn, x),
        "measure_noise": lambda: analysis.measure_noise(snn, x),
    }
    with torch.no_grad():
        return Case(f"measuring, T={snn.timesteps}, batch {len(x)}", "three readings", _rows(calls, rounds))


def _readings(snn: SpikingNetwork, x: Tensor) -> None:
    for reading in ("analog", "quantized", "spiking"):
        with snn.reading(reading):
            snn(x)


def _rows(calls: dict[str, Call], rounds: int) -> list[dict[str, Any]]:
    return [timing.row() for timing in paired(calls, next(iter(calls)), rounds).values()]
